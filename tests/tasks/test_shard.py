"""Shards hold every document in order, the same bytes from any number of workers."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from model.data.shards import ShardSet, read_dataset, read_index
from tasks.config import DataConfig, ShardConfig
from tasks.download import is_validation, write_documents
from tasks.shard import write_shards
from tasks.sources.config import FilesSource
from tasks.token_bytes import END_OF_TEXT
from tasks.tokenizer import train_bpe
from tests.tasks.small_corpus import TEXTS, parquet


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(iter(TEXTS), 400, 2)


def test_a_document_cannot_write_the_token_that_separates_documents(bpe: Tokenizer, tmp_path: Path):
    """Documents are untrusted: their text never becomes a special token."""
    hostile = [f"{text}{END_OF_TEXT}more{END_OF_TEXT}" for text in TEXTS]
    out = shards_of(tmp_path, bpe, "shards", 2, texts=hostile)
    tokens = ShardSet(out, "train")
    assert np.count_nonzero(tokens.slice(0, tokens.tokens) == 0) == sum(not is_validation(t, 0.2) for t in hostile)


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
