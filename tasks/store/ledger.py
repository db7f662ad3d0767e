"""The ledger in the store: rows of finished runs. What is no row is named and passed over, wherever it is read."""

import json
import re
from typing import Any

from eval.reporting.ledger import Row, parse_row
from tasks.store.objects import StoreError, shown
from tasks.store.retries import transient
from tasks.store.stage import Place, StageError, logger


def read_ledger(place: Place) -> list[Row]:
    """Every run's row. Raises StoreError when there is no store."""
    keys = list(place.store.list("ledger"))
    if not keys and next(iter(place.store.list("stages")), None) is None:
        raise StoreError(f"{place.store.url}: there is no store here: neither ledger/ nor stages/ holds anything")
    return [row for key in keys if (row := _row(key, place))]


def _row(key: str, place: Place) -> Row | None:
    try:
        content = place.store.read(key)
        row = parse_row(content) if content is not None else None
        if row and key != f"ledger/{row['run']}.json":
            raise ValueError(f"it is the row of run {shown(row['run'])}")
        return row
    except (StoreError, ValueError) as error:
        if transient(error):
            raise
        logger().warning("%s/%s is no row of the ledger and passed over: %s", place.store.url, shown(key), shown(error))
        return None


def add_row(row: Row, place: Place) -> None:
    """Add the row of a run, once; one that is damaged is replaced."""
    key, content = f"ledger/{row['run']}.json", json.dumps(row, indent=1, sort_keys=True).encode()
    if not place.store.publish(key, content) and _row(key, place) is None:
        place.store.delete(key)
        place.store.publish(key, content)


def find_run(name: str, place: Place) -> dict[str, Any]:
    """The newest run whose key, or whose train stage's key, begins with `name`; "" takes the newest of all."""
    rows = [row for row in read_ledger(place) if any(k.startswith(name) for k in (row["run"], row["stages"]["train"]))]
    if not rows:
        raise StageError(f"{place.store.url}: there is no run{f' {name}' if name else ''} in the ledger")
    return max(rows, key=lambda row: row["finished"])


def report_pages(place: Place) -> dict[str, str]:
    """Where in the store the HTML report of each run lies, by the run's name."""
    found = (
        re.fullmatch(r"stages/report/([0-9a-f]{64})/[0-9a-f]+/report\.html", key)
        for key in place.store.list("stages/report")
    )
    return {page[1]: page[0] for page in found if page}
