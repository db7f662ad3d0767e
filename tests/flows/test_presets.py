"""Every preset composes, says what it costs, and in a tiny variant learns more than token frequencies."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from flows.preset_files import Preset
from flows.run_config import compose
from model.train import main
from tests.markov import VOCAB, write_markov_shards

TINY = {"depth": 2, "width": 32, "heads": 2, "sequence_length": 32, "vocab_size": VOCAB}
SHORT = {
    "tokens": 40 * 256,
    "tokens_per_step": 256,
    "micro_batch_sequences": 8,
    "warmup_steps": 5,
    "precision": "fp32",
    "validation_every_steps": 40,
    "validation_tokens": 1024,
    "checkpoint_every_steps": 1000,
    "sample_tokens": 1,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_markov_shards(tmp_path_factory.mktemp("markov"), train_tokens=40_000)


def write_config(directory: Path, shards: str, preset: str, model: dict, train: dict) -> Path:
    config = compose(preset, {"model": model, "train": train})
    path = directory / "config.json"
    path.write_text(
        json.dumps(
            {
                "model": dataclasses.asdict(config.model),
                "train": dataclasses.asdict(config.train),
                "shards": shards,
                "run_dir": str(directory / "run"),
                "sample_prompts": [[0]],
                "execution": {"device": "cpu", "threads": 1},
            }
        )
    )
    return path


def tiny_training(folder: Path, shards: Path, preset: str) -> list[dict]:
    """The events of 40 steps of a preset's tiny variant."""
    train = dict(SHORT)
    if compose(preset, {}).train.optimizer == "adamw":
        train["learning_rate"] = 0.01  # tuned for its full size it moves a tiny network too little
    model = TINY
    if preset == "nanopoor":
        model, train["precision"] = TINY | {"short_window": 8}, "fp16"
    assert main([str(write_config(folder, str(shards), preset, model, train))]) == 0
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def losses_of(events: list[dict]) -> list[float]:
    """Validation loss before the first step, and training losses of steps 1, 10 and 20."""
    return [round(event["loss"], 5) for event in events if event["event"] in ("validation", "step")][:4]


def first_losses(folder: Path, preset: str) -> list[float]:
    """For golden.json."""
    shards = folder / "markov"
    if not shards.exists():
        shards.mkdir()
        write_markov_shards(shards, train_tokens=40_000)
    (folder / preset).mkdir()
    return losses_of(tiny_training(folder / preset, shards, preset))


@pytest.mark.parametrize("preset", list(Preset))
def test_tiny_variant_has_its_first_losses_and_beats_the_unigram_entropy(shards, tmp_path, preset):
    events = tiny_training(tmp_path, shards, preset)
    # rounding differs between processors, and in fp16 more
    golden = json.loads((Path(__file__).parents[1] / "golden.json").read_text())["first losses"][preset]
    assert losses_of(events) == pytest.approx(golden, rel=2e-2 if preset == "nanopoor" else 2e-3)
    assert events[-1]["event"] == "done" and events[-1]["loss"] < 0.9 * math.log(VOCAB - 1)


@pytest.mark.parametrize("preset", list(Preset))
def test_dry_run_adds_up_without_data(tmp_path, capsys, preset):
    precision = {"precision": "bf16"} if compose(preset, {}).train.precision == "fp8" else {}  # of large layers
    path = write_config(
        tmp_path, "/nonexistent", preset, TINY, precision
    )  # its own size: tests/model/planning/test_memory_use.py
    assert main([str(path), "--dry-run", "--hardware", "H200", "--mfu", "0.4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"]["total"] == sum(told["parameters"].values()) / 2
    memory, largest = told["memory_bytes"], told["largest_micro_batch_sequences"]
    held = memory["weights"] + memory["gradients"] + memory["optimizer"]
    step = memory["activations"] + memory["logits"] + memory["temporaries"]
    assert memory["total"] == held + max(step, memory["validation"], memory["update"])
    assert min(memory.values()) >= 0 and told["usable_bytes"] == 0.9 * 141e9
    assert told["fits"] is (memory["total"] <= told["usable_bytes"]) is (told["micro_batch_sequences"] <= largest)
    assert told["flops"] == told["tokens"] * told["flops_per_token"]
    assert told["gpu_hours"] == pytest.approx(told["flops"] / (0.4 * 989e12) / 3600, abs=1e-4)
    assert told["usd"] == pytest.approx(3.5 * told["gpu_hours"], abs=1e-3)
    assert not (tmp_path / "run").exists()


def test_dry_run_needs_a_vocabulary_and_keeps_an_hourly_budget(tmp_path, capsys):
    assert main([str(write_config(tmp_path, "/nonexistent", "daily", {}, {})), "--dry-run"]) == 1
    assert "vocab_size is null" in capsys.readouterr().err
    changes = {"tokens": None, "gpu_hours": 24.0, "precision": "bf16"}
    path = write_config(tmp_path, "/nonexistent", "daily", TINY, changes)
    assert main([str(path), "--dry-run"]) == 0
    assert 23.9 < json.loads(capsys.readouterr().out)["gpu_hours"] <= 24
