"""The compiled scan has exactly the words of `eval.contamination.words.words`, and bytes that lead back to them."""

import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.contamination.leaks import DISGUISES
from eval.contamination.index import Index, build_index
from eval.contamination.match import DocumentOverlaps, find_overlaps
from eval.contamination.ngram_scan import build_table, scan, word_hashes
from eval.contamination.passages import PASSAGES
from eval.contamination.references import Reference, Text
from eval.contamination.renderings import renderings, text_and_renderings
from eval.contamination.words import located_words, words
from eval.document_parquet import read_row_group, row_groups

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


def find(data: bytes, index: Index) -> DocumentOverlaps:
    """What one document, given as UTF-8, has in common with the items."""
    return next(find_overlaps(np.frombuffer(data, np.uint8), np.array([0, len(data)]), index))


def _scan_in_workers(data: bytes, expected: list[str]) -> tuple[int, list[tuple[int, int, int]]]:
    """(words, hits) when the table has every expected word as an n-gram of one word."""
    table, _ = build_table({1: word_hashes(expected) if expected else np.zeros(0, np.uint64)}, np.zeros(0, np.uint64))
    hits = scan(np.frombuffer(data, np.uint8), np.array([0, len(data)]), table)
    return int(hits.words[0]), list(zip(hits.word.tolist(), hits.start.tolist(), hits.end.tolist()))


@settings(deadline=None)  # the first example compiles
@given(_TEXTS)
def test_the_scan_has_the_words_of_the_text(text):
    data, expected = text.encode(), words(text)
    count, hits = _scan_in_workers(data, expected)
    assert count == len(expected) == len(hits)
    for (number, start, end), word in zip(hits, expected):
        assert word in words(data[start:end].decode()), number


DEFAULT_IGNORABLE = [  # Unicode 16, DerivedCoreProperties.txt
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
]


def test_characters_that_nobody_sees_are_no_part_of_a_word():
    seen = [chr(code) for first, last in DEFAULT_IGNORABLE for code in range(first, last + 1)]
    text = "".join(f"{mark}sil{mark}ver{mark} " for mark in seen)
    assert words(text) == ["silver"] * len(seen)
    count, hits = _scan_in_workers(text.encode(), ["silver"])
    assert count == len(hits) == len(seen)


@given(_TEXTS)
def test_words_have_the_same_words(text):
    assert words(" ".join(words(text))) == words(text)
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text)) == words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t don\u02bct don\u2032t", "don t don t don t"),
        ("na\u00efve nai\u0308ve s\u0336t\u0336r\u0336uck", "naive naive struck"),
        ("\uff37\uff48\uff41\uff54 \ufb01ne \u24d0 \U0001d400", "what fine a a"),
        ("\u0441\u0430t \u0421\u0410T \u03bfne \u1d00ll", "cat cat one all"),
        ("one\u2014two\u2009three\u00a0four\u2800five", "one two three four five"),
    ],
)
def test_letters_that_look_alike_are_alike(text, expected):
    assert " ".join(words(text)) == expected


HIDDEN_WHOLLY = ("columns of 40", "lines of 60 interleaved", "lines of 40 interleaved", "letters apart")


@pytest.mark.parametrize("disguise", [name for name in DISGUISES if name not in HIDDEN_WHOLLY])
def test_a_disguised_text_is_found_where_it_stands(disguise):
    """The bytes of the match hold all of the text, and one byte less at either end holds less."""
    item = 'Which of these isn\'t a café where seven small "foxes" & nine hens hide beside old rivers in the evening?'
    index = build_index([_reference(item)], 8)
    text, host = DISGUISES[disguise](item, "so it was and so it stays "), "No <b>word</b> of it &amp; none. "
    data = f"{host}{text} {host}".encode()

    def covered(start: int, end: int) -> float:
        return max((overlap.coverage for overlap in find(data[start:end], index).overlaps), default=0.0)

    found = find(data, index).overlaps[0]
    assert (found.run, found.coverage) == (len(words(item)), 1.0)
    assert len(host) <= found.start and found.end <= len(host) + len(text.encode())
    tag = disguise == "in an attribute"  # whose quotes are needed to know it
    assert covered(found.start, found.end) == 1.0 or tag
    assert covered(found.start + 1, found.end) < 1 and covered(found.start, found.end - 1) < 1


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a &lt; b &amp;amp;lt; c AT&T R&amp;D &#x41;&#66; &bogus; &", "a < b < c AT&T R&D AB &bogus; &"),
        ("a <b and c <d", None),
        ("x<!-- y -->z <script>if (a<b)</script>w <!-- open", "x z  w <!-- open"),
        (r"isn\u2019t \ud83d\ude00 caf\xc3\xa9s \"now\" \\nthen", 'isn’t 😀 cafés \\"now\\"  then'),
        ("ques-\ntion, well-\r\n known --\nand - \nso", "question, wellknown --\nand - \nso"),
        ("W\bWh\bhy \x1b[1mnot\x1b[0m", "Why not"),
        ('[[Fox (animal)|foxes]][12] [here](http://a.b/c "x") (so)', "foxes]] [here] (so)"),
    ],
)
def test_renderings(text, seen):
    assert text_and_renderings(text)[:2] == [text, *([] if seen is None else [seen])]


_MARKS = ["<b>", "</p>", "<a b='", "'>", "&lt;", "&#8203;", "\\u00e9", "%20", "x", "\x08", "-\n", "é "]


@settings(deadline=None)
@given(st.lists(st.sampled_from(_MARKS)))
def test_every_byte_of_a_rendering_comes_from_the_document(parts):
    data = np.frombuffer("".join(parts).encode(), np.uint8)
    for rendering in renderings(data):
        spans = [rendering.span(place, place + 1) for place in range(len(rendering.data))]
        assert all(0 <= start < end <= len(data) for start, end in spans)
        assert spans == sorted(spans)
        for place, (start, end) in enumerate(spans):
            assert end - start > 1 or rendering.data[place] in (data[start], 32)


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.one_of(st.binary(max_size=6), _TEXTS.map(str.encode))).map(b"".join))
def test_any_bytes_have_the_words_of_their_decoded_text(data):
    expected = words(data.decode("utf-8", "replace"))
    count, hits = _scan_in_workers(data, expected)
    assert count == len(expected) == len(hits)


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
    found = list(find_overlaps(data, np.array([0, len(half[0]), len(data)]), index))
    assert [each.words for each in found] == [4, 12] and found[0].overlaps == []
    assert found[1].overlaps[0].run == 12


def test_bytes_that_are_not_utf8_are_read(tmp_path):
    raw = pa.array([b"caf\xff \xed\xa0\x80 ok", None, b""], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": text}), tmp_path / "d.parquet")
    groups, total = row_groups([tmp_path / "d.parquet"])
    parts = [part for group in groups for part in read_row_group(group)]
    texts = [part.text(row).tobytes() for part in parts for row in range(len(part.ids))]
    assert texts == [b"caf\xff \xed\xa0\x80 ok", b"", b""] and total == 3


def test_hard_negatives_are_long_enough_to_say_something():
    assert len(PASSAGES) >= 40 and all(len(passage.split()) >= 60 for passage in PASSAGES)
