"""The metrics of a training in TensorBoard or Weights & Biases, beside the metrics file, which stays the source.

Both are extras: `pip install 'daily-train[tensorboard]'` or `'daily-train[wandb]'`. W&B's account and mode come from
its own environment (`WANDB_API_KEY`, `WANDB_MODE=offline`).
"""

import importlib
import importlib.util
import time
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from model.config import ConfigError


class Tracker(StrEnum):
    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


def check_tracker(tracker: Tracker) -> None:
    """Refuse a tracker that is not installed, before anything starts."""
    if tracker is not Tracker.NONE and importlib.util.find_spec(tracker) is None:
        raise ConfigError(f"tracker {tracker} is not installed: pip install 'daily-train[{tracker}]'")


class Tracking:
    """Hands each number of each event to the tracker, by step."""

    def __init__(self, tracker: Tracker, folder: Path, key: str, config: dict[str, Any]) -> None:
        self.tracker = tracker
        if tracker is Tracker.TENSORBOARD:
            writers = _module("tensorboard.summary.writer.event_file_writer")
            self.writer = writers.EventFileWriter(str(folder / "tensorboard" / key[:12]))
        elif tracker is Tracker.WANDB:
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = _module("wandb").init(
                project="daily-train", id=key[:12], resume="allow", dir=folder, config=config
            )

    def __call__(self, event: dict[str, Any]) -> None:
        if self.tracker is Tracker.NONE or event["event"] not in ("step", "validation"):
            return
        values = {f"{event['event']}/{name}": float(value) for name, value in event.items()
                  if isinstance(value, int | float) and name not in ("step", "steps")}  # fmt: skip
        if self.tracker is Tracker.WANDB:
            self.writer.log(values, step=event["step"])
        else:
            self.writer.add_event(_tensorboard_event(event["step"], values))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.tracker is Tracker.WANDB:
            self.writer.finish()
        elif self.tracker is Tracker.TENSORBOARD:
            self.writer.close()


def _tensorboard_event(step: int, values: dict[str, float]) -> Any:
    events, summaries = (_module(f"tensorboard.compat.proto.{name}_pb2") for name in ("event", "summary"))
    shown = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return events.Event(wall_time=time.time(), step=step, summary=summaries.Summary(value=shown))


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)  # an extra: imported only when it is chosen
