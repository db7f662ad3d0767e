"""The configuration of a run: a preset, composed once with the changes a person or a schedule asks for.

Each section is defined beside what it configures. A preset is a TOML file in `flows/presets/` that gives every
section; the custom-run form shows each field with its description, and an empty field keeps the preset's value.
What a run is *executed* on (store, workers, device) is kept apart and never part of any stage's identity. A training or
scoring with other workers or another device has the same result up to rounding.
"""

import ast
import dataclasses
import inspect
import json
import tomllib
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from prefect import Flow
from prefect.runtime import flow_run
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
)

from eval.contamination.verdicts import ContaminationError
from flows.effects import without_effect
from model.errors import LONGEST_VALUE, shown_value
from model.network.config import BUDGETS, ConfigError, GPTConfig, TrainConfig, parse
from tasks.contamination import CheckConfig
from tasks.download import DataConfig
from tasks.evaluate import EvaluationConfig
from tasks.runtime.error_messages import shorten_errors
from tasks.runtime.tracking import Tracker
from tasks.settings import Settings
from tasks.shard import ShardConfig
from tasks.store import provenance
from tasks.store.context import RunContext, open_context
from tasks.tokenizer import TokenizerConfig

shorten_errors()
PRESETS = Path(__file__).parent / "presets"
Section = TypeVar("Section")

Preset = StrEnum("Preset", {path.stem.replace("-", "_"): path.stem for path in sorted(PRESETS.glob("*.toml"))})


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


def _plain_fields(schema: dict[str, Any]) -> None:
    """Show an optional number, text or choice as an empty field of its kind; with null it would be a switch between
    kinds. The form sends a switch even when nobody touched it: a truth value becomes a choice of true and false, and a
    choice of forms stays a switch with an empty side."""
    for field in schema["properties"].values():
        kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
        if len(kinds) == 1:
            del field["anyOf"]
            field.update({"enum": [True, False]} if kinds[0].get("type") == "boolean" else kinds[0])
            if field.get("default", ...) is None:
                del field["default"]


class Form(Settings):
    """A section of the custom-run form: a field that is left empty is not given at all, null is a value like any other.

    The form sends null for one kind of field that nobody touched, a choice of forms, where no preset has null.
    """

    model_config = ConfigDict(json_schema_extra=_plain_fields)

    @model_serializer(mode="wrap")
    def _given(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        untouched = {
            name
            for name, field in type(self).model_fields.items()
            if getattr(self, name) is None and _is_choice_of_forms(field.annotation)
        }
        given = self.model_fields_set - untouched
        return {name: value for name, value in serialise(self).items() if name in given}


def _is_choice_of_forms(annotation: Any) -> bool:
    return sum(isinstance(part, type) and issubclass(part, BaseModel) for part in get_args(annotation)) > 1


class Execution(Form):
    """Where and how the run is executed; part of no stage's key. Workers, device and processes change results by
    rounding only."""

    store: str = Field(".daily-train", description="Where results are kept: a directory, or `s3://bucket/prefix`.")
    cache: str | None = Field(None, description="Local folder for work and copies. Empty: `cache` in a local store.")
    workers: int | None = Field(
        None, ge=1, description="Processes and threads. Empty: one for each core. A resumed training keeps its number."
    )
    device: Literal["cpu", "cuda"] | None = Field(None, description="`cpu` or `cuda`. Empty: a GPU if any.")
    processes: int | None = Field(
        None,
        ge=1,
        description="How many processes train and score together, each on a GPU of its own; they share the workers. "
        "Empty: one for each GPU, as far as they can share the sequences of a step equally; one on a CPU.",
    )
    parallelism: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="What several processes of a training share. `ddp`: each holds the whole network, and gradients "
        "are averaged. `fsdp`: each holds a part of weights, gradients and optimizer state, for a network that one GPU "
        "cannot hold; more traffic between them.",
    )
    deterministic: bool = Field(
        False,
        description="Train on a GPU with slower algorithms that give the same bytes every time. A CPU always does.",
    )
    benchmarks_dir: str | None = Field(
        None, description="Folder with benchmark items as parquet, looked at first. Empty: `DAILY_TRAIN_BENCHMARKS`."
    )
    usd_per_hour: float | None = Field(None, ge=0, description="Price of this machine. Empty: list price of its kind.")
    checkpoint_every_minutes: float = Field(
        10.0, gt=0, description="Longest time between checkpoints of a training, beside those by step."
    )
    max_hours: float = Field(
        48.0,
        gt=0,
        description="A run whose training is projected to take more hours on this machine is refused at its start.",
    )
    hellaswag_items: int = Field(0, ge=0, description="HellaSwag items to score at each validation while training.")
    sample_every_steps: int | None = Field(None, ge=1, description="Steps between samples in training. Empty: none.")
    tracker: Tracker = Field(Tracker.NONE, description="Also tell the metrics of the training to this tool.")


BOUNDS: dict[str, dict[str, float]] = {
    name: bounds
    for names, bounds in {
        "tokens flops gpu_hours usd learning_rate embedding_learning_rate head_learning_rate scalar_learning_rate "
        "adam_epsilon grad_clip spike_deviations qk_scale softcap": {"gt": 0},
        "tokens_per_step micro_batch_sequences validation_every_steps validation_tokens checkpoint_every_steps "
        "log_every_steps depth width heads kv_heads sequence_length experts experts_per_token": {"ge": 1},
        "seed weight_decay warmup_steps sample_tokens momentum_warmup_steps shared_experts balance_rate": {"ge": 0},
        "adam_beta1 adam_beta2 momentum muon_beta2 momentum_final": {"ge": 0, "lt": 1},
        "cooldown_fraction final_lr_fraction": {"ge": 0, "le": 1},
        "rotary_fraction": {"gt": 0, "le": 1},
    }.items()
    for name in names.split()
}
"""Bounds that the form knows of network and training, so that it refuses a value before anything starts; the trainer's
own checks have the last word."""


def overrides(config: type) -> type[BaseModel]:
    """The form of a section: each field described, bounded and optional; an empty one keeps the preset's value."""
    fields: dict[str, Any] = {}
    if is_dataclass(config):
        told = _attribute_docstrings(config)
        for name, kind in get_type_hints(config).items():
            fields[name] = (kind | None, Field(None, description=told[name], **BOUNDS.get(name, {})))
    else:
        for name, info in config.model_fields.items():
            kind = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            fields[name] = (kind | None, Field(None, description=info.description))
    return create_model(
        f"{config.__name__.removesuffix('Config')}Changes",
        __base__=Form,
        __doc__="Changes to the preset; an empty field keeps its value.",
        **fields,
    )


def _attribute_docstrings(config: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those it extends, which Python itself does not keep."""
    return {
        field.target.id: ast.literal_eval(text.value)
        for part in reversed(config.__mro__)
        if is_dataclass(part)
        for field, text in pairwise(ast.parse(inspect.getsource(part)).body[0].body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


DataChanges = overrides(DataConfig)
TokenizerChanges = overrides(TokenizerConfig)
ShardChanges = overrides(ShardConfig)
ModelChanges = overrides(GPTConfig)
TrainChanges = overrides(TrainConfig)
ContaminationChanges = overrides(CheckConfig)
EvaluationChanges = overrides(EvaluationConfig)

FORMS: dict[str, type[BaseModel]] = {
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
    path = PRESETS / f"{preset}.toml"
    values = tomllib.loads(path.read_text())
    sections = {field.name: field.type for field in dataclasses.fields(RunConfig)}
    for name, changed in changes.items():
        if name not in sections:
            raise ConfigError(f"unknown section {name!r}; known are {', '.join(sections)}")
        section = values.setdefault(name, {})
        if name == "train" and any(changed.get(unit) is not None for unit in BUDGETS):
            section = {field: value for field, value in section.items() if field not in BUDGETS}
        if name == "tokenizer" and changed.get("kind", section.get("kind")) != section.get("kind"):
            section = {}  # the preset's size is that of a tokenizer that it trains, its path that of one it loads
        values[name] = {**section, **changed}
    if unknown := sorted(set(values) - set(sections)):
        raise ConfigError(f"{path.name}: unknown section {unknown[0]!r}; known are {', '.join(sections)}")
    run = RunConfig(**{name: _section(kind, values.get(name, {}), name) for name, kind in sections.items()})
    if reason := without_effect(run, changes):
        raise ConfigError(reason)
    return run


def changes_of(**sections: BaseModel) -> dict[str, dict[str, Any]]:
    """What filled forms change: the fields that are not empty."""
    return {name: form.model_dump(mode="json") for name, form in sections.items()}


def forms_of(changes: dict[str, dict[str, Any]], flow: Flow) -> dict[str, BaseModel]:
    """The filled forms of a flow's parameters. Raises ConfigError for a section that the flow does not have."""
    known = [name for name in FORMS if name in flow.parameters.properties]
    for name in changes.keys() - set(known):
        raise ConfigError(f"{flow.name} has no section {name!r}; known are {', '.join(known)}")
    forms = {}
    for name, fields in changes.items():
        try:
            forms[name] = FORMS[name](**fields)
        except ValidationError as error:
            raise ConfigError(one_sentence(FORMS[name], error, name)) from None
    return forms


def require_encodable(**sections: BaseModel) -> None:
    """Raise ConfigError for a text that Prefect could not send, such as a path that is no UTF-8."""
    for section, form in sections.items():
        for name, value in form.model_dump().items():
            try:
                json.dumps(value, default=str, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{section}.{name} is {shown_value(value)}, which is not valid UTF-8") from None


def context_of(execution: Execution, environment: dict[str, str], *, reading: bool = False) -> RunContext:
    """Open the store, for a run or for `reading`, and resolve the settings of the machine."""
    settings = {name: getattr(execution, name) for name in Execution.model_fields}
    settings["benchmarks_dir"] = execution.benchmarks_dir or environment.get("DAILY_TRAIN_BENCHMARKS")
    return open_context(**settings, reading=reading)


def run_name() -> str:
    """Date, preset and commit, so that a list of runs can be read."""
    started = flow_run.get_scheduled_start_time()
    return f"{started:%Y-%m-%d %H:%M} {flow_run.get_parameters()['preset']} {provenance.commit()[:8]}"


def as_json(config: RunConfig) -> str:
    """The whole configuration, for the report."""
    values = {
        field.name: dataclasses.asdict(section) if is_dataclass(section) else section.model_dump(mode="json")
        for field in dataclasses.fields(config)
        for section in [getattr(config, field.name)]
    }
    return json.dumps(values, indent=1)


def _section(kind: type[Section], values: dict[str, Any], name: str) -> Section:
    try:
        return parse(kind, values, name) if is_dataclass(kind) else kind.model_validate(values)
    except ContaminationError as error:
        raise ConfigError(f"{name}: {error}") from None
    except ValidationError as error:
        raise ConfigError(one_sentence(kind, error, name)) from None


def one_sentence(kind: type[BaseModel], error: ValidationError, section: str) -> str:
    """The first thing wrong with a section: place, value, expectation and the field's description."""
    first = error.errors()[0]
    where = ".".join([section, *(str(part)[:LONGEST_VALUE] for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        unknown = shown_value(first["loc"][-1])
        return f"{section} has the unknown key {unknown}; known are {', '.join(kind.model_fields)}"
    if first["type"] == "value_error":
        return f"{section}: {first['ctx']['error']}"
    field = kind.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    about = f" ({field.description})" if field and field.description else ""
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, but it is {shown_value(first['input'])}{about}"
