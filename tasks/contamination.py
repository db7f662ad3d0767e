"""Stage 2: does a benchmark item stand in the training text? Every document against every item, exactly.

It comes before training, so that a run can be refused, or the documents dropped, before a GPU-hour is spent.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect.artifacts import create_markdown_artifact

from eval.document_parquet import SCHEMA, document_files, read_tables
from eval.reporting.contamination_report import contamination_section
from eval.reporting.figures import inline, kept, sweep_figure, sweep_shows_something
from eval.reporting.report import FIGURES
from eval.words import count
from tasks.benchmarks import Items
from tasks.config import CheckConfig, Mode
from tasks.runtime.child_process import run_module
from tasks.runtime.logs import logger
from tasks.runtime.progress import CountingProgress
from tasks.store.context import RunContext
from tasks.store.run_states import add_to_state, stage_task
from tasks.store.stage import Stage, StageError, StageResult, build_or_skip, fetch_outputs

VERSION = 3
FILTER_VERSION = 2
CONTROL_SEED = 0


@stage_task("contamination")
def check_contamination(config: CheckConfig, documents: StageResult, items: Items, context: RunContext) -> StageResult:
    """Scan the training documents. Outputs: verdicts.parquet, matches.jsonl, coverage.json, sweep.json,
    flagged.parquet. In mode `refuse` a contaminated item ends the run, after the artifact was written."""
    stage = Stage(
        name="contamination",
        version=VERSION,
        config=config.thresholds,
        inputs={"documents": documents.digest, **items.digests, **items.train_digests},
    )

    def build(work: Path, out: Path) -> None:
        folder = fetch_outputs(documents, context)
        counted = json.loads((folder / "lock.json").read_text())["splits"]["train"]
        run_module(
            "eval.contamination.check",
            {
                "documents": [str(path) for path in document_files(folder, "train")],
                "counted": {name: counted[name] for name in ("documents", "bytes")},
                "benchmarks": str(items.folder(context, work / "benchmarks")),
                "suites": sorted(items.results),
                "config": config.thresholds,
                "seed": CONTROL_SEED,
                "workers": context.workers,
                "resume": str(work / "scanned"),
                "out": str(out),
            },
            work,
            CountingProgress("contamination", "documents scanned"),
        )
        _refuse_incomplete(json.loads((out / "coverage.json").read_text()), config, items)

    result = build_or_skip(stage, context, build)
    contamination = read_contamination(fetch_outputs(result, context))
    add_to_state(_found(contamination["coverage"]))
    text = contamination_section(contamination)
    if sweep_shows_something(contamination["sweep"]):
        sweep = kept(context.cache / "figures", sweep_figure, contamination["sweep"], config.run)
        text += f"\n\n{inline(FIGURES['sweep.png'], sweep)}"
    create_markdown_artifact(key="contamination", description="Benchmark items in the training text", markdown=text)
    if config.mode is Mode.REFUSE:
        _refuse(contamination["coverage"])
    return result


@stage_task("filter")
def drop_contaminated(documents: StageResult, verdicts: StageResult, context: RunContext) -> StageResult:
    """The corpus without the documents that contaminate an item. Outputs as of `download`, and dropped.json."""
    inputs = {"documents": documents.digest, "flagged": verdicts.manifest.output("flagged.parquet").sha256}
    stage = Stage(name="filter", version=FILTER_VERSION, config={}, inputs=inputs)

    def build(_: Path, out: Path) -> None:
        flagged = pq.read_table(fetch_outputs(verdicts, context) / "flagged.parquet")
        write_filtered(fetch_outputs(documents, context), flagged, out)

    result = build_or_skip(stage, context, build)
    dropped = json.loads((fetch_outputs(result, context) / "dropped.json").read_text())
    message = f"{len(dropped):,} documents that contaminate benchmark items were dropped from the training text."
    logger().info(message)
    add_to_state(f"{len(dropped):,} documents dropped")
    create_markdown_artifact(key="filtered-documents", description="Documents dropped", markdown=message)
    return result


def _refuse_incomplete(coverage: dict[str, Any], config: CheckConfig, items: Items) -> None:
    """Every suite that is scored was checked, with these thresholds, and the planted items of each were found."""
    if coverage["config"] != config.thresholds:
        raise StageError(f"the contamination check was to use {config.thresholds} and used {coverage['config']}")
    for suite in items.results:
        for part in ("suites", "control"):
            if suite not in coverage[part]:
                raise StageError(f"{suite} is to be scored, but the contamination check did not look for its items")


def write_filtered(documents: Path, flagged: pa.Table, out: Path) -> None:
    """Copy every file of a corpus, leaving the flagged documents out of the training split; lock.json has the counts
    of what is left. Raises StageError when a flagged document is not there, or several have its id."""
    drop = set(zip(flagged["file"].to_pylist(), flagged["document"].to_pylist(), strict=True))
    dropped, dropped_bytes = [], 0
    for path in sorted(documents.iterdir()):
        if not path.name.startswith("train_"):
            (out / path.name).write_bytes(path.read_bytes())
            continue
        with pq.ParquetWriter(out / path.name, SCHEMA, compression="zstd") as new:
            for table in read_tables(path):
                keep = [(path.name, name) not in drop for name in table["id"].to_pylist()]
                left_out = table.filter(pc.invert(pa.array(keep)))
                dropped += left_out["id"].to_pylist()
                dropped_bytes += sum(len(text.encode()) for text in left_out["text"].to_pylist())
                new.write_table(table.filter(pa.array(keep)))
    if len(dropped) != len(drop):
        raise StageError(
            f"{len(drop)} documents were to be dropped, and {len(dropped)} have their ids: this corpus is not the one "
            "that was checked, or two of its documents have one id; download it again"
        )
    lock = json.loads((documents / "lock.json").read_text())
    lock["splits"]["train"]["documents"] -= len(dropped)
    lock["splits"]["train"]["bytes"] -= dropped_bytes
    (out / "lock.json").write_text(json.dumps(lock, indent=1, sort_keys=True, ensure_ascii=False))
    (out / "dropped.json").write_text(json.dumps(dropped, indent=1, ensure_ascii=False))


def read_contamination(folder: Path) -> dict[str, Any]:
    """What the check found, as the report shows it."""
    return {
        "coverage": json.loads((folder / "coverage.json").read_text()),
        "sweep": json.loads((folder / "sweep.json").read_text()),
        "matches": [json.loads(line) for line in (folder / "matches.jsonl").read_bytes().splitlines()],
    }


def _contaminated(coverage: dict[str, Any]) -> dict[str, int]:
    """How many items of each suite that is scored are contaminated, where there are some."""
    scored = {suite: part for suite, part in coverage["suites"].items() if part["severity"] == "test"}
    return {suite: part["contaminated"] for suite, part in scored.items() if part["contaminated"]}


def _found(coverage: dict[str, Any]) -> str:
    """What was scanned, and what of it is contaminated, in words."""
    scanned = f"{coverage['documents']:,} documents ({count(coverage['words'])} words)"
    items = sum(part["items"] for part in coverage["suites"].values() if part["severity"] == "test")
    counts = _contaminated(coverage)
    named = ", ".join(f"{suite} {number:,}" for suite, number in counts.items())
    found = f"{sum(counts.values()):,} of {items:,} items are in them ({named})" if counts else "they hold none"
    return f"{scanned} were searched for {items:,} benchmark items: {found}"


def _refuse(coverage: dict[str, Any]) -> None:
    if counts := _contaminated(coverage):
        named = ", ".join(f"{suite} {number}" for suite, number in counts.items())
        raise StageError(
            f"the training text contains benchmark items ({named}) and contamination.mode is 'refuse': nothing was "
            "trained; the contamination artifact shows every match"
        )
