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

from flows.effects import without_effect
from flows.preset_files import Preset, read_preset, what_stays
from model.network.config import GPTConfig
from model.parsing import ConfigError, field_types, parse
from model.training.config import TrainConfig
from tasks.config import CheckConfig, DataConfig, EvaluationConfig, ShardConfig, TokenizerConfig
from tasks.store.context import Execution, RunContext, open_context


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


def context_of(execution: Execution, environment: dict[str, str], *, reading: bool = False) -> RunContext:
    """Open the store, for a run or for `reading`, and resolve the settings of the machine."""
    settings = dataclasses.asdict(execution)
    settings["benchmarks_dir"] = execution.benchmarks_dir or environment.get("DAILY_TRAIN_BENCHMARKS")
    return open_context(**settings, reading=reading)


def as_json(config: RunConfig) -> str:
    """The whole configuration, for the report."""
    return json.dumps(dataclasses.asdict(config), indent=1)
