"""What the rest of the world is told of a run: events of the Prefect server, which automations turn into messages."""

from typing import Any

from prefect.events import emit_event

FINISHED = "daily-train.finished"
REGRESSED = "daily-train.regressed"


def announce(report: dict[str, Any], report_path: str) -> None:
    """Say that a run finished and, where its report lists `regressions`, that it is worse than an earlier run."""
    _emit(FINISHED, report, f"{report['preset']} finished", _finished(report, report_path), {})
    if found := report.get("regressions"):
        _emit(REGRESSED, report, f"{report['preset']} is worse than before", _regressed(found), {"regressions": found})


def _emit(event: str, report: dict[str, Any], subject: str, body: str, more: dict[str, Any]) -> None:
    resource = {"prefect.resource.id": f"daily-train.report.{report['run']}", "prefect.resource.name": report["preset"]}
    emit_event(event, resource, payload={"subject": subject, "body": body, "commit": report["commit"], **more})


def _finished(report: dict[str, Any], report_path: str) -> str:
    validation, cost = report["validation"], report["cost"]
    scores = [f"{row['suite']} {row['metric']} {100 * row['value']:.2f} %" for row in report["scores"]
              if row["value"] is not None]  # fmt: skip
    lines = [
        f"{validation['bits_per_byte']:.4f} bits per byte, {validation['loss']:.4f} nats per token",
        ", ".join(scores),
        f"commit {report['commit'][:12]}, {cost['seconds'] / 3600:.2f} hours, {cost['usd']:.2f} USD",
        f"report: {report_path}",
    ]
    return "\n".join(lines)


def _regressed(found: list[dict[str, Any]]) -> str:
    """One line a regression, its statistics as the report holds them."""
    return "\n".join(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items()) for row in found)
