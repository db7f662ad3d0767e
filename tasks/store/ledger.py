"""The ledger in the store: rows of finished runs. What is no row is named and passed over, wherever it is read."""

import json
import re
from typing import Any

from eval.reporting.ledger import Row, parse_row
from tasks.runtime.logs import logger
from tasks.store.attempts import StageResult, load
from tasks.store.context import RunContext
from tasks.store.manifest import StageError
from tasks.store.objects import StoreError, printable
from tasks.store.retries import is_transient


def read_ledger(context: RunContext) -> list[Row]:
    """Every run's row. Raises StoreError when there is no store."""
    keys = list(context.store.list("ledger"))
    if not keys and next(iter(context.store.list("stages")), None) is None:
        raise StoreError(f"{context.store.url}: there is no store here: neither ledger/ nor stages/ holds anything")
    return [row for key in keys if (row := _row(key, context))]


def _row(key: str, context: RunContext) -> Row | None:
    try:
        content = context.store.read(key)
        row = parse_row(content) if content is not None else None
        if row and key != f"ledger/{row['run']}.json":
            raise ValueError(f"it is the row of run {printable(row['run'])}")
        return row
    except (StoreError, ValueError) as error:
        if is_transient(error):
            raise
        logger().warning(
            "%s/%s is no row of the ledger and passed over: %s", context.store.url, printable(key), printable(error)
        )
        return None


def add_row(row: Row, context: RunContext) -> None:
    """Add the row of a run, once; one that is damaged is replaced."""
    key, content = f"ledger/{row['run']}.json", json.dumps(row, indent=1, sort_keys=True).encode()
    if not context.store.publish(key, content) and _row(key, context) is None:
        context.store.delete(key)
        context.store.publish(key, content)


def find_run(name: str, context: RunContext) -> dict[str, Any]:
    """The newest run whose key, or whose train stage's key, begins with `name`; "" takes the newest of all."""
    rows = [
        row for row in read_ledger(context) if any(k.startswith(name) for k in (row["run"], row["stages"]["train"]))
    ]
    if not rows:
        raise StageError(f"{context.store.url}: there is no run{f' {name}' if name else ''} in the ledger")
    return max(rows, key=lambda row: row["finished"])


def stage_of_run(stage: str, row: Row, context: RunContext) -> StageResult:
    """A finished stage of a run in the ledger, by the run's row. Raises StageError when the store does not hold it."""
    result = load(stage.partition(" ")[0], row["stages"].get(stage, ""), context)
    if result is None:
        raise StageError(f"{context.store.url}: stage {stage} of run {row['run'][:12]} is gone")
    return result


def report_pages(context: RunContext) -> dict[str, str]:
    """Where in the store the HTML report of each run lies, by the run's name."""
    pages = (
        re.fullmatch(r"stages/report/([0-9a-f]{64})/[0-9a-f]+/report\.html", key)
        for key in context.store.list("stages/report")
    )
    return {page[1]: page[0] for page in pages if page}
