"""`daily-train explain hellaswag:123`: why an item counts as contaminated or clean in a finished run."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.contamination.references import references
from eval.contamination.verdicts import snippet
from eval.document_parquet import find_text
from eval.reporting.contamination_report import explain
from eval.suites.suites import SUITES
from model.errors import did_you_mean, shown_value
from tasks.store.attempts import fetch_outputs
from tasks.store.context import RunContext
from tasks.store.ledger import find_run, stage_of_run
from tasks.store.manifest import StageError


def explain_item(name: str, run: str | None, context: RunContext) -> str:
    """The verdict of `suite:item` in the newest run, or in the one whose name begins with `run`, with both texts."""
    suite, _, number = name.partition(":")
    if suite not in SUITES or not re.fullmatch(r"[0-9]{1,9}", number):
        hint = did_you_mean(suite, SUITES) if suite not in SUITES else ""
        raise StageError(f"item {shown_value(name)}{hint}: expected SUITE:NUMBER with one of {', '.join(SUITES)}")
    row = find_run(run or "", context)
    folder = fetch_outputs(stage_of_run("contamination", row, context), context)
    verdicts = pq.read_table(folder / "verdicts.parquet")
    matching = verdicts.filter((pc.field("suite") == suite) & (pc.field("item") == int(number))).to_pylist()
    if not matching:
        raise StageError(f"item {name!r} was not checked in run {row['run'][:12]}")
    [verdict] = matching
    if verdict["document"] is None:
        return f"{name}  {verdict['verdict']}: no training document shares a long enough run of words with it"
    corpus = "filter" if "filter" in row["stages"] else "download"
    match = _recorded(folder, suite, int(number)) or _looked_up(verdict, corpus, row, context)
    return explain({**match, **verdict}, f"stages/{corpus}/{row['stages'][corpus]}/…/{match['file']}")


def _recorded(folder: Path, suite: str, item: int) -> dict[str, Any] | None:
    """The item's match among the longest ones, which the check keeps with both texts."""
    with (folder / "matches.jsonl").open() as lines:
        for line in lines:
            match = json.loads(line)
            if (match["suite"], match["item"]) == (suite, item):
                return match
    return None


def _looked_up(verdict: dict[str, Any], corpus: str, row: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """The match of an item that is not among the longest, from the training document itself."""
    documents = fetch_outputs(stage_of_run(corpus, row, context), context)
    text = find_text(documents / verdict["file"], verdict["document"])
    parts = snippet(text.encode(), verdict["start_byte"], verdict["end_byte"])
    items = fetch_outputs(stage_of_run(f"benchmarks {verdict['suite']}", row, context), context)
    reference = references(items, [verdict["suite"]])[verdict["item"]]
    return {
        "run": verdict["longest_run"],
        "file": verdict["file"],
        "document_text": dict(zip(("before", "match", "after"), parts, strict=True)),
        "item_text": {"before": reference.forms[0].text, "match": "", "after": ""},
    }
