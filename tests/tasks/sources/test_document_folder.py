"""A corpus from a folder: which files are documents, what is left out by name, and what a corpus is identified by."""

import codecs
import importlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.document_parquet import SCHEMA, document_files
from tasks.config import DataConfig
from tasks.contamination import write_filtered
from tasks.download import write_documents
from tasks.sources import document_sources
from tasks.sources.config import FilesSource, HubSource
from tasks.sources.document_folder import SourceError
from tasks.sources.document_sources import files_of_source, read_source, source_lock
from tasks.store.backends import LocalStore
from tasks.store.context import RunContext
from tasks.store.manifest import StageError

download = importlib.import_module("tasks.download")
MARK = "\ufeff"
DOCUMENTS = {"a.txt": "first", "deep/b.TXT": "second", "deep/er/c.md": "third", "z.jsonl": '{"text": "fourth"}\n'}
OTHERS = {
    "README.md": "about",
    "deep/ReadMe.txt": "about",
    "deep/NOTES.md": "about",
    "LICENSE.txt": "about",
    ".git/HEAD.txt": "x",
    ".cache/huggingface/a.txt": "x",
    ".hidden.txt": "x",
    "deep/table.csv": "x",
    "LICENSE": "x",
    "empty.txt": "",
    "a.txt.lock": "x",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def source(path: Path, **fields: Any) -> FilesSource:
    return FilesSource(path=str(path), **fields)


def texts(path: Path, **fields: Any) -> list[tuple[str, str]]:
    return [(document.id, document.text) for document in read_source(source(path, **fields), path)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents, and all that is none: notes, hidden files, links and a pipe."""
    root = write(tmp_path / "corpus", DOCUMENTS | OTHERS)
    (root / "alias").symlink_to("zz")
    (root / "deep" / "loop").symlink_to(root)
    (root / "0.txt").symlink_to("a.txt")
    write(root, {"zz/y.txt": "fifth"})
    os.mkfifo(root / "pipe.txt")
    return root


def test_subfolders_are_read_in_order_and_every_other_file_is_named_with_its_reason(folder: Path):
    assert texts(folder) == [
        ("a.txt", "first"),
        ("alias/y.txt", "fifth"),
        ("deep/b.TXT", "second"),
        ("deep/er/c.md", "third"),
        ("z.jsonl:0", "fourth"),
    ]
    reasons = {file.name: file.reason.partition(" (")[0] for file in files_of_source(source(folder)) if file.reason}
    note, pattern = "a note about the corpus by its name", "matches no pattern"
    assert reasons == {
        **dict.fromkeys(("README.md", "deep/ReadMe.txt", "deep/NOTES.md", "LICENSE.txt"), note),
        **dict.fromkeys((".git", ".cache", ".hidden.txt"), "hidden"),
        **dict.fromkeys(("deep/table.csv", "LICENSE", "a.txt.lock"), pattern),
        **dict.fromkeys(("deep/loop", "zz"), "leads to a folder that is read already"),
        "0.txt": "leads to a file that is read already",
        "empty.txt": "empty",
        "pipe.txt": "neither a file nor a folder",
    }


def test_patterns_and_notes_can_be_set(folder: Path):
    assert [name for name, _ in texts(folder, patterns=["deep/*.MD"], notes=[])] == ["deep/NOTES.md", "deep/er/c.md"]
    with pytest.raises(SourceError, match=r"holds documents: 3 left out, hidden: .*15 left out, matches no"):
        texts(folder, patterns=["*.html"])


@pytest.mark.parametrize("kind", ["files", "hub"])
def test_hidden_files_notes_and_times_are_no_part_of_a_corpus(kind: str, folder: Path, tmp_path: Path):
    def locked() -> dict:
        return source_lock(source(folder) if kind == "files" else HubSource(id=str(folder)), tmp_path)

    before = locked()
    write(folder, {".git/HEAD.txt": "y", ".cache/huggingface/b.metadata": "1", ".new": "x", "b.parquet.lock": "x"})
    os.utime(folder / "a.txt", (1, 1))
    if kind == "files":
        write(folder, {"README.md": "more", "new.csv": "x"})
        folder = folder.rename(tmp_path / "moved")
    assert locked() == before
    write(folder, {"a.txt": "First"})
    assert locked() != before


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path):
    write(tmp_path, {"a.txt": f"{MARK}{MARK}text", "b.jsonl": f'{MARK}{{"text": "text"}}\n{{"text": "{MARK}text"}}\n'})
    pq.write_table(pa.table({"text": [f"{MARK}text"]}), tmp_path / "c.parquet")
    assert [text for _, text in texts(tmp_path)] == ["text"] * 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text".encode("utf-16"), r"a\.txt: byte 0 \(0xff\) is not valid UTF-8, it begins as UTF-16 does"),
        ("a.md", "text".encode("utf-16-le"), r"a\.md: byte 1 is zero, as in UTF-16 or a binary file"),
        ("a.jsonl", codecs.BOM_UTF16_BE + b"x", r"a\.jsonl: line 1: byte 0 \(0xfe\) is not valid UTF-8, it begins"),
        ("deep/a.txt", "naïve".encode("latin-1"), r"deep/a\.txt: byte 2 \(0xef\) is not valid UTF-8$"),
        ("a.parquet", b"PAR1", r"a\.parquet: not a readable parquet file"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl: row 0: 'text' is None, not text"),
        ("a.jsonl", b'{"text": "x", "id": null}', r"a\.jsonl: row 0: 'id' is None, expected an id"),
        ("a.jsonl", b'{"text": "x", "id": 1.0}', r"a\.jsonl: row 0: 'id' is 1\.0, expected an id"),
        ("a.jsonl", b'{"text": "x", "id": true}', r"a\.jsonl: row 0: 'id' is True, expected an id"),
        ("a.jsonl", b'{"text": "x", "no": 1}', r"a\.jsonl: row 0: there is no column 'id'"),
        ("a\udcff.txt", b"x", r"a\\xff\.txt': the name of the file is not valid UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        texts(tmp_path, id_column="id")
    assert "\n" not in str(caught.value)


def test_links_to_nothing_and_files_without_permission_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.txt").symlink_to("nothing")
    with pytest.raises(SourceError, match=r"a\.txt: the link leads to no file \('nothing'\)"):
        texts(tmp_path)
    (tmp_path / "a.txt").unlink()
    invalid = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"text": invalid}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: a text holds 0xff, which is not valid UTF-8"):
        texts(tmp_path)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(document_sources.Path, "open", denied)  # root may read what it has no permission for
    write(tmp_path, {})
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read: Permission denied"):
        source_lock(source(tmp_path), tmp_path)


def rows(path: Path, ids: list[object]) -> Path:
    path.write_text("".join(json.dumps({"id": name, "text": f"text {n}"}) + "\n" for n, name in enumerate(ids)))
    return path


@pytest.mark.parametrize("ids", [[1, 2, 3, 4, 5, 6, 7, 1], [1, 2, 3, 3], ["a", 1, "1"]])
def test_an_id_of_two_documents_is_refused(ids: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "IDS_AT_ONCE", 3)  # near, and far from each other
    path = rows(tmp_path / "a.jsonl", ids)
    with pytest.raises(SourceError, match=rf"a\.jsonl: the id '{ids[-1]}' is that of two documents; ids must be"):
        write_documents(DataConfig(source=source(path, id_column="id"), validation_fraction=0.3), tmp_path, tmp_path)
    config = DataConfig(source=source(rows(path, list(range(20))), id_column="id"), validation_fraction=0.3)
    write_documents(config, tmp_path, tmp_path)
    assert sum(pq.read_metadata(file).num_rows for s in ("train", "val") for file in document_files(tmp_path, s)) == 20


def test_ids_of_a_local_hub_folder_are_those_of_its_column_wherever_it_lies(tmp_path: Path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        rows(tmp_path / name / "train.jsonl", [0, None, 2])
    here, there = (list(read_source(HubSource(id=str(tmp_path / name)), tmp_path)) for name in ("here", "there"))
    assert here == there and [document.id for document in here] == ["0", "train:1", "2"]
    by_row = read_source(HubSource(id=str(tmp_path / "here"), id_column=None), tmp_path)
    assert [document.id for document in by_row] == ["train:0", "train:1", "train:2"]


def test_filter_drops_exactly_the_flagged_document(tmp_path: Path):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    out.mkdir()
    flagged = pa.table({"file": ["train_000000.parquet"], "document": ["b"]})
    (corpus / "lock.json").write_text(json.dumps({"splits": {"train": {"documents": 3, "bytes": 3}}}))
    for ids in (["a", "b", "c"], ["a", "b", "b"], ["a", "c"]):
        table = pa.table({"id": ids, "text": ids, "source": ids}, schema=SCHEMA)
        pq.write_table(table, corpus / "train_000000.parquet")
        if ids.count("b") == 1:
            write_filtered(corpus, flagged, out)
            assert pq.read_table(out / "train_000000.parquet")["id"].to_pylist() == ["a", "c"]
            assert json.loads((out / "lock.json").read_text())["splits"]["train"] == {"documents": 2, "bytes": 2}
            continue
        with pytest.raises(StageError, match=rf"1 documents were to be dropped, and {ids.count('b')} have their ids"):
            write_filtered(corpus, flagged, out)


def test_log_and_manifest_name_what_was_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pages = []
    monkeypatch.setattr(download, "create_markdown_artifact", lambda **page: pages.append(page["markdown"]))
    config = DataConfig(source=source(rows(folder / "many.jsonl", list(range(20))).parent), validation_fraction=0.3)
    context = RunContext(store=LocalStore(str(tmp_path / "store")), cache=tmp_path / "cache", workers=1)
    with caplog.at_level(logging.WARNING):
        manifest = download.download.fn(config, context).manifest
    groups = {group["reason"].partition(" (")[0]: group["first"] for group in manifest.provenance["left_out"]}
    notes = ["LICENSE.txt", "README.md", "deep/NOTES.md", "deep/ReadMe.txt"]
    assert groups["a note about the corpus by its name"] == notes
    assert f"4 left out, a note about the corpus by its name: {', '.join(notes)}\n" in caplog.text
    assert "deep/table.csv" in pages[0] and groups["empty"] == ["empty.txt"]

    def changing(config: DataConfig, work: Path, out: Path) -> None:
        write_documents(config, work, out)
        text = (out / "lock.json").read_text()
        (out / "lock.json").write_text(text.replace('"sha256": "', '"sha256": "0', 1))

    monkeypatch.setattr(download, "write_documents", changing)
    write(folder, {"a.txt": "changed"})
    with pytest.raises(SourceError, match="changed while they were read"):
        download.download.fn(config, context)


def test_folders_that_are_nested_deeply_and_one_column_twice_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 2, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: there are 2 columns 'text'"):
        list(read_source(FilesSource(path=str(tmp_path)), tmp_path))
    deep = tmp_path / "deep"
    deep.mkdir()
    monkeypatch.chdir(deep)
    for _ in range(201):
        os.mkdir("d")
        os.chdir("d")
    try:
        with pytest.raises(SourceError, match=r"/deep/d/.* folders are nested more than 200 deep"):
            files_of_source(FilesSource(path=str(deep)))
    finally:
        for _ in range(201):
            os.chdir("..")
            os.rmdir("d")


def test_a_file_larger_than_the_memory_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_text("x")

    class Large(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise MemoryError

    monkeypatch.setattr(document_sources.Path, "open", lambda *_: Large())
    with pytest.raises(SourceError, match=r"a\.txt: cannot be read: not enough memory"):
        list(read_source(FilesSource(path=str(tmp_path)), tmp_path))
