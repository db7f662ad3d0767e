"""What the rest of the world is told of a run: events of the Prefect server, which automations turn into messages."""

from typing import Any

from prefect.events import emit_event

from eval.reporting.headline import CHANGED, DIFFERS, NOTE, headline
from eval.words import percent

FINISHED = "daily-train.finished"
REGRESSED = "daily-train.regressed"


def emit_run_finished(report: dict[str, Any], report_path: str) -> None:
    """Say that a run finished and, where its report says so, what of it regressed against which earlier run."""
    _emit(FINISHED, report, f"{report['preset']} finished", _finished(report, report_path), [])
    if regressed := [entry for entry in report["against"] if entry.get("regressed")]:
        lines = [line for entry in regressed for line in _regressed(entry)]
        _emit(REGRESSED, report, f"{report['preset']} regressed", "\n".join(lines), regressed)


def _emit(event: str, report: dict[str, Any], subject: str, body: str, against: list[dict[str, Any]]) -> None:
    resource = {"prefect.resource.id": f"daily-train.report.{report['run']}", "prefect.resource.name": report["preset"]}
    payload = {"subject": subject, "body": body, "run": report["run"], "commit": report["commit"], "against": against}
    emit_event(event, resource, payload=payload)


def _finished(report: dict[str, Any], report_path: str) -> str:
    """The headline without texts of people, which a reader of messages may make links of."""
    lines = [f"{topic}: {text}" for topic, text in headline(report) if topic not in (CHANGED, DIFFERS, NOTE)]
    scores = [
        f"{row['suite']} {row['metric']} {percent(row['value'])}"
        for row in report["scores"]
        if row["value"] is not None
    ]
    return "\n".join([*lines, *([", ".join(scores)] if scores else []), f"Report: {report_path}"])


def _regressed(entry: dict[str, Any]) -> list[str]:
    """A line for each suite and metric that is significantly worse than in one earlier run."""
    against = f"{' and '.join(entry['roles'])} (run {entry['run'][:12]}, commit {entry['commit'][:12]})"
    lines = []
    for row in entry["rows"]:
        if f"{row['suite']} {row['metric']}" in entry["regressed"]:
            low, high = (100 * end for end in row["interval"])
            lines.append(
                f"{row['suite']} {row['metric'].replace('_', ' ')}: {100 * row['difference']:+.2f} points "
                f"(95 % {low:+.2f} to {high:+.2f}, p {row['p']:.2g}, {row['n']:,} items) against {against}"
            )
    return lines
