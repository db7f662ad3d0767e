"""Passages that look like leaks and are none, from `passages.toml`: the positive control fails no run over them, but
counts how many are flagged."""

import tomllib
from pathlib import Path


def _read(path: Path) -> tuple[str, ...]:
    kinds = tomllib.loads(path.read_text(encoding="utf-8"))
    return tuple(passage for passages in kinds.values() for passage in passages)


PASSAGES = _read(Path(__file__).with_name("passages.toml"))
