"""Benchmark items as texts to look for in training documents.

* The right answer after the question is what is looked for, once for every right answer and spelling; the index
  finds the question alone by its words in that text.
* WinoGrande's sentence is looked for with both options filled in and with its gap, as a listing prints it.
* Wrong choices of other suites are kept to be shown and to know how far a listing reaches.
* Items of the train splits of ARC are looked for too, when their files are there, at the lower severity "train":
  they are reported apart and change no verdict of a scored item.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from eval.contamination.words import words
from eval.suites.items import gold, read_rows, read_train
from eval.suites.suites import Suite, suite_named


class Severity(StrEnum):
    TEST = "test"
    """An item that is scored."""
    TRAIN = "train"
    CANARY = "canary"
    """No item: words of a training document, which the positive control looks for."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text of an item."""

    text: str
    question_words: int
    """How many of its words, from the first, are the question; 0 where question and answer are one sentence."""
    answer: tuple[int, int] | None
    """Words of the right answer, first and one after the last; None where it is not in the text."""


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
    forms: tuple[Text, ...]
    """The texts that are looked for, the plainest first."""
    severity: Severity = Severity.TEST

    @property
    def has_context(self) -> bool:
        """Whether the question is a passage of some source text, and not a question somebody asks."""
        return self.suite == "hellaswag"


def references(benchmarks: Path, suites: Iterable[str]) -> list[Reference]:
    """Every item of the suites, from the normalised rows; raises `SuiteError` naming a bad file."""
    found = []
    for suite in map(suite_named, suites):
        for item, row in enumerate(read_rows(benchmarks, suite).to_pylist()):
            found.append(reference(suite, item, row))
        train = benchmarks / f"{suite.name}-train.parquet"
        if suite.split == "test" and train.exists():
            found += _train_references(suite, train)
    return found


def _train_references(suite: Suite, path: Path) -> list[Reference]:
    rows = read_train(path, suite).to_pylist()
    return [
        replace(reference(suite, item, row), suite=f"{suite.name}:train", severity=Severity.TRAIN)
        for item, row in enumerate(rows)
    ]


def reference(suite: Suite, item: int, row: dict) -> Reference:
    """What is looked for of one normalised row."""
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
    pairs = [(question, answer) for answer in answers]
    if suite.name == "winogrande":
        forms = _sentences(question, answers, others)
    elif suite.name == "hellaswag":
        # WikiHow articles carry marks such as [header] that their pages do not: with and without.
        forms = _answered([*((without_marks(asked), without_marks(answer)) for asked, answer in pairs), *pairs])
    else:
        forms = _answered(pairs)
    return Reference(suite.name, item, question, tuple(answers), tuple(others), forms)


def _answered(pairs: list[tuple[str, str]]) -> tuple[Text, ...]:
    texts = []
    for asked, answer in dict.fromkeys(pairs):
        first, count = len(words(asked)), len(words(f"{asked} {answer}"))
        texts.append(Text(f"{asked} {answer}", first, (first, count)))
    return tuple(texts)


def _sentences(sentence: str, answers: list[str], others: list[str]) -> tuple[Text, ...]:
    before, _, after = sentence.partition("_")
    first = len(words(before))
    filled = f"{before}{answers[0]}{after}"
    texts = [Text(filled, 0, (first, len(words(filled)) - len(words(after))))]
    texts += [Text(f"{before}{other}{after}", 0, None) for other in others]
    gap = f"{before} {after}"
    return (*texts, Text(gap, len(words(gap)), None))


def without_marks(text: str) -> str:
    """The text without HellaSwag's marks in square brackets."""
    return " ".join(re.sub(r"\[.*?\]", " ", text.replace("[title]", " ")).split())
