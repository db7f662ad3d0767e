"""The configuration of a run: a preset, composed once with the changes a person or a schedule asks for.

Each section is defined beside what it configures. A preset is a TOML file in `flows/presets/`
(`flows/preset_files.py`); the custom-run form shows each field with its description, and an empty field keeps the
preset's value.
What a run is *executed* on (store, workers, device) is kept apart and never part of any stage's identity. A training or
scoring with other workers or another device has the same result up to rounding.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from prefect import Flow
from prefect.runtime import flow_run
from pydantic import Field

from eval.settings import Differing, differing_settings
from flows.effects import without_effect
from flows.forms import Changes, ShownAsForm, changes_form
from flows.preset_files import Preset as Preset
from flows.preset_files import read_preset, what_stays
from model.errors import shown_value
from model.network.config import GPTConfig
from model.parsing import ConfigError, field_types, parse, parse_changes
from model.training.config import TrainConfig
from tasks.comparison import CompareConfig
from tasks.contamination import CheckConfig
from tasks.download import DataConfig
from tasks.evaluate import EvaluationConfig
from tasks.runtime.error_messages import shorten_errors
from tasks.shard import ShardConfig
from tasks.store import provenance
from tasks.store.context import Execution, RunContext, open_context
from tasks.study import StudyConfig
from tasks.tokenizer import TokenizerConfig

shorten_errors()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of a run."""

    data: DataConfig
    tokenizer: TokenizerConfig
    shard: ShardConfig
    model: GPTConfig
    train: TrainConfig
    contamination: CheckConfig
    evaluation: EvaluationConfig


if TYPE_CHECKING:  # the classes below are made at run time: to a type checker each is the class that it extends
    DataChanges = Changes
    TokenizerChanges = Changes
    ShardChanges = Changes
    ModelChanges = Changes
    TrainChanges = Changes
    ContaminationChanges = Changes
    EvaluationChanges = Changes
else:
    DataChanges = changes_form(DataConfig)
    TokenizerChanges = changes_form(TokenizerConfig)
    ShardChanges = changes_form(ShardConfig)
    ModelChanges = changes_form(GPTConfig)
    TrainChanges = changes_form(TrainConfig)
    ContaminationChanges = changes_form(CheckConfig)
    EvaluationChanges = changes_form(EvaluationConfig)

ExecutionForm = Annotated[Execution, ShownAsForm("execution"), Field(json_schema_extra={"default": {}})]
"""Type of a flow's parameter: an `Execution`, shown as a form with empty fields."""
StudyForm = Annotated[StudyConfig, ShownAsForm("study")]
CompareForm = Annotated[CompareConfig, ShownAsForm("compare")]

FORMS: dict[str, type[Changes]] = {
    "data": DataChanges,
    "tokenizer": TokenizerChanges,
    "shard": ShardChanges,
    "model": ModelChanges,
    "train": TrainChanges,
    "contamination": ContaminationChanges,
    "evaluation": EvaluationChanges,
}


def compose(preset: str, changes: dict[str, dict[str, Any]]) -> RunConfig:
    """A preset with changes by section and field. Raises ConfigError, in one sentence, for anything unknown or bad."""
    if preset not in list(Preset):
        raise ConfigError(f"unknown preset {preset!r}; known are {', '.join(Preset)}")
    values = read_preset(preset)
    sections = field_types(RunConfig)
    for name, changed in changes.items():
        if name not in sections:
            raise ConfigError(f"unknown section {name!r}; known are {', '.join(sections)}")
        values[name] = what_stays(values.get(name, {}), changed) | changed
    if unknown := sorted(set(values) - set(sections)):
        raise ConfigError(f"{preset}.toml: unknown section {unknown[0]!r}; known are {', '.join(sections)}")
    run = RunConfig(**{name: parse(kind, values.get(name, {}), name) for name, kind in sections.items()})
    if reason := without_effect(run, changes):
        raise ConfigError(reason)
    return run


def changes_of(**sections: Changes) -> dict[str, dict[str, Any]]:
    """What filled forms change: the fields that are not empty."""
    return {name: form.model_dump(mode="json") for name, form in sections.items()}


def forms_of(changes: dict[str, dict[str, Any]], flow: Flow) -> dict[str, Changes]:
    """The filled forms of a flow's parameters. Raises ConfigError for a section that the flow does not have."""
    known = [name for name in FORMS if name in flow.parameters.properties]
    for name in changes.keys() - set(known):
        raise ConfigError(f"{flow.name} has no section {name!r}; known are {', '.join(known)}")
    for name, fields in changes.items():
        parse_changes(FORMS[name].changed, fields, name)
    return {name: FORMS[name](**fields) for name, fields in changes.items()}


def require_encodable(**sections: Changes | Execution) -> None:
    """Raise ConfigError for a text that Prefect could not send, such as a path that is no UTF-8."""
    for section, form in sections.items():
        values = dataclasses.asdict(form) if isinstance(form, Execution) else form.model_dump()
        for name, value in values.items():
            try:
                json.dumps(value, default=str, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{section}.{name} is {shown_value(value)}, which is not valid UTF-8") from None


def context_of(execution: Execution, environment: dict[str, str], *, reading: bool = False) -> RunContext:
    """Open the store, for a run or for `reading`, and resolve the settings of the machine."""
    settings = dataclasses.asdict(execution)
    settings["benchmarks_dir"] = execution.benchmarks_dir or environment.get("DAILY_TRAIN_BENCHMARKS")
    return open_context(**settings, reading=reading)


def run_name() -> str:
    """Date, preset and commit, so that a list of runs can be read."""
    started = flow_run.get_scheduled_start_time()
    return f"{started:%Y-%m-%d %H:%M} {flow_run.get_parameters()['preset']} {provenance.commit()[:8]}"


def differs_from_preset(preset: str, config: RunConfig) -> Differing:
    """The settings of a run that are not its preset's, each with the preset's value and its own."""
    return differing_settings(*(json.loads(as_json(each)) for each in (compose(preset, {}), config)))


def as_json(config: RunConfig) -> str:
    """The whole configuration, for the report."""
    return json.dumps(dataclasses.asdict(config), indent=1)
