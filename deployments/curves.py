"""The curve of a training as the server keeps it: thinned while it grows, so that a page of any length stays fast."""

import json
import math
import secrets
import time
from pathlib import Path
from typing import Any

MOST_POINTS = 2000
"""Points of a series that are kept; beyond that every second one goes. More than a screen has columns."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "step": ("step", "loss", "tokens_per_second", "mfu", "tokens", "seconds", "steps", "lr", "grad_norm"),
    "validation": ("step", "loss", "bits_per_byte", "hellaswag_acc_norm"),
    "usage": ("step", "gpu_percent", "gpu_bytes", "gpu_bytes_total", "cpu_percent", "bytes"),
}
"""The numbers of each series; each may be absent but the first. A page gets them in this order."""
DRAWN = {"step": 4, "validation": 3, "usage": 6}
"""How many of the columns a page gets of every point; of the last one it gets all."""
FACTS = {"device": str, "usd_per_hour": float, "started": float, "earlier": bool}
LONGEST_WORD = 200  # characters
LARGEST_NUMBER = 1e21
PHASES = ("waiting", "starting", "training", "saving", "finished", "cancelled", "failed", "stopped")


class LineError(ValueError):
    """A line of metrics that is none of ours; the message says what is wrong with it."""


def parse_line(text: str) -> dict[str, Any]:
    """One line of metrics: an object whose `event` is a series, `facts`, `phase` or `over`. Raises LineError."""
    try:
        line = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise LineError(f"is no JSON object: {error}") from error
    if not isinstance(line, dict):
        raise LineError("is no JSON object")
    event = line.pop("event", None)
    if event == "facts":
        for name, value in line.items():
            _check_fact(name, value)
    elif event == "phase":
        if line.keys() != {"phase"} or line["phase"] not in PHASES:
            raise LineError(f"a phase is one of {', '.join(PHASES)}")
    elif event == "over":  # what was sent before is void
        if line:
            raise LineError("`over` has no values")
    elif event in COLUMNS:
        _check_numbers(line, COLUMNS[event])
    else:
        raise LineError(f"no such event: {str(event)[:40]!r}")
    return {"event": event, **line}


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _check_fact(name: str, value: Any) -> None:
    if (kind := FACTS.get(name)) is None:
        raise LineError(f"no such fact: {name[:40]!r}")
    if kind is float:
        _check_number(name, value)
    elif not isinstance(value, kind) or (isinstance(value, str) and len(value) > LONGEST_WORD):
        raise LineError(f"{name} is no {kind.__name__} of at most {LONGEST_WORD} characters")


def _check_numbers(line: dict[str, Any], names: tuple[str, ...]) -> None:
    for name, value in line.items():
        if name not in names:
            raise LineError(f"no such number: {name[:40]!r}")
        if value is not None:
            _check_number(name, value)
    if not isinstance(line.get(names[0]), int) or line[names[0]] < 0:
        raise LineError(f"{names[0]} is no count")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST_NUMBER:
        raise LineError(f"{name} is no number up to {LARGEST_NUMBER:g}")


class Series:
    """The points of one kind. Every `stride`-th is kept, so that they lie evenly, and the last one."""

    def __init__(self) -> None:
        self.stride, self.count = 1, 0
        self.kept: list[tuple[int, dict[str, Any]]] = []
        self.last: tuple[int, dict[str, Any]] | None = None

    def append(self, number: int, point: dict[str, Any]) -> None:
        self.last = (number, point)
        if self.count % self.stride == 0:
            self.kept.append(self.last)
            if len(self.kept) > MOST_POINTS:
                self.kept, self.stride = self.kept[::2], 2 * self.stride
        self.count += 1

    def after(self, number: int) -> list[dict[str, Any]]:
        """What came after a point of that number."""
        found = [point for at, point in self.kept if at > number]
        if self.last and self.last[0] > number and (not found or found[-1] != self.last[1]):
            found.append(self.last[1])
        return found


class Curve:
    """The curve of one training, in a file of lines that are appended, and written anew when they are too many."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier server has left in the file, if there is one."""
        self.path = path
        self.clear()
        self.facts: dict[str, Any] = {}
        self.phase, self.heard, self.lines = "", time.time(), 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        heard, whole = self.path.stat().st_mtime, True
        for text in self.path.read_text(errors="replace").splitlines():
            try:
                self._take(json.loads(text) if text.startswith('{"thinned"') else parse_line(text))
            except ValueError:  # cut short when the server was killed
                whole = False
        if not whole:
            self._write_anew()
        self.heard = heard

    def clear(self) -> None:
        self.generation, self.number = secrets.token_hex(4), 0
        self.series = {name: Series() for name in COLUMNS}

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Take lines that `parse_line` has checked, and keep them."""
        self.heard = time.time()
        for line in lines:
            self._take(line)
        if self.lines > 4 * MOST_POINTS or any(line["event"] == "over" for line in lines):
            self._write_anew()
        else:
            with self.path.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    def _take(self, line: dict[str, Any]) -> None:
        self.lines += 1
        if "thinned" in line:
            for name, (stride, count, last) in line["thinned"].items():
                self.number += 1
                self.series[name].stride, self.series[name].count = stride, count
                self.series[name].last = last and (self.number, last)
            return
        values = {name: value for name, value in line.items() if name != "event"}
        if line["event"] == "facts":
            self.facts |= values
        elif line["event"] == "phase":
            self.phase = line["phase"]
        elif line["event"] == "over":
            self.clear()
        elif not self._is_there(line):
            self.number += 1
            self.series[line["event"]].append(self.number, values)

    def _is_there(self, line: dict[str, Any]) -> bool:
        """Whether a step was sent before: a run that has missed our answer sends it again."""
        last = self.series[line["event"]].last
        return line["event"] != "usage" and last is not None and line["step"] <= last[1]["step"]

    def _write_anew(self) -> None:
        lines: list[dict[str, Any]] = [{"event": "facts", **self.facts}]
        if self.phase:
            lines.append({"event": "phase", "phase": self.phase})
        strides = {}
        for name, series in self.series.items():
            lines += [{"event": name, **point} for _, point in series.kept]
            strides[name] = (series.stride, series.count, series.last and series.last[1])
        lines.append({"thinned": strides})
        temporary = self.path.with_suffix(".new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        temporary.replace(self.path)
        self.lines = len(lines)

    def after(self, generation: str, number: int) -> dict[str, Any]:
        """What a page that has everything up to a number lacks; everything, if it has another generation."""
        number = number if generation == self.generation else 0
        answer: dict[str, Any] = {"generation": self.generation, "number": self.number, "last": {}}
        for name, series in self.series.items():
            columns = COLUMNS[name][: DRAWN[name]]
            answer[name] = [[_short(point.get(column)) for column in columns] for point in series.after(number)]
            answer["last"][name] = series.last[1] if series.last else None
        return answer | {
            "facts": self.facts,
            "phase": self.phase,
            "quiet": round(max(0.0, time.time() - self.heard), 1),
        }

    def summary(self) -> dict[str, Any]:
        """Where the training is, for a list of runs."""
        last = self.series["step"].last
        return {"phase": self.phase, "step": last[1] if last else None, "quiet": time.time() - self.heard}


def _short(value: float | None) -> float | None:
    """Five digits: more than a screen shows."""
    if not value or isinstance(value, int):
        return value
    return round(value, 4 - math.floor(math.log10(abs(value))))
