"""The five benchmark suites: one `Suite` names the hub id, config and split, the official row count, and the lm-eval
tasks that score it.

Their rows are in `eval/suites/items.py`, reading the sources in `eval/suites/sources.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from model.errors import DailyTrainError, did_you_mean
from model.parsing import Bounds, check_fields

if TYPE_CHECKING:
    import pyarrow as pa


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
    tasks: tuple[BenchmarkTask, ...]

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def schema(self) -> "pa.Schema":
        """The official columns, so that lm-eval's `doc_hash` of a row is the one it has with hub data."""
        from eval.suites.schemas import SCHEMAS  # noqa: PLC0415 (pyarrow, for whoever asks no more than a name)

        return SCHEMAS[self.name]

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
        hint = did_you_mean(name, SUITES)
        raise SuiteError(f"unknown suite {name!r}{hint}: expected one of {', '.join(SUITES)}")
    return SUITES[name]
