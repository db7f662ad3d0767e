"""Rows of whole documents, and shards that another program wrote."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.loader import batch, pack_documents
from model.data.packing import pack
from model.data.shards import ShardError, ShardSet, read_dataset
from model.train import main

VOCAB, EOT = 40, 39
MODEL = {"depth": 2, "width": 32, "heads": 2, "sequence_length": 16, "vocab_size": VOCAB, "eot_token": EOT}
TRAIN = {
    "seed": 1,
    "tokens": 40 * 128,
    "tokens_per_step": 128,
    "micro_batch_sequences": 4,
    "optimizer": "muon",
    "learning_rate": 0.02,
    "embedding_learning_rate": 0.1,
    "head_learning_rate": 0.02,
    "scalar_learning_rate": 0.01,
    "validation_every_steps": 40,
    "validation_tokens": 512,
    "checkpoint_every_steps": 1000,
    "sample_tokens": 4,
}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(0, 5), st.integers(2, 32))
def test_rows_are_full_start_with_documents_and_use_none_twice(lengths, before, row):
    starts = before + np.cumsum([0, *lengths[:-1]])
    total = before + sum(lengths)
    packing = pack(starts, total, row)
    found = [packing.pieces(number) for number in range(len(packing))]
    assert all(sum(stop - start for start, stop in pieces) == row for pieces in found)
    used = [start for pieces in found for start, _ in pieces]
    assert len(set(used)) == len(used) and set(used) <= set(starts.tolist())
    length_of = dict(zip(starts.tolist(), lengths))
    assert all(stop - start <= length_of[start] for pieces in found for start, stop in pieces)
    assert packing.cropped == pytest.approx(1 - len(packing) * row / total)
    unused = sum(min(length, row) for start, length in length_of.items() if start not in set(used))
    assert unused < 2 * row, "what is left over does not fill a row, or one and a cropped document"


def test_the_longest_that_fits_is_placed_and_the_shortest_that_is_left_is_cropped():
    packing = pack(np.array([0, 9, 16, 22, 26]), 31, 12)  # of 9, 7, 6, 4 and 5 tokens
    rows = [packing.pieces(row) for row in range(len(packing))]
    # 9, and 3 of the 4; then 7 and 5; of the 6 no row can be made
    assert rows == [[(0, 9), (22, 25)], [(9, 16), (26, 31)]]
    assert packing.cropped == pytest.approx(7 / 31)


def test_nothing_is_cropped_where_everything_fits():
    lengths = [7, 3, 5, 5, 10, 1, 9, 2, 2, 6] * 1000
    packing = pack(np.cumsum([0, *lengths[:-1]]), sum(lengths), 10)
    assert (len(packing), packing.cropped) == (5000, 0.0)
    one_long = pack(np.array([0]), 100, 10)
    assert (len(one_long), one_long.cropped) == (1, 0.9)


def write_llm_c(path: Path, tokens: list[int]) -> None:
    """As llm.c's data_common.py does, with nothing of ours."""
    with open(path, "wb") as file:
        file.write(struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253))
        file.write(struct.pack(f"<{len(tokens)}H", *tokens))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """Markov documents in files of llm.c; the train shards begin and end in mid-document, as fineweb.py's do."""
    directory, noise = tmp_path_factory.mktemp("llm.c"), np.random.default_rng(0)
    stream: list[int] = []
    while len(stream) < 13_000:
        stream += [EOT, int(noise.integers(EOT))]
        for _ in range(int(noise.integers(2, 40))):
            stream.append(int(noise.integers(EOT)) if noise.random() < 0.1 else (7 * stream[-1] + 3) % EOT)
    for name, start, stop in (("val_000000", 0, 1000), ("train_000001", 1000, 7000), ("train_000002", 7000, 13_000)):
        write_llm_c(directory / f"fineweb_{name}.bin", stream[start:stop])
    return directory


def train(directory: Path, shards: Path, name: str, model: dict, **changes: object) -> list[dict]:
    path = directory / f"{name}.json"
    path.write_text(
        json.dumps(
            {
                "model": model,
                "train": TRAIN | changes,
                "shards": str(shards),
                "run_dir": str(directory / name),
                "sample_prompts": [[EOT]],
                "execution": {"device": "cpu", "threads": 1},
            }
        )
    )
    assert main([str(path)]) == 0
    return [json.loads(line) for line in (directory / name / "metrics.jsonl").read_text().splitlines()]


def test_llm_c_shards_train_without_bits_per_byte(foreign, tmp_path):
    first, *_, done = train(tmp_path, foreign, "run", MODEL)
    assert done["loss"] < 3.2 and done["bits_per_byte"] is None and first["cropped"] is None


def test_token_bytes_beside_them_give_bits_per_byte(foreign, tmp_path):
    for path in foreign.iterdir():
        (tmp_path / path.name).symlink_to(path)
    np.array([2] * EOT + [0], dtype="<u2").tofile(tmp_path / "token_bytes.bin")
    first, *_, done = train(tmp_path, tmp_path, "run", MODEL, rows="documents")
    assert 0.5 < done["bits_per_byte"] < 3 and 0 < first["cropped"] < 0.4


def test_masked_documents_in_packed_rows_train(foreign, tmp_path):
    *_, done = train(tmp_path, foreign, "run", MODEL | {"document_mask": "own", "smear": "embedding"}, rows="documents")
    assert done["loss"] < 3.3


def test_documents_are_found_by_their_token_across_shards(foreign):
    shards = ShardSet(foreign, "train", read_dataset(foreign, VOCAB, EOT))
    assert shards.tokens == 12_000
    stream = shards.slice(0, 12_000)
    assert np.array_equal(shards.document_starts(), np.flatnonzero(stream == EOT)) and stream[0] != EOT


def test_packed_batches_are_pure_shared_and_visit_every_row_once(foreign):
    shards = ShardSet(foreign, "train", read_dataset(foreign, VOCAB, EOT))
    packing = pack_documents(shards, 16)
    x, y = batch(shards, 3, 5, 0, 1, 8, 16, packing)
    assert (x[:, 0] == EOT).all() and torch.equal(x[:, 1:], y[:, :-1])
    for world in (2, 4):
        parts = [batch(shards, 3, 5, rank, world, 8, 16, pack_documents(shards, 16)) for rank in range(world)]
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
    rows = torch.cat([batch(shards, 3, step, 0, 1, len(packing), 16, packing)[0] for step in (0, 1)])
    one, two = (sorted(part.tolist()) for part in rows.chunk(2))
    assert one == two and not torch.equal(*rows.chunk(2))


@pytest.mark.parametrize(
    ("vocab_size", "eot_token", "message"),
    [
        (None, None, "shards.json: cannot be read.*model.vocab_size and model.eot_token"),
        (VOCAB, None, "model.eot_token"),
        (30, 5, "has token 39 .* vocab_size 30"),
        (VOCAB - 1, 1, "has token 39"),
    ],
)
def test_foreign_shards_need_a_vocabulary_that_is_theirs(foreign, vocab_size, eot_token, message):
    with pytest.raises(ShardError, match=message):
        ShardSet(foreign, "train", read_dataset(foreign, vocab_size, eot_token)).slice(0, 12_000)


def test_documents_that_fill_no_row_are_an_error(foreign):
    shards = ShardSet(foreign, "val", read_dataset(foreign, VOCAB, EOT))
    with pytest.raises(ShardError, match="do not fill one row of sequence_length 5000"):
        pack_documents(shards, 5000)
