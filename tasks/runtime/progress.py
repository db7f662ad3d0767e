"""What a person sees of a stage while it runs: log lines, progress and loss as artifacts, the table in a terminal.

The last loss is drawn when the training ends, however it ends; a process that is killed leaves the drawing before.
"""

import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import get_client
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from eval.reporting.figures import inline, loss_figure
from eval.sample_prompts import PROMPTS
from eval.words import count, duration
from model.training.metrics import read_lines
from model.training.progress_bar import seconds_left
from tasks.runtime import stage_events
from tasks.runtime.liveness import SECONDS_BETWEEN_LOOKS, report_running
from tasks.runtime.logs import logger
from tasks.store.objects import printable

SECONDS_BETWEEN_LOG_LINES = (5.0, 60.0)  # at first, and after a while
SECONDS_BETWEEN_FIGURES = 60.0
SECONDS_FOR_THE_LAST = 10.0
"""For the last drawing of a training that fails or is cancelled: Prefect kills it 30 s after a cancel."""


def artifact_id(created: UUID | Coroutine[Any, Any, UUID]) -> UUID:
    """The id of an artifact that was created. Prefect's functions give a coroutine only where one calls them."""
    return cast(UUID, created)


class ServerUpdates:
    """Talks to the Prefect server in a thread, because it may be slow or away: whoever follows a child process must go
    on reading what that prints, or the child stops at a full pipe.

    Of several calls of one kind that wait, only the newest is made. One that fails is logged. Leaving the context waits
    for what is left; after an error it drops that.
    """

    RETRIES = 2  # the next call brings newer news than a fifth try

    def __init__(self) -> None:
        self.logger = logger()
        self.newest: dict[str, Callable[[], object]] = {}
        self.pool = ThreadPoolExecutor(1)
        self.looked = -math.inf

    def __call__(self, kind: str, tell: Callable[[], object]) -> Future:
        self.newest[kind] = tell
        return self.pool.submit(copy_context().run, self._tell, kind, tell)

    def __enter__(self) -> "ServerUpdates":
        return self

    def __exit__(self, error: type | None, *exception: object) -> None:
        self.pool.shutdown(wait=error is None, cancel_futures=error is not None)

    def _tell(self, kind: str, tell: Callable[[], object]) -> None:
        if tell is not self.newest[kind]:
            return
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: self.RETRIES}):
                tell()
                if time.monotonic() - self.looked > SECONDS_BETWEEN_LOOKS:
                    self.looked = time.monotonic()
                    report_running()
        except Exception as error:  # connection, protocol and answers of the server share no base class
            self.logger.warning("the Prefect server does not answer, the run goes on: %s", error)


class LogPace:
    """When the next line of a long stage is due: every few seconds at first, every minute after a while."""

    def __init__(self) -> None:
        self.began, self.logged = time.monotonic(), -math.inf

    def due(self, *, at_end: bool) -> bool:
        now, (shortest, longest) = time.monotonic(), SECONDS_BETWEEN_LOG_LINES
        if now - self.logged < min(longest, max(shortest, (now - self.began) / 100)) and not at_end:
            return False
        self.logged = now
        return True


class CountingProgress:
    """Logs the progress of a child process that counts: `contamination: 480 of 5,000 documents scanned`. The server
    shows the lines of all stages in one list, so that each must name its own."""

    def __init__(self, stage: str, counted: str) -> None:
        self.stage, self.counted = stage, counted
        self.pace, self.logger = LogPace(), logger()

    def __call__(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "progress", "done": done, "total": total}:
                if self.pace.due(at_end=done == total):
                    self.logger.info("%s: %s of %s %s", self.stage, f"{done:,}", f"{total:,}", self.counted)
            case {"event": "warning"}:
                self.logger.warning("%s: %s", self.stage, event_sentence(event))
            case {"event": "done"}:
                pass  # whoever follows the child says what it has found
            case _:
                self.logger.info("%s: %s", self.stage, event_sentence(event))


class TrainingProgress:
    """Told every event of the trainer. Leaving the context draws the loss once more."""

    def __init__(self, run_dir: Path, decode: Callable[[list[int]], str], tell: ServerUpdates) -> None:
        self.run_dir, self.decode, self.tell = run_dir, decode, tell
        self.logger = logger()
        self.device = "unknown"
        self.pace, self.drawn = LogPace(), -math.inf
        self.context = TaskRunContext.get()
        self.figure: UUID | None = None
        if self.context is not None:
            self.artifact = artifact_id(
                create_progress_artifact(0.0, key="training-progress", description="Training progress")
            )

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, error: type | None, *exception: object) -> None:
        if self.context is None or not read_lines(self.run_dir / "metrics.jsonl"):
            return
        last = self.tell("figure", self._draw)
        if error is not None:  # whoever leaves `tell` after an error waits for nothing
            with suppress(TimeoutError):
                last.result(SECONDS_FOR_THE_LAST)

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self.device = event.get("device", self.device)
        if kind == "step":
            self._step(event)
        elif kind in ("warning", "damaged_checkpoint"):
            self.logger.warning("%s", event_sentence(event))
        elif kind == "samples":
            for prompt, tokens in zip(PROMPTS, event["tokens_of_prompts"], strict=True):
                self.logger.info("sample at step %d: %s%s", event["step"], prompt, printable(self.decode(tokens)))
        else:
            self.logger.info("%s", event_sentence(event))
            if kind == "ending":
                stage_events.note(event_sentence(event))
        rested = time.monotonic() - self.drawn > SECONDS_BETWEEN_FIGURES
        if kind == "checkpoint" and self.context is not None and rested:
            self.drawn = time.monotonic()
            self.tell("figure", self._draw)

    def _step(self, event: dict[str, Any]) -> None:
        step, steps, loss, rate = (event[name] for name in ("step", "steps", "loss", "tokens_per_second"))
        facts = (f"step {step:,} of {steps:,}", f"loss {loss:.3f}", f"{rate:,} tokens/s")
        stage_events.progress(step, steps, *facts, seconds_left=seconds_left(event))
        if not self.pace.due(at_end=event["step"] == event["steps"]):
            return
        self.logger.info("%s", step_sentence(event))
        if self.context is not None:
            description = f"step {event['step']:,} of {event['steps']:,}, {_loss_and_speed(event, 3)}"
            done = 100 * event["step"] / event["steps"]
            self.tell("progress", lambda: update_progress_artifact(self.artifact, done, description))

    def _draw(self) -> None:
        """The loss so far as an artifact: one a run, drawn anew at checkpoints and when the training ends."""
        events = read_lines(self.run_dir / "metrics.jsonl")
        steps = next((event["steps"] for event in reversed(events) if "steps" in event), 0)
        reached = max(event.get("step", 0) for event in events)
        markdown = f"Step {reached:,} of {steps:,}."
        if sum(event["event"] == "step" for event in events) > 1:  # else there is no line to draw
            markdown += f"\n\n{inline('loss so far', loss_figure(events))}"
        if self.figure is None:
            description = "Loss so far, drawn at checkpoints and when the training ends"
            self.figure = artifact_id(
                create_markdown_artifact(key="loss-so-far", description=description, markdown=markdown)
            )
        else:
            get_client(sync_client=True).update_artifact(self.figure, ArtifactUpdate(data=markdown))


def step_sentence(event: dict[str, Any]) -> str:
    """A step of a training as a line of the log."""
    norm = "" if event["grad_norm"] is None else f", gradient norm {event['grad_norm']:.2f}"
    rate = f", learning rate {event['lr']:.2g}{norm}"
    return f"step {event['step']}/{event['steps']} {_loss_and_speed(event, 4, rate)}"


def _loss_and_speed(event: dict[str, Any], digits: int, more: str = "") -> str:
    left = f", {duration(seconds_left(event))} left" if event["step"] < event["steps"] else ""
    return f"loss {event['loss']:.{digits}f}{more}, {event['tokens_per_second']:,} tokens/s{left}"


def event_sentence(event: dict[str, Any]) -> str:
    """Any event of a child process as a sentence with units; one that is not known here by its numbers and texts."""
    match event:
        case {"event": "start"}:
            return _start(event)
        case {"event": "validation"}:
            return f"validation after step {event['step']}: {_losses(event)}"
        case {"event": "checkpoint"}:
            return f"checkpoint of step {event['step']} saved, after {duration(event['seconds'])} of training"
        case {"event": "resume"}:
            return f"resumed at step {event['step']}"
        case {"event": "damaged_checkpoint"}:
            return f"a damaged checkpoint is passed over: {event['reason']}"
        case {"event": "interrupted"}:
            return f"interrupted after step {event['step']}, which is saved; the next run resumes there"
        case {"event": "done"}:
            took = "" if event.get("seconds") is None else f" in {duration(event['seconds'])}"
            return f"trained {event['step']:,} steps, {count(event['tokens'])} tokens{took}: {_losses(event)}"
        case {"event": "ending"}:
            return f"the trainer saves, uploads and ends, within {event['at_most_seconds']} s"
        case {"event": "waiting"}:
            return f"waits {event['until']}"
        case {"event": "output"}:
            return printable(event["line"])
        case {"message": str(message)}:
            return message
    values = (
        f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in event.items()
        if name != "event" and isinstance(value, str | int | float) and not isinstance(value, bool)
    )
    return f"{event['event'].replace('_', ' ')}: {', '.join(values)}".removesuffix(": ")


def _losses(event: dict[str, Any]) -> str:
    hellaswag = event.get("hellaswag_acc_norm")
    scored = "" if hellaswag is None else f", HellaSwag {100 * hellaswag:.1f} % (acc_norm)"
    return f"loss {event['loss']:.4f} nats per token, {event['bits_per_byte']:.4f} bits per byte{scored}"


def _start(event: dict[str, Any]) -> str:
    """What is trained, on what, and how the machine is used."""
    processes, threads = event["processes"], event["threads"]
    parts = [
        f"trains {count(event['parameters'])} parameters on {count(event['tokens'])} tokens in {event['steps']:,} "
        f"steps ({event['flops']:.3g} FLOPs) from step {event['step']:,}",
        f"on {event['device']}: {processes} process{'es' if processes > 1 else ''}, "
        f"{threads} thread{'s' if threads > 1 else ''}, {event['micro_batch_sequences']} sequences at a time",
        f"attention by {', '.join(dict.fromkeys(event[f'{name}_kernel'] for name in ('window', 'past', 'document')))}",
        f"a checkpoint has {event['checkpoint_bytes'] / 1e6:,.1f} MB",
    ]
    if event["cropped"]:
        parts.append(f"{100 * event['cropped']:.1f} % of the text is cropped to fit the rows")
    return "; ".join(parts)
