"""Stage 7: the report (Markdown, JSON, figures), one immutable ledger row, and the leaderboard."""

import json
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prefect.artifacts import create_markdown_artifact

from eval.reporting.figures import inline, loss_figure, score_figure, sweep_figure
from eval.reporting.html_page import html_page
from eval.reporting.ledger import earlier_runs, leaderboard, leaderboard_page, ledger_row
from eval.reporting.paired_tests import Evaluation, compare, num_fewshot, per_item, regressed
from eval.reporting.report import FIGURES, cost_table, joined_scores, render
from eval.reporting.score_table import report_scores, score_notes
from eval.reporting.stats import leak_effects, scores_by_verdict
from eval.scoring.precision import precision_of
from model.errors import name_file_in_errors
from tasks.benchmarks import Items
from tasks.contamination import read_contamination
from tasks.runtime.events import emit_run_finished
from tasks.runtime.logs import logger
from tasks.store import provenance
from tasks.store.context import RunContext
from tasks.store.ledger import add_row, read_ledger, report_pages
from tasks.store.objects import StoreError, digest_file
from tasks.store.retries import is_transient
from tasks.store.run_states import stage_task
from tasks.store.stage import Stage, StageError, StageResult, build_or_skip, fetch_outputs, load, read_json
from tasks.train import read_metrics

VERSION = 5


@dataclass(frozen=True)
class Published:
    """What a person who ran the flow wants to know at its end."""

    report: dict[str, Any]
    report_path: str
    stages: dict[str, StageResult]


@stage_task("report")
def publish_report(
    preset: str, configuration: str, results: list[StageResult], items: Items, context: RunContext
) -> Published:
    """Join scores and verdicts, and say what the run cost. Outputs: report.md, report.html, report.json, loss.png,
    scores.png, sweep.png: volatile, because they hold times and are compared with the ledger as it was. Whom the
    report was compared with stands in it, by run and by key of the samples. The store's leaderboard.html is renewed."""
    stages = {result.manifest.stage: result for result in results}
    stage = Stage(
        name="report",
        version=VERSION,
        config={"preset": preset, "missing": sorted(items.missing)},
        inputs={name: result.digest for name, result in stages.items()},
        volatile=frozenset({"report.md", "report.html", "report.json", *FIGURES}),
    )

    def build(_: Path, out: Path) -> None:
        write_report(stage.key, preset, configuration, stages, items, context, out)

    result = build_or_skip(stage, context, build)
    report = read_json(result, context, "report.json")
    row = ledger_row(report)
    folder = fetch_outputs(result, context)
    if context.unwritable is None:
        add_row(row, context)
    else:
        logger().warning("%s; ledger and leaderboard stay as they are", context.unwritable)
    rows = read_ledger(context)
    if context.unwritable is None:
        _renew_leaderboard(rows, context)
    _create_artifacts(report, folder, leaderboard(rows))
    where = f"{context.store.url}/{result.manifest.location(result.manifest.output('report.html'))}"
    if not result.skipped:
        emit_run_finished(report, where)
    return Published(report, where, {**stages, **_by_suite(items), "report": result})


def write_report(
    run: str,
    preset: str,
    configuration: str,
    stages: dict[str, StageResult],
    items: Items,
    context: RunContext,
    out: Path,
) -> None:
    """Gather what the stages left, and write the report and its figures."""
    folders = {name: fetch_outputs(result, context) for name, result in stages.items()}
    events = read_metrics(folders["train"])
    contamination = read_contamination(folders["contamination"])
    against = compare_with_earlier(run, preset, stages, context)
    report = {
        "run": run,
        "preset": preset,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "packages": provenance.packages(),
        **_scored(folders, contamination["coverage"], items),
        "against": against,
        "regressed": regressed(against),
        **_trained(folders, events[-1], stages),
        "contamination": {name: contamination[name] for name in ("coverage", "matches")},
        **_spent({**stages, **_by_suite(items)}),
        "configuration": configuration,
    }
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False))
    (out / "loss.png").write_bytes(loss_figure(events, report["text"]["unigram_entropy_nats"]))
    (out / "sweep.png").write_bytes(sweep_figure(contamination["sweep"], contamination["coverage"]["config"]["run"]))
    (out / "scores.png").write_bytes(score_figure([row for row in report["scores"] if row["value"] is not None]))
    text = render(report)
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(html_page(text, {path.name: path.read_bytes() for path in out.glob("*.png")}))


def _scored(folders: dict[str, Path], coverage: dict[str, Any], items: Items) -> dict[str, Any]:
    """The report's scores, on all, on clean and on contaminated items, and how they were made."""
    scores = json.loads((folders["evaluate"] / "scores.json").read_text())
    samples = pq.read_table(folders["evaluate"] / "samples.parquet")
    verdicts = pq.read_table(folders["contamination"] / "verdicts.parquet")
    by_verdict = scores_by_verdict(samples, verdicts)
    return {
        "scores": joined_scores(scores["scores"], by_verdict, per_item(samples), coverage["suites"], items.missing),
        "evaluation": {
            **{name: scores[name] for name in ("lm_eval", "task_versions", "metric_versions")},
            "num_fewshot": {task: num_fewshot(scores, task) for task in scores["task_versions"]},
            "precision": precision_of(scores),
        },
        "leak_effects": leak_effects(samples, verdicts),
    }


def _trained(folders: dict[str, Path], done: dict[str, Any], stages: dict[str, StageResult]) -> dict[str, Any]:
    """The report's part on the training and its text; `done` is the training's last event."""
    resolved = json.loads((folders["train"] / "run.json").read_text())
    shards = json.loads((folders["shard"] / "shards.json").read_text())
    entropies = json.loads((folders["shard"] / "unigram_entropy_nats.json").read_text())
    encoding = stages["shard"].manifest.provenance
    return {
        "validation": {"loss": done["loss"], "bits_per_byte": done["bits_per_byte"]},
        "training": {
            "parameters": resolved["parameters"]["total"],
            "tokens": resolved["tokens"],
            "steps": resolved["steps"],
            "flops": resolved["flops"],
            "seconds": done["seconds"],
            "device": stages["train"].manifest.provenance["device"],
        },
        "text": {
            "unigram_entropy_nats": entropies["val"],
            "splits": shards["splits"],
            "megabytes_per_second": encoding["megabytes_per_second"],
            "workers": encoding["workers"],
        },
        "samples": json.loads((folders["train"] / "samples.json").read_text()),
    }


def _spent(stages: dict[str, StageResult]) -> dict[str, Any]:
    """The report's part on time and money, of each stage and together."""
    facts = {name: result.manifest.provenance for name, result in stages.items()}
    return {
        "stages": {
            name: {
                "key": result.manifest.key,
                "digest": result.digest,
                "seconds": facts[name]["seconds"],
                "usd": facts[name]["usd"],
            }
            for name, result in stages.items()
        },
        "cost": {
            "seconds": round(sum(fact["seconds"] for fact in facts.values()), 3),
            "usd": round(sum(fact["usd"] for fact in facts.values()), 6),
        },
    }


def compare_with_earlier(
    run: str, preset: str, stages: dict[str, StageResult], context: RunContext
) -> list[dict[str, Any]]:
    """The run against yesterday's, the best and the baseline, as far as the ledger has them, on the items that both
    scored. One entry an earlier run with its `roles`; one with a `reason` for a role that nobody has."""
    ours = _evaluation(stages["evaluate"], context)
    entries: dict[str, dict[str, Any]] = {}
    for role, row in earlier_runs(read_ledger(context), run, preset, stages["shard"].digest).items():
        if isinstance(row, str):
            entries[role] = {"roles": [role], "reason": row}
        elif row["run"] in entries:
            entries[row["run"]]["roles"].append(role)
        else:
            facts = {"roles": [role], "evaluate": row["stages"]["evaluate"]}
            facts |= {name: row[name] for name in ("run", "preset", "finished", "commit")}
            entries[row["run"]] = facts | _difference(ours, row, context)
    return list(entries.values())


def _difference(ours: Evaluation, row: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """The run against an earlier one, or the reason why not: what is damaged there is no failure of this run."""
    try:
        theirs = load("evaluate", row["stages"]["evaluate"], context)
        if theirs is None:
            return {"reason": "its samples are gone"}
        return compare(ours, _evaluation(theirs, replace(context, unwritable="only compared")))
    except (StageError, StoreError) as error:
        if is_transient(error):
            raise
        logger().warning("run %s is not compared with: %s", row["run"][:12], error)
        return {"reason": "its samples are damaged"}


def _evaluation(result: StageResult, context: RunContext) -> Evaluation:
    folder = fetch_outputs(result, context)
    scores = json.loads((folder / "scores.json").read_text())
    return Evaluation(samples=pq.read_table(folder / "samples.parquet"), scores=scores, data=result.manifest.inputs)


def _renew_leaderboard(rows: list[dict[str, Any]], context: RunContext) -> None:
    """The only file in the store that is ever replaced: it is made of the ledger and of nothing else."""
    context.cache.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=context.cache) as folder,
        name_file_in_errors(context.cache / "leaderboard.html"),
    ):
        file = Path(folder) / "leaderboard.html"
        file.write_text(leaderboard_page(rows, report_pages(context)))
        context.store.put(file.name, file, digest_file(file))


def _by_suite(items: Items) -> dict[str, StageResult]:
    return {f"benchmarks {name}": result for name, result in {**items.results, **items.train}.items()}


def _create_artifacts(report: dict[str, Any], folder: Path, board: str) -> None:
    text = (folder / "report.md").read_text()
    for name, caption in FIGURES.items():
        text = text.replace(f"![{caption}]({name})", inline(caption, (folder / name).read_bytes()))
    create_markdown_artifact(key="report", description="The report of the run", markdown=text)
    create_markdown_artifact(key="cost", description="Time and money of each stage", markdown=cost_table(report))
    create_markdown_artifact(key="leaderboard", description="All runs in the store", markdown=board)
    figure = inline(FIGURES["scores.png"], (folder / "scores.png").read_bytes())
    create_markdown_artifact(
        key="score-table",
        description="Scores on all, clean and contaminated items",
        markdown="\n\n".join([report_scores(report["scores"]), *score_notes(report["scores"]), figure]),
    )
