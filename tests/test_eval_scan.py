"""The compiled scan has exactly the words of `eval.words.words`, and bytes that lead back to them."""

import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.documents import read_documents, row_groups
from eval.index import Index, build_index
from eval.matching import Found, _slow_hits, find_all
from eval.negatives import PASSAGES
from eval.references import Reference, Text
from eval.textscan import build_table, scan, word_hashes
from eval.words import located_words, words

_CHARACTERS = st.one_of(
    st.sampled_from("aB9 _-\n\x00'é\u00a0ßﬁ½…²™ŒİςΣ漢字한ｱ\u2028😀\U0001d400\U000e0041"),
    st.sampled_from("\u0301\u0327\u0345\u093c\u1161\u11a8\uff9e\u0e33\u0ec0"),
    st.characters(codec="utf-8"),
)
_TEXTS = st.text(_CHARACTERS, max_size=40)


def _words(generator: np.random.Generator, count: int) -> str:
    letters = generator.integers(ord("a"), ord("k"), (count, 6), dtype=np.uint8)
    return " ".join(word.tobytes().decode() for word in letters)


def _reference(text: str, number: int = 0) -> Reference:
    return Reference("s", number, text, (), (), (Text(text, 0, None),))


def find(data: bytes, index: Index) -> Found:
    """What one document, given as UTF-8, has in common with the items."""
    return next(find_all(np.frombuffer(data, np.uint8), np.array([0, len(data)]), index))


def _scanned(data: bytes, expected: list[str]) -> tuple[int, list[tuple[int, int, int]]]:
    """(words, hits) when the table has every expected word as an n-gram of one word."""
    table, _ = build_table({1: word_hashes(expected) if expected else np.zeros(0, np.uint64)}, np.zeros(0, np.uint64))
    hits = scan(np.frombuffer(data, np.uint8), np.array([0, len(data)]), table)
    return int(hits.words[0]), list(zip(hits.word.tolist(), hits.start.tolist(), hits.end.tolist()))


@settings(deadline=None)  # the first example compiles
@given(_TEXTS)
def test_the_scan_has_the_words_of_the_text(text):
    data, expected = text.encode(), words(text)
    count, hits = _scanned(data, expected)
    if count < 0:  # characters act on their neighbours: left to Python
        assert any(unicodedata.normalize("NFKC", text) != text or unicodedata.combining(each) for each in text)
        return
    assert count == len(expected) == len(hits)
    for (number, start, end), word in zip(hits, expected):
        assert word in words(data[start:end].decode()), number


@settings(deadline=None)  # the first example compiles
@given(st.text(_CHARACTERS.filter(lambda each: each.isascii() or not unicodedata.combining(each)), max_size=40))
def test_both_ways_to_the_words_agree(text):
    index = build_index([_reference("the quick brown fox jumps over it")], 8)
    data = np.frombuffer(f"{text} the quick brown fox, jumps over it. {text}".encode(), np.uint8)
    hits = scan(data, np.array([0, len(data)]), index.table)
    if hits.words[0] < 0:
        return
    count, slow = _slow_hits(data, index)
    assert count == hits.words[0]
    fast = zip(hits.word.tolist(), hits.ngram.tolist(), hits.start.tolist(), hits.end.tolist())
    assert sorted(zip(*slow.tolist())) == sorted(fast)


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.one_of(st.binary(max_size=6), _TEXTS.map(str.encode))).map(b"".join))
def test_any_bytes_have_the_words_of_their_decoded_text(data):
    expected = words(data.decode("utf-8", "replace"))
    count, hits = _scanned(data, expected)
    assert count == -1 or count == len(expected) == len(hits)


@settings(deadline=None)  # the first example compiles
@given(st.text(alphabet=st.characters(codec=None, categories=None), max_size=60))
def test_located_words_are_the_words(text):
    located = located_words(text)
    assert [word for word, _, _ in located] == words(text)
    assert all(0 <= start < end <= len(text) for _, start, end in located)


@settings(deadline=None)  # the first example compiles
@given(st.binary(max_size=20), _TEXTS, _TEXTS, st.sampled_from(["", "e\u0301", "\u1100\u1161", "\uff76\uff9e"]))
def test_offsets_are_right_beside_hostile_bytes(raw, before, after, joined):
    item = "silver cafés hide seven small foxes beside rivers"
    index = build_index([_reference(item)], 8)
    spelled = unicodedata.normalize("NFD", item) if joined else item
    head = raw + before.encode() + b" " + joined.encode() + b" "
    data = head + spelled.encode() + b" " + after.encode() + raw
    overlap = find(data, index).overlaps[0]
    assert (overlap.run, overlap.coverage) == (8, 1.0)
    assert data[overlap.start : overlap.end].decode() == spelled
    assert (overlap.start, overlap.end) == (len(head), len(head) + len(spelled.encode()))


def test_every_ngram_of_a_long_text_is_found():
    generator = np.random.default_rng(4)
    texts = [_words(generator, int(n)) for n in generator.integers(8, 60, 200)]
    index = build_index([_reference(text, number) for number, text in enumerate(texts)], 8)
    for number, text in enumerate(texts):
        split = text.split()
        start = int(generator.integers(len(split) - 7))
        overlaps = find(("one " + " ".join(split[start : start + 8]) + " two").encode(), index).overlaps
        assert [(o.reference, o.run, o.form_word) for o in overlaps] == [(number, 8, start)]


def test_a_hash_alone_counts_for_nothing(monkeypatch):
    """With every word hashed alike all n-grams hit, and only those with the right words are left."""
    generator = np.random.default_rng(5)
    text = _words(generator, 20)
    index = build_index([_reference(text)], 8)
    index.table.hashes[:] = index.table.hashes[0]
    other = _words(generator, 20)
    hits = scan(np.frombuffer(other.encode(), np.uint8), np.array([0, len(other)]), index.table)
    assert len(hits.word) == 0
    first = " ".join(text.split()[:8]).encode()
    found = find(first, index).overlaps
    assert all(words(first[o.start : o.end].decode()) == text.split()[o.form_word : o.form_word + o.run] for o in found)


def test_a_long_document_is_not_cut_at_matches():
    """Thirty megabytes on one line, plain and with characters that take the slow way; runs longer than a piece."""
    generator = np.random.default_rng(6)
    text = _words(generator, 40)
    index = build_index([_reference(text)], 8)
    for filler in (b"lorem ", "e\u0301 ".encode()):
        size = 2**20 if filler != b"lorem " else 30_000_000
        for shift in (0, 90, 200):
            head = filler * (size // len(filler)) + b"x" * shift
            data = head[: size - shift if filler == b"lorem " else None] + b" " + text.encode() + b" " + filler
            overlap = find(data, index).overlaps[0]
            assert overlap.run == 40 and data[overlap.start : overlap.end] == text.encode()


def test_documents_do_not_touch():
    text = _words(np.random.default_rng(7), 16)
    index = build_index([_reference(text)], 8)
    half = " ".join(text.split()[:4]).encode(), " ".join(text.split()[4:16]).encode()
    data = np.frombuffer(b"".join(half), np.uint8)
    found = list(find_all(data, np.array([0, len(half[0]), len(data)]), index))
    assert [each.words for each in found] == [4, 12] and found[0].overlaps == []
    assert found[1].overlaps[0].run == 12


def test_bytes_that_are_not_utf8_are_read(tmp_path):
    raw = pa.array([b"caf\xff \xed\xa0\x80 ok", None, b""], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": text}), tmp_path / "d.parquet")
    groups, total = row_groups([tmp_path / "d.parquet"])
    parts = [part for group in groups for part in read_documents(group)]
    texts = [part.text(row).tobytes() for part in parts for row in range(len(part.ids))]
    assert texts == [b"caf\xff \xed\xa0\x80 ok", b"", b""] and total == 3


def test_hard_negatives_are_long_enough_to_say_something():
    assert len(PASSAGES) >= 40 and all(len(passage.split()) >= 60 for passage in PASSAGES)
