"""Pages of runs that the server shows: /live, the curve of a training while it runs, and the reports.

The process of a run sends both over HTTP (tasks/runtime/pages.py), so that they are here whatever the store is: a
directory, a bucket, another machine's disk. To send needs the authentication string, to look needs a login
(deployments/server.py). They are kept below PREFECT_HOME, of the newest runs.
"""

import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from deployments.curves import Curve, LineError, parse_line

FOLDER = "daily-train-pages"
"""Below PREFECT_HOME."""
LIVE_PAGE = Path(__file__).with_name("live.html").read_text()
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a report, which holds foreign texts: it runs no script and asks for nothing."""
MOST_BYTES = {"report": 20_000_000, "metrics": 1_000_000}
MOST_RUNS, MOST_TRAININGS, MOST_LISTED = 200, 100, 30
RUN = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TRAINING = re.compile("[0-9a-f]{8,64}")
ROUTE = re.compile(f"/live(?:/({RUN}))?(/data)?|/pages/({RUN})/(report|metrics)")
SECONDS_STATE_HOLDS = 2.0


class PageStore:
    """The folder with what runs have sent. Its methods wait for the disk, and may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.curves: dict[Path, Curve] = {}

    def put_report(self, run: str, content: bytes) -> None:
        with self.lock:
            path = self._made(run) / "report.html"
            temporary = path.with_suffix(".new")
            temporary.write_bytes(content)
            temporary.replace(path)

    def report(self, run: str) -> Path | None:
        path = self.folder / run / "report.html"
        return path if path.is_file() else None

    def add(self, run: str, training: str, lines: list[dict[str, Any]]) -> bool:
        """Add lines to the curve of a training; False where the run has too many trainings."""
        with self.lock:
            path = self._made(run) / f"{training}.jsonl"
            if not path.exists() and len(list(path.parent.glob("*.jsonl"))) >= MOST_TRAININGS:
                return False
            self._curve(path).add(lines)
            return True

    def trainings(self, run: str) -> list[str]:
        """The trainings of a run that have sent a curve, in the order in which they began."""
        with self.lock:
            curves = [(path.stem, self._curve(path)) for path in (self.folder / run).glob("*.jsonl")]
            return [name for name, curve in sorted(curves, key=lambda pair: pair[1].facts.get("started", 0))]

    def after(self, run: str, training: str, generation: str, number: int) -> dict[str, Any]:
        """What a page lacks of a curve that is there."""
        with self.lock:
            return self._curve(self.folder / run / f"{training}.jsonl").after(generation, number)

    def newest(self) -> dict[str, dict[str, Any]]:
        """The runs heard of last, with where their newest training is."""
        found = {}
        for run in sorted(self._runs(), key=_modified, reverse=True)[:MOST_LISTED]:
            names = self.trainings(run.name)
            with self.lock:
                found[run.name] = self._curve(run / f"{names[-1]}.jsonl").summary() if names else {}
        return found

    def _runs(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if re.fullmatch(RUN, path.name)]

    def _made(self, run: str) -> Path:
        """The folder of a run; the first one of a run takes the place of the oldest run's."""
        path = self.folder / run
        if not path.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for oldest in sorted(self._runs(), key=_modified)[: -MOST_RUNS + 1 or None]:
                shutil.rmtree(oldest, ignore_errors=True)
                self.curves = {file: curve for file, curve in self.curves.items() if file.parent != oldest}
            path.mkdir(mode=0o700)
        return path

    def _curve(self, path: Path) -> Curve:
        if path not in self.curves:
            while len(self.curves) >= MOST_LISTED + MOST_TRAININGS:  # they are read again when they are asked for
                del self.curves[next(iter(self.curves))]
            self.curves[path] = Curve(path)
        return self.curves[path]


def _modified(run: Path) -> float:
    """When a run was heard of last."""
    times = [0.0]
    for file in run.glob("*"):
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)


class Pages:
    """Answers what is asked of /live and /pages. Who may ask is decided before (deployments/server.py)."""

    def __init__(self, app: ASGIApp, folder: Path, string: str) -> None:
        """`app`: Prefect's, which knows the states of runs."""
        self.store = PageStore(folder)
        user, _, word = string.partition(":")
        transport, access = httpx.ASGITransport(app, raise_app_exceptions=False), httpx.BasicAuth(user, word)
        self.prefect = httpx.AsyncClient(transport=transport, auth=access, base_url="http://127.0.0.1/api", timeout=10)
        self.states: dict[str, tuple[float, dict[str, Any] | None]] = {}

    @staticmethod
    def owns(path: str) -> bool:
        return path in ("/live", "/pages") or path.startswith(("/live/", "/pages/"))

    async def answer(self, request: Request, may_write: bool) -> Response:
        route = ROUTE.fullmatch(request.scope["path"])
        if route is None:
            return PlainTextResponse("There is no such page: /live lists the runs, /live/ID is one.\n", 404)
        live, data, run, kind = route.groups()
        if request.method in ("POST", "PUT") and run:
            if not may_write:
                return PlainTextResponse("Pages are sent with the authentication string alone.\n", 401)
            return await self.receive(request, run, kind)
        if request.method != "GET":
            return Response(status_code=405)
        if kind == "report":
            return await self.show_report(run)
        if kind == "metrics":
            return Response(status_code=405)
        if not data:
            return live_page()
        return JSONResponse(await self.live(live, request) if live else await self.overview(), headers=UNCACHED)

    async def receive(self, request: Request, run: str, kind: str) -> Response:
        """Keep a report, or the next lines of a curve."""
        training = request.query_params.get("training", "")
        if kind == "metrics" and not TRAINING.fullmatch(training):
            return PlainTextResponse("`training` is no key of a training\n", 400)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES[kind]:
                return PlainTextResponse(f"more than {MOST_BYTES[kind]:,} bytes\n", 413)
            parts.append(part)
        content = b"".join(parts)
        if kind == "report":
            await run_in_threadpool(self.store.put_report, run, content)
            return Response(status_code=204)
        lines = []
        for number, text in enumerate(content.decode(errors="replace").splitlines(), 1):
            try:
                lines.append(parse_line(text))
            except LineError as error:
                return PlainTextResponse(f"line {number} {error}\n", 400)
        if not await run_in_threadpool(self.store.add, run, training, lines):
            return PlainTextResponse(f"more than {MOST_TRAININGS} trainings in a run\n", 409)
        return Response(status_code=204)

    async def show_report(self, run: str) -> Response:
        path = await run_in_threadpool(self.store.report, run)
        if path is None:
            text = "This server has no report of this run: it has not come to it yet, or others took its place.\n"
            return PlainTextResponse(text, 404)
        headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "private, no-cache"}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

    async def live(self, run: str, request: Request) -> dict[str, Any]:
        """What a page lacks of a run: its state, and the rest of the curve of one of its trainings."""
        names = await run_in_threadpool(self.store.trainings, run)
        asked = request.query_params.get("training", "")
        number = request.query_params.get("number", "")
        answer: dict[str, Any] = {"run": await self.state(run), "trainings": names, "curve": None}
        answer["report"] = await run_in_threadpool(self.store.report, run) is not None
        if names:
            training = asked if asked in names else names[-1]
            known = (request.query_params.get("generation", ""), int(number) if number.isdecimal() else 0)
            curve = await run_in_threadpool(self.store.after, run, training, *known)
            answer["curve"] = {"training": training, **curve}
        return answer

    async def state(self, run: str) -> dict[str, Any] | None:
        """Name and state of a run as Prefect knows them; None for one that it does not know."""
        asked, state = self.states.get(run, (0.0, None))
        if time.monotonic() - asked > SECONDS_STATE_HOLDS:
            answer = await self.prefect.get(f"/flow_runs/{run}")
            if answer.status_code == httpx.codes.OK:
                state = described(answer.json())
            elif answer.status_code == httpx.codes.NOT_FOUND:
                state = None
            if len(self.states) > MOST_RUNS:
                self.states.clear()
            self.states[run] = (time.monotonic(), state)
        return state

    async def overview(self) -> list[dict[str, Any]]:
        """The newest runs, those that train among them."""
        curves = await run_in_threadpool(self.store.newest)
        runs: dict[str, dict[str, Any]] = {run: {"id": run} for run in curves}
        query: dict[str, Any] = {"sort": "EXPECTED_START_TIME_DESC", "limit": MOST_LISTED}
        started = {"state": {"type": {"not_any_": ["SCHEDULED"]}}, "parent_task_run_id": {"is_null_": True}}
        for chosen in (started, {"id": {"any_": list(curves)}}):
            answer = await self.prefect.post("/flow_runs/filter", json={**query, "flow_runs": chosen})
            if answer.status_code == httpx.codes.OK:
                runs |= {found["id"]: described(found) for found in answer.json()}
        listed = [{**found, "curve": curves.get(run)} for run, found in runs.items()]
        return sorted(listed, key=lambda found: found.get("started") or "", reverse=True)[:MOST_LISTED]


UNCACHED = {"Cache-Control": "no-store"}


def described(run: dict[str, Any]) -> dict[str, Any]:
    """What a page shows of a run, from Prefect's own description of it."""
    state = run["state"] or {}
    return {
        "id": run["id"],
        "name": run["name"],
        "type": state.get("type"),
        "state": state.get("name"),
        "message": (state.get("message") or "")[:500],
        "started": run["start_time"] or run["expected_start_time"],
    }


def live_page() -> Response:
    """The page, whose script and style alone are used there."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(LIVE_PAGE.replace("NONCE", nonce), headers={"Content-Security-Policy": policy, **UNCACHED})
