"""The forms of the Prefect UI, derived from the dataclasses of the configuration.

Prefect shows a flow's parameters by their JSON schema, and pydantic models are how it gets one: names, descriptions,
defaults, choices and bounds of the fields. What a value may be, `model/parsing.py` decides here as everywhere.
"""

import dataclasses
import inspect
import types
from functools import cache
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from model.parsing import Bounds, Dataclass, descriptions, field_types, parse, parse_changes


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


class Changes(BaseModel):
    """A section of the custom-run form: a field that is left empty is not given at all, null is a value like any other.

    The form sends null for one kind of field that nobody touched, a choice of forms, where no preset has null.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_plain_fields)
    changed: ClassVar[type[Dataclass]]
    """The dataclass whose fields these are."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, values: Any) -> Any:
        """Refuse what pydantic alone would take: true for 1, "5" for 5."""
        if isinstance(values, dict):
            parse_changes(cls.changed, values, "")
        return values

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


def changes_form(config: type[Dataclass]) -> type[Changes]:
    """The form of changes to a section: each field described, bounded and optional; an empty one keeps the preset's
    value."""
    fields: dict[str, Any] = {
        name: (Union[_form_type(kind), None], Field(None, description=descriptions(config)[name]))  # noqa: UP007
        for name, kind in field_types(config).items()
    }
    form = create_model(
        f"{config.__name__.removesuffix('Config')}Changes",
        __base__=Changes,
        __doc__="Changes to the preset; an empty field keeps its value.",
        **fields,
    )
    form.changed = config
    return form


@dataclasses.dataclass(frozen=True)
class ShownAsForm:
    """In `Annotated`, around a dataclass: Prefect shows its form, and the flow gets the dataclass."""

    section: str
    """Name of the flow's parameter, for the errors."""

    def __get_pydantic_core_schema__(self, config: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(values: Any, _: object) -> Any:
            return values if isinstance(values, config) else parse(config, values, self.section)

        return core_schema.no_info_wrap_validator_function(
            read,
            handler.generate_schema(_whole_form(config, json_schema_extra=_plain_fields)),
            serialization=core_schema.plain_serializer_function_ser_schema(dataclasses.asdict),
        )


def _whole_form(config: type[Dataclass], **settings: Any) -> type[BaseModel]:
    """The form of all fields of a dataclass, those that it defines itself before those that it inherits."""
    own = inspect.get_annotations(config)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    fields: dict[str, Any] = {
        name: (
            _form_type(field_types(config)[name]),
            Field(
                ... if defaults[name] is dataclasses.MISSING else defaults[name],
                description=descriptions(config).get(name),
            ),
        )
        for name in sorted(defaults, key=lambda name: name not in own)
    }
    title = getattr(config, "form_title", config.__name__)
    return create_model(
        config.__name__,
        __config__=ConfigDict(extra="forbid", frozen=True, title=title, **settings),
        __doc__=inspect.cleandoc(config.__doc__ or ""),
        **fields,
    )


_nested_form = cache(_whole_form)


def _form_type(kind: Any) -> Any:
    """The type of a field as pydantic knows it: bounds and dataclasses in its own form."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        given = [dataclasses.asdict(bounds) for bounds in arguments[1:] if isinstance(bounds, Bounds)]
        bounds = {name: value for each in given for name, value in each.items() if value is not None}
        return Annotated[_form_type(arguments[0]), Field(**bounds)]
    if origin in (types.UnionType, Union):
        return Union[tuple(_form_type(option) for option in arguments)]  # noqa: UP007
    if origin in (tuple, list):
        return origin[tuple(part if part is ... else _form_type(part) for part in arguments)]
    return _nested_form(kind) if dataclasses.is_dataclass(kind) else kind
