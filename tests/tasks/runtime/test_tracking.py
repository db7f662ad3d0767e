"""Trackers get the numbers of a training, or are refused by name."""

import importlib.util
from pathlib import Path

import pytest

from model.parsing import ConfigError
from tasks.runtime.tracking import Tracker, Tracking, check_tracker


def test_tensorboard_reads_the_numbers_back(tmp_path: Path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    with Tracking(Tracker.TENSORBOARD, tmp_path, "k" * 64, {}) as tracking:
        for step in (1, 2):
            tracking({"event": "step", "step": step, "steps": 2, "loss": 4.0 - step, "mfu": None})
        tracking({"event": "validation", "step": 2, "loss": 1.5})
        tracking({"event": "done", "step": 2, "loss": 9.0})
    [file] = (tmp_path / "tensorboard" / "kkkkkkkkkkkk").iterdir()
    found = [
        (event.step, value.tag, value.tensor.float_val[0])
        for event in loader.EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    assert found == [(1, "step/loss", 3.0), (2, "step/loss", 2.0), (2, "validation/loss", 1.5)]


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'daily-train\[wandb\]'"):
        check_tracker(Tracker.WANDB)
    check_tracker(Tracker.NONE)
