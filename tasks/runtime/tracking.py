"""The metrics of a training in TensorBoard or Weights & Biases, beside the metrics file, which stays the source.

Both are extras: `pip install 'daily-train[tensorboard]'` or `'daily-train[wandb]'`. W&B's account and mode come from
its own environment (`WANDB_API_KEY`, `WANDB_MODE=offline`).
"""

import importlib
import importlib.util
import logging
import netrc
import os
import socket
import time
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult, urlsplit

from model.network.config import ConfigError


class Tracker(StrEnum):
    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


MODULES = {
    Tracker.TENSORBOARD: (
        "tensorboard.summary.writer.event_file_writer",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.proto.summary_pb2",
    ),
    Tracker.WANDB: ("wandb",),
}
WANDB_SECONDS = 10.0


def check_tracker(tracker: Tracker) -> None:
    """Refuse a tracker that cannot be used, before anything starts."""
    if tracker is Tracker.NONE:
        return
    if importlib.util.find_spec(tracker) is None:
        raise ConfigError(f"tracker {tracker} is not installed: pip install 'daily-train[{tracker}]'")
    try:
        for module in MODULES[tracker]:
            _module(module)
    except Exception as error:  # whatever a package raises that does not fit the others
        raise ConfigError(f"tracker {tracker} cannot be imported: {error}") from error
    if tracker is Tracker.WANDB and os.environ.get("WANDB_MODE", "online") == "online":
        _check_wandb(urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"))


def _check_wandb(server: SplitResult) -> None:
    """Whether somebody is logged in, and the server answers: W&B itself would wait for a minute and a half."""
    remedy = "or set WANDB_MODE=offline"
    if not os.environ.get("WANDB_API_KEY") and not _has_netrc_entry(server.hostname or ""):
        raise ConfigError(f"tracker wandb: nobody is logged in at {server.hostname}; set WANDB_API_KEY, {remedy}")
    port = server.port or (443 if server.scheme == "https" else 80)
    try:
        socket.create_connection((server.hostname, port), WANDB_SECONDS).close()
    except OSError as error:
        if not any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")):
            problem = f"tracker wandb: {server.hostname} does not answer ({error})"
            raise ConfigError(f"{problem}; try later, {remedy}") from None


def _has_netrc_entry(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


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
        try:
            self._tell(event)
        except Exception as error:  # whatever it raises: a training does not end because nobody is told
            self._give_up(error)

    def _tell(self, event: dict[str, Any]) -> None:
        values = {
            f"{event['event']}/{name}": float(value)
            for name, value in event.items()
            if isinstance(value, int | float) and name not in ("step", "steps")
        }
        if self.tracker is Tracker.WANDB:
            self.writer.log(values, step=event["step"])
        else:
            self.writer.add_event(_tensorboard_event(event["step"], values))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self.tracker is Tracker.WANDB:
                self.writer.finish()
            elif self.tracker is Tracker.TENSORBOARD:
                self.writer.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logging.getLogger("daily_train").warning("%s is told nothing more: %s", self.tracker, error)
        self.tracker = Tracker.NONE


def _tensorboard_event(step: int, values: dict[str, float]) -> Any:
    events, summaries = (_module(f"tensorboard.compat.proto.{name}_pb2") for name in ("event", "summary"))
    shown = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return events.Event(wall_time=time.time(), step=step, summary=summaries.Summary(value=shown))


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)  # an extra: imported only when it is chosen
