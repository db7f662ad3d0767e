"""What all sections of settings that pydantic checks have in common."""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, model_validator

from model.errors import shown_value

SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Settings(BaseModel):
    """A section of settings. Unknown keys, empty texts, infinite numbers and values of another type are refused:
    pydantic alone takes true for 1 and "5" for 5."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _right_types(cls, values: Any) -> Any:
        if isinstance(values, dict):
            _require_types({name: field.annotation for name, field in cls.model_fields.items()}, values)
        return values


def _require_types(annotations: dict[str, Any], values: dict[str, Any], section: str = "") -> None:
    for name in values.keys() & annotations.keys():
        annotation = annotations[name]
        for item in values[name] if isinstance(values[name], list | tuple) else [values[name]]:
            _require_type(section + name, item, scalar_types(annotation))
            for part in filter(dataclasses.is_dataclass, (annotation, *get_args(annotation))):
                if isinstance(item, dict):
                    _require_types(get_type_hints(part), item, f"{section}{name}.")


def _require_type(name: str, value: Any, known: set[type]) -> None:
    kind = next((kind for kind in SCALARS if isinstance(value, kind)), None)
    if kind is not None and kind not in known and not (kind in (int, float) and known & {int, float}):
        expected = " or ".join(told for kind, told in SCALARS.items() if kind in known) or "a section"
        raise ValueError(f"{name} must be {expected}, but it is {shown_value(value)}")
    if value == "":
        raise ValueError(f"{name} must not be empty")


def scalar_types(annotation: Any) -> set[type]:
    """Which of `SCALARS` an annotation takes, in its members and elements too; a choice of texts is text."""
    if get_origin(annotation) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    if arguments := get_args(annotation):
        return set().union(*map(scalar_types, arguments))
    if not isinstance(annotation, type) or issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation):
        return set()
    return {next((kind for kind in SCALARS if issubclass(annotation, kind)), annotation)}
