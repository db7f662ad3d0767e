"""The forms of a run's configuration (`flows/run_config.py`), which are the parameters of the flows.

The custom-run form shows each field with its description, and an empty field keeps the preset's value.
"""

import dataclasses
import re
from typing import Any

from coolname import data
from prefect import Flow
from prefect.runtime import flow_run

from flows.forms import Fields, First, FurtherChanges, Section, Settings, merged
from flows.preset_files import Preset as Preset
from flows.run_config import RunConfig as RunConfig
from flows.run_config import as_json as as_json
from flows.run_config import compose as compose
from flows.run_config import context_of as context_of
from flows.run_config import differs_from_preset as differs_from_preset
from flows.run_config import require_sections
from flows.suggestions import nearest_name_in_errors
from model.parsing import Dataclass, field_types, parse, parse_changes
from tasks.runtime.error_messages import shorten_errors
from tasks.store import provenance
from tasks.store.context import Execution

shorten_errors()


SECTIONS: dict[str, type[Dataclass]] = field_types(RunConfig)
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


def changes_of(first: dict[str, Fields], further: Any, **sections: Fields) -> dict[str, Fields]:
    """What a filled form changes, by section: the fields that are not empty."""
    return merged(first, FURTHER.read(further), sections)


def execution_of(execution: Execution, first: dict[str, Fields]) -> Execution:
    """Where and how a run is executed, with what the first group of the form says of it."""
    return parse(Execution, dataclasses.asdict(execution) | first.get("execution", {}), "execution")


def forms_of(changes: dict[str, Fields], flow: Flow) -> dict[str, Any]:
    """Changes as a flow's parameters. Raises ConfigError for a section that the flow does not have."""
    known = [name for name in SECTIONS if name in flow.parameters.properties]
    require_sections(changes, tuple(known), flow.name)
    for name, fields in changes.items():
        with nearest_name_in_errors():
            parse_changes(SECTIONS[name], fields, name)
    return changes


BY_THE_UI = re.compile(
    "(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|"
    "Ergonomic|Handcrafted|Tasty|Handmade|Incredible)-[A-Z][A-Za-z]{0,5}"
)
"""Names that Prefect's UI fills into its form: an adjective and an animal; those of its first version follow."""
BY_THE_FIRST_UI = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    "psi|omega)[0-9]-[a-z]+(-[a-z])?"
)
WORDS: dict[str, Any] = data.config  # from which Prefect makes names
ANIMALS = {word for kind in ("animal", "animal_breed", "animal_legendary") for word in WORDS[kind]["words"]}


def is_generated(name: str) -> bool:
    """Whether the UI or the server gave a run its name; the server's are an adjective and an animal."""
    if BY_THE_UI.fullmatch(name) or BY_THE_FIRST_UI.fullmatch(name):
        return True
    return re.fullmatch("[a-z]+-[a-z]+", name) is not None and name.partition("-")[2] in ANIMALS


def run_name() -> str:
    """The name that a person typed; else date, preset and commit, so that a list of runs can be read."""
    given = flow_run.get_name()
    if given and not is_generated(given):
        return given
    started = flow_run.get_scheduled_start_time()
    return f"{started:%Y-%m-%d %H:%M} {flow_run.get_parameters()['preset']} {provenance.commit()[:8]}"
