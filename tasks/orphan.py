"""A run whose worker has died goes on, and looks after itself.

A worker reads what its runs print and passes a cancel on to them. When it has died, printing would end the run, and
nobody would pass a cancel on: so nothing is printed any more, and the run asks the server itself.
"""

import math
import os
import signal
import sys
import time

from httpx import HTTPError
from prefect import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.states import Cancelled

SECONDS_BETWEEN_LOOKS = 5.0


class OrphanWatch:
    """Notices that the process which started this one has died."""

    def __init__(self) -> None:
        self.parent = os.getppid()
        self.orphaned = False
        self.looked = -math.inf

    def look(self) -> None:
        """Once orphaned: print nowhere, and stop this process, as its worker would, when its run is cancelled."""
        if os.getppid() == self.parent or (context := FlowRunContext.get()) is None or context.flow_run is None:
            return
        if not self.orphaned:
            self.orphaned = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.__stdout__, sys.__stderr__):
                os.dup2(nowhere, stream.fileno())
        if time.monotonic() - self.looked < SECONDS_BETWEEN_LOOKS:
            return
        self.looked = time.monotonic()
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(context.flow_run.id)
                if run.state is None or not run.state.is_cancelling():
                    return
                client.set_flow_run_state(run.id, Cancelled(message="The run had lost its worker and stopped itself."))
        except (HTTPError, PrefectException):  # the server is away: the next look may find it
            return
        os.kill(os.getpid(), signal.SIGTERM)
