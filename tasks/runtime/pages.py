"""Pages of a run that the server of `daily-train up` shows: the live curve and the report.

They are sent to the server over HTTP, with the authentication string of this process's environment, by a thread of its
own: a training never waits for a server that is slow or away.
"""

import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_UI_URL

from tasks.runtime.logs import logger
from tasks.runtime.machine_load import MachineLoad

PAGES = "DAILY_TRAIN_PAGES"
"""Address of the server, where it is ours, as this process reaches it: `http://127.0.0.1:4200`. `up` sets it."""
SECONDS_BETWEEN = 2.5
SECONDS_TO_ANSWER = 10.0
SECONDS_AT_END = 5.0  # what is left of a run that was ended is not worth more
LINES_AT_ONCE = 2000
SENT = {
    "step": ("step", "loss", "tokens_per_second", "mfu", "tokens", "seconds", "steps", "lr", "grad_norm"),
    "validation": ("step", "loss", "bits_per_byte", "hellaswag_acc_norm"),
}
"""What of the metrics file goes to the page (deployments/curves.py)."""
PHASES = {"waiting": "waiting", "start": "starting", "resume": "starting", "ending": "saving", "interrupted": "stopped"}
"""What an event of the trainer says of the training; a step says `training`."""


def basic_credentials(string: str) -> str:
    """The string as browsers keep it and clients send it."""
    return base64.b64encode(string.encode()).decode()


def server_address() -> str | None:
    """Where this process reaches the server, if it is ours: the one that Prefect's client uses, so that nobody else
    gets the string."""
    address = os.environ.get(PAGES, "").rstrip("/")
    return address if address and PREFECT_API_URL.value() == f"{address}/api" else None


def _page_address(path: str) -> str | None:
    """The address of a page as a browser reaches it."""
    if (address := server_address()) is None or not flow_run.get_id():
        return None
    return f"{(PREFECT_UI_URL.value() or address).rstrip('/').removesuffix('/v2')}{path.format(flow_run.get_id())}"


def live_page_address() -> str | None:
    """Where a person can watch this run train; None where no server of ours is there."""
    return _page_address("/live/{}")


def publish_page(kind: str, content: bytes) -> str | None:
    """Give the server a page of this run; its address, or None where no server of ours is there, or does not take it
    (the log says why). `kind`: `report`, an HTML file of at most 20 MB."""
    page = _page_address(f"/pages/{{}}/{kind}")
    if page is None:
        return None
    try:
        with _client() as client:
            client.put(f"/pages/{flow_run.get_id()}/{kind}", content=content).raise_for_status()
    except httpx.HTTPError as error:
        response = error.response if isinstance(error, httpx.HTTPStatusError) else None
        logger().warning("the server does not show the %s: %s", kind, _answer(response) if response else error)
        return None
    return page


def _answer(response: httpx.Response) -> str:
    """What the server said, in one line."""
    if response.headers.get("content-type", "").startswith("text/plain"):
        return " ".join(response.text.split())[:200]
    return f"{response.status_code} {response.reason_phrase}"


def _client(seconds: float = SECONDS_TO_ANSWER) -> httpx.Client:
    """With the string as Prefect sends it, which need not hold a colon."""
    headers = {"Authorization": f"Basic {basic_credentials(PREFECT_API_AUTH_STRING.value() or '')}"}
    return httpx.Client(base_url=server_address() or "", headers=headers, timeout=seconds)


class LivePage:
    """Sends the metrics file of a training to its page while the context is open, and once more at its end.

    The file is read as far as it has not been sent. A trainer that resumes writes it anew, without the steps that it
    does again: then everything is sent anew.
    """

    def __init__(self, file: Path, key: str, usd_per_hour: float, *, earlier: bool = False) -> None:
        """`key`: of the training's stage. `earlier`: it was finished before this run."""
        self.file, self.training, self.earlier = file, key[:12], earlier
        self.usd_per_hour, self.started = usd_per_hour, time.time()
        self.run = flow_run.get_id() if server_address() else None
        self.client = _client() if self.run else None
        self.load = MachineLoad()
        self.device, self.phase, self.step = "", "starting", 0
        self.inode, self.position = 0, 0
        self.refused = False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._send_until_ended, name="live page", daemon=True)

    def __call__(self, event: dict[str, Any]) -> None:
        """Take notice of an event of the trainer; nothing is sent here."""
        if event["event"] == "step":
            self.phase = "training" if self.phase != "saving" else self.phase
        self.phase = PHASES.get(event["event"], self.phase)
        self.device = event.get("device", self.device)

    def __enter__(self) -> "LivePage":
        if self.client is not None:
            self.thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *exception: object) -> None:
        if self.client is None:
            return
        self.ended.set()
        self.thread.join(SECONDS_TO_ANSWER if error is None else SECONDS_AT_END)
        if self.thread.is_alive():  # the server hangs
            return
        if error is None:
            self.phase = "finished"
        else:
            self.phase = "failed" if issubclass(error, Exception) else "cancelled"
            self.client.timeout = httpx.Timeout(SECONDS_AT_END)
        self._send(everything=True)
        self.client.close()

    def _send_until_ended(self) -> None:
        while True:
            self._send()
            if self.ended.wait(SECONDS_BETWEEN):
                return

    def _send(self, *, everything: bool = False) -> None:
        """One look at the file and what it holds anew; a server that is away gets it at the next look."""
        try:
            for lines, position in self._batches():
                self._post(lines)
                self.position = position
                if self.ended.is_set() and not everything:
                    return
        except httpx.HTTPStatusError as error:
            if not self.refused and error.response.is_client_error:
                self.refused = True
                logger().warning("the live page does not take the metrics: %s", _answer(error.response))
        except (httpx.HTTPError, OSError):
            return

    def _post(self, lines: list[dict[str, Any]]) -> None:
        assert self.client is not None
        content = "".join(json.dumps(line) + "\n" for line in lines)
        path = f"/pages/{self.run}/metrics"
        self.client.post(path, params={"training": self.training}, content=content).raise_for_status()

    def _batches(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """What is to be sent, and up to where in the file it goes; never nothing, so that the page hears of us."""
        lines = [self._facts(), {"event": "phase", "phase": self.phase}]
        if not self.ended.is_set() and not self.earlier and (load := self.load.measure()):
            lines.append({"event": "usage", "step": self.step, **load})
        position, inode = self.position, self.inode
        if self.file.exists():
            with self.file.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != inode or status.st_size < position:
                    position, self.inode = 0, status.st_ino
                    lines.insert(0, {"event": "over"})
                file.seek(position)
                for text in file:
                    if not text.endswith(b"\n"):
                        break
                    position += len(text)
                    if line := self._shown(text):
                        lines.append(line)
                    if len(lines) >= LINES_AT_ONCE:
                        yield lines, position
                        lines = []
        if lines:
            yield lines, position

    def _facts(self) -> dict[str, Any]:
        facts = {"event": "facts", "usd_per_hour": self.usd_per_hour, "started": self.started, "earlier": self.earlier}
        return facts | ({"device": self.device[:200]} if self.device else {})

    def _shown(self, text: bytes) -> dict[str, Any] | None:
        """A line of the file as the page gets it."""
        try:
            event = json.loads(text)
        except ValueError:
            return None
        if event.get("event") not in SENT:
            return None
        self.step = max(self.step, event["step"]) if event["event"] == "step" else self.step
        return {"event": event["event"], **{name: event.get(name) for name in SENT[event["event"]]}}


def show_finished(file: Path, key: str, usd_per_hour: float) -> None:
    """Show the whole curve of a training that an earlier run has finished."""
    with LivePage(file, key, usd_per_hour, earlier=True):
        pass
