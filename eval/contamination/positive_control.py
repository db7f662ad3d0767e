"""The positive control: what is planted in a scan, all of which must come back before its verdicts count.

* **Planted documents** are one more Parquet file of the same scan, by the same reader, pool, result files and tally:
  benchmark items in the forms in which they leak (`eval/contamination/planted_items.py`), invented items with known
  verdicts (`eval/contamination/probes.py`) and passages that only look like leaks (`eval/contamination/passages.toml`).
* **Canaries** (`eval/contamination/canaries.py`) are words of real documents, which must be found where they stand.

`eval/contamination/audit.py` compares what comes back. Planted documents have a tally of their own: nothing of them is
in a verdict, a count, an example or a list of documents to drop.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.contamination.canaries import Canary, draw_canaries
from eval.contamination.config import SHORTEST, ContaminationConfig
from eval.contamination.passages import PASSAGES
from eval.contamination.planted_items import FORMS, can_plant, plant
from eval.contamination.probes import Probe, probes
from eval.contamination.references import Reference, Severity
from eval.contamination.verdicts import ContaminationError
from eval.contamination.words import words

PLANTED_FILE = "planted.parquet"
ROWS_PER_GROUP = 64


@dataclass(frozen=True, slots=True)
class Plant:
    """A benchmark item in one row of the planted file."""

    form: str
    reference: int
    row: int


@dataclass(frozen=True)
class Control:
    """All that is planted, and where."""

    config: ContaminationConfig
    items: list[Reference]
    probes: list[Probe]
    probe_rows: list[tuple[int, ...]]
    """Of every probe: the rows of its documents."""
    plants: list[Plant]
    negative_rows: list[int]
    canaries: list[Canary]
    texts: list[str]
    """The planted documents."""

    @property
    def planted_references(self) -> list[Reference]:
        """What can be found in the planted file."""
        return [*self.items, *(item for probe in self.probes for _, item, _ in probe.items)]

    @property
    def references(self) -> list[Reference]:
        """All that the scan looks for: items, probes, canaries, in this order."""
        return [*self.planted_references, *(canary.reference(n) for n, canary in enumerate(self.canaries))]

    @property
    def digest(self) -> str:
        return hashlib.blake2b("\0".join(self.texts).encode("utf-8", "replace"), digest_size=16).hexdigest()

    def write(self, path: Path) -> None:
        """The planted documents as one more file of the scan, in several row groups."""
        texts = [text or None for text in self.texts]  # one that is null is among them
        table = pa.table({"id": [planted_name(row) for row in range(len(texts))], "text": texts})
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP)

    def expected_words(self) -> list[int]:
        """Words of every row group of the planted file."""
        counts = [len(words(text)) for text in self.texts]
        return [sum(counts[first : first + ROWS_PER_GROUP]) for first in range(0, len(counts), ROWS_PER_GROUP)]


def planted_name(row: int) -> str:
    return f"planted-{row:06d}"


def compose_control(
    items: list[Reference], documents: Sequence[Path], config: ContaminationConfig, seed: int, hosts: Iterable[str]
) -> Control:
    """Draws canaries and decides what is planted where; raises `ContaminationError` when there is no host text.

    Items stand in the first and in the last row. Items that cannot be checked are not planted.
    """
    prose = [host for host in hosts if host.strip()]
    if not prose:
        raise ContaminationError("positive control: no document with text to plant items in")
    generator = np.random.default_rng(seed)
    chosen = list(_chosen(items, config, generator))
    planted = [(plant(items[number], form, prose, generator), form, number) for form, number in chosen]
    found = probes(config)
    # everything in random order, over all row groups, but for an item in the first and in the last row
    order: list[tuple[float, str, int, int]] = [(-1.0, "plant", 0, 0), (2.0, "plant", len(planted) - 1, 0)]
    order += [(float(generator.random()), "plant", number, 0) for number in range(1, len(planted) - 1)]
    order += [(float(generator.random()), "negative", number, 0) for number in range(len(PASSAGES))]
    for number, probe in enumerate(found):
        keys = np.sort(generator.random(len(probe.documents)))
        # two documents stay neighbours, so that what one begins and the other ends can be told apart
        keys[:] = keys[0] if len(keys) == 2 else keys
        order += [(float(key), "probe", number, document) for document, key in enumerate(keys)]
    rows: dict[tuple[str, int], list[int]] = {}
    texts = []
    for row, (_, kind, number, document) in enumerate(sorted(order)):
        rows.setdefault((kind, number), []).append(row)
        if kind == "probe":
            texts.append(found[number].documents[document])
        else:
            texts.append(planted[number][0] if kind == "plant" else PASSAGES[number])
    return Control(
        config=config,
        items=items,
        probes=found,
        probe_rows=[tuple(rows.get(("probe", number), ())) for number in range(len(found))],
        plants=[Plant(form, item, rows["plant", number][0]) for number, (_, form, item) in enumerate(planted)],
        negative_rows=[rows["negative", number][0] for number in range(len(PASSAGES))],
        canaries=draw_canaries(documents, seed, config.ngram),
        texts=texts,
    )


def _chosen(items: list[Reference], config: ContaminationConfig, generator: np.random.Generator) -> Iterable:
    """(form, item) of all plants; of every suite the first and the last item are among them, verbatim."""
    suites: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        if item.severity is Severity.TEST and max(len(words(form.text)) for form in item.forms) >= SHORTEST:
            suites.setdefault(item.suite, []).append(number)
    for numbers in suites.values():
        yield "verbatim", numbers[0]
    for numbers in suites.values():
        for form in FORMS:
            left, order = config.control_items, generator.permutation(numbers).tolist()
            for number in order:
                if left and can_plant(items[number], form, config.ngram):
                    left -= 1
                    yield form, number
    for numbers in suites.values():
        yield "verbatim", numbers[-1]
