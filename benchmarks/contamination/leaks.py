"""What copies and disguises of a leak do to the contamination check, and what it flags in text without leaks.

    python -m benchmarks.contamination.leaks [--documents FILE.parquet] [--benchmarks DIR] [--prose FILE.parquet ...]

* Items are planted in passages of --documents: each in 1, 10, 50 and 500 of them, in five forms, and once in each
  disguise, which changes the characters of the text and not what a reader sees.
* --prose are files with columns id and text that hold no benchmark items: every item flagged there is printed.
* Without arguments the data of `benchmarks/contamination/speed.py` is downloaded; its text also serves as prose.
"""

import argparse
import html
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from urllib.parse import quote

import numpy as np

from benchmarks.contamination.corpora import default_benchmarks, default_documents
from benchmarks.contamination.speed import normalised_suites
from benchmarks.goals import print_goal
from eval.contamination.check import scan_documents
from eval.contamination.config import ContaminationConfig
from eval.contamination.index import Index, build_index
from eval.contamination.match import find_overlaps
from eval.contamination.references import Reference, Severity, references
from eval.contamination.verdicts import Tally, Verdict
from eval.document_parquet import Documents, from_texts, read_documents, read_row_group, row_groups
from eval.reporting.markdown import markdown_table

SEED = 20_271_126
"""Not used in development."""
COPIES = (1, 10, 50, 500)
COPIED_ITEMS, DISGUISED_ITEMS, PAGE_ITEMS = 20, 100, 5
HOST_CHARACTERS, SHORT_HOST_CHARACTERS = 1500, 400
_COLUMN = 40
_KNOWN = {("truthfulqa", 128)}
"""Half of its question is a phrase of the language, "the same thing over and over again"."""
Disguise = Callable[[str, str], str]


def _inside_words(mark: str, every: int) -> Disguise:
    def disguise(text: str, host: str) -> str:
        return " ".join(
            mark.join(word[first : first + every] for first in range(0, len(word), every)) for word in text.split()
        )

    return disguise


def _each_letter(change: Callable[[str], str]) -> Disguise:
    return lambda text, host: "".join(map(change, text))


def _lines(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


def _tags(text: str, host: str) -> str:
    split = text.split()
    tags = ("<b>", "</b>", "<br/>", '<a href="/x?a=1&amp;b=2">', "</a>", '<span class="c">', "</span>", "</p>\n<p>")
    parts = [" ".join(split[first : first + 6]) for first in range(0, len(split), 6)]
    return "".join(f"{part} {tags[number % len(tags)]}" for number, part in enumerate(parts))


def _tags_for_spaces(text: str, host: str) -> str:
    split = text.split()
    return "</td><td>".join(" ".join(split[first : first + 6]) for first in range(0, len(split), 6))


def _tags_in_words(text: str, host: str) -> str:
    return " ".join(f"<b>{word[:1]}</b>{word[1:]}" for word in text.split())


def _entities(text: str, host: str) -> str:
    letters = {"e": "&#101;", "a": "&#x61;", " ": "&nbsp;", "'": "&rsquo;"}
    return "".join(
        letters.get(each, html.escape(each)) if each != "e" or place % 3 else each for place, each in enumerate(text)
    )


def _entities_twice(text: str, host: str) -> str:
    return html.escape(html.escape(_tags(text, host)))


def _cut_at_lines(text: str, host: str, mark: str = "-") -> str:
    words = text.split()
    for number in range(4, len(words), 5):
        if len(words[number]) > 3:
            words[number] = f"{words[number][:2]}{mark}\n{words[number][2:]}"
    return " ".join(words)


def _columns(text: str, host: str) -> str:
    lines, other = _lines(text, _COLUMN), _lines(host, _COLUMN)
    return "\n".join(f"{line:<{_COLUMN}}  {other[place % len(other)]}" for place, line in enumerate(lines))


def _interleaved(width: int) -> Disguise:
    def disguise(text: str, host: str) -> str:
        lines, other = _lines(text, width), _lines(host, width)
        return "\n".join(part for place, line in enumerate(lines) for part in (line, other[place % len(other)]))

    return disguise


_CYRILLIC = str.maketrans("aeopcxyiAEOPCXKMHTB", "аеорсхуіАЕОРСХКМНТВ")
DISGUISES: dict[str, Disguise] = {
    "soft hyphens": _inside_words("\u00ad", 3),
    "zero-width characters": lambda text, host: "\ufeff".join(_inside_words("\u200b", 2)(text, host).partition(" ")),
    "a tag every 6 words": _tags,
    "tags for spaces": _tags_for_spaces,
    "tags in words": _tags_in_words,
    "entities": _entities,
    "tags and entities, encoded twice": _entities_twice,
    "in an attribute": lambda text, host: f'<img src="a.png" alt="{html.escape(text)}"> ',
    "after a bare <": lambda text, host: f"if a <b then {text}",
    "JSON in ASCII": lambda text, host: json.dumps({"text": text.replace(" ", "\n")}),
    "percent-encoded": lambda text, host: f"https://example.com/?q={quote(text)}",
    "hyphens at line ends": _cut_at_lines,
    "soft hyphens at line ends": lambda text, host: _cut_at_lines(text, host, "\u00ad"),
    "combining marks": _each_letter(lambda letter: f"{letter}\u0336" if letter.isalnum() else letter),
    "full width": _each_letter(lambda letter: chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter),
    "Cyrillic letters": lambda text, host: text.translate(_CYRILLIC),
    "thin spaces and dashes": lambda text, host: text.replace(" ", "\u2009\u2014\u202f"),
    "links": lambda text, host: " ".join(
        f"[{word}](https://example.com/wiki/{quote(word)})" if number % 5 == 4 else word
        for number, word in enumerate(text.split())
    ),
    "colour codes": lambda text, host: _tags(text, host).replace("<b>", "\x1b[1m").replace("</b>", "\x1b[0m"),
    "columns of 40": _columns,
    "lines of 60 interleaved": _interleaved(60),
    "lines of 40 interleaved": _interleaved(_COLUMN),
    "letters apart": _each_letter(lambda letter: f"{letter} "),
}
GOALS = {"soft hyphens": 95, "zero-width characters": 95, "a tag every 6 words": 95}


def _typos(text: str, generator: np.random.Generator) -> str:
    words = text.split()
    for place in range(int(generator.integers(12)), len(words), 12):
        words[place] = f"{words[place][:1]}q{words[place][1:]}x"
    return " ".join(words)


def _answered(item: Reference) -> str:
    return item.forms[0].text


COPIED: dict[str, Callable[[list[Reference], np.random.Generator], str]] = {
    "question and answer": lambda page, generator: _answered(page[0]),
    "question or context": lambda page, generator: page[0].question,
    "a typo every 12 words": lambda page, generator: _typos(_answered(page[0]), generator),
    "question with a typo every 12 words": lambda page, generator: _typos(page[0].question, generator),
    f"page of {PAGE_ITEMS} questions": lambda page, generator: "\n\n".join(
        f"{number}. {item.question}" for number, item in enumerate(page, 1)
    ),
}
"""What is copied of the first of a few items: the same text every time."""


def _planted(text: str, host: str, generator: np.random.Generator) -> str:
    place = host.find(" ", int(generator.integers(len(host)))) % (len(host) + 1)
    return f"{host[:place]} {text} {host[place:]}"


def _host(texts: list[str], characters: int, generator: np.random.Generator) -> str:
    return texts[int(generator.integers(len(texts)))][:characters]


def _documents(texts: list[str]) -> Documents:
    return from_texts((str(number), text.encode("utf-8", "replace")) for number, text in enumerate(texts))


def _by_suite(items: list[Reference]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        if item.severity is Severity.TEST:
            numbers.setdefault(item.suite, []).append(number)
    return numbers


def copies(items: list[Reference], index: Index, config: ContaminationConfig, texts: list[str]) -> None:
    """Print how many of the planted items are contaminated at each number of copies."""
    generator = np.random.default_rng(SEED)
    rows, turned, kept, documents = [], 0, 0, 0
    for form, written in COPIED.items():
        planted = {
            suite: generator.choice(numbers, (COPIED_ITEMS, PAGE_ITEMS), replace=False).tolist()
            for suite, numbers in _by_suite(items).items()
        }
        pages = [
            (suite, page, written([items[number] for number in page], generator))
            for suite, choice in planted.items()
            for page in choice
        ]
        bare = _documents([text for _, _, text in pages])
        alone = [
            {number for number in page if _flags(each.overlaps, number, config)}
            for (_, page, _), each in zip(pages, find_overlaps(bare.data, bare.offsets, index), strict=True)
        ]  # in a host, a question under 8 words may have its answer near it by chance
        tally = Tally(config, items)
        found: dict[int, set[int]] = {}
        done = 0
        for count in COPIES:
            for copy in range(done, count):
                part = [
                    _planted(text, _host(texts, SHORT_HOST_CHARACTERS, generator), generator) for _, _, text in pages
                ]
                scanned = scan_documents([_documents(part)], index, "", (copy,))
                tally.add(scanned.documents, scanned.words, scanned.matches)
            done = count
            result = tally.result()
            found[count] = {
                number for number, each in enumerate(result.verdicts) if each.verdict is Verdict.CONTAMINATED
            }
        dropped = Counter((document, number) for document, _, number in result.flagged)
        leaked = form.startswith("page")
        for suite, choice in planted.items():
            mine = {number for page in choice for number in (page if leaked else page[:1])}
            rows.append([suite, form, len(mine), *(len(mine & found[count]) for count in COPIES)])
            turned += sum(len((mine & found[less]) - found[more]) for less, more in pairwise(COPIES))
        for row, (_, page, _) in enumerate(pages):
            for number in page if leaked else page[:1]:
                if number in alone[row]:
                    documents += COPIES[-1]
                    kept += COPIES[-1] - dropped[str(row), number]
    print(markdown_table(["suite", "form", "items", *(f"{count} copies" for count in COPIES)], rows), end="\n\n")
    print_goal("items that copies turn clean", turned, 0, at_most=True)
    print_goal(f"copies that filter keeps, of {documents:,}", kept, 0, at_most=True)


def disguises(items: list[Reference], index: Index, config: ContaminationConfig, texts: list[str]) -> None:
    """Print the recall of items in each disguise."""
    generator = np.random.default_rng(SEED)
    shares: dict[str, dict[str, float]] = {}
    for suite, numbers in _by_suite(items).items():
        for name, disguise in {"none": lambda text, host: text, **DISGUISES}.items():
            chosen = generator.choice(numbers, DISGUISED_ITEMS, replace=False).tolist()
            hosts = [_host(texts, HOST_CHARACTERS, generator) for _ in chosen]
            planted = [
                _planted(disguise(_answered(items[number]), host), host, generator)
                for number, host in zip(chosen, hosts, strict=True)
            ]
            documents = _documents(planted)
            found = find_overlaps(documents.data, documents.offsets, index)
            shares.setdefault(name, {})[suite] = 100 * float(
                np.mean([_flags(each.overlaps, number, config) for number, each in zip(chosen, found, strict=True)])
            )
    rows = [[name, *(f"{share:.0f}" for share in by_suite.values())] for name, by_suite in shares.items()]
    print(f"\nRecall in per cent, {DISGUISED_ITEMS} items per suite and disguise, seed {SEED}.\n")
    print(markdown_table(["disguise", *next(iter(shares.values()))], rows), end="\n\n")
    for name, least in GOALS.items():
        print_goal(f"recall {name}, worst suite, %", min(shares[name].values()), least)


def _flags(found: list, number: int, config: ContaminationConfig) -> bool:
    return any(
        overlap.reference == number and config.contaminates(overlap) and not config.is_template(overlap)
        for overlap in found
    )


def prose(items: list[Reference], index: Index, config: ContaminationConfig, paths: list[Path]) -> None:
    """Print what is flagged in text without leaks, and how fast it was scanned."""
    rows, lines, new, total = [], [], set(), 0
    for path in paths:
        tally, size, seconds = Tally(config, items), 0, 0.0
        for group in row_groups([path])[0]:
            for number, part in enumerate(read_row_group(group)):
                started = time.process_time()
                scanned = scan_documents([part], index, path.name, (group.group, number))
                seconds += time.process_time() - started
                size += int(part.offsets[-1] - part.offsets[0])
                tally.add(scanned.documents, scanned.words, scanned.matches)
        result = tally.result()
        dirty = [found for found in result.verdicts if found.verdict is Verdict.CONTAMINATED]
        names = {(found.reference.suite, found.reference.item) for found in dirty}
        new |= names - _KNOWN
        total += size
        rows.append([path.name, f"{size / 1e6:.1f}", result.documents, len(dirty), f"{size / 1e6 / seconds:.0f}"])
        lines += [
            f"{path.name}: {found.reference.suite}:{found.reference.item}, {found.longest_run} words, in "
            f"{found.best.document}: {found.best.snippet[1]!r}"
            for found in dirty
            if found.best is not None  # what is contaminated has a match
        ]
    header = ["text without leaks", "MB", "documents", "items flagged", "MB/s per core, scan alone"]
    print("\n" + markdown_table(header, rows), *lines, sep="\n", end="\n\n")
    print_goal("MB of text without leaks", total / 1e6, 60)
    print_goal(f"items flagged there beside {sorted(_KNOWN)}", len(new), 0, at_most=True)


def _in_html(texts: list[str]) -> Iterator[str]:
    return (_tags(text, "") for text in texts)


def marked_speed(index: Index, texts: list[str]) -> None:
    """Print how fast text with a tag every 6 words is scanned."""
    documents = _documents(list(_in_html(texts[:2000])))
    started = time.process_time()
    scan_documents([documents], index, "", ())
    rate = len(documents.data) / 1e6 / (time.process_time() - started)
    print(f"Text with a tag every 6 words: {rate:.0f} MB/s per core, {len(documents.data) / 1e6:.1f} MB.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--benchmarks", type=Path)
    parser.add_argument("--prose", type=Path, nargs="*")
    arguments = parser.parse_args()
    config = ContaminationConfig()
    with tempfile.TemporaryDirectory(prefix="bench-leaks-") as temporary:
        folder = Path(temporary)
        documents = arguments.documents or default_documents(folder)
        given = arguments.benchmarks
        items = references(folder, normalised_suites(given, folder) if given else default_benchmarks(folder))
        index = build_index(items, config.ngram)
        texts = [text for _, text in islice(read_documents([documents]), 8000) if text]
        copies(items, index, config, texts)
        disguises(items, index, config, texts)
        prose(items, index, config, [documents, *(arguments.prose or [])])
        marked_speed(index, texts)


if __name__ == "__main__":
    main()
