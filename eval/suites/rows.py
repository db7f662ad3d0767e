"""What makes benchmark rows such as lm-eval scores them: types, texts, choices, the right answer, each item once.

Rows are dictionaries as a suite's release has them. Of a split that is scored a flaw is refused: the released test and
validation splits have none. Train splits do (ARC-Challenge asks one question twice); there lm-eval takes rows as they
are, and so do we, and count them (`remarks`).
"""

import re
from collections import Counter
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

import pyarrow as pa

Row = dict[str, Any]


def with_types(value: Any, kind: pa.DataType | pa.Schema, name: str = "") -> Any:
    """A value with the fields of `kind` and no others. Raises ValueError naming what is missing or of another type."""
    if isinstance(kind, pa.Schema) or pa.types.is_struct(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r}, expected {kind}")
        path = f"{name}." if name else ""
        for field in kind:
            if field.name not in value:
                raise ValueError(f"{path}{field.name} is missing")
        return {field.name: with_types(value[field.name], field.type, path + field.name) for field in kind}
    if value is None:
        raise ValueError(f"{name} is null")
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            raise ValueError(f"{name} is {value!r}, expected a list")
        return [with_types(element, kind.value_type, f"{name}[{place}]") for place, element in enumerate(value)]
    if pa.types.is_string(kind) and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, expected text")
    if pa.types.is_integer(kind) and (not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    return value


def with_a_right_answer(row: Row) -> Row:
    """The row, of ARC with choices lettered A, B, .... Raises ValueError when lm-eval would take another answer for the
    right one, or none."""
    if "answerKey" in row:
        labels, texts = row["choices"]["label"], row["choices"]["text"]
        if len(labels) != len(texts) or row["answerKey"] not in labels or len(set(labels)) < len(labels):
            raise ValueError(f"answerKey {row['answerKey']!r} and {len(texts)} choices labelled {labels}")
        letters = list(ascii_uppercase[: len(labels)])
        if len(letters) < len(labels):
            raise ValueError(f"{len(labels)} choices, expected at most {len(letters)}")
        answer = letters[labels.index(row["answerKey"])]
        return row | {"choices": {"text": texts, "label": letters}, "answerKey": answer}
    if "endings" in row:
        if len(row["endings"]) != 4 or row["label"] not in ("0", "1", "2", "3"):
            raise ValueError(f"label {row['label']!r} with {len(row['endings'])} endings, expected 0..3 with 4")
    elif "sentence" in row:
        if row["answer"] not in ("1", "2") or "_" not in row["sentence"]:
            raise ValueError(f"answer {row['answer']!r}, sentence {row['sentence']!r}: expected 1 or 2, and a _")
    else:
        for name in ("mc1_targets", "mc2_targets"):
            choices, labels = row[name]["choices"], row[name]["labels"]
            if len(choices) != len(labels) or set(labels) != {0, 1}:
                raise ValueError(f"{name} has {len(choices)} choices and labels {labels}")
        # lm-eval's mc1 task takes choice 0 as the right one without looking at the labels.
        if row["mc1_targets"]["labels"][0] != 1 or sum(row["mc1_targets"]["labels"]) != 1:
            raise ValueError(f"mc1_targets labels {row['mc1_targets']['labels']}: expected 1, 0, 0, ...")
    return row


def find_flaw(row: Row) -> str | None:
    """Why a score of this row would mean nothing: an empty text, choices that are the same, a question that is not the
    one lm-eval asks. None: nothing of the kind."""
    for name in ("id", "question", "ctx_a", "activity_label", "source_id", "sentence", "option1", "option2"):
        if name in row and not row[name].strip():
            return f"{name} is empty"
    for name, choices in _choices(row).items():
        read = [
            " ".join(re.sub(r"\[.*?\]", " ", choice).split()) if name == "endings" else " ".join(choice.split())
            for choice in choices
        ]  # lm-eval takes marks such as [step] out of endings
        if len(read) < 2:
            return f"{name} has {len(read)} choice, expected at least 2"
        if "" in read:
            return f"{name}: choice {read.index('')} is empty"
        if same := next((choice for choice, count in Counter(read).items() if count > 1), None):
            return f"{name}: {same!r} is a choice more than once"
    if "sentence" in row and row["sentence"].count("_") != 1:
        return f"sentence {row['sentence']!r} has {row['sentence'].count('_')} gaps, expected one"
    if "endings" in row and row["ctx"].split() != f"{row['ctx_a']} {row['ctx_b']}".split():
        return f"ctx {row['ctx']!r} is not ctx_a and ctx_b, which lm-eval asks: {row['ctx_a']!r}, {row['ctx_b']!r}"
    return None


def repetitions(rows: list[Row]) -> Iterator[tuple[int, int, str]]:
    """Pairs of rows that are one item: the earlier one, the later one and what they share."""
    first: dict[object, int] = {}
    for item, row in enumerate(rows):
        asked = row.get("question") or row.get("ctx") or row.get("sentence")
        same = {"id": row.get("id"), "question and choices": (asked, *map(tuple, _choices(row).values()))}
        for name, value in same.items():
            if value is not None and (earlier := first.setdefault((name, value), item)) != item:
                yield earlier, item, name if name != "id" else f"id {value!r}"


def remarks(rows: list[Row]) -> list[str]:
    """What is unusual about rows that are taken as they are."""
    lines, flaws = [], [(item, reason) for item, row in enumerate(rows) if (reason := find_flaw(row))]
    if flaws:
        lines.append(f"{len(flaws)} rows that nobody can answer, the first one row {flaws[0][0]}: {flaws[0][1]}")
    if repeated := len({item for _, item, _ in repetitions(rows)}):
        lines.append(f"{repeated} rows repeat an earlier one")
    numbers = Counter(row["ind"] for row in rows if "ind" in row)
    if shared := sum(count for count in numbers.values() if count > 1):
        lines.append(f"{shared} rows share their ind with another; items are numbered by row, as in lm-eval")
    return lines


def _choices(row: Row) -> dict[str, list[str]]:
    if "answerKey" in row:
        return {"choices": row["choices"]["text"]}
    if "endings" in row:
        return {"endings": row["endings"]}
    if "sentence" in row:
        return {"options": [row["option1"], row["option2"]]}
    return {name: row[name]["choices"] for name in ("mc1_targets", "mc2_targets")}
