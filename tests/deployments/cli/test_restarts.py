"""How often `daily-train up` starts a part again."""

import os
import time

import pytest

from deployments.cli import up
from deployments.cli.up import RestartedProcess, UpError


def test_a_part_that_works_in_between_is_started_again_without_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(up, "child_command", lambda *_: ["false"])
    monkeypatch.setattr(up, "SECONDS_OF_WORK", 0.05)
    part = RestartedProcess("server", [], dict(os.environ))
    for _ in range(up.RESTARTS + 3):
        part.start()
        time.sleep(0.06)
    part.stop()


def test_a_part_that_ends_right_after_each_start_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(up, "child_command", lambda *_: ["false"])
    part = RestartedProcess("server", [], dict(os.environ))
    with pytest.raises(UpError, match="the server ended 6 times in a row within 60 s, last with exit code 1"):
        for _ in range(up.RESTARTS + 2):
            part.start()
            assert part.process is not None
            part.process.wait()
