"""The five benchmark suites: what they are, and their rows in one fixed form.

* One `Suite` names the hub id, config and split, the official row count, and the lm-eval tasks that score it.
* `normalise` turns rows from any source (a folder, a wheel, the hub) into the same Arrow table, and `write_rows`
  turns the same table into the same bytes, so that a digest of the file identifies the benchmark and not
  where it came from. Bad rows are refused with the file, the value found and the value expected.
* `gold` and `clusters` say which choices are right and which items are not independent of each other.

Reading the sources is in `eval/suites/sources.py`. Item ids are row numbers: lm-eval's `doc_id`.
"""

import zlib
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.suites.rows import flaw, repetitions, with_a_right_answer, with_types
from model.errors import DailyTrainError, reason_of, regular_file
from model.parsing import Bounds, check_fields


class SuiteError(DailyTrainError, ValueError):
    """Benchmark rows that are missing or not what the suite's official release holds."""


class Metric(StrEnum):
    ACC = "acc"
    """Share of items whose most likely choice is the right one."""
    ACC_NORM = "acc_norm"
    """The same after dividing each choice's log-likelihood by its length in characters."""
    MC1 = "mc1"
    """TruthfulQA, one right answer: `acc` of lm-eval's truthfulqa_mc1."""
    MC2 = "mc2"
    """TruthfulQA, many right answers: probability mass on them, `acc` of lm-eval's truthfulqa_mc2."""


METRIC_VERSIONS = {metric.value: 1 for metric in Metric}
"""Raised when what we compute under a name changes; scores of different versions are never compared."""


class Split(StrEnum):
    ITEMS = "items"
    """The split that is scored."""
    SHOTS = "shots"
    """The train split, from which few-shot examples are drawn."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """One lm-eval task over a suite's rows."""

    name: str
    """lm-eval's task name, kept as it is."""
    definition: str
    """lm-eval's own YAML, relative to `lm_eval/tasks/`."""
    metrics: dict[Metric, str]
    """Our metric name to the key lm-eval reports it under."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    name: str
    hub_id: str
    hub_config: str | None
    revision: str
    """Hub commit. The value many public evaluation records pin; it was the head of each set in 2026."""
    split: str
    file_name: str
    """Parquet file in a folder of benchmarks that a person supplies."""
    rows: int
    """Official number of rows in the split."""
    train_rows: int | None
    """The same for the train split; null where there is none."""
    schema: pa.Schema
    """The official columns, so that lm-eval's `doc_hash` of a row is the one it has with hub data."""
    tasks: tuple[BenchmarkTask, ...]

    def __hash__(self) -> int:
        return hash(self.name)

    def rows_of(self, split: Split) -> int | None:
        return self.rows if split is Split.ITEMS else self.train_rows

    def hub_split(self, split: Split) -> str:
        return self.split if split is Split.ITEMS else "train"

    def folder_file(self, split: Split) -> str:
        """Name of the split's file in a folder that a person supplies."""
        return self.file_name if split is Split.ITEMS else f"{self.name}-train.parquet"

    def rows_file(self, split: Split) -> str:
        """Name of the split's normalised file."""
        return f"{self.name}.parquet" if split is Split.ITEMS else f"{self.name}-shots.parquet"


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Solved examples of the train split before every question; TruthfulQA brings its own six."""

    arc_easy: Annotated[int, Bounds(ge=0)] = 0
    arc_challenge: Annotated[int, Bounds(ge=0)] = 0
    hellaswag: Annotated[int, Bounds(ge=0)] = 0
    winogrande: Annotated[int, Bounds(ge=0)] = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def of(self, suite: Suite) -> int:
        return getattr(self, suite.name, 0)


ZERO_SHOT = Shots()


_TEXT = pa.list_(pa.string())
_TARGETS = pa.struct([("choices", _TEXT), ("labels", pa.list_(pa.int32()))])
_ARC = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("choices", pa.struct([("text", _TEXT), ("label", _TEXT)])),
        ("answerKey", pa.string()),
    ]
)
_HELLASWAG = pa.schema(
    [
        ("ind", pa.int32()),
        ("activity_label", pa.string()),
        ("ctx_a", pa.string()),
        ("ctx_b", pa.string()),
        ("ctx", pa.string()),
        ("endings", _TEXT),
        ("source_id", pa.string()),
        ("split", pa.string()),
        ("split_type", pa.string()),
        ("label", pa.string()),
    ]
)
_WINOGRANDE = pa.schema([(name, pa.string()) for name in ("sentence", "option1", "option2", "answer")])
_TRUTHFULQA = pa.schema([("question", pa.string()), ("mc1_targets", _TARGETS), ("mc2_targets", _TARGETS)])
_BOTH = {Metric.ACC: "acc", Metric.ACC_NORM: "acc_norm"}


def _arc(name: str, config: str, rows: int, train_rows: int) -> Suite:
    return Suite(
        name=name,
        hub_id="allenai/ai2_arc",
        hub_config=config,
        revision="210d026faf9955653af8916fad021475a3f00453",
        split="test",
        file_name=f"{name}-test.parquet",
        rows=rows,
        train_rows=train_rows,
        schema=_ARC,
        tasks=(BenchmarkTask(name=name, definition=f"arc/{name}.yaml", metrics=_BOTH),),
    )


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        _arc("arc_easy", "ARC-Easy", 2376, 2251),
        _arc("arc_challenge", "ARC-Challenge", 1172, 1119),
        Suite(
            name="hellaswag",
            hub_id="Rowan/hellaswag",
            hub_config=None,
            revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
            split="validation",
            file_name="hellaswag-validation.parquet",
            rows=10042,
            train_rows=39905,
            schema=_HELLASWAG,
            tasks=(BenchmarkTask(name="hellaswag", definition="hellaswag/hellaswag.yaml", metrics=_BOTH),),
        ),
        Suite(
            name="winogrande",
            hub_id="allenai/winogrande",
            hub_config="winogrande_xl",
            revision="01e74176c63542e6b0bcb004dcdea22d94fb67b5",
            split="validation",
            file_name="winogrande-validation.parquet",
            rows=1267,
            train_rows=40398,
            schema=_WINOGRANDE,
            tasks=(
                BenchmarkTask(name="winogrande", definition="winogrande/default.yaml", metrics={Metric.ACC: "acc"}),
            ),
        ),
        Suite(
            name="truthfulqa",
            hub_id="truthfulqa/truthful_qa",
            hub_config="multiple_choice",
            revision="741b8276f2d1982aa3d5b832d3ee81ed3b896490",
            split="validation",
            file_name="truthfulqa-mc-validation.parquet",
            rows=817,
            train_rows=None,
            schema=_TRUTHFULQA,
            tasks=(
                BenchmarkTask(
                    name="truthfulqa_mc1",
                    definition="truthfulqa/truthfulqa_mc1.yaml",
                    metrics={Metric.MC1: "acc"},
                ),
                BenchmarkTask(
                    name="truthfulqa_mc2",
                    definition="truthfulqa/truthfulqa_mc2.yaml",
                    metrics={Metric.MC2: "acc"},
                ),
            ),
        ),
    )
}


def suite_named(name: str) -> Suite:
    """The suite of that name; an unknown name is a `SuiteError` that lists the known ones."""
    if name not in SUITES:
        raise SuiteError(f"unknown suite {name!r}: expected one of {', '.join(SUITES)}")
    return SUITES[name]


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
        if split is Split.ITEMS and (reason := flaw(rows[item])):
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
    if suite.schema is _HELLASWAG:
        return table["source_id"].to_pylist()
    names = [str(item) for item in range(table.num_rows)]
    if suite.schema is _WINOGRANDE:
        options = [frozenset(pair) for pair in zip(table["option1"].to_pylist(), table["option2"].to_pylist())]
        for item in range(1, len(names)):
            if options[item] == options[item - 1] and names[item - 1] == str(item - 1):
                names[item] = names[item - 1]
    return names
