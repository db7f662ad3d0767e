"""What a run sends to the server's pages holds nothing up."""

import threading
from functools import partial

import pytest

from tasks.runtime.progress import ServerUpdates


def test_a_server_that_hangs_or_fails_holds_nothing_up(caplog: pytest.LogCaptureFixture):
    sent: list[int] = []
    hung, answers = threading.Event(), threading.Event()

    def hang() -> None:
        hung.set()
        answers.wait(60)

    def fail() -> None:
        raise ConnectionError("away")

    with ServerUpdates() as tell:
        tell("progress", hang)
        hung.wait(60)
        tell("figure", fail)
        for number in range(100):
            tell("progress", partial(sent.append, number))
        assert not sent
        answers.set()
    assert sent == [99], "of what had waited, the newest"
    assert "the run goes on: away" in caplog.text
