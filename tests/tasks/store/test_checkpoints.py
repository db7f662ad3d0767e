"""A training whose machine is lost goes on elsewhere from the store, to the same bytes."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from model.data.shards import Dataset, Split, write_dataset, write_shard
from model.network.config import GPTConfig
from model.training.config import TrainConfig
from model.training.run import read_config
from tasks.benchmarks import Items
from tasks.store.backends import LocalStore
from tasks.store.checkpoints import CHECKPOINTS_KEPT, CheckpointUploads, discard_damaged, restore_checkpoint
from tasks.store.context import RunContext, open_context
from tasks.store.manifest import StageError
from tasks.store.objects import Digest, digest_file
from tasks.store.stage import Stage, StageResult, build_or_skip, fetch_outputs
from tasks.train import read_metrics, training_stage
from tests.lingering import SITE
from tests.processes import family

ROOT = Path(__file__).resolve().parents[3]
VOCAB, STEPS = 32, 100
MODEL = GPTConfig(depth=2, width=32, heads=2, sequence_length=16)
TRAIN = TrainConfig(
    seed=1,
    tokens=STEPS * 128,
    tokens_per_step=128,
    micro_batch_sequences=8,
    learning_rate=0.02,
    embedding_learning_rate=0.1,
    head_learning_rate=0.02,
    scalar_learning_rate=0.01,
    validation_every_steps=50,
    validation_tokens=256,
    checkpoint_every_steps=5,
    log_every_steps=50,
    sample_tokens=4,
)


def write_shards(work: Path, out: Path) -> None:
    noise = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 20_000), ("val", 2_000)):
        tokens = noise.integers(1, VOCAB, count).astype(np.uint16)
        tokens[0] = 0
        write_shard(out, split, 0, tokens, np.array([0]), ["all"])
        splits[split] = Split(documents=1, tokens=count, bytes=2 * (count - 1), shards=1)
    write_dataset(out, Dataset(VOCAB, 0, "abc", splits, np.array([0] + [2] * (VOCAB - 1))))


def write_tokenizer(work: Path, out: Path) -> None:
    made = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(out / "tokenizer.json"))


def trained(context: RunContext, config: TrainConfig = TRAIN) -> StageResult:
    shards, tokenizer = (
        build_or_skip(Stage(name=name, version=1, config={}, inputs={}), context, build)
        for name, build in (("shard", write_shards), ("tokenizer", write_tokenizer))
    )
    return training_stage(MODEL, config, shards, tokenizer, Items({}, {}, {}), context)


@pytest.fixture(params=["local", "s3"])
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[RunContext, RunContext]:
    """Two machines, each with a cache of its own, that share a store."""
    local = request.param == "local"
    url = str(tmp_path / "store") if local else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    first = open_context(url, str(tmp_path / "first"), 1, "cpu", None, 0.0)
    return first, replace(first, cache=tmp_path / "second")


def uploaded(context: RunContext) -> list[str]:
    return [key for key in context.store.list("checkpoints") if key.endswith("/uploaded.json")]


@pytest.mark.parametrize("machines", ["s3"], indirect=True)
def test_another_machine_goes_on_from_the_store_to_the_same_bytes(
    machines: tuple[RunContext, RunContext], tmp_path: Path
):
    first, second = machines
    program = (
        f"from tests.tasks.store.test_checkpoints import *; "
        f"trained(open_context({first.store.url!r}, {str(first.cache)!r}, "
        f"1, 'cpu', None, 0.0))"
    )
    (tmp_path / "sitecustomize.py").write_text(SITE.format(seconds=1))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    lost = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    deadline = time.monotonic() + 300
    while not uploaded(first):
        assert lost.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    for process in family(lost.pid):
        os.kill(process, signal.SIGKILL)
    lost.wait()

    result = trained(second)
    resumed = [event["step"] for event in read_metrics(fetch_outputs(result, second)) if event["event"] == "resume"]
    assert resumed and 5 <= resumed[0] < STEPS
    assert list(second.store.list("checkpoints")) == []
    straight = trained(open_context(str(tmp_path / "other"), None, 1, "cpu", None, 0.0))
    assert result.digest == straight.digest


def test_threads_and_micro_batch_are_in_the_provenance_and_not_in_the_key(tmp_path: Path):
    config, keys = replace(TRAIN, tokens=4 * 128, micro_batch_sequences=None), set()
    for workers in (1, 2):
        context = open_context(str(tmp_path / f"store{workers}"), None, workers, "cpu", None, 0.0)
        manifest = trained(context, config).manifest
        keys.add(manifest.key)
        assert manifest.provenance["execution"] == [
            {
                "from_step": 0,
                "device": "cpu",
                "threads": workers,
                "processes": 1,
                "deterministic": True,
                "window_kernel": "sdpa",
                "micro_batch_sequences": 8,
            }
        ]
    assert len(keys) == 1


def test_the_trainer_is_asked_for_deterministic_algorithms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("tasks.train.run_module", lambda name, run, *rest: asked.append(read_config(run["config"])))
    for choice in ({}, {"deterministic": True}):
        context = open_context(str(tmp_path / "store"), None, 1, "cpu", None, 0.0, **choice)
        with pytest.raises(StageError, match="No such file"):  # nothing was trained
            trained(context)
    assert [run.execution.deterministic for run in asked] == [False, True]


def run_folder(cache: Path, steps: range) -> Path:
    """What a trainer leaves, with checkpoints of one file."""
    run_dir = cache / "run"
    for step in steps:
        folder = run_dir / "checkpoints" / f"step_{step:09d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step, "files": {}}))
    for name in ("run.json", "metrics.jsonl", "samples.json"):
        (run_dir / name).write_text(name)
    return run_dir


def test_the_store_keeps_the_last_ones_and_a_damaged_one_is_passed_over(machines: tuple[RunContext, RunContext]):
    first, second = machines
    run_dir, warnings = run_folder(first.cache, range(1, 6)), list[str]()
    for step in range(1, 6):
        uploads = CheckpointUploads("k", run_dir, first.store, warnings.append)
        uploads({"event": "checkpoint", "step": step})
        uploads.close(keep=True)
    assert [key.split("/")[2] for key in uploaded(first)] == ["step_000000004", "step_000000005"]
    assert len(list(first.store.list("checkpoints/k"))) == CHECKPOINTS_KEPT * 5

    damaged = first.cache / "damaged"
    damaged.write_text("{}")
    first.store.put("checkpoints/k/step_000000005/state.json", damaged, digest_file(damaged))
    there = second.cache / "run"
    restore_checkpoint("k", there, second.store, second.cache, logging.getLogger("daily_train"))
    assert [path.name for path in sorted((there / "checkpoints").glob("step_*"))] == ["step_000000004"]
    assert json.loads((there / "checkpoints" / "step_000000004" / "state.json").read_text())["step"] == 4
    assert (there / "run.json").read_text() == "run.json"
    assert warnings == []


@pytest.mark.parametrize("machines", ["local"], indirect=True)
def test_a_checkpoint_that_is_damaged_here_comes_from_the_store(machines: tuple[RunContext, RunContext]):
    first, _ = machines
    run_dir = run_folder(first.cache, range(1, 3))
    uploads = CheckpointUploads("k", run_dir, first.store, print)
    uploads({"event": "checkpoint", "step": 2})
    uploads.close(keep=True)
    state = run_dir / "checkpoints" / "step_000000002" / "state.json"
    whole = state.read_bytes()
    state.unlink()  # a store in a directory may hold the same file
    state.write_bytes(whole.replace(b"2", b"3"))
    restore_checkpoint("k", run_dir, first.store, first.cache, logging.getLogger("daily_train"))
    assert state.read_bytes() == whole


@pytest.mark.parametrize("machines", ["local"], indirect=True)
@pytest.mark.parametrize("number, goes_on", [(errno.ENOSPC, False), (errno.EACCES, False), (errno.EIO, True)])
def test_a_full_disk_or_a_store_that_refuses_costs_no_checkpoint(
    machines: tuple[RunContext, RunContext], monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool
):
    first, second = machines
    run_dir = run_folder(first.cache, range(1, 3))
    for step in (1, 2):
        uploads = CheckpointUploads("k", run_dir, first.store, print)
        uploads({"event": "checkpoint", "step": step})
        uploads.pool.shutdown()
    copy = shutil.copyfile

    def copyfile(source: Path, target: Path) -> None:
        if "step_000000002" in str(target):
            raise OSError(number, os.strerror(number), str(target))
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    there = second.cache / "run"
    with nullcontext() if goes_on else pytest.raises(OSError, match=os.strerror(number)):
        restore_checkpoint("k", there, second.store, second.cache, logging.getLogger("daily_train"))
    assert [path.name for path in (there / "checkpoints").iterdir()] == (["step_000000001"] if goes_on else [])


@pytest.mark.parametrize("machines", ["local"], indirect=True)
def test_a_deeply_nested_list_of_files_is_passed_over(machines: tuple[RunContext, RunContext], caplog):
    first, second = machines
    first.store.publish("checkpoints/k/step_000000009/uploaded.json", b"[" * 100_000)
    restore_checkpoint("k", second.cache / "run", second.store, second.cache, logging.getLogger("daily_train"))
    assert "step_000000009 is passed over" in caplog.text


@pytest.mark.parametrize("machines", ["local"], indirect=True)
@pytest.mark.parametrize("name", ["../../../../escaped", "/escaped", "a/b", "", ".."])
def test_a_name_in_a_list_of_files_that_leads_elsewhere_is_refused(
    machines: tuple[RunContext, RunContext], name: str, caplog
):
    first, second = machines
    uploads = CheckpointUploads("k", run_folder(first.cache, range(1, 3)), first.store, print)
    uploads({"event": "checkpoint", "step": 1})
    uploads.close(keep=True)
    first.store.publish("checkpoints/k/step_000000009/uploaded.json", json.dumps({name: {}}).encode())
    first.store.publish("checkpoints/k/stray/uploaded.json", b"{}")
    first.store.publish("checkpoints/k/uploaded.json", b"{}")
    restore_checkpoint("k", second.cache / "run", second.store, second.cache, logging.getLogger("daily_train"))
    assert f"step_000000009 is passed over: file {name!r}: " in caplog.text
    assert [path.name for path in (second.cache / "run" / "checkpoints").iterdir()] == ["step_000000002"]


@pytest.mark.parametrize("name", ["run.json", "samples.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "{", "[]", "7", '[{"prompt": "x"}]', "[" * 50_000, None])
def test_what_is_damaged_beside_the_checkpoints_is_written_anew(tmp_path: Path, name: str, content: str | None):
    run_dir = tmp_path / "run"
    (run_dir / "final").mkdir(parents=True)
    whole = {
        "run.json": '{"steps": 2}',
        "samples.json": '[{"prompt": [1], "untrained": [2], "trained": [3]}]',
        "metrics.jsonl": '{"event": "done"}\n',
    }
    for file, text in whole.items():
        (run_dir / file).write_text(text)
    discard_damaged(run_dir, logging.getLogger("daily_train"))
    assert (run_dir / "final").exists()
    (run_dir / name).unlink()
    if content is not None:
        (run_dir / name).write_text(content)
    discard_damaged(run_dir, logging.getLogger("daily_train"))
    kept = {file for file in whole if (run_dir / file).exists()}
    good = (name, content) == ("samples.json", "[]")  # a run without prompts
    assert (run_dir / "final").exists() is good
    assert kept >= set(whole) - {name} and (name == "metrics.jsonl" or good or name not in kept)


def test_a_store_that_fails_does_not_end_the_training(tmp_path: Path):
    context, warnings = open_context(str(tmp_path / "store"), None, 1, None, None, 0.0), list[str]()
    (tmp_path / "store" / "checkpoints").write_text("a file where a folder belongs")
    uploads = CheckpointUploads("k", run_folder(context.cache, range(1, 2)), context.store, warnings.append)
    uploads({"event": "checkpoint", "step": 1})
    uploads.close(keep=True)
    [warning] = warnings
    assert "step_000000001 is not uploaded" in warning


class HeldStore(LocalStore):
    """A store that stands still until it is let go."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.reached, self.go = threading.Event(), threading.Event()

    def put(self, key: str, path: Path, digest: Digest) -> None:
        self.reached.set()
        assert self.go.wait(60)
        super().put(key, path, digest)


@pytest.mark.parametrize("keep", [True, False])
def test_a_store_that_is_slow_holds_one_checkpoint_and_the_newest(
    tmp_path: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
):
    store, warnings = HeldStore(str(tmp_path / "store")), list[str]()
    run_dir = run_folder(tmp_path / "cache", range(1, 6))
    uploads = CheckpointUploads("k", run_dir, store, warnings.append)
    for step in range(1, 6):
        uploads({"event": "checkpoint", "step": step})
        assert store.reached.wait(60)
    staged = sorted(path.name for path in uploads.staging.iterdir())
    assert staged == ["step_000000001", "step_000000005"]
    shutdown = uploads.pool.shutdown

    def let_go_and_shut_down() -> None:
        store.go.set()
        shutdown()

    monkeypatch.setattr(uploads.pool, "shutdown", let_go_and_shut_down)  # when close() waits for it
    uploads.close(keep=keep)
    assert [key.split("/")[2] for key in store.list("checkpoints") if key.endswith("/uploaded.json")] == (
        ["step_000000001", "step_000000005"] if keep else ["step_000000001"]
    )
    assert list(uploads.staging.iterdir()) == warnings == []


def test_hours_are_tokens_in_the_key_and_another_machine_does_not_measure_again(tmp_path: Path, monkeypatch):
    url = str(tmp_path / "store")
    first = open_context(url, str(tmp_path / "first"), 1, "cpu", None, 0.0)
    hours = replace(TRAIN, tokens=None, gpu_hours=1 / 3600, checkpoint_every_steps=10_000)
    result = trained(first, hours)
    tokens = result.manifest.config["train"]["tokens"]
    assert tokens > 128 and tokens % 128 == 0 and result.manifest.config["train"]["gpu_hours"] is None
    assert json.loads((fetch_outputs(result, first) / "run.json").read_text())["tokens"] == tokens
    timing = json.loads(next((tmp_path / "store" / "stages" / "budget").rglob("timing.json")).read_text())
    assert timing["tokens"] == tokens and timing["seconds"] <= 1.0 and timing["fixed_seconds"] > 0

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("the store holds the timing and the training")

    monkeypatch.setattr("tasks.budget.run_module", measured_again)
    again = trained(replace(first, cache=tmp_path / "second"), hours)
    assert again.skipped and again.manifest.key == result.manifest.key
