"""Presets, the form of the UI, and one clear sentence for every mistake."""

from pathlib import Path

import pytest

from flows.config import SECTIONS, changes_of, compose
from flows.preset_files import PRESETS, Preset, read_preset
from model.parsing import ConfigError
from tasks.download import VERSION
from tasks.sources.document_sources import source_lock
from tasks.store.stage import Stage


@pytest.mark.parametrize("preset", list(Preset))
def test_every_preset_is_complete(preset: Preset):
    run = compose(preset, {})
    assert (run.train.tokens or run.train.flops) and run.data.source and run.evaluation.suites


def test_every_preset_is_a_choice_of_the_form():
    assert sorted(Preset) == sorted(path.stem for path in PRESETS.glob("*.toml"))


def write_presets(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def test_a_preset_takes_what_it_does_not_set_from_the_one_it_extends(tmp_path: Path):
    base = '[train]\ntokens = 5\nseed = 1\n[data.source]\nkind = "hub"\nid = "a/b"\n[tokenizer]\nkind = "gpt2"\n'
    middle = 'extends = "base"\n[train]\nseed = 2\n[data.source]\nid = "c/d"\n'
    last = 'extends = "middle"\n[train]\nflops = 1e9\n[data.source]\nkind = "files"\npath = "x"\n'
    read = read_preset("last", write_presets(tmp_path, base=base, middle=middle, last=last))
    assert read == {
        "train": {"seed": 2, "flops": 1e9},
        "data": {"source": {"kind": "files", "path": "x"}},
        "tokenizer": {"kind": "gpt2"},
    }
    assert read_preset("middle", tmp_path)["data"]["source"] == {"kind": "hub", "id": "c/d"}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ('extends = "b"', "presets extend each other in a circle: a, b, a"),
        ('extends = "c"', r"b\.toml extends 'c', which is no preset; known are a, b"),
        ("extends = 3", r"b\.toml extends 3, which is no preset"),
    ],
)
def test_a_preset_that_extends_itself_or_none_is_refused(base: str, message: str, tmp_path: Path):
    first = "extends = 'b'"
    second = base.replace('"b"', '"a"')
    with pytest.raises(ConfigError, match=message) as caught:
        read_preset("a", write_presets(tmp_path, a=first, b=second))
    assert "\n" not in str(caught.value)


def test_golden_key_of_the_default_data():
    """Two machines, two stores, any day: the same key. A change here makes every store download again."""
    data = compose("laptop", {}).data
    config = {"source": source_lock(data.source, Path("unused")), "validation_fraction": data.validation_fraction}
    stage = Stage(name="download", version=VERSION, config=config, inputs={})
    assert stage.key == "401ee778f5e510ce11e1aeecfefaba529dabd9cb31b75ba6bf7a1b6cc383b4c8"


def test_gpt2_is_gpt2():
    model = compose("gpt2-124m", {}).model
    assert (model.depth, model.width, model.heads, model.sequence_length) == (12, 768, 12, 1024)
    assert model.tied_head and model.bias and model.softcap is None and not model.qk_norm


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("no-such", {}, "unknown preset 'no-such'; known are daily"),
        ("laptop", {"trian": {}}, "unknown section 'trian' .did you mean 'train'[?].; known are data"),
        ("laptop", {"train": {"lerning_rate": 1}}, "train has the unknown key 'lerning_rate'"),
        (
            "laptop",
            {"train": {"learning_rate": "fast"}},
            "train.learning_rate must be a number, but it is 'fast' .Peak",
        ),
        ("laptop", {"train": {"tokens": 5, "flops": 1e9}}, "exactly one budget"),
        (
            "laptop",
            {"tokenizer": {"vocab_size": 70_000}},
            "tokenizer.vocab_size must be from 257 to 65536, but it is 70000",
        ),
        ("laptop", {"tokenizer": {"kind": "gpt2", "vocab_size": 512}}, "a trained tokenizer needs one, a loaded"),
        ("laptop", {"evaluation": {"suites": ["mmlu"]}}, "unknown suite 'mmlu'; known are"),
        ("laptop", {"data": {"source": {"kind": "hub", "id": "a/b", "revision": "main"}}}, "not a 40-digit commit"),
        ("laptop", {"data": {"sauce": 1}}, "data has the unknown key 'sauce' .*; known are source"),
        ("laptop", {"contamination": {"mode": "ignore"}}, "one of report, refuse, filter"),
    ],
)
def test_a_mistake_ends_in_one_sentence(preset: str, changes: dict, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        compose(preset, changes)
    assert "\n" not in str(caught.value)


def test_one_budget_replaces_the_other():
    train = compose("laptop", {"train": {"flops": 1e12}}).train
    assert (train.flops, train.tokens) == (1e12, None)


def test_an_empty_form_changes_nothing():
    assert compose("laptop", changes_of({}, "", **{name: {} for name in SECTIONS})) == compose("laptop", {})
