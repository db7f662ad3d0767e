"""Training as a person starts it: it learns, is killed, resumes to the same bytes, and fails clearly."""

import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import model.train
from model.data.shards import ShardSet
from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.train import main
from model.training import checkpoint
from model.training.run import TrainerConfig
from model.training.validation import validate
from tests.lingering import linger
from tests.markov import VOCAB, write_markov_shards
from tests.trainings import Training

SEQUENCE = 16
STEPS = 120
OUTPUTS = ("final/model.safetensors", "final/config.json", "samples.json", "run.json")
MODEL = {"depth": 2, "width": 32, "heads": 2, "sequence_length": SEQUENCE}
TRAIN = {
    "seed": 1,
    "tokens": STEPS * 128,
    "tokens_per_step": 128,
    "micro_batch_sequences": 4,
    "optimizer": "muon",
    "learning_rate": 0.02,
    "embedding_learning_rate": 0.1,
    "head_learning_rate": 0.02,
    "scalar_learning_rate": 0.01,
    "warmup_steps": 2,
    "validation_every_steps": 40,
    "validation_tokens": 512,
    "checkpoint_every_steps": 10,
    "log_every_steps": 5,
    "sample_tokens": 8,
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return write_markov_shards(tmp_path_factory.mktemp("markov"))


def write_config(
    directory: Path,
    shards: Path,
    name: str = "run",
    model: dict | None = None,
    execution: dict | None = None,
    **train: object,
) -> Path:
    config = {
        "model": MODEL | (model or {}),
        "train": TRAIN | train,
        "shards": str(shards),
        "run_dir": str(directory / name),
        "sample_prompts": [[0], [3, 4]],
        "execution": {"device": "cpu", "threads": 1} | (execution or {}),
    }
    path = directory / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


def digests(run_dir: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in OUTPUTS}


def events(run_dir: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def wait_for(training: Training, event: str, times: int) -> None:
    for line in training.lines:
        times -= json.loads(line)["event"] == event
        if times == 0:
            return
    raise AssertionError(f"the process ended before {event}")


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    assert main([str(write_config(directory, shards))]) == 0
    return directory / "run"


def test_learns_markov_text(uninterrupted):
    done = events(uninterrupted, "done")[0]
    first, *_, last = events(uninterrupted, "validation")
    assert first["step"] == 0 and first["loss"] == pytest.approx(math.log(VOCAB), abs=0.05)
    assert last["step"] == done["step"] == STEPS
    assert last["loss"] == done["loss"] < 2.0, "unigram entropy is 3.43"
    samples = json.loads((uninterrupted / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == [[0], [3, 4]]
    assert all(len(sample["untrained"]) == len(sample["trained"]) == 8 for sample in samples)
    assert samples[0]["untrained"] != samples[0]["trained"]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "learning_rate": 0.01, "grad_clip": 1.0, "precision": "bf16"},
        {"flops": 4e9, "tokens": None, "schedule": "cosine"},
    ],
)
def test_other_settings_learn_too(shards, tmp_path, settings):
    assert main([str(write_config(tmp_path, shards, **settings))]) == 0
    assert events(tmp_path / "run", "done")[0]["loss"] < 2.5


def test_metrics_add_up(uninterrupted):
    run = json.loads((uninterrupted / "run.json").read_text())
    steps = events(uninterrupted, "step")
    assert [line["step"] for line in steps] == [1, *range(5, STEPS + 1, 5)]
    for line in steps:
        assert line["tokens"] == line["step"] * 128
        assert line["flops"] == line["tokens"] * run["flops_per_token"]
    assert (run["steps"], run["sequences_per_step"], run["validation_tokens"]) == (STEPS, 8, 512)
    assert run["budget"] == {"unit": "tokens", "value": STEPS * 128}


def test_final_model_is_the_trained_one(uninterrupted, shards):
    final = checkpoint.load_final(uninterrupted / "final")
    assert (final.eot_token, final.tokenizer_sha256, final.model.config.vocab_size) == (0, "abc", VOCAB)
    again = validate(
        final.model,
        ShardSet(shards, "val"),
        np.array([0] + [2] * 31),
        tokens=512,
        sequences=4,
        autocast=torch.autocast("cpu", enabled=False),
    )
    assert again.loss == pytest.approx(events(uninterrupted, "done")[0]["loss"], rel=1e-6)


def test_finished_run_is_not_run_again(uninterrupted, shards, capsys):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    assert main([str(uninterrupted.parent / "run.json")]) == 0
    assert json.loads(capsys.readouterr().out) == events(uninterrupted, "done")[0]
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def kill_after(checkpoints: int, config: Path) -> None:
    training = Training(config, prepare=linger)
    wait_for(training, "checkpoint", checkpoints)
    training.kill()


def test_two_runs_are_bit_identical(uninterrupted, shards, tmp_path):
    assert main([str(write_config(tmp_path, shards))]) == 0
    assert digests(tmp_path / "run") == digests(uninterrupted)


def test_killed_run_resumes_to_the_same_bytes(uninterrupted, shards, tmp_path):
    config = write_config(tmp_path, shards)
    kill_after(2, config)
    assert main([str(config)]) == 0
    assert events(tmp_path / "run", "resume")[0]["step"] >= 20
    assert digests(tmp_path / "run") == digests(uninterrupted)
    steps = [line["step"] for line in events(tmp_path / "run", "step")]
    assert steps == [1, *range(5, STEPS + 1, 5)], "steps done twice are listed once"


def test_sigterm_saves_and_resumes_to_the_same_bytes(uninterrupted, shards, tmp_path):
    config = write_config(tmp_path, shards)
    training = Training(config, prepare=linger)
    wait_for(training, "step", 3)
    training.process.terminate()
    assert training.end() == 143
    stopped = events(tmp_path / "run", "interrupted")[0]["step"]
    assert main([str(config)]) == 0
    assert events(tmp_path / "run", "resume")[0]["step"] == stopped < STEPS
    assert digests(tmp_path / "run") == digests(uninterrupted)


def endless_building() -> None:
    """In the trainer: a network whose building does not come back to Python."""

    def build(config: TrainerConfig) -> None:
        Path(config.run_dir).mkdir()
        sum(itertools.repeat(1, 10**11))

    model.train.Trainer = build  # type: ignore[misc, assignment]


def test_sigterm_while_the_network_is_built_ends_at_once(shards, tmp_path):
    training = Training(write_config(tmp_path, shards), prepare=endless_building)
    while not (tmp_path / "run").exists() and training.process.is_alive():
        time.sleep(0.02)
    training.process.terminate()
    training.process.join(10)
    code = training.process.exitcode
    training.kill()
    assert code == -signal.SIGTERM


def test_a_run_resumes_from_a_checkpoint_by_time_to_the_same_bytes(shards, tmp_path):
    never = {"checkpoint_every_steps": 10 * STEPS}
    assert main([str(write_config(tmp_path, shards, "straight", **never))]) == 0
    assert events(tmp_path / "straight", "checkpoint") == [], "the default is minutes"
    config = write_config(tmp_path, shards, execution={"checkpoint_every_minutes": 1e-4}, **never)
    kill_after(2, config)
    assert main([str(config)]) == 0
    assert 2 <= events(tmp_path / "run", "resume")[0]["step"] < STEPS
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")


def test_a_checkpoint_by_time_that_is_slow_to_write_holds_nothing_up(shards, tmp_path, monkeypatch):
    save, saved = checkpoint.save, []

    def slow_at_first(directory: Path, step: int, *tensors: dict) -> Path:
        deadline = time.monotonic() + 60
        while not saved and events(tmp_path / "run", "step")[-1]["step"] < STEPS // 2:
            assert time.monotonic() < deadline, "training waits for the checkpoint"
            time.sleep(0.01)
        saved.append(step)
        return save(directory, step, *tensors)

    monkeypatch.setattr(checkpoint, "save", slow_at_first)
    config = write_config(tmp_path, shards, execution={"checkpoint_every_minutes": 1e-4}, log_every_steps=1)
    assert main([str(config)]) == 0
    written = [line["step"] for line in events(tmp_path / "run", "checkpoint")]
    assert written == saved and saved[0] == 1
    assert saved[1] >= STEPS // 2, "not those by step either: the one that is written is about as new"


def test_damaged_checkpoint_falls_back_to_the_one_before(uninterrupted, shards, tmp_path):
    config = write_config(tmp_path, shards)
    kill_after(3, config)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[-1]
    data = bytearray((newest / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(data)
    assert main([str(config)]) == 0
    assert events(tmp_path / "run", "resume")[0]["step"] < int(newest.name[5:])
    assert digests(tmp_path / "run") == digests(uninterrupted)


def one_line_error(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_non_finite_loss_stops_and_keeps_a_good_checkpoint(shards, tmp_path, capsys):
    # weights are multiplied by -10^4 in every step, until they overflow
    config = write_config(
        tmp_path,
        shards,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e7,
        warmup_steps=0,
        checkpoint_every_steps=1,
    )
    assert main([str(config)]) == 1
    assert re.search(r"is (nan|inf) in step \d+", one_line_error(capsys))
    assert not (tmp_path / "run" / "final").exists()
    found, _ = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found.step > 1 and all(weight.isfinite().all() for weight in found.weights.values())


def test_another_configuration_on_the_same_run_dir_is_refused(uninterrupted, shards, capsys):
    config = write_config(uninterrupted.parent, shards, seed=2)
    assert main([str(config)]) == 1
    assert "train.seed was 1 and is now 2" in one_line_error(capsys)
    write_config(uninterrupted.parent, shards)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": "/nonexistent"}, "/nonexistent/shards.json"),
        ({"sample_prompts": [[32]]}, "below 32"),
        ({"sample_prompts": [[]]}, "sample_prompts"),
        ({"colour": 1}, "'colour'"),
        ({"train": TRAIN | {"tokens_per_step": 100}}, "tokens_per_step 100"),
        ({"model": MODEL | {"vocab_size": 64}}, "vocab_size is 64"),
        ({"execution": {"device": "tpu"}}, "'tpu'"),
    ],
)
def test_wrong_configuration_is_one_line(shards, tmp_path, capsys, change, message):
    config = write_config(tmp_path, shards)
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    assert main([str(config)]) == 1
    assert message in one_line_error(capsys)


def test_full_disk_is_one_line_and_leaves_no_half_checkpoint(shards, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    config = write_config(tmp_path, shards)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))  # run.json fits, a checkpoint does not
    try:
        code = main([str(config)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 1
    assert "step_000000010" in one_line_error(capsys)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_bytes_of_tokens_that_are_not_those_of_the_text_are_refused(shards, tmp_path, capsys):
    directory = shutil.copytree(shards, tmp_path / "shards")
    np.array([0] + [3] * (VOCAB - 1), dtype="<u2").tofile(directory / "token_bytes.bin")
    assert main([str(write_config(tmp_path, directory))]) == 1
    assert "its text has 3998: bits per byte would be wrong" in one_line_error(capsys)


def test_bits_per_byte_by_hand(shards):
    model = GPT(GPTConfig(**MODEL, vocab_size=VOCAB))
    initialise(model, 0)
    with torch.no_grad():
        model.head.weight.zero_()  # every token costs log2(32) = 5 bits and stands for 2 bytes
    special = np.array([0] + [2] * 15 + [0] * 8 + [2] * 8)  # their bits must not be counted either
    result = validate(
        model, ShardSet(shards, "val"), special, tokens=512, sequences=3, autocast=torch.autocast("cpu", enabled=False)
    )
    assert (result.loss, result.bits_per_byte) == (pytest.approx(math.log(32)), pytest.approx(2.5))


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"w": torch.full((2,), step)}, {"m": torch.zeros(1)}, {"seconds": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000002", "step_000000003"]
    found, refused = checkpoint.latest(tmp_path)
    assert (found.step, found.weights["w"].tolist(), refused) == (3, [3.0, 3.0], [])


def test_the_writer_writes_what_was_there_while_the_caller_goes_on(tmp_path, monkeypatch):
    save, may_write = checkpoint.save, threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: may_write.wait(30) and save(*arguments))
    weight = torch.zeros(1000)
    with checkpoint.Writer(tmp_path) as writer:
        for step in (1, 2):
            may_write.clear()
            weight.fill_(step)
            writer.save(step, [("w", weight)], [("m", torch.zeros(()))], {})
            weight.fill_(-1.0)  # the next step, before anything is on the disk
            assert not (tmp_path / f"step_{step:09d}").exists()
            may_write.set()
        writer.wait()
        assert writer.written() == [1, 2]
    written = [checkpoint.load(path).weights["w"] for path in sorted(tmp_path.iterdir())]
    assert [weight.unique().tolist() for weight in written] == [[1.0], [2.0]]


def test_an_error_of_the_writer_is_raised_by_the_next_call(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder belongs")
    writer = checkpoint.Writer(tmp_path / "checkpoints")
    writer.save(1, [("w", torch.zeros(1))], [], {})
    with pytest.raises(checkpoint.CheckpointError, match="step_000000001"):
        while not writer.written():
            time.sleep(0.01)
    assert writer.written() == []


def test_a_file_of_tensors_is_the_one_that_safetensors_writes(tmp_path):
    noise = torch.Generator().manual_seed(0)
    tensors = {
        f"ä {number}.weight": (100 * torch.randn(shape, generator=noise)).to(dtype)
        for number, (shape, dtype) in enumerate(
            (shape, dtype) for dtype in checkpoint._DTYPES for shape in [(3, 5), (), (0, 2), (7,)]
        )
    }
    tensors["transposed"] = torch.randn(4, 6, generator=noise).T
    written = checkpoint.write_tensors(tmp_path / "ours", tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_start_says_how_large_a_checkpoint_is(uninterrupted):
    [start] = events(uninterrupted, "start")
    newest = sorted((uninterrupted / "checkpoints").glob("step_*"))[-1]
    size = sum(path.stat().st_size for path in newest.glob("*.safetensors"))
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in newest.glob("*.safetensors"))
    assert start["checkpoint_bytes"] == size - headers


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_finished_model_with_a_flipped_bit_is_none(tmp_path):
    model = GPT(GPTConfig(depth=1, width=16, heads=2, sequence_length=8, vocab_size=40))
    initialise(model, 0)
    checkpoint.publish_final(tmp_path / "final", model, 0, None, {})
    assert checkpoint.read_final(tmp_path / "final")["eot_token"] == 0
    flip_last_bit(tmp_path / "final" / "model.safetensors")
    assert checkpoint.read_final(tmp_path / "final") is None
    with pytest.raises(checkpoint.CheckpointError, match="holds no intact finished model"):
        checkpoint.load_final(tmp_path / "final")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state"])
def test_latest_passes_over_damage(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.full((2,), step)}, {"m": torch.zeros(1)}, {"seconds": 1.0})
    newest = tmp_path / "step_000000002"
    if damage == "truncate":
        os.truncate(newest / "model.safetensors", 20)
    elif damage == "flip":  # which safetensors itself does not see
        flip_last_bit(newest / "model.safetensors")
    elif damage == "remove":
        (newest / "state.json").unlink()
    else:
        (newest / "state.json").write_text((newest / "state.json").read_text().replace("1.0", "9.0"))
    found, refused = checkpoint.latest(tmp_path)
    assert found.step == 1 and "step_000000002" in refused[0]
