"""A Hugging Face hub on loopback that serves a folder as one dataset or model, and can be made to fail."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Serves `folder` under every repository name and commit."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cut = 0
        """How many of the next downloads of a file that is not a README end in the middle."""
        self.status = 0
        """Answer every request with this status instead; 0: none."""
        self.requests: list[str] = []

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}").get("paths", [])
        self._json([entry for entry in self._tree() if entry["path"] in asked])

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.status:
            self._answer(self.server.status, b"", {})
        elif found := re.fullmatch(r"(?:/datasets)?/[^/]+/[^/]+/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], body)
        elif found := re.fullmatch(r"/api/\w+/[^/]+/[^/]+/tree/[^/]+/?(.*)", path):
            self._json(self._below(found[1], "recursive=true" in self.path.lower()))
        elif found := re.fullmatch(r"/api/\w+/([^/]+/[^/]+)/revision/([^/]+)", path):
            siblings = [{"rfilename": entry["path"]} for entry in self._tree()]
            self._json({"id": found[1], "sha": found[2], "siblings": siblings, "private": False, "tags": []})
        else:
            self._answer(200 if path == "/" else 404, b"", {})

    def _tree(self) -> list[dict]:
        return [
            {
                "type": "file",
                "path": file.relative_to(self.server.folder).as_posix(),
                "size": file.stat().st_size,
                "oid": sha1(file.read_bytes()).hexdigest(),
            }
            for file in self.server.files()
        ]

    def _below(self, folder: str, recursive: bool) -> list[dict]:
        """Files and folders in a folder of the repository."""
        found: dict[str, dict] = {}
        for entry in self._tree():
            inside = entry["path"].removeprefix(f"{folder}/") if folder else entry["path"]
            if folder and inside == entry["path"]:
                continue
            first, *deeper = inside.split("/")
            if deeper:
                path = f"{folder}/{first}".lstrip("/")
                found[path] = {"type": "directory", "path": path, "oid": "0" * 40}
            if recursive or not deeper:
                found[entry["path"]] = entry
        return list(found.values())

    def _file(self, commit: str, name: str, body: bool) -> None:
        file = self.server.folder / name
        if not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        sent = content if body else b""
        if body and self.server.cut and name != "README.md":
            self.server.cut -= 1
            sent = content[: len(content) // 2]
        self._answer(status, sent, headers | {"Content-Length": str(len(content))})
        if len(sent) < len(content) and body:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self._answer(200, content, {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub for as long as it lasts."""
    hub = Hub(folder)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def causes(error: BaseException) -> list[type]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [] if cause is None else [type(cause), *causes(cause)]
