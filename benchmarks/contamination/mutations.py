"""Ways to break the contamination scan, from `mutations.toml`: `benchmarks/contamination/control.py` tries them all."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change of the source of `eval/`."""

    area: str
    name: str
    file: str
    old: str
    """Text that stands in the file exactly once."""
    new: str
    earlier: bool = False
    """Whether the same folder holds the results of an earlier scan of other documents."""


def _read(path: Path) -> tuple[Mutation, ...]:
    return tuple(Mutation(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutations"])


MUTATIONS = _read(Path(__file__).with_name("mutations.toml"))
