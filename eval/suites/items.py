"""The items of the benchmark suites: rows in one fixed form.

* `normalise` turns rows from any source (a folder, a wheel, the hub) into the same Arrow table, and `write_rows`
  turns the same table into the same bytes, so that a digest of the file identifies the benchmark and not
  where it came from. Bad rows are refused with the file, the value found and the value expected.
* `gold` and `clusters` say which choices are right and which items are not independent of each other.

Item ids are row numbers: lm-eval's `doc_id`.
"""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.suites.rows import find_flaw, repetitions, with_a_right_answer, with_types
from eval.suites.schemas import SCHEMAS
from eval.suites.suites import BenchmarkTask, Metric, Split, Suite, SuiteError
from model.errors import reason_of, regular_file


def chosen_items(suite: Suite, items_per_suite: int | None, seed: int) -> list[int]:
    """The items to score, ascending: all, or a subset that depends on seed and suite only."""
    if items_per_suite is None or items_per_suite >= suite.rows:
        return list(range(suite.rows))
    if items_per_suite < 1:
        raise SuiteError(f"items_per_suite must be at least 1 or null, found {items_per_suite}")
    generator = np.random.default_rng([seed, zlib.crc32(suite.name.encode())])
    return sorted(generator.choice(suite.rows, size=items_per_suite, replace=False).tolist())


def normalise(table: pa.Table, suite: Suite, source: str, split: Split = Split.ITEMS) -> pa.Table:
    """Rows with exactly `suite.schema`: other columns dropped, ARC labels lettered A.., every row checked.

    `source` names the file in errors. Raises `SuiteError` for a missing column, a value of the wrong type, a row
    that lm-eval would score wrongly, or a row count other than the official one; of the split that is scored also for
    an empty text, equal choices and an item that is there twice (`eval/suites/rows.py`).
    """
    missing = [name for name in suite.schema.names if name not in table.column_names]
    if missing:
        raise SuiteError(
            f"{source}: column {missing[0]!r} is missing for {suite.name}: "
            f"found {table.column_names}, expected {suite.schema.names}"
        )
    if twice := [name for name in suite.schema.names if table.column_names.count(name) > 1]:
        raise SuiteError(f"{source}: column {twice[0]!r} is there more than once: found {table.column_names}")
    if table.num_rows != suite.rows_of(split):
        raise SuiteError(f"{source}: {table.num_rows} rows found, {suite.rows_of(split)} expected for {suite.name}")
    rows = table.select(suite.schema.names).to_pylist()
    for item, row in enumerate(rows):
        try:
            rows[item] = with_a_right_answer(with_types(row, suite.schema))
        except ValueError as error:
            raise SuiteError(f"{source}: row {item} of {suite.name}: {error}") from error
        if split is Split.ITEMS and (reason := find_flaw(rows[item])):
            raise SuiteError(f"{source}: row {item} of {suite.name}: {reason}")
    if split is Split.ITEMS and (pair := next(repetitions(rows), None)):
        raise SuiteError(f"{source}: rows {pair[0]} and {pair[1]} of {suite.name} have the same {pair[2]}")
    return pa.Table.from_pylist(rows, schema=suite.schema)


def read_train(path: Path, suite: Suite) -> pa.Table:
    """The normalised rows of a released train split, however many; raises `SuiteError` naming the file."""
    table = read_parquet(path)
    if not table.num_rows:
        raise SuiteError(f"{path}: there are no rows")
    return normalise(table, replace(suite, train_rows=table.num_rows), str(path), Split.SHOTS)


def write_rows(table: pa.Table, path: Path) -> None:
    """Writes `table` as Parquet; the same rows give the same bytes with the same pyarrow version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata(None).combine_chunks(),
        path,
        compression="zstd",
        row_group_size=65536,
        version="2.6",
        store_schema=False,
    )


def read_rows(directory: Path, suite: Suite, split: Split = Split.ITEMS) -> pa.Table:
    """The normalised rows of `directory/{suite}.parquet`, checked again; raises `SuiteError` naming the file."""
    path = directory / suite.rows_file(split)
    return normalise(read_parquet(path), suite, str(path), split)


def read_parquet(path: Path) -> pa.Table:
    """One Parquet file; raises `SuiteError` naming it when it is missing or not Parquet."""
    try:
        with regular_file(path).open("rb") as file:
            return pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException, ValueError, MemoryError, OverflowError) as error:
        raise SuiteError(f"{path}: cannot be read as Parquet: {reason_of(error)}") from error


def gold(row: dict, task: BenchmarkTask) -> list[int]:
    """Positions of the right choices of a normalised row, in the order lm-eval presents the choices."""
    if "answerKey" in row:
        return [row["choices"]["label"].index(row["answerKey"])]
    if "endings" in row:
        return [int(row["label"])]
    if "sentence" in row:
        return [int(row["answer"]) - 1]
    targets = row["mc2_targets" if Metric.MC2 in task.metrics else "mc1_targets"]
    return [position for position, label in enumerate(targets["labels"]) if label == 1]


def clusters(table: pa.Table, suite: Suite) -> list[str]:
    """For every row the name of the group it shares a source with; an independent item is its own group.

    HellaSwag: the video or article (`source_id`; 8,407 for 10,042 rows). WinoGrande: twins are neighbouring rows
    with the same two options, one sentence differing in a trigger word; this finds 284 pairs, 983 groups, the same
    as the `qID` of the original release, while options alone would join unrelated sentences.
    """
    if suite.schema is SCHEMAS["hellaswag"]:
        return table["source_id"].to_pylist()
    names = [str(item) for item in range(table.num_rows)]
    if suite.schema is SCHEMAS["winogrande"]:
        options = [frozenset(pair) for pair in zip(table["option1"].to_pylist(), table["option2"].to_pylist())]
        for item in range(1, len(names)):
            if options[item] == options[item - 1] and names[item - 1] == str(item - 1):
                names[item] = names[item - 1]
    return names
