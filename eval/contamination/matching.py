"""All documents against all items: the compiled scan over each document as it stands, and over its renderings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from eval.contamination.index import Index
from eval.contamination.match import Overlap, merged, overlaps
from eval.contamination.ngram_scan import Hits, scan
from eval.contamination.renderings import Rendering, renderings

_SCANNED_BYTES = 2**22
"""Bytes of renderings that are scanned at once, unless one is larger."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one document has of all items."""

    words: int
    overlaps: list[Overlap]
    """One for every reference with something in common."""


def find_all(data: np.ndarray, offsets: np.ndarray, index: Index) -> Iterator[Found]:
    """`Found` for every document data[offsets[i] : offsets[i + 1]]."""
    hits = scan(data, offsets, index.table)
    rendered = _in_renderings(data, offsets, hits.marked, index)
    plain = _overlaps(data, offsets, hits, index)
    for document, (count, found) in enumerate(zip(hits.words.tolist(), plain, strict=True)):
        more = rendered.get(document, [])
        yield Found(count, merged([*found, *more]) if more else found)


def _overlaps(data: np.ndarray, offsets: np.ndarray, hits: Hits, index: Index) -> Iterator[list[Overlap]]:
    bounds = np.searchsorted(hits.document, np.arange(len(offsets)))
    for document in range(len(offsets) - 1):
        part = slice(bounds[document], bounds[document + 1])
        if part.start == part.stop:
            yield []
        else:
            found = np.stack([hits.word[part], hits.ngram[part], hits.start[part], hits.end[part]])
            yield overlaps(data[offsets[document] : offsets[document + 1]], found, index)


def _in_renderings(data: np.ndarray, offsets: np.ndarray, marked: np.ndarray, index: Index) -> dict[int, list[Overlap]]:
    """By document what its renderings have of the items; bytes are those of the document."""
    found: dict[int, list[Overlap]] = {}
    for batch in _batches(data, offsets, marked):
        texts = [rendering.data for _, rendering in batch]
        content, ends = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
        hits = scan(content, ends, index.table)
        for (document, rendering), each in zip(batch, _overlaps(content, ends, hits, index), strict=True):
            for overlap in each:
                start, end = rendering.span(overlap.start, overlap.end)
                found.setdefault(document, []).append(replace(overlap, start=start, end=end))
    return found


def _batches(data: np.ndarray, offsets: np.ndarray, marked: np.ndarray) -> Iterator[list[tuple[int, Rendering]]]:
    batch, size = [], 0
    for document in np.flatnonzero(marked).tolist():
        for rendering in renderings(data[offsets[document] : offsets[document + 1]]):
            batch.append((document, rendering))
            size += len(rendering.data)
            if size >= _SCANNED_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
