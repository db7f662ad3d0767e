"""Configuration errors are one clear sentence; model/ stands alone."""

import ast
import json
import sys
from pathlib import Path

import pytest

import model
from model.network.config import GPTConfig
from model.parsing import ConfigError, parse
from model.training.config import TrainConfig
from model.training.run import TrainerConfig, read_config

MODEL = {"depth": 2, "width": 32, "heads": 2, "sequence_length": 16}
TRAIN = {
    "seed": 1,
    "tokens": 1000,
    "tokens_per_step": 32,
    "micro_batch_sequences": 1,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "validation_every_steps": 5,
    "validation_tokens": 16,
    "checkpoint_every_steps": 5,
}
RUN = {"model": MODEL, "train": TRAIN, "shards": "s", "run_dir": "r", "sample_prompts": [[0]]}


def test_whole_configuration_is_read(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(RUN | {"execution": {"device": "cpu"}}))
    config = read_config(tmp_path / "c.json")
    assert (config.model.depth, config.train.learning_rate, config.execution.device) == (2, 0.01, "cpu")


@pytest.mark.parametrize("section", [[], ["model"], ["train"], ["execution"]])
def test_unknown_key_is_named_with_the_known_ones(section):
    values = json.loads(json.dumps(RUN | {"execution": {}}))
    place = values
    for key in section:
        place = place[key]
    place["lerning_rate"] = 1
    with pytest.raises(ConfigError, match=r"unknown key 'lerning_rate'; known are \w+") as error:
        parse(TrainerConfig, values, "config")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cls", "base", "change", "words"),
    [
        (GPTConfig, MODEL, {"heads": 3}, "width 32.*heads 3"),
        (GPTConfig, MODEL, {"depth": 0}, "depth.*0"),
        (GPTConfig, MODEL, {"depth": "2"}, "depth.*'2'"),
        (GPTConfig, MODEL, {"depth": True}, "depth.*True"),
        (GPTConfig, MODEL, {"norm": "batch"}, "norm.*rms, layer.*'batch'"),
        (GPTConfig, MODEL, {"vocab_size": 70_000}, "vocab_size.*65536.*70000"),
        (GPTConfig, MODEL, {"heads": 32}, "even head size"),
        (GPTConfig, MODEL, {"softcap": -1.0}, "softcap.*-1"),
        (TrainConfig, TRAIN, {"flops": 1e9}, "both"),
        (TrainConfig, TRAIN, {"tokens": None}, "neither"),
        (TrainConfig, TRAIN, {"tokens": -5}, "tokens.*-5"),
        (TrainConfig, TRAIN, {"learning_rate": float("nan")}, "learning_rate.*nan"),
        (TrainConfig, TRAIN, {"cooldown_fraction": 1.5}, "cooldown_fraction.*1.5"),
        (TrainConfig, TRAIN, {"optimizer": "muon"}, "embedding_learning_rate"),
        (TrainConfig, TRAIN, {"checkpoint_every_steps": 0}, "checkpoint_every_steps.*0"),
        (TrainConfig, TRAIN, {"grad_clip": 0.0}, "grad_clip.*0"),
    ],
)
def test_bad_value_is_named(cls, base, change, words):
    with pytest.raises(ConfigError, match=words):
        parse(cls, base | change, "section")


def test_missing_seed_is_an_error():
    with pytest.raises(ConfigError, match="lacks the key 'seed'"):
        parse(TrainConfig, {key: value for key, value in TRAIN.items() if key != "seed"}, "train")


def test_vocabulary_is_padded_and_must_not_contradict_the_shards():
    config = parse(GPTConfig, MODEL, "model").with_vocabulary(50257)
    assert (config.vocab_size, config.padded_vocab_size) == (50257, 50304)
    with pytest.raises(ConfigError, match=r"50257.*4096"):
        config.with_vocabulary(4096)


def test_model_imports_only_torch_numpy_safetensors_and_itself():
    allowed = {"torch", "numpy", "safetensors", "model"} | set(sys.stdlib_module_names)
    for path in Path(model.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= allowed, path
        assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names
