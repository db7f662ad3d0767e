"""The Prefect server that a run starts for itself where PREFECT_API_URL names none. However the run ends, it ends; and
a run whose server was ended, which would wait for it in vain, ends with it.

It takes three seconds to start, in a process of its own: the run launches it before it imports anything large, and
waits for it when it has prepared everything that needs no server. Nothing here imports Prefect in the process of the
run, which never needs the server's code.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from deployments.cli.entry_point import end_when_child_ends
from model.errors import DailyTrainError
from tasks.runtime.child import child_command

AUTH_STRING_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
SECONDS_TO_START = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
SECONDS_TO_STOP = 5
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NAMED_BY_PROFILE = 5
"""Exit code of a server that is not needed: a profile of Prefect's, which is not read here, names another."""


class TemporaryServerError(DailyTrainError):
    """The server did not start."""


class TemporaryServer:
    """A server on a port of loopback, with the database of PREFECT_HOME, that answers whoever knows its string: this
    process and its children, in whose environment it is."""

    def __init__(self) -> None:
        self.string = secrets.token_urlsafe(32)
        # this process holds the port, so that nobody else can take it, and who asks too early waits
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self.api_url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            server = {
                AUTH_STRING_VARIABLE: self.string,
                "PREFECT_API_AUTH_STRING": self.string,
                "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1",
            }
            # a session of its own: Ctrl-C in a terminal is for the run, which still tells it
            self.process = subprocess.Popen(
                child_command("deployments.temporary_server", str(listener.fileno()), ended_by=signal.SIGKILL),
                env={**os.environ, **server},
                pass_fds=(listener.fileno(),),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        self.ready = False
        self._stopped = threading.Event()

    @property
    def environment(self) -> dict[str, str]:
        """What Prefect's clients of this process and its children use it by. It has no pages to be linked."""
        return {
            AUTH_STRING_VARIABLE: self.string,
            "PREFECT_API_AUTH_STRING": self.string,
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_URL": "",
        }

    def wait_until_ready(self) -> bool:
        """Wait for the first answer; False when a profile names another server. Raises TemporaryServerError."""
        deadline = time.monotonic() + float(os.environ.get(SECONDS_TO_START, 120))
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                if code == NAMED_BY_PROFILE:
                    return False
                raise TemporaryServerError(
                    f"the temporary Prefect server of this run ended with code {code}; the lines above say why"
                )
            try:
                with NO_PROXY.open(f"{self.api_url}/health", timeout=1):
                    self.ready = True
                    end_when_child_ends(self.process, "the temporary Prefect server of this run", self._stopped)
                    return True
            except urllib.error.HTTPError as error:
                raise TemporaryServerError(f"the temporary Prefect server of this run answers {error}") from None
            except OSError:  # it does not answer yet
                continue
        raise TemporaryServerError("the temporary Prefect server of this run does not answer; is this machine busy?")

    def stop(self) -> None:
        """End it, if it runs."""
        self._stopped.set()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(descriptor: int) -> int:
    """Serve on the socket that is inherited, until SIGTERM; the exit code."""
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415 (see the top of this file)

    if PREFECT_API_URL.value():
        return NAMED_BY_PROFILE
    import uvicorn  # noqa: PLC0415 (see the top of this file)
    from prefect.server.api.server import create_app  # noqa: PLC0415 (see the top of this file)

    app = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=descriptor)])
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
