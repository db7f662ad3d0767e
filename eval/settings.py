"""Settings of configurations by name, as `--set` takes them, and in which of them two configurations differ."""

from collections.abc import Iterator
from typing import Any

Differing = dict[str, list[Any]]
"""Value before and value now of each setting that differs, by its name; None for one that is absent."""


def flat_settings(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration that has a value, as section.field."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat_settings(value, f"{above}{name}.")
        elif value is not None:
            yield above + name, value


def differing_settings(before: dict[str, Any], now: dict[str, Any]) -> Differing:
    """In which settings two configurations differ, lists last. Of a part that is of another `kind` now, what it had as
    the earlier kind is left out."""
    first, second = dict(flat_settings(before)), dict(flat_settings(now))
    names = [name for name in dict.fromkeys([*second, *first]) if first.get(name) != second.get(name)]
    parts = {name.rpartition(".")[0] for name in names if name.endswith(".kind")}
    names = [name for name in names if name in second or name.rpartition(".")[0] not in parts]
    names.sort(key=lambda name: isinstance(second.get(name), list))
    return {name: [first.get(name), second.get(name)] for name in names}
