"""Tables of scores: of the report, of the evaluation's artifact and of the model card, by one renderer.

A score is a row of scores.json (`eval/scoring/samples.py`) or of the report (`joined_scores`, which adds gold
probability and the parts of clean and contaminated items); a suite that was not scored has the value None.
"""

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

from eval.reporting.markdown import markdown_table, narrow_tables, sentence
from eval.reporting.paired_tests import GOLD_PROBABILITY
from eval.reporting.published_scores import published_scores_note
from eval.words import loss

Score = dict[str, Any]
Columns = dict[str, Callable[[Score], object]]
"""Header and cell of every column."""


def score_table(scores: Iterable[Score], columns: Columns) -> str:
    """A row a score; of a suite that was not scored the row says so."""
    rows = [
        [cell(score) for cell in columns.values()]
        if score["value"] is not None
        else [score["suite"], "not scored", *[None] * (len(columns) - 2)]
        for score in scores
    ]
    return markdown_table(list(columns), rows)


def report_scores(scores: list[Score]) -> str:
    """What a reader looks at first: the scores, then the right answers and what contamination has to do with them.

    Two tables, because one of all columns is wider than the UI's page of an artifact.
    """
    tables = [score_table(scores, _REPORT)]
    if scored := [score for score in scores if score["value"] is not None]:
        tables.append(score_table(scored, _REPORT_DETAILS))
    return "\n\n".join(tables)


def scores_in_short(scores: list[Score]) -> str:
    """Each score with its interval, a column a suite and a row a metric, beside chance; nothing where nothing was
    scored."""
    scored = {(score["suite"], score["metric"]): score for score in scores if score["value"] is not None}
    if not scored:
        return ""
    suites = list(dict.fromkeys(score["suite"] for score in scores))
    chance = {suite: score["chance"] for (suite, _), score in scored.items()}
    rows: list[list[object]] = [
        [f"{metric}, %", *(_in_short(scored.get((suite, metric))) for suite in suites)]
        for metric in dict.fromkeys(metric for _, metric in scored)
    ]
    rows.append(["chance, %", *(f"{100 * chance[suite]:.2f}" if suite in chance else "not scored" for suite in suites)])
    return narrow_tables(["", *suites], rows)


def _in_short(score: Score | None) -> str | None:
    if score is None:
        return None
    text = f"{100 * score['value']:.2f}"
    return f"{text} ({interval_text(score)})" if score["interval"] else text


def score_notes(scores: list[Score]) -> list[str]:
    """What a reader of the table must know: what was not scored and why, subsets, items too short to check."""
    lines = [
        f"**{score['suite']}: not scored.** {sentence(score['not_scored'])}."
        for score in scores
        if score["value"] is None
    ]
    scored = [score for score in scores if score["value"] is not None]
    if any(score["subset"] for score in scored):
        lines.append(
            "Scores are of a fixed, seeded subset of items where the table says “of”; all items were checked "
            "for contamination."
        )
    uncheckable = {score["suite"]: score["uncheckable_items"] for score in scored if score["uncheckable_items"]}
    if uncheckable:
        named = ", ".join(f"{suite} {count}" for suite, count in uncheckable.items())
        lines.append(f"Too short to be checked for contamination: {named} items.")
    truncated = {score["suite"]: score["truncated"] for score in scored if score["truncated"]}
    if truncated:
        named = ", ".join(f"{suite} {count}" for suite, count in truncated.items())
        lines.append(f"Contexts cut on the left to fit the model, as lm-eval does: {named} items.")
    if marks := published_scores_note({(score["suite"], score["metric"]) for score in scored}):
        lines.append(marks)
    return lines


def evaluation_scores(scores: list[Score]) -> str:
    """The scores of one evaluation, a row a task and metric."""
    return score_table(scores, _EVALUATION)


def model_card_scores(scores: list[Score], num_fewshot: dict[str, int]) -> str:
    """The scores of a model that is given away; `num_fewshot`: solved examples before a question, by task."""
    shots: Columns = {"few-shot examples": lambda score: num_fewshot.get(score["task"])}
    return score_table(scores, _NAME | shots | _MODEL_CARD)


def percent(name: str) -> Callable[[Score], str]:
    """A cell with the share `name` in per cent."""
    return lambda score: f"{100 * score[name]:.2f}"


def bits(name: str) -> Callable[[Score], str]:
    """A cell with the bits per byte `name`."""
    return lambda score: loss(score[name])


def interval_text(row: dict[str, Any], sign: str = "", interval: str = "interval") -> str:
    """The `interval` of a row in per cent, or that there is none and why."""
    if row.get(interval):
        low, high = (100 * limit for limit in row[interval])
        return f"{low:{sign}.2f} to {high:{sign}.2f}"
    return f"cannot be given: {row['no_interval']}" if row.get("no_interval") else "cannot be given"


def _items_of_total(score: Score) -> str:
    return f"{score['n']:,} of {score['n_total']:,}"


def _items(score: Score) -> str:
    return _items_of_total(score) if score["subset"] else f"{score['n']:,}"


def _with_error(score: Score) -> str:
    error = score["standard_error"]
    return f"{100 * score['value']:.2f}" + (" ± –" if error is None else f" ± {100 * error:.2f}")


def _part(part: dict[str, Any]) -> str:
    """The score on clean or on contaminated items."""
    if part["n"] == 0:
        return "none"
    return f"too few ({part['n']})" if part["too_few"] else f"{100 * part['value']:.2f}"


_NAME: Columns = {"suite": itemgetter("suite"), "metric": itemgetter("metric")}
_REPORT: Columns = _NAME | {
    "n": _items,
    "score ± SE, %": _with_error,
    "95 % interval, %": interval_text,
    "chance, %": percent("chance"),
}
_REPORT_DETAILS: Columns = _NAME | {
    "gold prob., %": percent(GOLD_PROBABILITY),
    "gold bits/byte": bits("gold_bits_per_byte"),
    "clean / leaked": lambda score: f"{score['clean_items']:,} / {score['contaminated_items']:,}",
    "score on each, %": lambda score: f"{_part(score['clean'])} / {_part(score['contaminated'])}",
}
_EVALUATION: Columns = {
    "task": itemgetter("task"),
    "metric": itemgetter("metric"),
    "n": itemgetter("n"),
    "score, %": percent("value"),
    "95 % interval": interval_text,
    "chance, %": percent("chance"),
    "bits per byte": bits("gold_bits_per_byte"),
    "cut": itemgetter("truncated"),
}
_MODEL_CARD: Columns = {
    "n": _items_of_total,
    "score, %": percent("value"),
    "95 % interval, %": interval_text,
    "chance, %": percent("chance"),
    "gold bits per byte": bits("gold_bits_per_byte"),
}
