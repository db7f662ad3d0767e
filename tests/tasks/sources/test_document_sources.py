"""Documents of files and of the hub: the same texts from every format, and bad files by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.config import DataConfig
from tasks.download import write_documents
from tasks.sources.config import FilesSource, HubSource
from tasks.sources.document_folder import SourceError
from tasks.sources.document_sources import read_source, source_lock
from tests.tasks.small_corpus import TEXTS, parquet


def files(path: Path, **fields: Any) -> list[tuple[str, str]]:
    return [
        (document.id, document.text) for document in read_source(FilesSource(path=str(path), **fields), Path("unused"))
    ]


def test_parquet_jsonl_and_text_give_the_same_texts(tmp_path: Path):
    parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for number, text in enumerate(TEXTS):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / f"{number:03d}.txt").write_text(text)
    assert [text for _, text in files(tmp_path / "a.parquet")] == TEXTS
    assert [text for _, text in files(tmp_path / "b.jsonl")] == TEXTS
    assert [text for _, text in files(tmp_path / "c")] == TEXTS


def test_ids_are_file_and_row_or_a_column(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet")
    assert files(path)[2][0] == "a.parquet:2"
    assert files(path, id_column="number")[2][0] == "2"


def test_a_local_folder_in_hub_layout_reads_streaming_and_at_once(tmp_path: Path):
    parquet(tmp_path / "train-00000-of-00001.parquet")
    for streaming in (True, False):
        source = HubSource(id=str(tmp_path), streaming=streaming, max_documents=7)
        assert [document.text for document in read_source(source, tmp_path)] == TEXTS[:7]
    assert source_lock(HubSource(id=str(tmp_path), streaming=True), tmp_path) == source_lock(
        HubSource(id=str(tmp_path), streaming=False), tmp_path
    )


def test_the_lock_of_local_files_is_their_content_and_not_their_place(tmp_path: Path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        parquet(tmp_path / name / "a.parquet")
    here, there = (source_lock(FilesSource(path=str(tmp_path / name)), tmp_path) for name in ("here", "there"))
    assert here == there
    parquet(tmp_path / "there" / "a.parquet", texts=TEXTS[1:])
    assert source_lock(FilesSource(path=str(tmp_path / "there")), tmp_path) != here


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123"])
def test_a_hub_revision_that_can_move_is_refused(revision: str | None):
    with pytest.raises(ValueError, match="40-digit commit"):
        HubSource(id="someone/dataset", revision=revision)


def test_bad_files_are_named_with_the_value(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", column="body")
    with pytest.raises(SourceError, match=r"a\.parquet: there is no column 'text'; it has 'body', 'number'"):
        files(path)
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(SourceError, match=r"b\.jsonl: row 1: 'text' is 3, not text"):
        files(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\nnonsense\n')
    with pytest.raises(SourceError, match=r"c\.jsonl: line 2: not JSON"):
        files(tmp_path / "c.jsonl")
    (tmp_path / "d.txt").write_bytes(b"good\xffbad")
    with pytest.raises(SourceError, match=r"d\.txt: byte 4 \(0xff\) is not valid UTF-8"):
        files(tmp_path / "d.txt")
    (tmp_path / "e.parquet").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"e\.parquet: not a readable parquet file"):
        files(tmp_path / "e.parquet")
    (tmp_path / "f.zst").write_bytes(b"")
    with pytest.raises(SourceError, match=r"f\.zst: \.zst suffix"):
        files(tmp_path / "f.zst")
    with pytest.raises(SourceError, match="nothing-here"):
        files(tmp_path / "nothing-here")


def test_a_lone_surrogate_is_named_with_its_document(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "bad \\ud800"}\n')
    config = DataConfig(source=FilesSource(path=str(tmp_path / "a.jsonl")), validation_fraction=0.4)
    with pytest.raises(SourceError, match=r"a\.jsonl:1': character 4 of it is the lone surrogate"):
        write_documents(config, tmp_path, tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "fine", "id": "bad \\ud800"}\n')
    source = FilesSource(path=str(tmp_path / "a.jsonl"), id_column="id")
    with pytest.raises(SourceError, match="character 4 of its id is the lone surrogate"):
        write_documents(replace(config, source=source), tmp_path, tmp_path)
