"""The contract of the modules that run as their own process: `python -m eval.NAME CONFIG.json`.

* One JSON object in; a key that is unknown or missing is refused in one sentence.
* Progress as JSON lines on stdout: `{"event": "progress", "done", "total"}` at most once a second, and a last
  `{"event": "done", ...}`.
* A failure is one line `error: ...` on stderr and exit status 1 (model/errors.py). SIGTERM unwinds the process, so
  that worker processes do not outlive it.
"""

import dataclasses
import json
import signal
import time
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from model.errors import DailyTrainError, naming, reason_of, shown_value, tell_error
from model.machine.termination import unwind

Config = typing.TypeVar("Config")


class CommandError(DailyTrainError):
    """The configuration of a command cannot be used; the message names the key and the value."""


@dataclasses.dataclass
class Progress:
    """Prints progress events; `clock` gives seconds."""

    total: int
    clock: Callable[[], float] = time.monotonic
    _last: float = -1e9

    def __call__(self, done: int) -> None:
        now = self.clock()
        if now - self._last >= 1.0 or done == self.total:
            self._last = now
            emit({"event": "progress", "done": done, "total": self.total})


def emit(event: dict) -> None:
    """One JSON line on stdout, flushed, so that a parent process can follow."""
    print(json.dumps(event), flush=True)


def parse(cls: type[Config], values: object, section: str) -> Config:
    """`values` as the dataclass `cls`, nested ones included; raises `CommandError` naming key and value."""
    if not isinstance(values, dict):
        raise CommandError(f"{section} must be an object, found {shown_value(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise CommandError(f"{section} has the unknown key {unknown[0]!r}: expected {', '.join(fields)}")
    kinds = typing.get_type_hints(cls)
    given = {}
    for name, field in fields.items():
        if name in values:
            given[name] = _convert(values[name], kinds[name], f"{section}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CommandError(f"{section} lacks the key {name!r}")
    return cls(**given)


def _convert(value: object, kind: typing.Any, where: str) -> object:
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise CommandError(f"{where} must be a list, found {shown_value(value)}")
        return tuple(_convert(each, typing.get_args(kind)[0], where) for each in value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in list(kind):
            raise CommandError(f"{where} must be one of {', '.join(kind)}, found {shown_value(value)}")
        return kind(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CommandError(f"{where} must be {kind.__name__}, found {shown_value(value)}")
    return value


def read_config(path: Path, cls: type[Config]) -> Config:
    """The JSON file `path` as `cls`; raises `CommandError` naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path}: cannot be read as JSON: {reason_of(error)}") from error
    return parse(cls, values, path.name)


def run(
    arguments: list[str],
    cls: type[Config],
    work: Callable[[Config], dict],
) -> int:
    """Runs `work(config)` under the contract above and returns the exit status.

    `work` returns the fields of the last event.
    """
    signal.signal(signal.SIGTERM, unwind)
    try:
        if len(arguments) != 1:
            raise CommandError(f"expected one argument, the path of a JSON configuration, found {arguments}")
        config = read_config(Path(arguments[0]), cls)
        with naming(getattr(config, "out", Path(arguments[0]))):
            emit({"event": "done"} | work(config))
    except Exception as error:
        return tell_error(error)
    return 0
