"""Canaries: a few words in a row from real documents, drawn by seed, that the scan must find where they stand.

A planted file proves nothing about the files beside it. So documents of every file are read here, by other code than
the scan's, and some of their words are looked for as if they were a benchmark item: in the first and the last
document of a row group, in its longest, and in others drawn by seed; at the beginning, at the end, beyond the first
megabyte and anywhere.

Words that other documents near them have too are not drawn: a heading of every page would be found in every page.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.contamination.references import Reference, Severity, Text
from eval.contamination.verdicts import ContaminationError
from eval.contamination.words import words

SUITE = "canary"
MEGABYTE = 2**20
_DOCUMENTS = 500
"""Documents that are drawn from, in all files together; two in every file at least."""
_LARGEST_GROUPS = 2
_READ_BYTES = 2**26
"""Of text, in the row groups that are read beside the largest ones and the first and the last of every file."""
_BATCH_ROWS = 64
_AROUND_BYTES = 4096
_NEAR = 64  # characters
_TRIES, _MOST_CANDIDATES = 30, 8
_WORD = re.compile(r"[^\W_]+")
_CHANGING = re.compile(rb"[<>&]")
_SURELY_WORDS, _SURELY_DOCUMENTS = 200, 8


@dataclass(frozen=True, slots=True)
class Canary:
    """Words of one real document."""

    path: Path
    group: int
    """Row group of the file."""
    row: int
    """Of the row group."""
    document: str
    text: str
    start: int
    """First byte in the document's UTF-8."""

    @property
    def where(self) -> str:
        row = f"row {self.row} of row group {self.group}"
        return f"{self.path.name}, {row}, document {self.document}, byte {self.start:,}"

    def reference(self, item: int) -> Reference:
        """The words as an item that is looked for."""
        return Reference(SUITE, item, self.text, (), (), (Text(self.text, 0, None),), Severity.CANARY)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one row group to draw from."""

    path: Path
    group: int
    rows: tuple[int, ...]
    """Of the group."""


def draw_canaries(paths: Iterable[Path], seed: int, n: int) -> list[Canary]:
    """Canaries of `n` words each; equal files and seeds give equal ones.

    Raises `ContaminationError` when there are long documents of plain text and yet nothing could be drawn.
    """
    generator = np.random.default_rng([seed, 1])
    drawn: list[Canary] = []
    long = 0
    for part in _parts(list(paths), generator):
        texts, longest = _texts(part)
        for row, (document, content) in sorted(texts.items()):
            long += content.count(b" ") >= _SURELY_WORDS and content.isascii() and not _CHANGING.search(content)
            for stretch in _stretches(content, row in (part.rows[0], part.rows[-1], longest)):
                for text, start in _candidates(content, *stretch, n, generator):
                    if sum(other.count(_encoded(text)) for _, other in texts.values()) == 1:
                        drawn.append(Canary(part.path, part.group, row, document, text, start))
                        break
    if long >= _SURELY_DOCUMENTS and not drawn:
        raise ContaminationError(f"positive control: no {n} words in a row could be drawn from {long} long documents")
    return drawn


def _parts(paths: list[Path], generator: np.random.Generator) -> Iterator[_Part]:
    sizes: dict[tuple[Path, int], tuple[int, int]] = {}
    for path in paths:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group)
            if found.num_rows:
                sizes[path, group] = (found.total_byte_size, found.num_rows)
    chosen = set()
    for path in paths:
        own = [key for key in sizes if key[0] == path]
        chosen.update(own[:1] + own[-1:])
    chosen.update(sorted(sizes, key=lambda key: -sizes[key][0])[:_LARGEST_GROUPS])
    others = [key for key in sizes if key not in chosen]
    left = _READ_BYTES
    for place in generator.permutation(len(others)).tolist():
        left -= sizes[others[place]][0]
        if left >= 0:
            chosen.add(others[place])
    each = _DOCUMENTS // max(1, len(chosen)) + 1
    for key, (_, rows) in sizes.items():
        if key in chosen:
            drawn = generator.permutation(rows)[:each].tolist()
            yield _Part(*key, tuple(sorted({0, rows - 1, *drawn})))


def _texts(part: _Part) -> tuple[dict[int, tuple[str, bytes]], int]:
    """((id, text) by row of the group, of the rows to draw from and of the longest one; which that is)."""
    texts: dict[int, tuple[str, bytes]] = {}
    longest, most, first = -1, -1, 0
    try:
        with pq.ParquetFile(part.path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[part.group], columns=["id", "text"]):
                names, contents = (batch.column(name).cast(pa.large_binary()) for name in ("id", "text"))
                for place, content in enumerate(contents):
                    row, size = first + place, content.as_buffer().size if content.is_valid else 0
                    if row not in part.rows and size <= most:
                        continue
                    if size > most:
                        if longest not in part.rows:
                            texts.pop(longest, None)
                        longest, most = row, size
                    name = names[place].as_py()
                    shown = "None" if name is None else name.decode("utf-8", "replace")
                    texts[row] = (shown, content.as_py() or b"")
                first += len(contents)
    except (OSError, pa.ArrowException) as error:
        raise ContaminationError(f"{part.path}: row group {part.group} cannot be read: {error}") from error
    return texts, longest


def _stretches(content: bytes, many: bool) -> Iterator[tuple[int, int, int]]:
    """(first byte, one after the last, step) of each part of a document in which one canary is drawn: step 1, as near
    to its beginning as can be; -1, to its end; 0, anywhere."""
    size = len(content)
    if many:
        yield 0, min(size, _AROUND_BYTES), 1
        yield max(0, size - _AROUND_BYTES), size, -1
    if size > MEGABYTE:
        yield MEGABYTE, size, 0
    yield 0, size, 0


def _candidates(
    content: bytes, first: int, last: int, step: int, n: int, generator: np.random.Generator
) -> Iterator[tuple[str, int]]:
    """(n plain words in a row, their first byte) of that part of the document, until somebody takes one."""
    left = _MOST_CANDIDATES
    for _ in range(1 if step else _TRIES):
        start = first if step else int(generator.integers(first, max(first, last - _AROUND_BYTES) + 1))
        end = min(len(content), start + _AROUND_BYTES)
        while start < end and content[start] & 0xC0 == 0x80:
            start += 1
        text = content[start:end].decode("utf-8", "surrogateescape")
        found = list(_WORD.finditer(text))
        found = found[start > 0 : len(found) - (end < len(content))]  # those at the edges may be cut
        places = np.arange(max(0, len(found) - n + 1))[:: step or 1]
        for place in (places if step else generator.permutation(places))[:_TRIES].tolist():
            begin, stop = found[place].start(), found[place + n - 1].end()
            if left and _is_plain(text, begin, stop, n):
                left -= 1
                yield text[begin:stop], start + len(_encoded(text[:begin]))


def _is_plain(text: str, begin: int, stop: int, n: int) -> bool:
    """Whether these are n words whatever stands beside them, most of them different, with no markup and no hidden
    character near them."""
    before, chosen, after = text[max(0, begin - _NEAR) : begin], text[begin:stop], text[stop : stop + _NEAR]
    around = before + chosen + after
    if 2 * len(set(words(chosen))) <= n or _CHANGING.search(_encoded(around)):
        return False
    if any(unicodedata.category(each) in ("Cf", "Cs") for each in around):
        return False
    return len(words(chosen)) == n and words(around) == [*words(before), *words(chosen), *words(after)]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
