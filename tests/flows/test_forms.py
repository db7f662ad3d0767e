"""The forms of all flows: what Prefect's UI is given to show, and what a filled form means."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from deployments.cli.up import DEPLOYMENTS
from flows.compare import compare_designs
from flows.config import FURTHER, SECTIONS, changes_of, compose, is_generated
from flows.daily import FORMS as DAILY
from flows.daily import daily_train
from flows.form_fields import NOT_CHANGED, sources_of_presets
from flows.forms import Section
from flows.prepare import prepare_data
from flows.preset_files import Preset, read_preset
from flows.study import contamination_study
from model.parsing import ConfigError

FLOWS = [daily_train, prepare_data, compare_designs, contamination_study]


def schema_of(flow: Flow) -> dict[str, Any]:
    return json.loads(json.dumps(parameter_schema(flow).model_dump_for_openapi()))


def shown(properties: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in properties.items():
        yield f"{path}{name}", field
        yield from shown(field.get("properties", {}), f"{path}{name}.")


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_field_of_every_form_is_one_kind_with_a_title_and_a_description(flow: Flow):
    schema = schema_of(flow)
    for path, field in shown(schema["properties"]):
        assert field["title"] and field["title"][0].isupper() and "_" not in field["title"], path
        assert "anyOf" not in field and "$ref" not in field, f"{path} would be tabs"
        assert isinstance(field["type"], str) and field["type"] not in ("null", "boolean"), path
        assert "." not in path or "default" not in field, f"{path} would be sent when nobody touched it"
        parent = field.get("type") == "object" or path.rpartition(".")[0].endswith("num_fewshot")
        assert parent or field.get("description"), f"{path} is not described"
        assert "`" not in field.get("description", ""), path
    assert {name for name, field in schema["properties"].items() if "default" not in field} <= {"candidate"}


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_an_untouched_form_changes_nothing(flow: Flow):
    sent = {name: field["default"] for name, field in schema_of(flow)["properties"].items() if "default" in field}
    read = flow.validate_parameters(sent)
    sections = {name: value for name, value in read.items() if name in SECTIONS}
    assert changes_of(read["first"], read["more"], **sections) == {name: {} for name in sections}


def test_the_values_of_presets_are_read_from_their_files():
    fields = DAILY.first.schema()["properties"]
    for preset in DAILY.presets:
        tokens = read_preset(preset)["train"]["tokens"]
        assert f"{preset} {tokens:,}" in fields["tokens"]["description"]


def test_every_choice_has_a_value_that_the_configuration_takes_and_one_that_changes_nothing():
    for section, config in SECTIONS.items():
        form = Section(section, config, ("smoke",))
        for key, field in form.schema()["properties"].items():
            for label in field.get("enum", []):
                plain = form.read({key: label})
                assert plain == {} if label == NOT_CHANGED else len(plain) == 1, (section, key, label)
    with pytest.raises(ConfigError, match=r"train\.optimizer must be one of muon, psgd, adamw, but it is 'Moun'"):
        Section("train", SECTIONS["train"], ("smoke",)).read({"Optimizer": "Moun"})


def test_the_first_group_goes_to_its_sections_and_comes_before_what_is_not_shown():
    label = next(
        label for label, source in sources_of_presets().items() if source == read_preset("study")["data"]["source"]
    )
    first = DAILY.first.read(
        {"note": "x", "gpu_hours": 1, "Optimizer": "AdamW", "Data": label, "store": "s3://a/b", "seed": 3}
    )
    assert first["execution"] == {"note": "x", "store": "s3://a/b"}
    assert DAILY.first.read(first) == first, "it may be read again"
    changes = changes_of(first, "", train={"tokens": 5, "seed": 1, "grad_clip": 2.0}, data={})
    assert changes["train"] == {"gpu_hours": 1, "optimizer": "adamw", "seed": 3, "grad_clip": 2.0}
    assert compose("smoke", changes).data.source == compose("study", {}).data.source
    assert DAILY.first.read({"texts": "my/texts"}) == {"data": {"source": {"kind": "files", "path": "my/texts"}}}
    with pytest.raises(ConfigError, match="expected one"):
        DAILY.first.read({"texts": "my/texts", "Data": label})


def test_a_source_is_filled_in_on_one_of_three_cards():
    form = Section("data", SECTIONS["data"], ("smoke",))
    card = {"id": "a/b", "revision": "0" * 40, "Streaming": "off"}
    assert form.read({"Hub dataset": card, "Local files": {}}) == {
        "source": {"kind": "hub", "id": "a/b", "revision": "0" * 40, "streaming": False}
    }
    with pytest.raises(ConfigError, match="Hub dataset and Local files are both filled in"):
        form.read({"Hub dataset": card, "Local files": {"path": "x"}})


def test_further_changes_give_null_and_are_refused_beside_a_field():
    more = '{"model.softcap": null, "train": {"grad_clip": 2}}'
    assert changes_of({}, more, model={}, train={"seed": 2})["model"] == {"softcap": None}
    with pytest.raises(ConfigError, match=r"train\.grad_clip is given in a field and in the further changes"):
        changes_of({}, more, model={}, train={"grad_clip": 1})
    for text, reason in {
        "[1]": "must be a JSON object",
        "{": "are no JSON",
        '{"trian.x": 1}': "unknown section 'trian'",
        '{"train.lerning_rate": 1}': "unknown key 'lerning_rate'",
        '{"model": 3}': "model must be an object",
    }.items():
        with pytest.raises(ConfigError, match=reason) as caught:
            FURTHER.read(text)
        assert "\n" not in str(caught.value)


EARLIER = [
    {"preset": "smoke", "train": {"tokens": 40960}, "model": {"softcap": None, "qk_norm": False}},
    {"train": {"optimizer": "adamw", "flops": 1e15, "learning_rate": 0.5}, "data": {"validation_fraction": 0.1}},
    {"data": {"source": {"kind": "hub", "id": "a/b", "revision": "0" * 40, "streaming": False}}},
    {"evaluation": {"suites": ["arc_easy"], "num_fewshot": {"arc_easy": 5}, "items_per_suite": 4}},
    {"contamination": {"mode": "refuse"}, "tokenizer": {"kind": "gpt2", "vocab_size": None}},
    {"execution": {"store": "s3://a/b", "cache": None, "workers": 1, "device": "cpu", "deterministic": True}},
]


@pytest.mark.parametrize("parameters", EARLIER, ids=str)
def test_the_api_takes_parameters_by_the_names_and_values_of_the_configuration(parameters: dict[str, Any]):
    """As of runs and schedules that were made before there was a choice with other words."""
    validate(parameters, schema_of(daily_train), raise_on_error=True)
    read = daily_train.validate_parameters(parameters)
    for name in parameters.keys() & SECTIONS.keys():
        assert read[name] == parameters[name]


@pytest.mark.parametrize(
    "parameters",
    [
        {"preset": "no-such"},
        {"train": {"lerning_rate": 1}},
        {"train": {"optimizer": "Muon"}},
        {"first": {"Optimizer": "muon"}},
        {"first": {"tokens": 0}},
        {"first": {"learning_rate": 0}},
        {"model": {"depth": 10_001}},
        {"execution": {"wrokers": 1}},
        {"more": "no object"},
        {"evaluation": {"suites": ["mmlu"]}},
    ],
    ids=str,
)
def test_the_server_refuses_a_bad_value_before_a_run_starts(parameters: dict[str, Any]):
    with pytest.raises(ValidationError, match="Validation failed for field"):
        validate(parameters, schema_of(daily_train), raise_on_error=True)


def test_bounds_are_ones_that_the_browser_checks():
    for flow in FLOWS:
        for path, field in shown(schema_of(flow)["properties"]):
            assert not field.keys() & {"exclusiveMinimum", "exclusiveMaximum"}, path
            if "minimum" in field:
                bad = field["minimum"] - max(1e-15, abs(field["minimum"]) / 2, 1 if field["type"] == "integer" else 0)
                with pytest.raises(ValidationError):
                    validate({"x": bad}, {"properties": {"x": field}}, raise_on_error=True)


@pytest.mark.parametrize("section", SECTIONS)
def test_what_the_form_refuses_the_command_line_refuses_too(section: str):
    form = Section(section, SECTIONS[section], ("smoke",))
    for name, field in form.schema()["properties"].items():
        beyond = [field["minimum"] - max(1, field["minimum"])] if "minimum" in field else []
        for value in [*beyond, *([field["maximum"] + 1] if "maximum" in field else [])]:
            with pytest.raises(ConfigError, match=rf"{section}\.{name} must be"):
                compose("smoke", {section: {name: value}})


def test_the_store_reaches_every_deployment():
    described = yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
    assert {"daily", "by-hand"} <= {deployment["name"] for deployment in described}
    for deployment in described:
        assert deployment["parameters"]["execution"]["store"] == "{{ $DAILY_TRAIN_STORE }}", deployment["name"]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("Licensed-Oribi", True),
        ("mu3-uxmal", True),
        ("xi5-orion-q", True),
        ("loutish-hamster", True),
        ("wider, half the rate", False),
        ("lower-rate", False),
        ("try-adamw-2", False),
    ],
)
def test_a_typed_name_is_kept(name: str, made: bool):
    assert is_generated(name) is made


def test_every_preset_can_be_chosen():
    assert schema_of(daily_train)["properties"]["preset"]["enum"] == [preset.value for preset in Preset]
