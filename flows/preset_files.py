"""The presets: TOML files in `flows/presets/`, of which one may extend another. Needs no package besides `model/`.

`extends = "daily"` at the top of a file takes every section and key that the file does not set from that preset.
Files in `presets/shared/` are there to be extended and are no presets themselves.
"""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Any

from model.errors import did_you_mean, shown_value
from model.parsing import ConfigError
from model.training.config import BUDGETS

PRESETS = Path(__file__).parent / "presets"


class Preset(StrEnum):
    """The choice of the form; one for each file of the folder."""

    daily_baseline = "daily-baseline"
    daily = "daily"
    gpt2_124m = "gpt2-124m"
    laptop = "laptop"
    mini_d2 = "mini-d2"
    mini_d4 = "mini-d4"
    mini_d6 = "mini-d6"
    monthly = "monthly"
    nanopoor = "nanopoor"
    smoke = "smoke"
    speedrun = "speedrun"
    study = "study"


def read_preset(name: str, folder: Path = PRESETS) -> dict[str, Any]:
    """The sections of a preset, with what it extends. Raises ConfigError for a preset that there is not."""
    return _read(name, folder, ())


def _read(name: str, folder: Path, extended_by: tuple[str, ...]) -> dict[str, Any]:
    values = tomllib.loads((folder / f"{name}.toml").read_text())
    if "extends" not in values:
        return values
    base = values.pop("extends")
    if not isinstance(base, str) or not (folder / f"{base}.toml").is_file():
        known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))
        hint = did_you_mean(base, known)
        raise ConfigError(
            f"{name}.toml extends {shown_value(base)}, which is no preset{hint}; known are {', '.join(known)}"
        )
    if base in (*extended_by, name):
        raise ConfigError(f"presets extend each other in a circle: {', '.join((*extended_by, name, base))}")
    return _merged(_read(base, folder, (*extended_by, name)), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    kept = what_stays(base, values)
    return kept | {
        name: _merged(kept[name], value) if isinstance(value, dict) and isinstance(kept.get(name), dict) else value
        for name, value in values.items()
    }


def what_stays(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values of a section beside which changes make sense: nothing beside another `kind`, since a tokenizer that is
    trained has a size and one that is loaded a path, and no budget beside another budget."""
    if changes.get("kind", section.get("kind")) != section.get("kind"):
        return {}
    if any(changes.get(unit) is not None for unit in BUDGETS):
        return {name: value for name, value in section.items() if name not in BUDGETS}
    return section
