"""Benchmark items planted in prose, in the forms in which they leak: what the positive control must find.

The seed decides what is planted where; the same seed plants the same text. `eval/contamination/positive_control.py`
plants them in a file of the scan and compares what comes back.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from string import ascii_uppercase

import numpy as np

from eval.contamination.config import ContaminationConfig
from eval.contamination.index import Index
from eval.contamination.match import find_overlaps
from eval.contamination.references import Reference, Severity
from eval.contamination.words import words
from eval.document_parquet import from_texts

_WRAPPED_WORDS = 8
_GAP = re.compile("_+")
_ACCENTS = "Ça, là-bas: 東京の夏😀 Łódź żółw, naïve Ärger."


def _paragraph(text: str) -> str:
    return f"\n\n{text}\n\n"


def _verbatim(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    return _paragraph(text)


def _question_only(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    return _paragraph(item.question)


def _inline(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    return f" {text} "


def _wrapped(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    split = text.split()
    lines = [" ".join(split[first : first + _WRAPPED_WORDS]) for first in range(0, len(split), _WRAPPED_WORDS)]
    return _paragraph("\n".join(lines))


def _lower_case(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    kept = "".join(each if each.isalnum() or each.isspace() else " " for each in text.lower())
    return _paragraph(" ".join(kept.split()))


def _one_word_edited(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    split = text.split()
    split[generator.integers(len(split))] = host[generator.integers(len(host))]
    return _paragraph(" ".join(split))


def _listing(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    choices = [item.answers[0], *item.others]
    order = generator.permutation(len(choices))
    lines = [f"{letter}) {choices[place]}" for letter, place in zip(ascii_uppercase, order)]
    return _paragraph("\n".join([f"Question: {item.question}", *lines, "Answer:"]))


def _upper_case(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    return _paragraph(text.upper())


def _accented(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    return _paragraph(f"{_ACCENTS} {text} {unicodedata.normalize('NFD', f'{_ACCENTS} {text}')}")


def _variant(item: Reference, text: str, host: list[str], generator: np.random.Generator) -> str:
    others = variants(item)
    return _paragraph(others[generator.integers(len(others))])


FORMS: dict[str, Callable[[Reference, str, list[str], np.random.Generator], str]] = {
    "verbatim": _verbatim,
    "question_only": _question_only,
    "inline": _inline,
    "wrapped": _wrapped,
    "lower_case": _lower_case,
    "one_word_edited": _one_word_edited,
    "listing": _listing,
    "upper_case": _upper_case,
    "accented": _accented,
    "variant": _variant,
}
"""How an item is planted: (item, question with right answer, words of the host, generator) to text."""
LEAST_RECALL = {
    "verbatim": 1.0,
    "question_only": 0.9,
    "inline": 1.0,
    "wrapped": 1.0,
    "lower_case": 1.0,
    "one_word_edited": 0.85,
    "listing": 0.9,
    "upper_case": 1.0,
    "accented": 1.0,
    "variant": 1.0,
}
"""Share of the planted items of a suite that must be found. Where it is 1, every word of each must be, too."""


def full_text(item: Reference) -> str:
    """Question and right answer as the benchmark prints them."""
    if item.suite == "winogrande":
        return _filled(item.question, item.answers[0])
    return f"{item.question} {item.answers[0]}"


def _filled(sentence: str, option: str) -> str:
    return _GAP.sub(lambda _: option, sentence, count=1)


def variants(item: Reference) -> list[str]:
    """Other texts of the item that are as much a leak: another right answer, either option, no marks."""
    if item.suite == "winogrande":
        return [_filled(item.question, other) for other in item.others]
    if item.suite == "hellaswag":
        unmarked = re.sub(r"\[[^\]]*\]", " ", full_text(item))
        return [unmarked] if "[" in item.question else []
    return [f"{item.question} {answer}" for answer in item.answers[1:]]


def plant(item: Reference, form: str, hosts: list[str], generator: np.random.Generator) -> str:
    """One host text with the item in it, at a space drawn from the generator."""
    host = hosts[generator.integers(len(hosts))]
    spaces = [0, len(host), *(found.start() for found in re.finditer(" ", host))]
    place = spaces[generator.integers(len(spaces))]
    planted = FORMS[form](item, full_text(item), host.split(), generator)
    return f"{host[:place]}{planted}{host[place:]}"


def can_plant(item: Reference, form: str, n: int) -> bool:
    """Whether an item that is planted in this form is to be found at all; see "What is not found" in the docs."""
    text = full_text(item)
    match form:
        case "question_only":
            return len(words(item.question)) >= n
        case "one_word_edited":
            return len(words(text)) >= n
        case "upper_case":
            return words(text.upper()) == words(text)
        case "variant":
            return bool(variants(item))
        case _:
            return True


def contaminated_items(
    texts: Iterable[str], items: list[Reference], index: Index, config: ContaminationConfig
) -> list[set[int]]:
    """For every text the scored items that it contaminates."""
    documents = from_texts((str(number), text.encode("utf-8", "replace")) for number, text in enumerate(texts))
    return [
        {
            overlap.reference
            for overlap in found.overlaps
            if items[overlap.reference].severity is Severity.TEST
            and config.contaminates(overlap)
            and not config.is_template(overlap)
        }
        for found in find_overlaps(documents.data, documents.offsets, index)
    ]
