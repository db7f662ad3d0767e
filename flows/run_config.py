"""The configuration of a run: a preset, composed once with the changes a person or a schedule asks for.

Each section is defined beside what it configures. A preset is a TOML file in `flows/presets/`
(`flows/preset_files.py`).
What a run is *executed* on (store, workers, device) is kept apart and never part of any stage's identity. A training or
scoring with other workers or another device has the same result up to rounding.

Every call of the command line imports this file: it needs neither Prefect nor a library that reads data.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from eval.settings import Differing, differing_settings
from flows.effects import without_effect
from flows.preset_files import Preset, read_preset, what_stays
from flows.suggestions import nearest_name_in_errors
from model.errors import did_you_mean, shown_value
from model.network.config import GPTConfig
from model.parsing import ConfigError, field_types, parse
from model.training.config import TrainConfig
from tasks.config import CheckConfig, DataConfig, EvaluationConfig, ShardConfig, TokenizerConfig
from tasks.store.context import Execution, RunContext, open_context

STUDY_SECTIONS = ("data", "model", "train", "evaluation")
"""Sections that a contamination study takes changes to; in the others the preset holds."""


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


def compose(preset: str, changes: dict[str, dict[str, Any]]) -> RunConfig:
    """A preset with changes by section and field. Raises ConfigError, in one sentence, for anything unknown or bad."""
    if preset not in list(Preset):
        hint = did_you_mean(preset, Preset)
        raise ConfigError(f"unknown preset {shown_value(preset)}{hint}; known are {', '.join(Preset)}")
    values = read_preset(preset)
    sections = field_types(RunConfig)
    for name, changed in changes.items():
        if name not in sections:
            hint = did_you_mean(name, sections)
            raise ConfigError(f"unknown section {shown_value(name)}{hint}; known are {', '.join(sections)}")
        _require_own_fields(name, changed, sections)
        values[name] = what_stays(values.get(name, {}), changed) | changed
    if unknown := sorted(set(values) - set(sections)):
        raise ConfigError(f"{preset}.toml: unknown section {unknown[0]!r}; known are {', '.join(sections)}")
    with nearest_name_in_errors():
        run = RunConfig(**{name: parse(kind, values.get(name, {}), name) for name, kind in sections.items()})
    if reason := without_effect(run, changes):
        raise ConfigError(reason)
    return run


def _require_own_fields(section: str, changed: dict[str, Any], sections: dict[str, Any]) -> None:
    """Raise ConfigError for a field that another section has."""
    known = field_types(sections[section])
    for field in changed.keys() - known.keys():
        if owners := [name for name, kind in sections.items() if field in field_types(kind)]:
            hint = f" (did you mean '{owners[0]}.{field}'?)"
            raise ConfigError(f"{section} has the unknown key {field!r}{hint}; known are {', '.join(known)}")


def require_sections(changes: dict[str, dict[str, Any]], known: tuple[str, ...], subject: str) -> None:
    """Raise ConfigError for a change to a section that `subject` has not."""
    for name in changes:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{subject} has no section {shown_value(name)}{hint}; known are {', '.join(known)}")


def require_encodable(**sections: dict[str, Any] | Execution) -> None:
    """Raise ConfigError for a text that Prefect could not send, such as a path that is no UTF-8."""
    for section, values in sections.items():
        for name, value in (dataclasses.asdict(values) if isinstance(values, Execution) else values).items():
            try:
                json.dumps(value, default=str, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{section}.{name} is {shown_value(value)}, which is not valid UTF-8") from None


def context_of(execution: Execution, environment: dict[str, str], *, reading: bool = False) -> RunContext:
    """Open the store, for a run or for `reading`, and resolve the settings of the machine."""
    settings = dataclasses.asdict(execution)
    settings["benchmarks_dir"] = execution.benchmarks_dir or environment.get("DAILY_TRAIN_BENCHMARKS")
    return open_context(**settings, reading=reading)


def differs_from_preset(preset: str, config: RunConfig) -> Differing:
    """The settings of a run that are not its preset's, each with the preset's value and its own."""
    return differing_settings(*(json.loads(as_json(each)) for each in (compose(preset, {}), config)))


def as_json(config: RunConfig) -> str:
    """The whole configuration, for the report."""
    return json.dumps(dataclasses.asdict(config), indent=1)
