"""What a person sees of a stage while it runs: log lines, progress and loss as artifacts, what a table shows."""

import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
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
from model.training.metrics import read_lines
from model.training.progress_bar import seconds_left
from tasks.runtime import stage_events
from tasks.runtime.liveness import SECONDS_BETWEEN_LOOKS, report_running
from tasks.runtime.logs import logger
from tasks.runtime.sample_prompts import PROMPTS

SECONDS_BETWEEN_LOG_LINES = (5.0, 60.0)  # at first, and after a while
SECONDS_BETWEEN_FIGURES = 60.0


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

    def __call__(self, kind: str, tell: Callable[[], object]) -> None:
        self.newest[kind] = tell
        self.pool.submit(copy_context().run, self._tell, kind, tell)

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


class TrainingProgress:
    """Told every event of the trainer."""

    def __init__(self, run_dir: Path, decode: Callable[[list[int]], str], tell: ServerUpdates) -> None:
        self.run_dir, self.decode, self.tell = run_dir, decode, tell
        self.logger = logger()
        self.device = "unknown"
        self.began, self.logged, self.drawn = time.monotonic(), -math.inf, -math.inf
        self.context = TaskRunContext.get()
        self.figure: UUID | None = None
        if self.context is not None:
            self.artifact = artifact_id(
                create_progress_artifact(0.0, key="training-progress", description="Training progress")
            )

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "warning":
            self.logger.warning(event["message"])
        elif kind == "ending":
            stage_events.stopping(f"saving, within {event['at_most_seconds']:,} s")
            self.logger.info("the trainer saves, uploads and ends, within %d s", event["at_most_seconds"])
        elif kind == "samples":
            for prompt, tokens in zip(PROMPTS, event["tokens_of_prompts"], strict=True):
                self.logger.info("step %d: %s%s", event["step"], prompt, self.decode(tokens))
        else:
            self.device = event.get("device", self.device)
            self.logger.info("%s %s", kind, {name: value for name, value in event.items() if name != "event"})
        rested = time.monotonic() - self.drawn > SECONDS_BETWEEN_FIGURES
        if kind == "checkpoint" and self.context is not None and rested:
            self.drawn = time.monotonic()
            self.tell("figure", self._draw)

    def _step(self, event: dict[str, Any]) -> None:
        left = seconds_left(event)
        stage_events.progress(
            event["step"],
            event["steps"],
            f"step {event['step']:,} of {event['steps']:,}",
            f"loss {event['loss']:.3f}",
            f"{event['tokens_per_second']:,} tokens/s",
            seconds_left=left,
        )
        now, (shortest, longest) = time.monotonic(), SECONDS_BETWEEN_LOG_LINES
        between = min(longest, max(shortest, (now - self.began) / 100))
        if now - self.logged < between and event["step"] < event["steps"]:
            return
        self.logged = now
        self.logger.info(
            "step %d/%d loss %.4f lr %.2g norm %.2f %d tok/s %.0f s left",
            event["step"],
            event["steps"],
            event["loss"],
            event["lr"],
            event["grad_norm"] or math.nan,
            event["tokens_per_second"],
            left,
        )
        if self.context is not None:
            description = (
                f"step {event['step']:,} of {event['steps']:,}, loss {event['loss']:.3f}, "
                f"{event['tokens_per_second']:,} tokens/s, {left:.0f} s left"
            )
            done = 100 * event["step"] / event["steps"]
            self.tell("progress", lambda: update_progress_artifact(self.artifact, done, description))

    def _draw(self) -> None:
        """The loss so far as an artifact: one a run, drawn anew at checkpoints."""
        markdown = inline("loss so far", loss_figure(read_lines(self.run_dir / "metrics.jsonl")))
        if self.figure is None:
            description = "Loss so far, drawn at checkpoints"
            self.figure = artifact_id(
                create_markdown_artifact(key="loss-so-far", description=description, markdown=markdown)
            )
        else:
            get_client(sync_client=True).update_artifact(self.figure, ArtifactUpdate(data=markdown))
