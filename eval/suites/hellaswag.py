"""HellaSwag items as token rows, for a trainer that has no tokenizer; the texts are those of lm-eval's own task."""

import re
from collections.abc import Callable
from pathlib import Path

from eval.suites.items import chosen_items, read_rows
from eval.suites.suites import suite_named


def encoded_items(benchmarks: Path, encode: Callable[[str], list[int]], count: int) -> list[dict]:
    """A fixed subset of `count` items as `model.training.multiple_choice` reads them: context, choices, lengths,
    gold."""
    suite = suite_named("hellaswag")
    rows = read_rows(benchmarks, suite).to_pylist()
    return [encoded_item(rows[number], encode) for number in chosen_items(suite, count, seed=0)]


def encoded_item(row: dict, encode: Callable[[str], list[int]]) -> dict:
    """One normalised row. As lm-eval does, context and choice are encoded together, then cut."""
    asked = without_wikihow_marks(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = [without_wikihow_marks(ending) for ending in row["endings"]]
    context = encode(asked.rstrip())
    choices = [encode(f"{asked} {ending}")[len(context) :] for ending in endings]
    return {
        "context": context,
        "choices": choices,
        "lengths": [len(ending) for ending in endings],
        "gold": int(row["label"]),
    }


def without_wikihow_marks(text: str) -> str:
    """lm-eval's preprocessing of WikiHow's marks, in its order."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
