"""The forms of a run's configuration (`flows/run_config.py`), which are the parameters of the flows.

The custom-run form shows each field with its description, and an empty field keeps the preset's value.
"""

from typing import TYPE_CHECKING, Annotated, Any

from prefect import Flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.forms import Changes, ShownAsForm, changes_form
from flows.preset_files import Preset as Preset
from flows.run_config import RunConfig as RunConfig
from flows.run_config import as_json as as_json
from flows.run_config import compose as compose
from flows.run_config import context_of as context_of
from flows.run_config import differs_from_preset as differs_from_preset
from flows.run_config import require_sections
from flows.suggestions import nearest_name_in_errors
from model.network.config import GPTConfig
from model.parsing import parse_changes
from model.training.config import TrainConfig
from tasks.config import (
    CheckConfig,
    CompareConfig,
    DataConfig,
    EvaluationConfig,
    ShardConfig,
    StudyConfig,
    TokenizerConfig,
)
from tasks.runtime.error_messages import shorten_errors
from tasks.store import provenance
from tasks.store.context import Execution

shorten_errors()


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


def changes_of(**sections: Changes) -> dict[str, dict[str, Any]]:
    """What filled forms change: the fields that are not empty."""
    return {name: form.model_dump(mode="json") for name, form in sections.items()}


def forms_of(changes: dict[str, dict[str, Any]], flow: Flow) -> dict[str, Changes]:
    """The filled forms of a flow's parameters. Raises ConfigError for a section that the flow does not have."""
    known = [name for name in FORMS if name in flow.parameters.properties]
    require_sections(changes, tuple(known), flow.name)
    for name, fields in changes.items():
        with nearest_name_in_errors():
            parse_changes(FORMS[name].changed, fields, name)
    return {name: FORMS[name](**fields) for name, fields in changes.items()}


def run_name() -> str:
    """Date, preset and commit, so that a list of runs can be read."""
    started = flow_run.get_scheduled_start_time()
    return f"{started:%Y-%m-%d %H:%M} {flow_run.get_parameters()['preset']} {provenance.commit()[:8]}"
