"""What the stages of a run in this process do, told to listeners such as the table of `daily-train run`.

`build_or_skip` tells when a stage begins and how it ends; whoever builds a stage calls `progress`. Nobody listens in a
run that a worker has started.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast


class Moment(StrEnum):
    """What happens to a stage."""

    BEGUN = "begun"
    PROGRESS = "progress"
    NOTE = "note"
    SKIPPED = "skipped"
    BUILT = "built"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class StageEvent:
    """One moment of one stage."""

    stage: str
    key: str
    work: Path
    """Its work folder, where a stage that was stopped resumes."""
    moment: Moment
    done: int = 0
    total: int = 0
    """Of whatever the stage counts; 0: not known."""
    seconds_left: float | None = None
    """As the stage knows it; None: it follows from `done`, `total` and the time."""
    facts: tuple[str, ...] = ()
    """More about the progress, in words."""
    manifest: Any = None
    """Of a stage that was skipped or built (tasks/store/manifest.py)."""


LISTENERS: list[Callable[[StageEvent], None]] = []
"""Called with every event, in the thread of the stage: they are quick and raise nothing."""
Function = TypeVar("Function", bound=Callable[..., Any])
_current: ContextVar[dict[str, Any] | None] = ContextVar("_current", default=None)


def announced(build_or_skip: Function) -> Function:
    """Tell the listeners when a call begins and how it ends."""

    @wraps(build_or_skip)
    def telling(stage: Any, context: Any, *rest: Any, **named: Any) -> Any:
        key = stage.key
        token = _current.set({"stage": stage.name, "key": key, "work": context.cache / "work" / stage.name / key})
        try:
            _tell(moment=Moment.BEGUN)
            result = build_or_skip(stage, context, *rest, **named)
            moment = Moment.SKIPPED if result.skipped else Moment.BUILT
            _tell(moment=moment, manifest=result.manifest)
            return result
        except Exception:
            _tell(moment=Moment.FAILED)
            raise
        except BaseException:
            _tell(moment=Moment.STOPPED)
            raise
        finally:
            _current.reset(token)

    return cast(Function, telling)


def progress(done: int, total: int = 0, *facts: str, seconds_left: float | None = None) -> None:
    """Tell the listeners how far the stage is that this thread builds; nothing outside of stages."""
    _tell(moment=Moment.PROGRESS, done=done, total=total, facts=facts, seconds_left=seconds_left)


def note(what: str) -> None:
    """Tell the listeners what the stage does instead of going on, such as to wait or to save."""
    _tell(moment=Moment.NOTE, facts=(what,))


def _tell(**what: Any) -> None:
    if LISTENERS and (stage := _current.get()) is not None:
        event = StageEvent(**stage, **what)
        for listener in LISTENERS:
            listener(event)
