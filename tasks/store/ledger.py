"""The ledger in the store: rows of finished runs. What is no row is named and passed over, wherever it is read."""

import json
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from eval.reporting.ledger import Row, parse_row
from model.errors import did_you_mean, nearest_name, shown_value
from tasks.runtime.logs import logger
from tasks.store.attempts import StageResult, load
from tasks.store.context import RunContext
from tasks.store.manifest import StageError
from tasks.store.objects import StoreError, printable
from tasks.store.retries import is_transient

LATEST = "latest"
"""Name of the newest run."""
NAMED = 3
"""Runs that are named in place of one that there is not."""
KEY_DIGITS = 12
LIKE_A_KEY = 0.75
"""Share of the digits: keys of one store have half of them in common by chance."""
MOST_LOOKED_AT = 1000
"""Files of a folder among which a store is looked for."""


def read_ledger(context: RunContext) -> list[Row]:
    """Every run's row. Raises StoreError when there is no store."""
    keys = list(context.store.list("ledger"))
    if not keys and next(iter(context.store.list("stages")), None) is None:
        hint = _near_store(context.store.url)
        nothing = "neither ledger/ nor stages/ holds anything"
        raise StoreError(f"{context.store.url}: there is no store here{hint}: {nothing}")
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
    """The newest run whose key, or whose train stage's key, begins with `name`; "" or `latest` takes the newest of
    all."""
    newest_first = sorted(read_ledger(context), key=lambda row: row["finished"], reverse=True)
    for row in newest_first:
        if name in ("", LATEST) or any(key.startswith(name) for key in (row["run"], row["stages"]["train"])):
            return row
    if not newest_first:
        raise StageError(f"{context.store.url}: there is no run in the ledger yet")
    raise StageError(
        f"{context.store.url}: there is no run {shown_value(name)} in the ledger{_near_run(name, newest_first)}; "
        f"the newest are {', '.join(_shown_run(row) for row in newest_first[:NAMED])}, or `{LATEST}`"
    )


def _near_run(name: str, newest_first: list[Row]) -> str:
    """A suggestion: `latest`, or a key that begins as the name does but for a letter or two; by its preset the newest
    run of that."""
    for row in newest_first:
        if row["preset"] == name:
            return f" (did you mean {row['run'][:KEY_DIGITS]!r}, the newest run of preset {name}?)"
    length = max(len(name), KEY_DIGITS)
    keys = [key[:length] for row in newest_first for key in (row["run"], row["stages"]["train"])]
    return did_you_mean(name, [LATEST]) or did_you_mean(name, keys, LIKE_A_KEY)


def _shown_run(row: Row) -> str:
    return f"{row['run'][:KEY_DIGITS]} ({row['preset']}, {row['finished'][:10]})"


def _near_store(url: str) -> str:
    """A suggestion in place of a folder that is no store: one that it is in, one in it, or one beside it."""
    if "://" in url:
        return ""
    folder, found = Path(url).resolve(), None
    with suppress(OSError):
        found = next((parent for parent in folder.parents if _is_store(parent)), None)
        if not found and folder.is_dir():
            found = next((path for path in islice(folder.iterdir(), MOST_LOOKED_AT) if _is_store(path)), None)
        if not found:
            beside = [path.name for path in islice(folder.parent.iterdir(), MOST_LOOKED_AT) if _is_store(path)]
            nearest = nearest_name(folder.name, beside)
            found = folder.with_name(nearest) if nearest else None
    return f" (did you mean '{printable(found)}'?)" if found else ""


def _is_store(folder: Path) -> bool:
    return (folder / "ledger").is_dir() or (folder / "stages").is_dir()


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
