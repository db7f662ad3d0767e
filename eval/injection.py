"""The positive control: benchmark items planted in real prose, in the forms in which they leak, must be found.

Beside them passages that only look like leaks (`eval/negatives.py`) must not be. The seed decides what is planted
where; the same seed plants the same text.
"""

import re
from collections.abc import Callable, Iterable
from string import ascii_uppercase

import numpy as np

from eval.documents import from_texts
from eval.findings import ContaminationConfig, ContaminationError
from eval.index import Index
from eval.matching import find_all
from eval.negatives import PASSAGES
from eval.references import Reference, Severity

_WRAPPED_WORDS = 8
_GAP = re.compile("_+")


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


FORMS: dict[str, Callable[[Reference, str, list[str], np.random.Generator], str]] = {
    "verbatim": _verbatim,
    "question_only": _question_only,
    "inline": _inline,
    "wrapped": _wrapped,
    "lower_case": _lower_case,
    "one_word_edited": _one_word_edited,
    "listing": _listing,
}
"""How an item is planted: (item, question with right answer, words of the host, generator) to text."""
_MUST_BE_FOUND = "verbatim"


def full_text(item: Reference) -> str:
    """Question and right answer as the benchmark prints them."""
    if item.suite == "winogrande":
        return _GAP.sub(lambda _: item.answers[0], item.question, count=1)
    return f"{item.question} {item.answers[0]}"


def plant(item: Reference, form: str, hosts: list[str], generator: np.random.Generator) -> str:
    """One host text with the item in it, at a space drawn from the generator."""
    host = hosts[generator.integers(len(hosts))]
    spaces = [0, len(host), *(found.start() for found in re.finditer(" ", host))]
    place = spaces[generator.integers(len(spaces))]
    planted = FORMS[form](item, full_text(item), host.split(), generator)
    return f"{host[:place]}{planted}{host[place:]}"


def positive_control(
    items: list[Reference], index: Index, config: ContaminationConfig, seed: int, hosts: Iterable[str]
) -> dict:
    """{suite: {form: {"planted", "found"}}, "hard_negatives": {"documents", "flagged"}}.

    Items that cannot be checked are not planted. Raises `ContaminationError` naming the items when one is missed
    verbatim, or when there is no host text.
    """
    prose = [host for host in hosts if host.strip()]
    if not prose:
        raise ContaminationError("positive control: no document with text to plant items in")
    generator = np.random.default_rng(seed)
    checkable: dict[str, list[int]] = {}
    for number in sorted({form.reference for form in index.forms}):
        if items[number].severity is Severity.TEST:
            checkable.setdefault(items[number].suite, []).append(number)
    planted, texts = [], []
    for suite, numbers in checkable.items():
        for form in FORMS:
            size = min(config.control_items, len(numbers))
            for number in generator.choice(numbers, size=size, replace=False).tolist():
                planted.append((suite, form, number))
                texts.append(plant(items[number], form, prose, generator))
    control: dict = {}
    missed = []
    for (suite, form, number), found in zip(planted, found_in(texts, items, index, config), strict=True):
        counts = control.setdefault(suite, {}).setdefault(form, {"planted": 0, "found": 0})
        counts["planted"] += 1
        counts["found"] += number in found
        if number not in found and form == _MUST_BE_FOUND:
            missed.append(f"{suite}:{items[number].item}")
    if missed:
        raise ContaminationError(
            f"positive control: {len(missed)} planted items were not found ({', '.join(missed[:5])}), "
            "so a clean result of this check means nothing"
        )
    flagged = sum(bool(found) for found in found_in(PASSAGES, items, index, config))
    return control | {"hard_negatives": {"documents": len(PASSAGES), "flagged": flagged}}


def found_in(
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
        for found in find_all(documents.data, documents.offsets, index)
    ]
