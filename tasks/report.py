"""Stage 7: the report (Markdown, JSON, figures), one immutable ledger row, and the leaderboard."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prefect.artifacts import create_markdown_artifact

from eval.reporting.figures import (
    inline,
    loss_figure,
    loss_shows_something,
    score_figure,
    sweep_figure,
    sweep_shows_something,
)
from eval.reporting.headline import sentence_on_bits_per_byte
from eval.reporting.html_page import html_page
from eval.reporting.ledger import Row, earlier_runs, leaderboard_in_short, leaderboard_page, ledger_row
from eval.reporting.markdown import code_block
from eval.reporting.paired_tests import Evaluation, compare, num_fewshot, per_item, regressed
from eval.reporting.report import FIGURES, cost_table, joined_scores, one_screen, render
from eval.reporting.run_comparison import difference_of_runs
from eval.reporting.score_table import report_scores, score_notes
from eval.reporting.stats import leak_effects, scores_by_verdict
from eval.scoring.precision import precision_of
from eval.settings import Differing, differing_settings
from model.errors import name_file_in_errors
from tasks.benchmarks import Items
from tasks.contamination import read_contamination
from tasks.runtime.events import emit_run_finished
from tasks.runtime.logs import logger
from tasks.runtime.pages import publish_page
from tasks.store import provenance
from tasks.store.context import RunContext
from tasks.store.ledger import add_row, read_ledger, report_pages
from tasks.store.manifest import Manifest, sha256_json
from tasks.store.objects import StoreError, digest_file
from tasks.store.retries import is_transient
from tasks.store.run_states import add_to_state, stage_task
from tasks.store.stage import Stage, StageError, StageResult, build_or_skip, fetch_outputs, load, read_json
from tasks.train import read_metrics

VERSION = 6
MOST_CANDIDATES = 5
"""Reports of earlier runs that are read for one with which bits per byte compare."""
LARGEST_ARTIFACT = 50_000
"""Bytes of Markdown from which the UI takes seconds to show it."""


@dataclass(frozen=True)
class Published:
    """What a person who ran the flow wants to know at its end."""

    report: dict[str, Any]
    report_path: str
    stages: dict[str, StageResult]


@stage_task("report")
def publish_report(
    preset: str,
    configuration: str,
    results: list[StageResult],
    items: Items,
    context: RunContext,
    differs_from_preset: Differing,
) -> Published:
    """Join scores and verdicts, and say what the run cost. Outputs: report.md, report.html, report.json and, where they
    show something, loss.png, scores.png, sweep.png: volatile, because they hold times and are compared with the ledger
    as it was. Whom the report was compared with stands in it, by run and by key of the samples. The store's
    leaderboard.html is renewed. `configuration` is the run's as JSON."""
    stages = {result.manifest.stage: result for result in results}
    stage = Stage(
        name="report",
        version=VERSION,
        config={"preset": preset, "missing": sorted(items.missing)},
        inputs={name: result.digest for name, result in stages.items()},
        volatile=frozenset({"report.md", "report.html", "report.json", *FIGURES}),
    )

    def build(_: Path, out: Path) -> None:
        about = {
            "run": stage.key,
            "preset": preset,
            "configuration": configuration,
            "differs_from_preset": differs_from_preset,
        }
        write_report(about, stages, items, context, out)

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
    where = f"{context.store.url}/{result.manifest.location(result.manifest.output('report.html'))}"
    _create_artifacts(report, folder, where, leaderboard_in_short(rows, report["run"]))
    add_to_state(sentence_on_bits_per_byte(report))
    if not result.skipped:
        emit_run_finished(report, where)
    return Published(report, where, {**stages, **_by_suite(items), "report": result})


def write_report(
    about: dict[str, Any], stages: dict[str, StageResult], items: Items, context: RunContext, out: Path
) -> None:
    """Gather what the stages left, and write the report and its figures."""
    folders = {name: fetch_outputs(result, context) for name, result in stages.items()}
    events = read_metrics(folders["train"])
    contamination = read_contamination(folders["contamination"])
    report = {
        **about,
        "note": context.note,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "packages": provenance.packages(),
        **_scored(folders, contamination["coverage"], items),
        **_trained(folders, events[-1], stages),
        "contamination": {name: contamination[name] for name in ("coverage", "matches")},
        **_spent({**stages, **_by_suite(items)}),
    }
    report |= compare_with_earlier(report, stages, context)
    drawn = _draw(report, events, contamination["sweep"])
    report["figures"] = list(drawn)
    for name, png in drawn.items():
        (out / name).write_bytes(png)
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False))
    text = render(report)
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(html_page(text, drawn))


def _draw(report: dict[str, Any], events: list[dict[str, Any]], sweep: list[dict[str, Any]]) -> dict[str, bytes]:
    """The figures that show something, by their names."""
    drawn = {}
    if scored := [row for row in report["scores"] if row["value"] is not None]:
        drawn["scores.png"] = score_figure(scored)
    if loss_shows_something(events):
        drawn["loss.png"] = loss_figure(events, report["text"]["unigram_entropy_nats"])
    if sweep_shows_something(sweep):
        drawn["sweep.png"] = sweep_figure(sweep, report["contamination"]["coverage"]["config"]["run"])
    return drawn


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
    trained = stages["train"].manifest
    settings = trained.config["train"]
    return {
        "design": {
            "design": design_digest(trained),
            "seed": settings["seed"],
            "validation_tokens": settings["validation_tokens"],
        },
        "validation": {"loss": done["loss"], "bits_per_byte": done["bits_per_byte"]},
        "training": {
            "parameters": resolved["parameters"]["total"],
            "tokens": resolved["tokens"],
            "steps": resolved["steps"],
            "flops": resolved["flops"],
            "seconds": done["seconds"],
            "device": trained.provenance["device"],
        },
        "text": {
            "unigram_entropy_nats": entropies["val"],
            "splits": shards["splits"],
            "megabytes_per_second": encoding["megabytes_per_second"],
            "workers": encoding["workers"],
        },
        "samples": json.loads((folders["train"] / "samples.json").read_text()),
    }


def design_digest(trained: Manifest) -> str:
    """One for all trainings that differ in their seed alone: everything that the train stage is made of but that."""
    settings = {name: value for name, value in trained.config["train"].items() if name != "seed"}
    return sha256_json({"config": {**trained.config, "train": settings}, "inputs": trained.inputs})


def _spent(stages: dict[str, StageResult]) -> dict[str, Any]:
    """The report's part on time and money, of each stage and together, and of the stages that were built before."""
    facts = {name: result.manifest.provenance for name, result in stages.items()}

    def together(names: Iterable[str]) -> dict[str, Any]:
        chosen = [facts[name] for name in names]
        return {
            "seconds": round(sum(fact["seconds"] for fact in chosen), 3),
            "usd": round(sum(fact["usd"] for fact in chosen), 6),
        }

    reused = [name for name, result in stages.items() if result.skipped]
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
        "cost": {**together(facts), "reused": {"stages": len(reused), **together(reused)}},
    }


def compare_with_earlier(report: dict[str, Any], stages: dict[str, StageResult], context: RunContext) -> dict[str, Any]:
    """The report's parts on earlier runs, as far as the ledger has them.

    `last`: bits per byte, settings and code against those of the last run on the same validation data. `against`: the
    scores against that run, yesterday's, the best and the baseline, on the items that both scored; one entry an
    earlier run with its `roles`, and one with a `reason` for roles that nobody has. `regressed`: what became worse.
    """
    evaluation = _evaluation(stages["evaluate"], context)
    ours = ledger_row({**report, "regressed": []})
    rows = read_ledger(context)
    last, rows = _last_comparable(report, ours, rows, context)
    entries: dict[str, dict[str, Any]] = {}
    for role, row in earlier_runs(rows, ours).items():
        name = row if isinstance(row, str) else row["run"]
        if name in entries:
            entries[name]["roles"].append(role)
        elif isinstance(row, str):
            entries[name] = {"roles": [role], "reason": row}
        else:
            facts = {"roles": [role], "evaluate": row["stages"]["evaluate"]}
            facts |= {name: row[name] for name in ("run", "preset", "finished", "commit")}
            entries[name] = facts | _difference(evaluation, row, context)
    against = list(entries.values())
    return {"last": last, "against": against, "regressed": regressed(against)}


def _last_comparable(
    report: dict[str, Any], ours: Row, rows: list[Row], context: RunContext
) -> tuple[dict[str, Any], list[Row]]:
    """The last run with which bits per byte compare and what differs from it, or the reason why there is none; and the
    rows without those that turned out to be validated on other tokens, which rows of earlier versions do not say."""
    now = json.loads(report["configuration"])
    for _ in range(MOST_CANDIDATES):
        row = earlier_runs(rows, ours)["last"]
        if isinstance(row, str):
            return {"reason": row}, rows
        before = _configuration(row, context)
        if before is None or before["train"]["validation_tokens"] == ours["validation_tokens"]:
            facts = {name: row[name] for name in ("run", "preset", "finished", "commit", "bits_per_byte")}
            settings = None if before is None else differing_settings(before, now)
            return facts | {"settings": settings} | difference_of_runs(ours, row, [*rows, ours]), rows
        rows = [other for other in rows if other["run"] != row["run"]]
    return {"reason": f"none among the last {MOST_CANDIDATES} runs on the same data"}, rows


def _configuration(row: Row, context: RunContext) -> dict[str, Any] | None:
    """The settings of an earlier run, from its report; None where that is gone or damaged."""
    try:
        result = load("report", row["run"], context)
        settings = result and json.loads(read_json(result, context, "report.json")["configuration"])
        return settings if settings and "validation_tokens" in settings["train"] else None
    except (StageError, StoreError, KeyError, TypeError, ValueError) as error:
        if is_transient(error):
            raise
        logger().warning("the settings of run %s are not known: %s", row["run"][:12], error)
        return None


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


def _create_artifacts(report: dict[str, Any], folder: Path, where: str, board: str) -> None:
    drawn = {name: inline(FIGURES[name], (folder / name).read_bytes()) for name in report["figures"]}
    address = publish_page("report", (folder / "report.html").read_bytes())
    full = f"[The full report]({address})" if address else f"The full report:\n\n{code_block(where)}"
    screen = one_screen(report, drawn.get("loss.png", ""), full)
    if len(screen.encode()) > LARGEST_ARTIFACT:
        screen = one_screen(report, "", full)
    create_markdown_artifact(key="report", description="The report of the run", markdown=screen)
    create_markdown_artifact(key="cost", description="Time and money of each stage", markdown=cost_table(report))
    create_markdown_artifact(key="leaderboard", description="The best runs in the store, and this one", markdown=board)
    scores = [report_scores(report["scores"]), *score_notes(report["scores"]), drawn.get("scores.png", "")]
    create_markdown_artifact(
        key="score-table",
        description="Scores on all, clean and contaminated items",
        markdown="\n\n".join(filter(None, scores)),
    )
