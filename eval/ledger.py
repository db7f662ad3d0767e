"""The ledger: one immutable row a run. The leaderboard is the list of rows."""

from typing import Any

from eval.markup import markdown_table

Row = dict[str, Any]


def ledger_row(report: dict[str, Any]) -> Row:
    """The row of a finished run, from its report."""
    return {
        "run": report["run"],
        "preset": report["preset"],
        "finished": report["finished"],
        "commit": report["commit"],
        "bits_per_byte": report["validation"]["bits_per_byte"],
        "loss_nats_per_token": report["validation"]["loss"],
        "validation_data": report["stages"]["shard"]["digest"],
        "parameters": report["training"]["parameters"],
        "tokens": report["training"]["tokens"],
        "flops": report["training"]["flops"],
        "seconds": report["cost"]["seconds"],
        "usd": report["cost"]["usd"],
        "scores": {f"{s['suite']}/{s['metric']}": s["value"] for s in report["scores"] if s["value"] is not None},
        "stages": {name: stage["key"] for name, stage in report["stages"].items()},
    }


def leaderboard(rows: list[Row]) -> str:
    """All rows as a Markdown table, best bits per byte first; only rows on the same data compare."""
    header = ["run", "finished", "preset", "commit", "data", "bits per byte"]
    header += ["parameters", "tokens", "FLOPs", "hours", "USD"]
    ranked = sorted(rows, key=lambda row: (row["bits_per_byte"], row["run"]))
    return markdown_table(
        header,
        [
            [
                row["run"][:12], row["finished"], row["preset"], row["commit"][:12], row["validation_data"][:8],
                row["bits_per_byte"], row["parameters"], row["tokens"], f"{row['flops']:.2e}",
                row["seconds"] / 3600, row["usd"],
            ]
            for row in ranked
        ],
    )
