"""The configuration of a run: a preset, composed once with the changes a person or a schedule asks for.

Each section is defined beside what it configures. A preset is a TOML file in `flows/presets/`
(`flows/preset_files.py`); the custom-run form shows each field with its description, and an empty field keeps the
preset's value.
What a run is *executed* on (store, workers, device) is kept apart and never part of any stage's identity. A training or
scoring with other workers or another device has the same result up to rounding.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from prefect import Flow
from prefect.runtime import flow_run

from eval.settings import Differing, differing_settings
from flows.effects import without_effect
from flows.forms import Fields, First, FurtherChanges, Section, Settings, merged
from flows.preset_files import Preset as Preset
from flows.preset_files import read_preset, what_stays
from model.errors import shown_value
from model.network.config import GPTConfig
from model.parsing import ConfigError, Dataclass, field_types, parse, parse_changes
from model.training.config import TrainConfig
from tasks.contamination import CheckConfig
from tasks.download import DataConfig
from tasks.evaluate import EvaluationConfig
from tasks.runtime.error_messages import shorten_errors
from tasks.shard import ShardConfig
from tasks.store import provenance
from tasks.store.context import Execution, RunContext, open_context
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


SECTIONS: dict[str, type[Dataclass]] = field_types(RunConfig)
FORMS = SECTIONS
"""The sections that a form or `--set` changes, and what each is made of."""


class FormsOfRun:
    """The forms of one flow: which fields come first, and which presets the descriptions name."""

    def __init__(self, presets: tuple[str, ...], first: tuple[str, ...], *, hidden: tuple[str, ...] = ()) -> None:
        known = SECTIONS | {"execution": Execution}
        self.presets, self.hidden = presets, hidden
        self.first = First(known, first, presets)
        self.execution = Settings("execution", Execution, self.first.hidden("execution") | {"note"})

    def section(self, name: str) -> Section:
        """The form of the fields of a section that are not shown in the first group."""
        hidden = {path.partition(".")[2] for path in self.hidden if path.startswith(f"{name}.")}
        return Section(name, SECTIONS[name], self.presets, self.first.hidden(name) | hidden)


NOT_GIVEN: dict[str, Any] = {"default": {}}
"""Of a parameter with a dataclass: the form begins empty."""
FURTHER = FurtherChanges(SECTIONS)


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


def changes_of(first: dict[str, Fields], further: Any, **sections: Fields) -> dict[str, Fields]:
    """What a filled form changes, by section: the fields that are not empty."""
    return merged(first, FURTHER.read(further), sections)


def execution_of(execution: Execution, first: dict[str, Fields]) -> Execution:
    """Where and how a run is executed, with what the first group of the form says of it."""
    return parse(Execution, dataclasses.asdict(execution) | first.get("execution", {}), "execution")


def forms_of(changes: dict[str, Fields], flow: Flow) -> dict[str, Any]:
    """Changes as a flow's parameters. Raises ConfigError for a section that the flow does not have."""
    known = [name for name in SECTIONS if name in flow.parameters.properties]
    for name in changes.keys() - set(known):
        raise ConfigError(f"{flow.name} has no section {name!r}; known are {', '.join(known)}")
    for name, fields in changes.items():
        parse_changes(SECTIONS[name], fields, name)
    return changes


def require_encodable(**sections: Fields | Execution) -> None:
    """Raise ConfigError for a text that Prefect could not send, such as a path that is no UTF-8."""
    for section, form in sections.items():
        values = dataclasses.asdict(form) if isinstance(form, Execution) else form
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


BY_THE_UI = re.compile(
    "(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|"
    "Ergonomic|Handcrafted|Tasty|Handmade|Incredible)-[A-Z][A-Za-z]{0,5}"
)
"""Names that Prefect's UI fills into its form: an adjective and an animal; those of its first version follow."""
BY_THE_FIRST_UI = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    "psi|omega)[0-9]-[a-z]+(-[a-z])?"
)
BY_THE_SERVER = re.compile("[a-z]+-[a-z]+")
"""Names that the server gives: two English words. One of this form that a person types is kept only with a capital
letter, a digit, a space or a third word."""


def run_name() -> str:
    """The name that a person typed; else date, preset and commit, so that a list of runs can be read."""
    given = flow_run.get_name()
    if given and not any(made.fullmatch(given) for made in (BY_THE_UI, BY_THE_FIRST_UI, BY_THE_SERVER)):
        return given
    started = flow_run.get_scheduled_start_time()
    return f"{started:%Y-%m-%d %H:%M} {flow_run.get_parameters()['preset']} {provenance.commit()[:8]}"


def differs_from_preset(preset: str, config: RunConfig) -> Differing:
    """The settings of a run that are not its preset's, each with the preset's value and its own."""
    return differing_settings(*(json.loads(as_json(each)) for each in (compose(preset, {}), config)))


def as_json(config: RunConfig) -> str:
    """The whole configuration, for the report."""
    return json.dumps(dataclasses.asdict(config), indent=1)
