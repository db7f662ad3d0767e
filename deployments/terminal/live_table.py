"""What a terminal shows of a run while it goes on: one table of its stages, drawn anew in place, and above it the log
lines that matter. Where standard error is no terminal, or a dumb one, all log lines and no table."""

import logging
import math
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from deployments.cli.entry_point import was_interrupted
from deployments.terminal.run_log import RunLogHandler, handled_by
from deployments.terminal.run_state import RunState, StageRow, State
from eval.words import duration
from flows.planned_stages import Planned
from model.errors import in_one_line
from tasks.runtime.stage_events import LISTENERS

SECONDS_BETWEEN_FRAMES = (0.25, 1.0)  # in the first minute, and afterwards
BAR = 12  # characters
STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "bold cyan",
    State.SKIPPED: "green",
    State.DONE: "green",
    State.FAILED: "bold red",
    State.STOPPED: "yellow",
}
WIDTHS = {"state": 7, "time": 11}
"""Of columns that hold one of a few words, and `23 h 59 min`."""
GAP = 2
LINES_OF_NOTE = 3
Cells = tuple[str, str, str, list[str], State]
"""Stage, state, time and lines of progress of a row, and the state again for its style."""


@contextmanager
def shown_run(title: str, planned: Planned) -> Iterator[RunState]:
    """Show the stages of a run while it goes on, on standard error; gives what they have come to."""
    state = RunState(planned)
    console = OneAtATime(stderr=True, highlight=False)
    with ExitStack() as stack:
        LISTENERS.append(state)
        stack.callback(LISTENERS.remove, state)
        if console.is_terminal and not console.is_dumb_terminal:
            table = LiveTable(console, in_one_line(title), state)
            stack.enter_context(handled_by(RunLogHandler(table.print, state, table=True)))
            stack.enter_context(table)
        else:
            stack.enter_context(handled_by(RunLogHandler(_print_line, state, table=False)))
        yield state


def _print_line(line: str, _level: int) -> None:
    print(line, file=sys.stderr, flush=True)


class OneAtATime(Console):
    """A console on which one thread prints at a time: the table, and what comes above it. Else two that move the
    cursor up by the same frame leave a line of it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.printing = threading.RLock()

    def __enter__(self) -> "OneAtATime":
        self.printing.acquire()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            super().__exit__(*exception)
        finally:
            self.printing.release()


class LiveTable:
    """Draws a RunState as long as its context lasts, in a thread of its own, and only what has changed."""

    def __init__(self, console: Console, title: str, state: RunState) -> None:
        self.console, self.title, self.state = console, title, state
        self.live = Live(_Frame(title, [], ""), console=console, auto_refresh=False)
        self.shown: object = None
        self.size = console.size
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._draw_until_ended, daemon=True, name="live_table")

    def __enter__(self) -> "LiveTable":
        self.live.start()
        self._draw()
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join(2)
        with suppress(OSError):  # the terminal is gone
            self._draw(whole=True)
            self.live.stop()

    def print(self, line: str, level: int) -> None:
        """Write a line above the table, where it stays."""
        style = "bold red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else ""
        with suppress(OSError), self.console:
            self._follow_size()
            self.console.print(Text(line, style))

    def _draw_until_ended(self) -> None:
        at_first, later = SECONDS_BETWEEN_FRAMES
        with suppress(OSError):
            while not self.ended.wait(at_first if self.state.clock() - self.state.began < 60 else later):
                self._draw()

    def _draw(self, *, whole: bool = False) -> None:
        with self.console:  # before the lock of `Live`, as whoever prints does
            self._follow_size()
            width, height = self.console.size
            with self.state.lock:
                cells = [_cells(row, self.state.clock(), _room(self.state, width)) for row in self.state.rows]
                footer = _footer(self.state, ended=whole)
            rows = cells if whole else _rows_that_fit(cells, height - 4)  # title, header, footer, a line after it
            content = (rows, footer, width)
            if content != self.shown:
                self.shown = content
                self.live.update(_Frame(self.title, rows, footer), refresh=True)

    def _follow_size(self) -> None:
        """A terminal that becomes narrower breaks the lines that are there: the next frame must erase more of them."""
        size, self.size = self.size, self.console.size
        frame = self.live.get_renderable()
        if self.size.width < size.width and isinstance(frame, _Frame) and frame.widths:
            height = sum(max(1, math.ceil(width / self.size.width)) for width in frame.widths)
            self.live._live_render._shape = (self.size.width, height)  # rich has no other way to say so


class _Frame:
    """Title, table and footer as they are drawn; `widths` of its lines, without the space at their ends."""

    def __init__(self, title: str, rows: list[Cells], footer: str) -> None:
        self.title, self.rows, self.footer = title, rows, footer
        self.widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim", pad_edge=False)
        columns = list(zip(*((stage, state, time) for stage, state, time, *_ in self.rows), strict=True))
        widths = {name: max(map(len, (name, *cells))) for name, cells in zip(("stage", *WIDTHS), columns)}
        for name, width in widths.items():
            table.add_column(name, no_wrap=True, justify="right" if name == "time" else "left", width=width)
        room = max(1, options.max_width - sum(widths.values()) - GAP * len(widths))
        table.add_column("progress", no_wrap=True, overflow="ellipsis", max_width=room)
        for stage, state, seconds, progress, style in self.rows:
            text = Text("\n".join(progress), no_wrap=True, overflow="ellipsis")
            table.add_row(stage, Text(state, STYLES[style]), seconds, text, style="dim" * (style is State.WAITING))
        parts = (Text(self.title, "bold", no_wrap=True, overflow="ellipsis"), table, Text(self.footer, "dim"))
        lines = [line for part in parts for line in console.render_lines(part, options, pad=False)]
        trimmed = [_trimmed(line) for line in lines]
        self.widths = [sum(segment.cell_length for segment in line) for line in trimmed]
        for number, line in enumerate(trimmed):
            yield from [Segment.line(), *line] if number else line


def _trimmed(line: list[Segment]) -> list[Segment]:
    """The line without the space at its end, which a terminal that becomes narrower would break as well."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else line


def _room(state: RunState, width: int) -> int:
    """Columns for the progress of a stage."""
    return max(12, width - max(len(row.label) for row in state.rows) - sum(WIDTHS.values()) - 3 * GAP)


def _cells(row: StageRow, now: float, room: int) -> Cells:
    seconds = row.seconds(now)
    took = "" if row.state is State.WAITING else _whole_seconds(seconds)
    return row.label, row.state.value, took, _progress(row, now, room), row.state


def _progress(row: StageRow, now: float, room: int) -> list[str]:
    """What a row says beside state and time, in lines of `room` columns."""
    if row.state is State.SKIPPED:
        builders = list(dict.fromkeys(row.builders))
        more = f" and {len(builders) - 1} more" if len(builders) > 1 else ""
        return [f"built {builders[-1]}{more}"]
    if row.state not in (State.RUNNING, State.STOPPED):
        return []
    if row.note:
        return _pieces(in_one_line(row.note), room)
    parts = []
    if row.total and row.state is State.RUNNING:
        share = min(1.0, row.done / row.total)
        filled = round(BAR * share)
        parts.append(f"{'━' * filled}{'┄' * (BAR - filled)} {100 * share:.0f} %")
    if row.left_at is not None and row.done < row.total and row.state is State.RUNNING:
        parts.append(f"{_whole_seconds(max(1.0, row.left_at - now))} left")
    lines = [""]
    for part in [*parts, *(in_one_line(fact) for fact in row.facts)]:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if len(joined) <= room or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return [piece for line in lines for piece in _pieces(line, room)]


def _pieces(line: str, room: int) -> list[str]:
    """A line that is too long, in a few pieces."""
    pieces = textwrap.wrap(line, room, max_lines=LINES_OF_NOTE, placeholder=" …")
    return pieces or [""]


def _rows_that_fit(cells: list[Cells], height: int) -> list[Cells]:
    """The rows around the one that runs, where the terminal has too few lines for all; the others are counted."""
    lines = [max(1, len(cell[3])) for cell in cells]
    if sum(lines) <= height:
        return cells
    begun = [at for at, cell in enumerate(cells) if cell[4] is not State.WAITING]
    first = last = begun[-1] if begun else 0
    used = lines[first] + 2  # and what is counted above and below
    while True:
        if last + 1 < len(cells) and used + lines[last + 1] <= height:
            last += 1
            used += lines[last]
        elif first and used + lines[first - 1] <= height:
            first -= 1
            used += lines[first]
        else:
            break
    above, below = _counted(cells[:first], "before"), _counted(cells[last + 1 :], "after")
    return [*above, *cells[first : last + 1], *below]


def _counted(cells: list[Cells], where: str) -> list[Cells]:
    return [(f"{len(cells)} {where}", "", "", [""], State.WAITING)] if cells else []


def _whole_seconds(seconds: float) -> str:
    return f"{int(seconds)} s" if seconds < 60 else duration(seconds)


def _footer(state: RunState, *, ended: bool) -> str:
    took = _whole_seconds(state.clock() - state.began)
    begun = any(row.state is not State.WAITING for row in state.rows)
    what = f"{state.finished} of {len(state.rows)} stages finished" if begun else "starting"
    if ended:
        return f"{state.finished} of {len(state.rows)} stages finished after {took}"
    return f"{'stopping, ' * was_interrupted()}{what}, {took} so far"
