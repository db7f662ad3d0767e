"""The Prefect server that a run starts for itself where PREFECT_API_URL names none. However the run ends, it ends; and
a run whose server was ended, which would wait for it in vain, ends with it."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from deployments.cli.entry_point import end_when_child_ends
from tasks.runtime.child import child_command


class TemporaryServer(SubprocessASGIServer):
    """Prefect's own, which is left behind by a run that is ended by a signal. The first one that is made is the one
    that Prefect starts when it is needed."""

    stopped: threading.Event | None = None

    def start(self, timeout: int | None = None) -> None:
        super().start(timeout)
        if self.stopped is None and self.server_process:
            self.stopped = threading.Event()
            end_when_child_ends(self.server_process, "the temporary Prefect server of this run", self.stopped)

    def stop(self) -> None:
        if self.stopped:
            self.stopped.set()
        self.stopped = None
        logging.getLogger("prefect").setLevel(logging.WARNING)  # that it stops is no news: the run has ended
        super().stop()

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        settings = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        command = child_command(
            "uvicorn",
            "--app-dir",
            str(Path(prefect.__file__).parents[1]),
            "--factory",
            "prefect.server.api.server:create_app",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--log-level",
            "error",
            "--lifespan",
            "on",
            ended_by=signal.SIGKILL,
        )
        environment = {**os.environ, **settings, **get_current_settings().to_environment_variables(exclude_unset=True)}
        # a session of its own: Ctrl-C in a terminal is for the run, which still tells it
        return subprocess.Popen(command, env=environment, start_new_session=True)
