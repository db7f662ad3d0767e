"""What the bytes of a run depend on: threads and micro-batch are kept, memory that runs out costs no step."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.data.shards import Dataset, Split, write_dataset, write_shard
from model.network.config import GPTConfig
from model.network.gpt import GPT
from model.optimizers.muon import Muon
from model.planning.plan import choose_micro_batch, memory_bytes
from model.train import TERMINATED, main, train
from model.training.config import TrainConfig
from model.training.device import prepare_device, use_deterministic_algorithms
from model.training.out_of_memory import out_of_memory
from model.training.run import TrainerConfig, TrainerExecution, read_config

VOCAB, STEPS = 64, 24
MODEL = {"depth": 2, "width": 32, "heads": 2, "sequence_length": 16, "mlp": "moe", "experts": 4, "experts_per_token": 2}
TRAIN: dict[str, Any] = {
    "seed": 1,
    "tokens": STEPS * 256,
    "tokens_per_step": 256,
    "micro_batch_sequences": 8,
    "learning_rate": 0.02,
    "embedding_learning_rate": 0.1,
    "head_learning_rate": 0.02,
    "scalar_learning_rate": 0.01,
    "warmup_steps": 2,
    "validation_every_steps": 8,
    "validation_tokens": 512,
    "checkpoint_every_steps": 10,
    "log_every_steps": 1,
    "sample_tokens": 4,
}
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of …")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, splits = tmp_path_factory.mktemp("shards"), {}
    for split, count in (("train", 30_000), ("val", 2_000)):
        tokens = (np.arange(count) * 7 // 3 % VOCAB).astype(np.uint16)
        write_shard(directory, split, 0, tokens, np.array([0]), ["all"])
        splits[split] = Split(documents=1, tokens=count, bytes=2 * count, shards=1)
    write_dataset(directory, Dataset(VOCAB, 0, "abc", splits, np.array([2] * VOCAB)))
    return directory


@pytest.fixture(autouse=True)
def one_thread():
    """A run leaves the threads of this process as it set them."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def run_config(
    folder: Path, shards: Path, name: str, threads: int = 1, model: dict | None = None, **changes: Any
) -> TrainerConfig:
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps(
            {
                "model": MODEL | (model or {}),
                "train": TRAIN | changes,
                "shards": str(shards),
                "run_dir": str(folder / name),
                "sample_prompts": [[0]],
                "execution": {"device": "cpu", "threads": threads},
            }
        )
    )
    return read_config(path)


def stop_at(step: int) -> Callable[[], bool]:
    asked = iter(range(step))
    return lambda: next(asked, None) is None


def events(config: TrainerConfig, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def record(config: TrainerConfig) -> dict:
    return json.loads((Path(config.run_dir) / "run.json").read_text())


def micro_batches(config: TrainerConfig) -> dict[int, int]:
    """The size from each step on."""
    return {stretch["from_step"]: stretch["micro_batch_sequences"] for stretch in record(config)["execution"]}


def result(config: TrainerConfig) -> tuple:
    """All of a finished run that is the same when its bytes are."""
    files = ("final/model.safetensors", "final/config.json", "samples.json")
    names = ("step", "loss", "grad_norm", "largest_expert_load")
    losses = [[line.get(name) for name in names] for line in events(config, "step")]
    return [hashlib.sha256((Path(config.run_dir) / name).read_bytes()).hexdigest() for name in files], losses


@pytest.fixture(scope="module")
def halved_after_ten(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The result of a run that had 8 sequences a micro-batch for ten steps and 4 from there on, with no error."""
    config = run_config(tmp_path_factory.mktemp("halved"), shards, "reference")
    assert train(config, stop_at(10)) == TERMINATED
    path, changed = Path(config.run_dir) / "run.json", record(config)
    changed["execution"][0]["micro_batch_sequences"] = 4
    path.write_text(json.dumps(changed))
    assert train(config) == 0
    return result(config)


def fail_above(monkeypatch: pytest.MonkeyPatch, sequences: int, first: int = 0) -> list[int]:
    """Let forward passes of training run out of memory with more sequences than that, from the `first` pass on. The
    list that comes back grows with the size of each."""
    forward, passes, failed = GPT.forward, [], []

    def limited(self, tokens_BT, *rest, **settings):
        if torch.is_grad_enabled():
            passes.append(len(tokens_BT))
            if len(tokens_BT) > sequences and len(passes) > first:
                failed.append(len(tokens_BT))
                raise FULL
        return forward(self, tokens_BT, *rest, **settings)

    monkeypatch.setattr(GPT, "forward", limited)
    return failed


def tear_update(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let memory run out in the update of that number, when the matrices have changed and the rest has not."""
    update, calls, failed = Muon.step, [], []

    def torn(self, *arguments):
        update(self, *arguments)
        calls.append(number)
        if len(calls) == number:
            failed.append(8)
            raise FULL

    monkeypatch.setattr(Muon, "step", torn)
    return failed


def test_memory_that_runs_out_in_a_step_halves_the_micro_batch_and_nothing_else(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved_after_ten: tuple
):
    failed = fail_above(monkeypatch, 4, first=21)  # in step 11, when half its gradients are there
    config = run_config(tmp_path, shards, "run")
    assert train(config) == 0
    assert result(config) == halved_after_ten
    assert failed == [8] and micro_batches(config) == {0: 8, 10: 4}
    [event] = events(config, "out_of_memory")
    assert (event["step"], event["before"], event["micro_batch_sequences"]) == (10, 8, 4)
    assert "Tried to allocate" in event["message"] and "\n" not in event["message"]


def test_a_resumed_run_keeps_the_halved_micro_batch(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved_after_ten: tuple
):
    failed = fail_above(monkeypatch, 4, first=21)
    config = run_config(tmp_path, shards, "run")
    assert train(config, stop_at(15)) == TERMINATED
    assert train(config) == 0
    assert events(config, "resume")[0]["step"] == 15
    assert failed == [8] and micro_batches(config) == {0: 8, 10: 4} and result(config) == halved_after_ten


def test_memory_that_runs_out_while_weights_change_goes_back_to_the_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved_after_ten: tuple
):
    tear_update(monkeypatch, 13)
    config = run_config(tmp_path, shards, "run")
    assert train(config) == 0
    assert result(config) == halved_after_ten and micro_batches(config) == {0: 8, 10: 4}
    assert events(config, "resume")[-1]["step"] == 10
    assert [(event["step"], event["micro_batch_sequences"]) for event in events(config, "out_of_memory")] == [(12, 4)]


@pytest.mark.parametrize("place", ["validate", "generate", "accuracy"])
def test_memory_that_runs_out_outside_of_a_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    items = tmp_path / "items.json"
    items.write_text(json.dumps([{"context": [1], "choices": [[2], [3]], "lengths": [1, 1], "gold": 0}]))
    config = run_config(tmp_path, shards, "run")
    config = replace(config, execution=replace(config.execution, hellaswag=str(items)))
    assert train(run_config(tmp_path, shards, "straight", micro_batch_sequences=4)) == 0
    original = getattr(sys.modules["model.training.trainer"], place)
    failed: list[str] = []

    def once(*arguments, **settings):
        if not failed:
            failed.append(place)
            raise FULL
        return original(*arguments, **settings)

    monkeypatch.setattr(f"model.training.trainer.{place}", once)
    assert train(config) == 0
    assert failed and micro_batches(config) == {0: 4} and len(events(config, "out_of_memory")) == 1
    assert result(config) == result(run_config(tmp_path, shards, "straight", micro_batch_sequences=4))


@pytest.mark.parametrize("place", ["gradients", "update"])
def test_memory_that_runs_out_while_speed_is_measured(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    failed = fail_above(monkeypatch, 4, 5) if place == "gradients" else tear_update(monkeypatch, 2)
    config = run_config(tmp_path, shards, "run", tokens=None, gpu_hours=1.0)
    assert train(config, stop_at(1)) == TERMINATED
    assert failed == [8] and micro_batches(config) == {0: 4} and len(events(config, "out_of_memory")) == 1


def test_memory_that_is_too_small_for_one_sequence_ends_in_one_sentence(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    failed = fail_above(monkeypatch, 0, first=21)
    config = run_config(tmp_path, shards, "run")
    assert main([str(tmp_path / "run.json")]) == 1
    error = capsys.readouterr().err
    assert "in step 11 with a micro-batch of 1 sequence (" in error and "smaller network" in error
    assert error.count("\n") == 1 and failed == [8, 4, 2, 1] and micro_batches(config) == {0: 8, 10: 1}


def test_memory_that_runs_out_in_the_compiler_is_recognised():
    def backend(graph: object, inputs: object) -> None:
        raise FULL

    with pytest.raises(Exception) as caught:
        torch.compile(torch.neg, backend=backend)(torch.zeros(1))
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert out_of_memory(caught.value) == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert out_of_memory(RuntimeError("CUDA error")) is None


def test_other_threads_and_micro_batches_are_the_same_run_up_to_rounding(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """docs/trainer.md: losses within 1e-5, weights within 1e-3 of their size."""
    runs = {}
    for threads, tokens in ((1, 1024), (2, 1024), (1, 512), (1, 128)):
        monkeypatch.setattr("model.planning.plan.CPU_TOKENS", tokens)
        model = {"width": 64, "sequence_length": 128, "mlp": "dense"}
        config = run_config(
            tmp_path,
            shards,
            f"run_{threads}_{tokens}",
            threads,
            model,
            micro_batch_sequences=None,
            tokens_per_step=1024,
            tokens=6 * 1024,
        )
        assert train(config) == 0
        runs[threads, tokens // 128] = config
    records = [record(config) for config in runs.values()]
    executed = [one.pop("execution")[0] for one in records]
    assert [(one["threads"], one["micro_batch_sequences"]) for one in executed] == list(runs)
    assert all(one == records[0] for one in records), "they are one run"
    first, *others = runs.values()
    losses = [line["loss"] for line in events(first, "step")]
    weights = load_file(Path(first.run_dir) / "final" / "model.safetensors")
    for other in others:
        assert [line["loss"] for line in events(other, "step")] == pytest.approx(losses, abs=1e-5)
        for name, weight in load_file(Path(other.run_dir) / "final" / "model.safetensors").items():
            assert (weight - weights[name]).norm() <= 1e-3 * weights[name].norm()


def test_a_resumed_run_keeps_its_threads_and_its_bytes(shards: Path, tmp_path: Path):
    short: dict[str, Any] = {"model": {"mlp": "dense"}, "tokens": 6 * 256}
    straight = run_config(tmp_path, shards, "straight", 2, **short)
    assert train(straight) == 0
    resumed = run_config(tmp_path, shards, "resumed", 2, **short)
    assert train(resumed, stop_at(3)) == TERMINATED
    torch.set_num_threads(1)
    assert train(run_config(tmp_path, shards, "resumed", 1, **short)) == 0
    assert torch.get_num_threads() == 2
    [event] = events(resumed, "execution")
    assert event["step"] == 3 and event["message"] == "threads: the run keeps the 2 that it began with, 1 are set now"
    assert record(resumed)["execution"] == record(straight)["execution"]
    assert result(resumed) == result(straight)


def test_a_run_that_lost_its_checkpoints_begins_again(shards: Path, tmp_path: Path):
    straight, lost = (run_config(tmp_path, shards, name, tokens=4 * 256) for name in ("straight", "lost"))
    assert train(straight) == 0 and train(lost, stop_at(2)) == TERMINATED
    shutil.rmtree(Path(lost.run_dir) / "checkpoints")
    assert train(lost) == 0
    assert result(lost) == result(straight)


def test_a_record_of_an_earlier_version_is_resumed(shards: Path, tmp_path: Path):
    config = run_config(tmp_path, shards, "run")
    assert train(config, stop_at(7)) == TERMINATED
    old = record(config)
    del old["execution"]
    (Path(config.run_dir) / "run.json").write_text(json.dumps(old | {"gradient_accumulation": 2}))
    assert train(config) == 0
    assert micro_batches(config) == {7: 8} and events(config, "execution") == []


def test_an_empty_micro_batch_is_what_fits_and_stays(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = run_config(
        tmp_path,
        shards,
        "run",
        model={"depth": 1, "mlp": "dense"},
        micro_batch_sequences=None,
        tokens_per_step=192,
        tokens=STEPS * 192,
    )
    model = config.model.with_vocabulary(VOCAB)
    needed = memory_bytes(model, replace(config.train, micro_batch_sequences=6))["total"]
    monkeypatch.setattr("model.training.trainer.free_bytes", lambda device: needed / 0.9 + 1)
    assert train(config, stop_at(5)) == TERMINATED
    assert micro_batches(config) == {0: 6}, "the 12 sequences of a step are not a multiple of 8"
    monkeypatch.setattr("model.training.trainer.free_bytes", lambda device: 100 * needed)
    assert train(config) == 0
    assert micro_batches(config) == {0: 6} and record(config)["train"]["micro_batch_sequences"] is None


@pytest.mark.parametrize(("length", "sequences", "chosen"), [(256, 4, 4), (256, 64, 8), (1024, 96, 2), (4096, 8, 1)])
def test_on_a_cpu_an_empty_micro_batch_is_a_fixed_number_of_tokens(length: int, sequences: int, chosen: int):
    model = GPTConfig(depth=1, width=32, heads=2, sequence_length=length, vocab_size=VOCAB)
    config = TrainConfig(**TRAIN | {"micro_batch_sequences": None, "tokens_per_step": sequences * length})
    assert choose_micro_batch(model, config, sequences, None) == chosen


def fills_memory() -> bool:
    return torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined] # of torch's class


def test_the_deterministic_setting_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """What it sets; that bytes are equal is measured where a GPU is (benchmarks/gpu/__main__.py)."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        use_deterministic_algorithms(cuda=True)
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cuda.cudnn_sdp_enabled() and not fills_memory()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_training_sets_the_allocator_unless_the_environment_does(monkeypatch: pytest.MonkeyPatch, name: str):
    for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    prepare_device(TrainerExecution(device="cpu", threads=torch.get_num_threads()), {})
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv(name, "backend:native")
    prepare_device(TrainerExecution(device="cpu", threads=torch.get_num_threads()), {})
    found = {variable: value for variable, value in os.environ.items() if variable.endswith("_ALLOC_CONF")}
    assert found == {name: "backend:native"}
