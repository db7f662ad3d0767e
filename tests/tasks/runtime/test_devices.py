"""How many processes train and score on the devices of a machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.parsing import ConfigError
from tasks.feasibility import require_feasible
from tasks.runtime import devices
from tasks.runtime.devices import scoring_processes, training_processes
from tasks.store import provenance
from tasks.store.context import open_context
from tests.tasks.store.test_checkpoints import MODEL, TRAIN


def test_how_many_processes_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    context = open_context(str(tmp_path / "store"), None, 2, None, None, 0.0)
    assert training_processes(MODEL, TRAIN, context) == 1  # a CPU
    with pytest.raises(ConfigError, match=r"processes is 3, but 3 processes cannot share the 8 sequences .* to 2"):
        require_feasible([(MODEL, TRAIN)], 100, replace(context, processes=3))
    monkeypatch.setattr(provenance, "gpu_driver", lambda: "580.65.06")
    monkeypatch.setattr(devices, "gpu_count", lambda: 3)
    assert scoring_processes(context) == 3
    assert training_processes(MODEL, TRAIN, context) == 2
    assert scoring_processes(replace(context, device="cpu")) == 1
    assert scoring_processes(replace(context, processes=2)) == 2
    with pytest.raises(ConfigError, match=r"processes is 4, but torch finds 3 GPUs on this machine; set it to at most"):
        scoring_processes(replace(context, processes=4))
