"""A run whose worker has died, or whose server was away, goes on and looks after itself.

A worker reads what its runs print and passes a cancel on to them. When it has died, printing would end the run (rich
answers a broken pipe with SystemExit, in whatever thread), and nobody would pass a cancel on: so what is printed goes
nowhere, and the run asks the server itself. A server that was away has heard no heartbeats, and may take a run for dead
that is alive: the run takes that back.
"""

import logging
import math
import os
import signal
import sys
import time
from typing import Any, NoReturn
from uuid import UUID

from httpx import HTTPError
from prefect import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Running, State

SECONDS_BETWEEN_LOOKS = 5.0
DID_NOT_ANSWER = "The run did not answer"
"""How the server begins to say that it takes a run for dead (deployments/cli/notify.py)."""


class LivenessWatch:
    """Notices that the process which started this one has died."""

    def __init__(self) -> None:
        self.parent = os.getppid()
        self.run: UUID | None = None
        self.looked = -math.inf
        for handler in logging.getLogger().handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.console.on_broken_pipe = _print_nowhere  # type: ignore[method-assign]  # rich takes no callback

    def cancelled(self) -> bool:
        """Once orphaned: print nowhere, and say whether this run is to be cancelled."""
        if os.getppid() == self.parent or (context := FlowRunContext.get()) is None or context.flow_run is None:
            return False
        if self.run is None:
            self.run = context.flow_run.id
            _print_nowhere()
        if time.monotonic() - self.looked < SECONDS_BETWEEN_LOOKS:
            return False
        self.looked = time.monotonic()
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
                state = client.read_flow_run(self.run).state
        except (HTTPError, PrefectException):  # the server is away: the next look may find it
            return False
        return state is not None and (state.is_cancelling() or state.is_cancelled())

    def leave(self) -> NoReturn:
        """End this process as cancelled, without a word of its own, which the server would take for a crash."""
        assert self.run is not None  # only one that is `cancelled` leaves
        with get_client(sync_client=True) as client:
            state: State[Any] = Cancelled(message="The run had lost its worker and stopped itself.")
            client.set_flow_run_state(self.run, state)
        os._exit(128 + signal.SIGTERM)


def report_running() -> None:
    """Say so to a server that takes this run for dead."""
    if (context := FlowRunContext.get()) is None or context.flow_run is None:
        return
    client = get_client(sync_client=True)
    state = client.read_flow_run(context.flow_run.id).state
    if state is not None and state.is_crashed() and (state.message or "").startswith(DID_NOT_ANSWER):
        running: State[Any] = Running(message="The server had heard nothing of the run, which went on.")
        client.set_flow_run_state(context.flow_run.id, running, force=True)


def _print_nowhere() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
