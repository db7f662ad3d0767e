"""From the JSON of a run to a dataclass: unknown keys, missing keys and wrong types are errors by name."""

import dataclasses
import math
import types
import typing
from enum import StrEnum

from model.errors import DailyTrainError, shown_value


class ConfigError(DailyTrainError, ValueError):
    """A setting is missing, unknown or makes no sense; the message names it and its value."""


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names the field, what was expected and the value."""
    if not condition:
        raise ConfigError(f"{field} must be {expected}, but it is {shown_value(value)}")


def require_each(config: object, fields: str, condition: typing.Callable, expected: str, *, null: bool = False) -> None:
    """Check several fields at once; non-finite numbers never pass, None only where `null` says so."""
    for field in fields.split():
        value = getattr(config, field)
        if value is None and null:
            continue
        require(
            value is not None and condition(value) and math.isfinite(value),
            field,
            value,
            f"{expected} or null" if null else expected,
        )


def coerce_choices(config: object) -> None:
    """Turn plain strings of a frozen dataclass into its enums, which are compared by identity: "gelu" built in
    Python means the same as in JSON. Refuses what is none of the choices."""
    for field in dataclasses.fields(config):
        if isinstance(field.default, StrEnum):
            value = _convert(getattr(config, field.name), type(field.default), field.name)
            object.__setattr__(config, field.name, value)


def parse(cls: type, values: object, section: str) -> typing.Any:
    """Build dataclass `cls` from parsed JSON; `section` names the place in the errors."""
    if not isinstance(values, dict):
        raise ConfigError(f"{section} must be an object, but it is {shown_value(values)}")
    kinds = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        raise ConfigError(
            f"{section} has the unknown key {', '.join(map(shown_value, unknown[:5]))}; known are {', '.join(fields)}"
        )
    missing = [name for name, field in fields.items() if name not in values and field.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{section} lacks the key {', '.join(map(repr, missing))}")
    try:
        return cls(**{name: _convert(value, kinds[name], name) for name, value in values.items()})
    except ConfigError as error:
        raise ConfigError(f"{section}: {error}") from None


def _convert(value: object, kind: typing.Any, name: str) -> object:
    """One JSON value as the annotated type; JSON's own types are trusted, strings are not numbers."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, name)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        choices = [choice.value for choice in kind]
        require(value in choices, name, value, f"one of {', '.join(choices)}")
        return kind(value)
    if kind is int or (kind is float and isinstance(value, int)):
        require(not isinstance(value, int | float) or abs(value) < 2**63, name, value, "below 2^63")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e9 is how people write a token budget
    plain = typing.get_origin(kind) or kind
    require(
        isinstance(value, plain) and (plain is bool or not isinstance(value, bool)),
        name,
        value,
        f"of type {plain.__name__}",
    )
    return value
