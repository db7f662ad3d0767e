"""Shards: what is written is read back, and every damage is an error that names it."""

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.shards import (
    Dataset,
    ShardError,
    ShardSet,
    Split,
    read_dataset,
    read_index,
    read_tokens,
    write_dataset,
    write_shard,
)

EOT = 0
documents_of = st.lists(
    st.tuples(st.lists(st.integers(1, 999), max_size=30), st.text(max_size=8)), min_size=1, max_size=12
)


def write_directory(directory: Path, documents: list, shard_size: int = 16, vocab_size: int = 1000) -> np.ndarray:
    """Write documents as both splits in shards of `shard_size`; the whole stream."""
    starts = np.cumsum([0, *(len(tokens) + 1 for tokens, _ in documents)])
    stream = np.concatenate([[EOT, *tokens] for tokens, _ in documents]).astype(np.uint16)
    ids = [document_id for _, document_id in documents]
    shards = -(-len(stream) // shard_size)
    for split in ("train", "val"):
        for number in range(shards):
            first, last = number * shard_size, (number + 1) * shard_size
            here = [i for i in range(len(documents)) if first <= starts[i] < last]
            write_shard(
                directory,
                split,
                number,
                stream[first:last],
                np.array([starts[i] - first for i in here]),
                [ids[i] for i in here],
            )
    both = Split(documents=len(documents), tokens=len(stream), bytes=2 * (len(stream) - len(documents)), shards=shards)
    token_bytes = np.array([0] + [2] * (vocab_size - 1))
    write_dataset(directory, Dataset(vocab_size, EOT, "abc", {"train": both, "val": both}, token_bytes))
    return stream


@settings(max_examples=25, deadline=None)
@given(documents_of, st.integers(1, 40), st.data())
def test_round_trip(documents, shard_size, data):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        stream = write_directory(directory, documents, shard_size)
        shards = ShardSet(directory, "train")
        assert shards.tokens == len(stream)
        start = data.draw(st.integers(0, len(stream)))
        stop = data.draw(st.integers(start, len(stream)))
        np.testing.assert_array_equal(shards.slice(start, stop), stream[start:stop])
        found = []
        for path in shards.paths:
            index = read_index(path.with_suffix(".idx"))
            assert all(read_tokens(path)[int(begin)] == EOT for begin in index.starts)
            found += [index.document_id(i) for i in range(len(index))]
        assert found == [document_id for _, document_id in documents]


def test_bytes_are_those_of_llm_c(tmp_path):
    path = write_shard(tmp_path, "fineweb_train", 7, np.array([50256, 1, 65535], np.uint16), np.array([0]), ["a"])
    assert path.name == "fineweb_train_000007.bin"
    expected = struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + struct.pack("<3H", 50256, 1, 65535)
    assert path.read_bytes() == expected
    index = struct.pack("<256i", 20241120, 1, 1, *[0] * 253) + struct.pack("<3Q", 0, 0, 1) + b"a"
    assert path.with_suffix(".idx").read_bytes() == index


@pytest.fixture
def directory(tmp_path) -> Path:
    write_directory(tmp_path, [([5] * 9, "a"), ([6] * 20, "b"), ([7] * 12, "c")])
    return tmp_path


def patch(path: Path, position: int, values: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[position : position + len(values)] = values
    path.write_bytes(data)


def edit(directory: Path, **changes: object) -> None:
    path = directory / "shards.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def int32(value: int) -> bytes:
    return struct.pack("<i", value)


BIN, IDX = "train_000001.bin", "train_000001.idx"
DAMAGE = {
    "truncated": (lambda d: (d / BIN).write_bytes((d / BIN).read_bytes()[:-1]), rf"{BIN}.*1055.*1056"),
    "too long": (lambda d: (d / BIN).write_bytes((d / BIN).read_bytes() + b"x"), rf"{BIN}.*1057.*1056"),
    "half a header": (lambda d: (d / BIN).write_bytes(b"x" * 100), rf"{BIN}.*100.*1024"),
    "magic": (lambda d: patch(d / BIN, 0, int32(42)), rf"{BIN}.*42.*20240520"),
    "llama-3": (lambda d: patch(d / BIN, 0, int32(20240801)), rf"{BIN}.*20240801.*uint32 tokens.*20240520"),
    "version": (lambda d: patch(d / BIN, 4, int32(7)), rf"{BIN}.*version is 7, expected 1"),
    "count": (lambda d: patch(d / BIN, 8, int32(17)), rf"{BIN}.*1056.*1058 for 17 tokens"),
    "negative count": (lambda d: patch(d / BIN, 8, int32(-1)), rf"{BIN}.*-1"),
    "token over vocabulary": (lambda d: patch(d / BIN, 1024, b"\xff\xff"), rf"{BIN}.*65535.*1000"),
    "vocabulary over uint16": (lambda d: edit(d, vocab_size=65537), r"shards.json.*65537.*65536"),
    "eot outside": (lambda d: edit(d, eot_token=1000), r"shards.json.*eot_token is 1000"),
    "missing split": (lambda d: edit(d, splits={}), r"shards.json.*no split 'train'"),
    "missing shard": (lambda d: (d / BIN).unlink(), r"train_000001.bin.*missing"),
    "missing last shard": (lambda d: (d / "train_000002.bin").unlink(), r"has 2 shards.*3"),
    "no shard": (lambda d: [path.unlink() for path in d.glob("train_*.bin")], r"no shard of split 'train'"),
    "no description": (lambda d: (d / "shards.json").unlink(), r"shards.json.*No such file"),
    "description not JSON": (lambda d: (d / "shards.json").write_text("{"), r"shards.json"),
    "token count of the split": (
        lambda d: edit(d, splits={"train": {"documents": 3, "tokens": 45, "bytes": 1, "shards": 3}}),
        r"44.*45",
    ),
    "token_bytes": (lambda d: (d / "token_bytes.bin").write_bytes(b"12"), r"token_bytes.bin.*2 bytes.*2000"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named(directory, damage, message):
    damage(directory)
    with pytest.raises(ShardError, match=message) as error:
        shards = ShardSet(directory, "train")
        shards.slice(0, shards.tokens)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("position", "values", "message"),
    [
        (0, int32(20240520), r"20240520, expected 20241120"),
        (4, int32(3), r"version is 3"),
        (8, int32(100), r"100 documents"),
        (1024, struct.pack("<Q", 99), r"starts.*99"),
        (1032, struct.pack("<Q", 1), r"start at 0"),
        (1040, struct.pack("<Q", 50), r"1 documents and their ids"),
    ],
)
def test_damaged_index_is_named(directory, position, values, message):
    patch(directory / IDX, position, values)
    with pytest.raises(ShardError, match=rf"{IDX}.*{message}"):
        read_index(directory / IDX)


def test_shard_that_shrinks_while_it_is_read_is_an_error(directory):
    shards = ShardSet(directory, "train")
    (directory / BIN).unlink()
    with pytest.raises(ShardError, match=BIN):
        shards.slice(20, 25)


def test_writer_refuses_what_breaks_the_contract(tmp_path):
    tokens = np.array([0, 1, 0, 2], np.uint16)
    for bad_tokens, starts, ids, message in [
        (tokens.astype(np.int64), [0], ["a"], "int64"),
        (tokens, [0, 2], ["a"], "2 document starts, but 1 ids"),
        (tokens, [2, 0], ["a", "b"], "increase"),
        (tokens, [0, 4], ["a", "b"], "below 4"),
        (tokens, [0, 1], ["a", "b"], "different tokens"),
    ]:
        with pytest.raises(ShardError, match=message):
            write_shard(tmp_path, "train", 0, bad_tokens, np.array(starts), ids)
    assert list(tmp_path.iterdir()) == []


def test_description_round_trip(directory):
    dataset = read_dataset(directory)
    assert (dataset.vocab_size, dataset.eot_token, dataset.tokenizer_sha256) == (1000, 0, "abc")
    assert dataset.splits["val"] == Split(documents=3, tokens=44, bytes=82, shards=3)
    assert dataset.token_bytes.tolist() == [0] + [2] * 999


def test_bytes_of_tokens_that_are_not_those_of_the_text_are_refused(directory, monkeypatch):
    monkeypatch.setattr("model.data.shards.CHECKED_TOKENS", 7)  # in several pieces, across the edges of shards
    shards, token_bytes = ShardSet(directory, "val"), read_dataset(directory).token_bytes
    shards.check_bytes(token_bytes)
    token_bytes[7] += 1  # of the last document
    with pytest.raises(ShardError, match=r"split 'val' stand for 94 bytes, by shards\.json its text has 82"):
        shards.check_bytes(token_bytes)
