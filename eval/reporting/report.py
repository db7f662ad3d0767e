"""The report of one run: everything a reader needs to judge it, as one JSON document and as Markdown.

`evaluate` never sees the contamination verdicts and `contamination` never sees the model: they are joined here.
"""

import json
from typing import Any

import numpy as np

from eval.reporting.contamination_report import contamination_section, effects_section
from eval.reporting.headline import headline_section, short_commit
from eval.reporting.markdown import code, markdown_table, passage
from eval.reporting.paired_tests import GOLD_PROBABILITY, PerItem
from eval.reporting.run_comparison import comparison_section
from eval.reporting.score_table import report_scores, score_notes, scores_in_short
from eval.reporting.stats import ItemSet
from eval.settings import flat_settings
from eval.words import count, data_size, dollars, duration, flops, loss, loss_difference

Report = dict[str, Any]

FIGURES = {
    "scores.png": "scores against chance and public models",
    "loss.png": "loss and bits per byte over training",
    "sweep.png": "contaminated items by threshold",
}
"""Figures that lie beside the report, with what they show; `figures` of the report names those that show something."""


def joined_scores(
    scores: list[dict[str, Any]],
    by_verdict: list[dict[str, Any]],
    items: PerItem,
    coverage: dict[str, Any],
    missing: dict[str, str],
) -> list[dict[str, Any]]:
    """One row a suite and metric: the score with its interval, gold probability, and the score on clean and on
    contaminated items.

    A suite whose items could not be had has a row with the reason under `not_scored`. The counts
    `clean_items` and `contaminated_items` are of all items of the suite, scored or not.
    """
    parts = {(row["task"], row["metric"], row["items"]): row for row in by_verdict}
    rows = []
    for score in scores:
        row = dict(score)
        row |= {name: parts[score["task"], score["metric"], ItemSet.ALL][name] for name in ("interval", "no_interval")}
        probabilities = items[score["suite"], score["task"], GOLD_PROBABILITY]
        row[GOLD_PROBABILITY] = float(np.mean([value for value, _ in probabilities.values()]))
        for name in (ItemSet.CLEAN.value, ItemSet.CONTAMINATED.value):
            part = parts[score["task"], score["metric"], name]
            row[name] = {field: part[field] for field in ("n", "value", "standard_error", "too_few")}
            row[f"{name}_items"] = coverage[score["suite"]][name]
        row["uncheckable_items"] = len(coverage[score["suite"]]["uncheckable"])
        rows.append(row)
    empty = dict.fromkeys(("metric", "n", "value", "standard_error", "chance", "gold_bits_per_byte"))
    rows += [{"suite": suite, **empty, "not_scored": reason} for suite, reason in missing.items()]
    return rows


def render(report: Report) -> str:
    """The whole report as Markdown; the figures lie beside it."""
    training, validation, text = report["training"], report["validation"], report["text"]
    entropy = text["unigram_entropy_nats"]
    sections = [
        _title(report),
        headline_section(report),
        "## Scores",
        report_scores(report["scores"]),
        *score_notes(report["scores"]),
        _figure("scores.png", report),
        "## Against earlier runs",
        *comparison_section(report["against"], report["scores"]),
        "## Loss",
        markdown_table(
            ["validation loss (nats per token)", "bits per byte", "unigram entropy of the text (nats)", "against it"],
            [
                [
                    loss(validation["loss"]),
                    loss(validation["bits_per_byte"]),
                    loss(entropy),
                    loss_difference(validation["loss"] - entropy),
                ]
            ],
        ),
        _figure("loss.png", report),
        "## Training",
        markdown_table(
            ["parameters", "tokens", "steps", "FLOPs", "time", "tokens per second", "device"],
            [
                [
                    training["parameters"],
                    training["tokens"],
                    training["steps"],
                    flops(training["flops"]),
                    duration(training["seconds"]),
                    count(training["tokens"] / training["seconds"]),
                    training["device"],
                ]
            ],
        ),
        "## Text before and after training",
        *_samples(report["samples"]),
        "## Contamination",
        contamination_section(report["contamination"]),
        _figure("sweep.png", report),
        *effects_section(report["leak_effects"]),
        "## Cost",
        cost_table(report),
        f"Encoding ran at {data_size(1e6 * text['megabytes_per_second'])} per second on {text['workers']} cores; "
        f"hardware: {report['hardware']['cpu']}, {report['hardware']['cores']} cores, "
        f"GPUs: {', '.join(report['hardware']['gpus']) or 'none'}.",
        "## Configuration",
        configuration_table(json.loads(report["configuration"])),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def one_screen(report: Report, figure: str, full_report: str) -> str:
    """The report on one screen of the UI: the headline, the scores in short, one `figure` (Markdown, may be empty) and
    where the `full_report` is (Markdown)."""
    sections = [
        f"**{report['preset']} run {report['run'][:12]}**, finished {report['finished']}, commit "
        f"`{short_commit(report['commit'])}`.",
        headline_section(report),
        full_report,
        scores_in_short(report["scores"]),
        figure,
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _title(report: Report) -> str:
    return (
        f"# {report['preset']} run {report['run'][:12]}\n\nFinished {report['finished']}, commit `{report['commit']}`."
    )


def cost_table(report: Report) -> str:
    """Time, money and the beginning of the key of each stage."""
    rows = [
        [name, duration(stage["seconds"]), dollars(stage["usd"]), f"`{stage['key'][:12]}`"]
        for name, stage in report["stages"].items()
    ]
    cost = report["cost"]
    return markdown_table(
        ["stage", "time", "cost", "key"], [*rows, ["sum", duration(cost["seconds"]), dollars(cost["usd"]), ""]]
    )


def configuration_table(sections: dict[str, dict[str, Any]]) -> str:
    """Every setting that has a value, under the name that `--set` takes; lists as JSON."""
    return markdown_table(
        ["setting", "value"],
        [
            [f"`{name}`", code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
            for name, value in flat_settings(sections)
        ],
    )


def _figure(name: str, report: Report) -> str:
    return f"![{FIGURES[name]}]({name})" if name in report["figures"] else ""


def _samples(samples: list[dict[str, str]]) -> list[str]:
    lines = []
    for sample in samples:
        lines += ["Untrained:", passage(sample["prompt"] + sample["untrained"])]
        lines += ["Trained:", passage(sample["prompt"] + sample["trained"])]
    return lines
