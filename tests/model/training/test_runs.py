"""Long runs: budgets in hours and dollars, guards, any interruption, several processes."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.train import main
from model.training import checkpoint
from model.training.loss_guard import LossGuard
from model.training.timing import Timing, measure
from tests.markov import write_markov_shards
from tests.trainings import Training, train_together

SEQUENCE = 16
MODEL = {
    "depth": 2,
    "width": 32,
    "heads": 2,
    "sequence_length": SEQUENCE,
    "window_pattern": "SL",
    "value_embeddings": True,
    "residual_lambdas": True,
    "mlp": "moe",
    "experts": 4,
    "experts_per_token": 2,
}
TRAIN = {
    "seed": 1,
    "tokens": 100 * 128,
    "tokens_per_step": 128,
    "micro_batch_sequences": 4,
    "optimizer": "muon",
    "learning_rate": 0.02,
    "embedding_learning_rate": 0.1,
    "head_learning_rate": 0.02,
    "muon_beta2": 0.9,
    "scalar_learning_rate": 0.01,
    "warmup_steps": 2,
    "validation_every_steps": 50,
    "validation_tokens": 512,
    "checkpoint_every_steps": 4,
    "log_every_steps": 1,
    "sample_tokens": 4,
}
ROOT = Path(checkpoint.__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_markov_shards(tmp_path_factory.mktemp("markov"))


def write_config(
    directory: Path, shards: Path, name: str, execution: dict | None = None, model: dict | None = None, **train: object
) -> Path:
    config = {
        "model": MODEL | (model or {}),
        "train": TRAIN | train,
        "shards": str(shards),
        "run_dir": str(directory / name),
        "sample_prompts": [[0]],
        "execution": {"device": "cpu", "threads": 1} | (execution or {}),
    }
    path = directory / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


def events(run_dir: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def digest(run_dir: Path) -> str:
    names = ("final/model.safetensors", "final/config.json", "samples.json", "run.json")
    return hashlib.sha256(b"".join((run_dir / name).read_bytes() for name in names)).hexdigest()


def interrupt(training: Training, run_dir: Path, chance: random.Random) -> str:
    """Stop a run at a random moment; how."""
    process, how = training.process, chance.choice(["SIGTERM", "SIGKILL", "SIGKILL in a write"])
    wait = time.monotonic() + chance.uniform(0.03, 0.25)
    metrics = run_dir / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    while process.is_alive() and not (metrics.exists() and metrics.stat().st_size not in (0, size)):
        time.sleep(0.002)  # it has begun
    while process.is_alive() and time.monotonic() < wait:
        time.sleep(0.002)
    if how == "SIGKILL in a write":
        while process.is_alive() and not list((run_dir / "checkpoints").glob(".step_*")):
            pass
    if process.is_alive():
        os.kill(training.pid, signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    training.end()
    return how


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_interruptions_end_in_the_bytes_of_the_run_without_any(shards, tmp_path, precision):
    assert main([str(write_config(tmp_path, shards, "straight", precision=precision))]) == 0
    by_time = {"checkpoint_every_minutes": 1e-3}  # beside those by step
    config = write_config(tmp_path, shards, "interrupted", by_time, precision=precision)
    run_dir = tmp_path / "interrupted"
    chance, done = random.Random(precision), []
    while len(done) < 20:
        training = Training(config)
        how = interrupt(training, run_dir, chance)
        if training.process.exitcode == 0:  # too fast for so many: begin again, the interruptions so far count
            assert digest(run_dir) == digest(tmp_path / "straight")
            for path in sorted(run_dir.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            continue
        assert training.process.exitcode in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM)
        done.append(how)
    assert main([str(config)]) == 0
    assert digest(run_dir) == digest(tmp_path / "straight")
    assert len(set(done)) == 3


def test_hours_become_steps_once(shards, tmp_path, capsys, monkeypatch):
    timings = []

    def at_most(trainer) -> Timing:
        """What is measured; on a loaded machine still enough for some steps."""
        found = measure(trainer)
        timings.append(Timing(step=min(found.step, 0.05), fixed=min(found.fixed, 0.5)))
        return timings[-1]

    monkeypatch.setattr("model.training.trainer.measure", at_most)
    config = write_config(tmp_path, shards, "run", tokens=None, gpu_hours=1.5 / 3600)
    assert main([str(config)]) == 0
    run, [timing] = json.loads((tmp_path / "run" / "run.json").read_text()), timings
    assert run["budget"] == {"unit": "gpu_hours", "value": 1.5 / 3600} and run["steps"] > 5
    assert 0 <= 1.5 - timing.seconds(run["steps"]) < timing.step
    assert run["tokens"] == run["steps"] * 128
    assert events(tmp_path / "run", "done")[0]["seconds"] < 10
    for directory in ("final", "checkpoints"):  # started again it keeps its steps, and ends as it did
        for path in sorted((tmp_path / "run" / directory).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "run" / directory).rmdir()
    before = events(tmp_path / "run", "done")[0]["loss"]
    assert main([str(config)]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == run and len(timings) == 1
    assert events(tmp_path / "run", "done")[0]["loss"] == before


def test_timing_leaves_no_trace(shards, tmp_path):
    losses = []
    for name, execution in (("plain", {}), ("timed", {"usd_limit": 100.0, "usd_per_hour": 1.0})):
        assert main([str(write_config(tmp_path, shards, name, execution, tokens=10 * 128))]) == 0
        losses.append(digest(tmp_path / name))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("train", "execution", "message"),
    [
        ({"tokens": None, "usd": 0.001}, {}, "execution.usd_per_hour is null"),
        ({"tokens": None, "usd": 1e-12}, {"usd_per_hour": 1.0}, "usd is less than one step"),
        ({"tokens": 10**12}, {"usd_limit": 0.01, "usd_per_hour": 3.0}, "projected to cost .* over usd_limit 0.01"),
        ({"usd": 1.0}, {}, "exactly one budget, but tokens and usd are both given"),
    ],
)
def test_budget_that_cannot_be_kept_stops_before_the_first_step(shards, tmp_path, capsys, train, execution, message):
    assert main([str(write_config(tmp_path, shards, "run", execution, **train))]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_guard_sees_spikes_and_nothing_else():
    noise = random.Random(0)
    guard = LossGuard()
    for step in range(2000):  # a falling, noisy loss
        guard.observe(3 + 5 / (1 + step / 50) + noise.gauss(0, 0.05), 8.0)
        assert guard.spikes == 0
    mean = guard.mean
    for count in range(1, 6):
        guard.observe(4.5, 8.0)
        assert guard.spikes == count
    assert guard.mean == mean, "spikes do not become normal"
    guard.observe(3.1, 8.0)
    assert guard.spikes == 0


def test_loss_spike_stops_and_keeps_the_checkpoint_before_it(shards, tmp_path, capsys, monkeypatch):
    def torn(train, step, steps):
        return 1.0 if step < 120 else 300.0

    monkeypatch.setattr("model.training.trainer.learning_rate_multiplier", torn)
    config = write_config(tmp_path, shards, "run", tokens=400 * 128, spike_steps=5, checkpoint_every_steps=1)
    assert main([str(config)]) == 1
    error = capsys.readouterr().err
    assert "its running mean" in error and "for 5 steps" in error and error.count("\n") == 1
    found, _ = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found.state["guard"]["spikes"] == 0 and f"in step {found.step + 5}," in error


def test_zero_gradient_stops(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "model.training.trainer.initialise", lambda model, seed: [p.data.zero_() for p in model.parameters()]
    )
    assert main([str(write_config(tmp_path, shards, "run"))]) == 1
    assert "grad_norm is 0 in step 1" in capsys.readouterr().err


# three experts, three layers: what two processes cannot share evenly
UNEVEN = {"depth": 3, "experts": 3}
SHORT: dict[str, Any] = {
    "tokens": 20 * 128,
    "validation_every_steps": 10,
    "validation_tokens": 192,
    "checkpoint_every_steps": 10,
    "grad_clip": 1.0,
    "cautious_decay": True,
    "weight_decay": 0.1,
}


def torchrun(config: Path, processes: int) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "model.train",
        str(config),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr


def forked(config: Path, processes: int) -> None:
    for training in train_together(config, processes):
        assert training.process.exitcode == 0, training.errors


@pytest.fixture(scope="module")
def one(shards, tmp_path_factory) -> Path:
    """The run of a single process, and its checkpoint in the middle."""
    directory = tmp_path_factory.mktemp("one")
    assert main([str(write_config(directory, shards, "run", model=UNEVEN, **SHORT))]) == 0
    return directory / "run"


def assert_same_curve(one: Path, other: Path) -> None:
    for event in ("step", "validation"):
        losses = [[line["loss"] for line in events(run, event)] for run in (one, other)]
        assert len(losses[0]) > 1 and losses[0] == pytest.approx(losses[1], abs=1e-4)
    records = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    assert all(record.pop("execution") for record in records) and records[0] == records[1]


@pytest.fixture(scope="module", params=[("ddp", torchrun), ("fsdp", forked)], ids=["ddp", "fsdp"])
def two(request, shards, tmp_path_factory) -> Path:
    """The configuration of the same run, done by two processes."""
    directory, (parallelism, started) = tmp_path_factory.mktemp("two"), request.param
    config = write_config(directory, shards, "run", {"parallelism": parallelism}, UNEVEN, **SHORT)
    started(config, 2)
    return config


def test_two_processes_train_as_one(one, two):
    run_dir = two.parent / "run"
    assert_same_curve(one, run_dir)
    loads = [[line["largest_expert_load"] for line in events(run, "step")] for run in (one, run_dir)]
    assert loads[0] == pytest.approx(loads[1], abs=0.1)
    [alone], [shared] = events(one, "start"), events(run_dir, "start")
    assert shared["processes"] == 2
    assert shared["checkpoint_bytes"] == alone["checkpoint_bytes"]
    sharded = json.loads(two.read_text())["execution"]["parallelism"] == "fsdp"
    # the first process has 2 of 3 experts
    assert 0.5 <= shared["weight_bytes"] / alone["weight_bytes"] < 0.6 if sharded else 1


def test_one_process_goes_on_from_the_checkpoint_of_two(one, two):
    run_dir = two.parent / "run"
    before = load_file(run_dir / "final" / "model.safetensors")
    shutil.rmtree(run_dir / "final")
    assert main([str(two)]) == 0
    assert events(run_dir, "resume")[0]["step"] == 10
    assert "processes: 2 until now, 1 from here on" in events(run_dir, "execution")[0]["message"]
    assert_same_curve(one, run_dir)
    after = load_file(run_dir / "final" / "model.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)


def test_two_processes_go_on_sharded_from_the_checkpoint_of_one(one, shards, tmp_path):
    shutil.copytree(one, tmp_path / "run", ignore=shutil.ignore_patterns("final"))
    execution = {"parallelism": "fsdp", "checkpoint_every_minutes": 1e-4}
    forked(write_config(tmp_path, shards, "run", execution, UNEVEN, **SHORT), 2)
    assert events(tmp_path / "run", "resume")[0]["step"] == 10
    assert_same_curve(one, tmp_path / "run")
    by_time = [line["step"] for line in events(tmp_path / "run", "checkpoint") if line["step"] % 10]
    assert by_time, "the first process's clock decides for both, which gather the tensors together"


def test_processes_that_cannot_share_a_step_are_refused(shards, tmp_path):
    ended = train_together(write_config(tmp_path, shards, "run", tokens_per_step=64, tokens=6400), 3)
    assert [training.process.exitcode for training in ended] == [1, 1, 1]
    assert all("3 processes cannot share the 4 sequences" in training.errors for training in ended)
