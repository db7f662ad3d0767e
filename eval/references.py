"""Benchmark items as texts to look for in training documents.

An item counts as present when question and right answer are: `forms` holds that text, more than once where an
item has several right answers or is published in two spellings. Wrong choices are kept to be shown, not looked
for: a document that lists them is found through the question.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eval.suites import Suite, gold, read_rows, suite_named


@dataclass(frozen=True, slots=True)
class Reference:
    suite: str
    item: int
    """Row of the suite, lm-eval's doc_id."""
    question: str
    """Question, or the context to be continued, or the sentence with its gap."""
    answers: tuple[str, ...]
    """Right answers."""
    others: tuple[str, ...]
    """Wrong choices."""
    forms: tuple[str, ...]
    """The texts that are looked for, the plainest first."""


def references(benchmarks: Path, suites: Iterable[str]) -> list[Reference]:
    """Every item of the suites, from the normalised rows; raises `SuiteError` naming a bad file."""
    found = []
    for suite in map(suite_named, suites):
        for item, row in enumerate(read_rows(benchmarks, suite).to_pylist()):
            found.append(_reference(suite, item, row))
    return found


def _reference(suite: Suite, item: int, row: dict) -> Reference:
    if suite.name == "hellaswag":
        question, choices = row["ctx"], row["endings"]
    elif suite.name == "winogrande":
        question, choices = row["sentence"], [row["option1"], row["option2"]]
    elif suite.name == "truthfulqa":
        question, choices = row["question"], row["mc2_targets"]["choices"]
    else:
        question, choices = row["question"], row["choices"]["text"]
    right = gold(row, suite.tasks[-1])  # truthfulqa: the last task, mc2, has all right answers
    answers = list(dict.fromkeys(choices[position] for position in right))
    if suite.name == "truthfulqa":
        best = row["mc1_targets"]["choices"][0]
        answers = list(dict.fromkeys([best, *answers]))
    others = [choice for choice in choices if choice not in answers]
    return Reference(suite.name, item, question, tuple(answers), tuple(others), _forms(suite, question, answers))


def _forms(suite: Suite, question: str, answers: list[str]) -> tuple[str, ...]:
    if suite.name == "winogrande":
        before, _, after = question.partition("_")
        return (f"{before}{answers[0]}{after}",)
    texts = [f"{question} {answer}" for answer in answers]
    if suite.name == "hellaswag":
        # WikiHow articles carry marks such as [header] that their pages do not: with and without.
        texts.insert(0, " ".join(re.sub(r"\[[^\[\]]*\]", " ", texts[0]).split()))
    return tuple(dict.fromkeys(texts))
