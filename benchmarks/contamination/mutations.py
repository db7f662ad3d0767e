"""Ways to break the contamination scan, each as a change of its source: `benchmarks/contamination/control.py` tries
them all.

Every one makes some verdict, count or table wrong. None touches the control itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    area: str
    name: str
    file: str
    old: str
    """Text that stands in the file exactly once."""
    new: str
    earlier: bool = False
    """Whether the same folder holds the results of an earlier scan of other documents."""


def _m(area: str, file: str, name: str, old: str, new: str, earlier: bool = False) -> Mutation:
    return Mutation(area, name, f"eval/{file}.py", old, new, earlier)


MUTATIONS = (
    _m(
        "reader",
        "contamination/document_reader",
        "the last row group of a file is not read",
        "for group in range(metadata.num_row_groups)]",
        "for group in range(max(1, metadata.num_row_groups - 1))]",
    ),
    _m(
        "reader",
        "contamination/document_reader",
        "the first row group of every file but the first is not read",
        "for group in range(metadata.num_row_groups)]",
        "for group in range(number > 0, metadata.num_row_groups)]",
    ),
    _m(
        "reader",
        "contamination/document_reader",
        "the first document of a batch is not read",
        "yield _documents(batch)",
        "yield _documents(batch.slice(1))",
    ),
    _m(
        "reader",
        "contamination/document_reader",
        "the last document of a batch is not read",
        "yield _documents(batch)",
        "yield _documents(batch.slice(0, max(1, batch.num_rows - 1)))",
    ),
    _m(
        "reader",
        "contamination/document_reader",
        "a document gets its neighbour's id",
        "return Documents(names, ",
        "return Documents(names[1:] + names[:1], ",
    ),
    _m(
        "reader",
        "contamination/document_reader",
        "a row group is read twice and the next one never",
        "groups += [RowGroup(number, path, group)",
        "groups += [RowGroup(number, path, group // 2 * 2)",
    ),
    _m(
        "reader",
        "contamination/document_reader",
        "texts are read as ASCII, other letters are lost",
        'np.frombuffer(data or b"", np.uint8)',
        'np.frombuffer(data or b"", np.uint8) & 0x7F',
    ),
    _m(
        "reader",
        "contamination/check",
        "the last file of documents is left out",
        "row_groups([*command.documents, planted])",
        "row_groups([*command.documents[:-1], planted])",
    ),
    _m(
        "reader",
        "contamination/check",
        "documents over 100 kB are counted and not searched",
        "if found.overlaps:",
        "if found.overlaps and len(part.text(number)) < 100_000:",
    ),
    _m(
        "reader",
        "contamination/matching",
        "the last document of a part is not searched",
        "if part.start == part.stop:",
        "if part.start == part.stop or document == len(offsets) - 2:",
    ),
    _m(
        "pool",
        "contamination/check",
        "workers write no matches",
        "partial = result.with_suffix",
        ("found.matches.clear()\n    partial = result.with_suffix"),
    ),
    _m(
        "pool",
        "contamination/check",
        "workers write only the first match of a row group",
        "partial = result.with_suffix",
        ("del found.matches[1:]\n    partial = result.with_suffix"),
    ),
    _m(
        "pool",
        "contamination/check",
        "an error in a worker is swallowed and nothing was found",
        "    found = scan_documents(read_documents(row_group), _worker_index, row_group.path.name, place)\n",
        (
            "    try:\n"
            "        assert row_group.group != 1\n"
            "        found = scan_documents(read_documents(row_group), _worker_index, "
            "row_group.path.name, place)\n"
            "    except AssertionError:\n"
            "        found = Scanned(0, 0, 0, [])\n"
        ),
    ),
    _m(
        "pool",
        "contamination/check",
        "an error in a worker is swallowed, its documents count as scanned",
        "    found = scan_documents(read_documents(row_group), _worker_index, row_group.path.name, place)\n",
        (
            "    found = scan_documents(read_documents(row_group), _worker_index, row_group.path.name, place)\n"
            "    if row_group.group == 1:\n"
            "        found.matches.clear()\n"
        ),
    ),
    _m(
        "pool",
        "contamination/check",
        "a worker scans the first file for every other",
        "scan_documents(read_documents(row_group),",
        (
            "scan_documents(read_documents(RowGroup(0, Path(str(row_group.path).replace('000001', "
            "'000000')), row_group.group)),"
        ),
    ),
    _m(
        "pool",
        "contamination/check",
        "the result of the row group before is taken",
        "            yield group, result\n",
        "            yield group, results[max(0, results.index(result) - 1)]\n",
    ),
    _m(
        "pool",
        "contamination/check",
        "every second result is not added up",
        "        for group, result in zip(groups, results):\n",
        "        for group, result in zip(groups[::2], results[::2]):\n",
    ),
    _m(
        "pool",
        "contamination/check",
        "results of an earlier scan of other documents are used",
        "    return digest.hexdigest()\n",
        '    return "0" * 64\n',
        earlier=True,
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "a hash is looked for in one slot only",
        (
            "    while slots[place] >= 0:\n"
            "        if hashes[slots[place]] == ngram:\n"
            "            return slots[place]\n"
            "        place = (place + _ONE) & mask\n"
            "    return -1"
        ),
        (
            "    if slots[place] >= 0:\n"
            "        if hashes[slots[place]] == ngram:\n"
            "            return slots[place]\n"
            "    return -1"
        ),
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "the n-gram that ends a block of words is lost",
        "                        looked_up = count\n",
        "                        looked_up = count + 1\n",
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "the ring of words is as short as a block",
        "_RING = 1024",
        "_RING = 256",
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "the bitmap lacks n-grams",
        "for shift in (np.uint64(0), _SIX, _TWELVE):",
        "for shift in (np.uint64(0), _SIX):",
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "a document is cut at 1 MB",
        "first, end = offsets[document], offsets[document + 1]",
        "first, end = offsets[document], min(offsets[document] + 1_000_000, offsets[document + 1])",
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "places of hits count from the batch's beginning",
        "begin - first, last - first)",
        "begin, last)",
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "one n-gram in 64 is lost",
        ("            if place >= 0:\n                if hit_count"),
        ("            if place >= 0 and place % 64:\n                if hit_count"),
    ),
    _m(
        "hashing",
        "contamination/ngram_scan",
        "hits beyond the first 500 of a part are lost",
        (
            "        if count <= capacity:\n"
            "            return Hits(*found[:count].T, words=word_counts, marked=marked)\n"
        ),
        (
            "        if capacity:\n"
            "            return Hits(*found[: min(count, 500)].T, words=word_counts, marked=marked)\n"
        ),
    ),
    _m(
        "index",
        "contamination/index",
        "half of the items are not in the index",
        "for number, reference in enumerate(references):",
        "for number, reference in list(enumerate(references))[::2]:",
    ),
    _m(
        "index",
        "contamination/index",
        "one item in ten is not in the index",
        "for number, reference in enumerate(references):",
        "for number, reference in (each for each in enumerate(references) if each[0] % 10):",
    ),
    _m(
        "index",
        "contamination/index",
        "one text of each item is in the index",
        "for which, text in enumerate(reference.forms):",
        "for which, text in enumerate(reference.forms[:1]):",
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "an item is named as its neighbour",
        '"item": found.reference.item,\n        "verdict"',
        '"item": found.reference.item ^ 1,\n        "verdict"',
    ),
    _m(
        "index",
        "contamination/index",
        "the last n-gram of every text is missing",
        "places[n].append(base + np.arange(len(hashes[n][-1])))",
        ("hashes[n][-1] = hashes[n][-1][:-1]\n            places[n].append(base + np.arange(len(hashes[n][-1])))"),
    ),
    _m(
        "index",
        "contamination/index",
        "short parts of texts are missing",
        "    parts.add((0, question_words))\n",
        "    parts = set()\n",
    ),
    _m(
        "index",
        "contamination/check",
        "workers get the first half of the index",
        "_worker_index, _worker_fingerprint = index, index.fingerprint",
        (
            "index.table.slots[len(index.table.slots) // 2 :] = -1\n"
            "    _worker_index, _worker_fingerprint = index, index.fingerprint"
        ),
    ),
    _m(
        "index",
        "contamination/index",
        "items of four and five words count as too short",
        "SHORTEST = 4\n",
        "SHORTEST = 6\n",
    ),
    _m(
        "index",
        "contamination/index",
        "words of two items are taken for wording that many share",
        "TEMPLATE_ITEMS = 5\n",
        "TEMPLATE_ITEMS = 2\n",
    ),
    _m(
        "items",
        "contamination/references",
        "a suite is missing",
        "for suite in map(suite_named, suites):",
        "for suite in map(suite_named, list(suites)[1:]):",
    ),
    _m(
        "items",
        "contamination/references",
        "items are numbered from one",
        "found.append(reference(suite, item, row))",
        "found.append(reference(suite, item + 1, row))",
    ),
    _m(
        "items",
        "contamination/references",
        "the first choice is taken for the right answer",
        "right = gold(row, suite.tasks[-1])",
        "right = [0] or gold(row, suite.tasks[-1])",
    ),
    _m(
        "items",
        "contamination/references",
        "items of a train split count as scored",
        'suite=f"{suite.name}:train", severity=Severity.TRAIN)',
        'suite=f"{suite.name}:train")',
    ),
    _m(
        "items",
        "contamination/references",
        "answers are not looked for",
        'texts.append(Text(f"{asked} {answer}", first, (first, count)))',
        "texts.append(Text(asked, first, None))",
    ),
    _m(
        "items",
        "contamination/references",
        "items of train splits are not looked for",
        '        if suite.split == "test" and train.exists():\n',
        '        if suite.split == "dev" and train.exists():\n',
    ),
    _m(
        "matching",
        "contamination/check",
        "characters are counted as bytes",
        "start=characters[overlap.start],",
        "start=overlap.start,",
    ),
    _m(
        "matching",
        "contamination/ngram_scan",
        "no text is rendered",
        "marked[document] |= may_begin(data, i, first, end)",
        "pass",
    ),
    _m(
        "matching",
        "contamination/matching",
        "text with markup is searched in its renderings only",
        "merged([*found, *more]) if more else found",
        "more or found",
    ),
    _m(
        "matching",
        "contamination/renderings",
        "bytes are those of the rendering",
        "return self.of.span(start, end) if self.of else (start, end)",
        "return start, end",
    ),
    _m(
        "matching",
        "contamination/match",
        "only the first item of a document is reported",
        "return [_most(same) for _, same in sorted(by_reference.items())]",
        "return [_most(same) for _, same in sorted(by_reference.items())][:1]",
    ),
    _m(
        "matching",
        "contamination/match",
        "edited short items are not seen",
        "    return _one_edit(rest, tuple(near))\n",
        "    return rest == tuple(near)[: len(rest)]\n",
    ),
    _m(
        "matching",
        "contamination/match",
        "the right answer is never seen",
        "    return any(_contains(found, answer) for answer in index.answers[form.reference])\n",
        "    return False\n",
    ),
    _m(
        "matching",
        "contamination/match",
        "runs are one word too short",
        "lengths = word[hit[lasts]] - word[hit[firsts]] + index.n",
        "lengths = word[hit[lasts]] - word[hit[firsts]] + index.n - 1",
    ),
    _m(
        "matching",
        "contamination/check",
        "documents with a text that was there before are not searched",
        "            if found.overlaps:\n",
        (
            '            seen = globals().setdefault("_seen", set())\n'
            "            text = part.text(number).tobytes()\n"
            "            if found.overlaps and not (text in seen or seen.add(text)):\n"
        ),
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "matches are not added up",
        ("for match in matches:\n            overlap"),
        ("for match in ():\n            overlap"),
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "matches of a row group beyond ten are not added up",
        ("for match in matches:\n            overlap"),
        ("for match in matches[:10]:\n            overlap"),
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "a run as long as the threshold is too short",
        "found.run >= self.run",
        "found.run > self.run",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "a share as large as the threshold is too small",
        "found.coverage >= self.coverage",
        "found.coverage > self.coverage",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "both thresholds must be reached",
        "found.run >= self.run or",
        "found.run >= self.run and",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "the two thresholds are swapped",
        "return found.run >= self.run or found.coverage >= self.coverage",
        "return found.run >= self.coverage or found.coverage >= self.run",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "everything is boilerplate",
        "return found.template and found.run < self.run",
        "return True",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "documents of an item are not counted",
        "item.documents += 1",
        "item.documents = 1",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "the weakest match is shown",
        "item.best = min(",
        "item.best = max(",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "the mildest kind is given",
        "min(found.kinds, key=_KINDS.index, default",
        "max(found.kinds, key=_KINDS.index, default",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "an item gets its neighbour's verdict",
        "found = self._items.get(number)",
        "found = self._items.get(number) and self._items.get(number + 1, self._items.get(number))",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "documents are dropped for train items only",
        "            if self._references[number].severity is Severity.TEST\n        ]",
        "            if self._references[number].severity is Severity.TRAIN\n        ]",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "the longest run is the last one",
        "item.run, item.coverage = max(item.run, overlap.run),",
        "item.run, item.coverage = overlap.run,",
    ),
    _m(
        "tally",
        "contamination/check",
        "planted documents are added to the real ones",
        "tallies[group.path == planted]",
        "tallies[False]",
    ),
    _m(
        "tally",
        "contamination/verdicts",
        "of several documents with an item only the best is to be dropped",
        "            if self._references[number].severity is Severity.TEST\n        ]",
        (
            "            if self._references[number].severity is Severity.TEST\n"
            "            and document == self._items[number].best.document\n        ]"
        ),
    ),
    _m(
        "tally",
        "contamination/check",
        "matches of the second row group of each file are not added up",
        "            own = [match for match in found.matches if match.reference < tally.size]\n",
        ("            own = [match for match in found.matches if match.reference < tally.size and group.group != 1]\n"),
    ),
    _m(
        "normalisation",
        "contamination/words",
        "case is not folded",
        "folded = seen.casefold()",
        "folded = seen",
    ),
    _m(
        "normalisation",
        "contamination/words",
        "case is lowered and not folded",
        "folded = seen.casefold()",
        "folded = seen.lower()",
    ),
    _m(
        "normalisation",
        "contamination/words",
        "wide letters and ligatures stay apart",
        'unicodedata.normalize("NFKD", character)',
        'unicodedata.normalize("NFD", character)',
    ),
    _m(
        "normalisation",
        "contamination/words",
        "upper-case ASCII is not folded",
        "folded = seen.casefold()",
        "folded = seen if character.isascii() else seen.casefold()",
    ),
    _m(
        "normalisation",
        "contamination/words",
        "the scan and the items fold otherwise",
        "folded = _folded(chr(code))",
        "folded = _folded(chr(code)) if code < 128 else chr(code)",
    ),
    _m(
        "normalisation",
        "contamination/words",
        "accented letters separate words in the scan",
        "0 if folded.isspace() else ord(folded)",
        "0 if folded.isspace() or code > 127 else ord(folded)",
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "contaminated items are counted as clean",
        "suite[found.verdict.value] += 1",
        'suite["clean"] += 1',
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "the last document to be dropped is not written",
        "pa.Table.from_pylist(flagged, schema=FLAGGED_SCHEMA)",
        "pa.Table.from_pylist(flagged[:-1], schema=FLAGGED_SCHEMA)",
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "verdicts of contaminated items are written as clean",
        ('"verdict": found.verdict.value,\n        "kind": found.kind.value,\n        "longest_run"'),
        ('"verdict": "clean",\n        "kind": found.kind.value,\n        "longest_run"'),
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "the share of an item is rounded up",
        ('"coverage": found.coverage,\n        "documents"'),
        (
            '"coverage": float(np.ceil(found.coverage)) if False else float(-(-found.coverage // 1)),\n'
            '        "documents"'
        ),
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "places of shown matches are one off",
        '"start": match.start,',
        '"start": match.start + 1,',
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "the sweep counts above its thresholds",
        "found.longest_run >= run for found",
        "found.longest_run > run for found",
    ),
    _m(
        "reporting",
        "contamination/verdicts",
        "fewer documents are reported",
        '"documents": findings.documents,',
        '"documents": findings.documents - 1,',
    ),
    _m(
        "reporting",
        "reporting/contamination_report",
        "the table shows contaminated items as clean",
        "*(part[name] for name in counts),",
        '*(0 if name == "contaminated" else part[name] for name in counts),',
    ),
    _m(
        "reporting",
        "contamination/check",
        "a match is shown with the text of another document",
        "            snippet=snippet(content, overlap.start, overlap.end),\n",
        "            snippet=snippet(content[::-1], overlap.start, overlap.end),\n",
    ),
    _m(
        "reporting",
        "contamination/check",
        "findings of the planted file are written",
        "write_result(command.out, tallies[False].findings()",
        "write_result(command.out, tallies[True].findings()",
    ),
    # the last five by someone who had not read the control
    _m(
        "another hand",
        "contamination/verdicts",
        "the best match of an item is its weakest",
        "return (not contaminates, not found.exact, -found.run, -found.coverage,",
        "return (not contaminates, not found.exact, found.run, found.coverage,",
    ),
    _m(
        "another hand",
        "contamination/verdicts",
        "of several documents that hold an item one is flagged",
        "sorted(self._contaminating)",
        "sorted({entry[-1]: entry for entry in self._contaminating}.values())",
    ),
    _m(
        "another hand",
        "contamination/verdicts",
        "run and coverage of an item are those of the last document",
        "max(item.run, overlap.run), max(item.coverage, overlap.coverage)",
        "overlap.run, overlap.coverage",
    ),
    _m(
        "another hand",
        "contamination/match",
        "a word that is left out is no edit",
        "return left[: len(rest)] == rest or left[1",
        "return left[1",
    ),
    _m(
        "another hand",
        "contamination/ngram_scan",
        "letters of three bytes are no letters below U+8000",
        "if code >= 0x800 and",
        "if code >= 0x8000 and",
    ),
)
