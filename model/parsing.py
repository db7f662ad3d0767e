"""Configurations as frozen dataclasses, and the one way from JSON or TOML to them.

A field has its type, its `Bounds` and, under it, a docstring with its unit. `parse` refuses unknown keys, missing keys,
values of another type and values out of bounds in one sentence: section and field, what is expected, the value.
`check_fields` in `__post_init__` checks the same of a configuration that is built in Python.
"""

import ast
import dataclasses
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from itertools import pairwise
from pathlib import Path

from model.errors import LONGEST_VALUE, DailyTrainError, reason_of, shown_value


class ConfigError(DailyTrainError, ValueError):
    """A setting is missing, unknown or makes no sense; the message names it and its value."""


class _FieldError(ConfigError):
    """A field has a value that it cannot have; whoever knows the field's description adds it."""


class Dataclass(typing.Protocol):
    """Any dataclass."""

    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[typing.Any]]]


Config = typing.TypeVar("Config", bound=Dataclass)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """In `Annotated`: which values of its type a field takes. None passes where the type has it."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    min_length: int | None = None
    """Elements of a list."""
    pattern: str | None = None
    """Regular expression of a text, matched in full."""

    def expected(self) -> str:
        """What these bounds ask for, in words."""
        if self.ge is not None and self.le is not None:
            return f"from {self.ge} to {self.le}"
        words = {
            "over {}": self.gt,
            "at least {}": self.ge,
            "under {}": self.lt,
            "at most {}": self.le,
            "a list of at least {}": self.min_length,
            "text of the form {}": self.pattern,
        }
        return " and ".join(text.format(bound) for text, bound in words.items() if bound is not None)

    def hold(self, value: typing.Any) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
            and (self.min_length is None or len(value) >= self.min_length)
            and (self.pattern is None or re.fullmatch(self.pattern, value) is not None)
        )


def require(condition: object, field: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names the field, what was expected and the value."""
    if not condition:
        raise _refusal(field, value, expected)


def parse(cls: type[Config], values: object, section: str) -> Config:
    """Build dataclass `cls` from parsed JSON or TOML; `section` names the place in the errors, "" the whole file."""
    values = _known_keys(cls, values, section)
    missing = [field.name for field in dataclasses.fields(cls) if field.name not in values and _is_required(field)]
    if missing:
        raise ConfigError(f"{_name(section)} lacks the key {', '.join(map(repr, missing))}")
    converted = {name: parse_field(cls, name, value, section) for name, value in values.items()}
    try:
        return cls(**converted)
    except DailyTrainError as error:
        raise ConfigError(f"{section}: {error}" if section else str(error)) from None


def parse_field(cls: type[Dataclass], name: str, value: object, section: str) -> typing.Any:
    """The value of one field of a dataclass, checked by itself."""
    try:
        return _convert(value, field_types(cls)[name], f"{section}.{name}".removeprefix("."))
    except _FieldError as error:
        description = descriptions(cls).get(name, "").rstrip(".")
        raise ConfigError(f"{error} ({description})" if description else str(error)) from None


def parse_changes(cls: type[Dataclass], values: object, section: str) -> dict[str, typing.Any]:
    """The fields of a dataclass that are given, each checked by itself; None passes, whatever the field takes."""
    return {
        name: None if value is None else parse_field(cls, name, value, section)
        for name, value in _known_keys(cls, values, section).items()
    }


def read_json(path: Path, cls: type[Config]) -> Config:
    """The configuration in a JSON file; errors begin with its path."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON: {reason_of(error)}") from None
    try:
        return parse(cls, values, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_fields(config: Dataclass) -> None:
    """Check each field of a frozen dataclass as `parse` does, and store it in its type: the text "gelu" becomes the
    choice, which is compared by identity."""
    for name, kind in field_types(type(config)).items():
        object.__setattr__(config, name, _convert(getattr(config, name), kind, name))


@cache
def field_types(cls: type[Dataclass]) -> dict[str, typing.Any]:
    """The type of each field, with its bounds."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def takes_text(kind: typing.Any) -> bool:
    """Whether a field of this type takes a text, be it one of some choices."""
    if arguments := typing.get_args(kind):
        return any(isinstance(part, str) or takes_text(part) for part in arguments)
    return isinstance(kind, type) and issubclass(kind, str)


@cache
def descriptions(cls: type[Dataclass]) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those it extends, which Python itself does not keep."""
    return {name: text for part in reversed(cls.__mro__) if dataclasses.is_dataclass(part) for name, text in _own(part)}


def _own(cls: type) -> Iterator[tuple[str, str]]:
    try:
        [definition] = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    except (OSError, SyntaxError):  # there is no source to read
        return
    assert isinstance(definition, ast.ClassDef)
    for field, text in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            yield field.target.id, " ".join(ast.literal_eval(text.value).split())


def _known_keys(cls: type[Dataclass], values: object, section: str) -> dict[str, typing.Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{_name(section)} must be an object, but it is {shown_value(values)}")
    known = field_types(cls)
    if unknown := sorted(set(values) - set(known), key=str):
        keys = ", ".join(map(shown_value, unknown[:5]))
        raise ConfigError(f"{_name(section)} has the unknown key {keys}; known are {', '.join(known)}")
    return values


def _name(section: str) -> str:
    return section[:LONGEST_VALUE] or "the configuration"


def _is_required(field: dataclasses.Field[typing.Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _refusal(where: str, value: object, expected: str) -> _FieldError:
    return _FieldError(f"{where} must be {expected}, but it is {shown_value(value)}")


def _convert(value: object, kind: typing.Any, where: str) -> object:
    """One value as the annotated type; `where` names it in the errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        value = _convert(value, arguments[0], where)
        for bounds in arguments[1:]:
            if isinstance(bounds, Bounds) and value is not None:
                require(bounds.hold(value), where, value, bounds.expected())
        return value
    if origin in (types.UnionType, typing.Union):
        options = [option for option in arguments if option is not types.NoneType]
        if value is None and len(options) < len(arguments):
            return None
        return _convert(value, options[0] if len(options) == 1 else _chosen(value, options, where), where)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else parse(kind, value, where)
    if value == "":
        raise _FieldError(f"{where} must not be empty")
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _refusal(where, value, "a list")
        return origin(_convert(item, arguments[0], f"{where}[{number}]") for number, item in enumerate(value))
    if origin is typing.Literal or issubclass(kind, StrEnum):
        choices = list(arguments or kind)
        require(isinstance(value, str) and value in choices, where, value, f"one of {', '.join(choices)}")
        return kind(value) if origin is None else value
    if kind in (int, float):
        return _number(value, kind, where)
    if kind is Path and isinstance(value, str):
        return Path(value)
    require(isinstance(value, kind), where, value, _EXPECTED.get(kind, kind.__name__))
    return value


def _chosen(value: object, options: list[typing.Any], where: str) -> typing.Any:
    """Which of several dataclasses a value is: its field `kind` says so."""
    kinds = {typing.get_args(field_types(option)["kind"])[0]: option for option in options}
    for option in options:
        if isinstance(value, option):
            return option
    if not isinstance(value, dict):
        raise _refusal(where, value, f"an object with a `kind` out of {', '.join(kinds)}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise _refusal(f"{where}.kind", kind, f"one of {', '.join(kinds)}")
    return kinds[kind]


def _number(value: object, kind: type[int] | type[float], where: str) -> float:
    """A finite number; texts are no numbers, and true is not 1."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _refusal(where, value, _EXPECTED[kind])
    require(not isinstance(value, int) or abs(value) < 2**63, where, value, "below 2^63")
    require(math.isfinite(value), where, value, "finite")
    if kind is float:
        return float(value)
    require(int(value) == value and abs(value) < 2**63, where, value, _EXPECTED[int])
    return int(value)  # 1e9 is how people write a token budget


_EXPECTED: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
