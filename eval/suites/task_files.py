"""lm-eval's own task definitions, included and pointed at local rows: a folder of YAML files.

No path stands in them, but names of links in that folder, so that neither YAML nor `datasets` can read one otherwise:
JSON's escapes of an emoji are not YAML's, and `datasets` takes `[`, `*` and `::` of a path as its own.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import yaml
from datasets import Dataset
from pyarrow.parquet import ParquetFile

from eval.suites.suites import ZERO_SHOT, Shots, Split, Suite

LOADER = """from functools import partial
from pathlib import Path

from eval.suites.task_files import load_rows

load = partial(load_rows, Path(__file__).parent)
"""


class Rows(Dataset):
    """A dataset that is prepared once: lm-eval prepares HellaSwag's, by an equal function, each time it asks."""

    def map(self, function: Callable[[dict], dict]) -> Dataset:
        known = self.__dict__.setdefault("_prepared", {})
        if function.__code__ not in known:
            known[function.__code__] = super().map(function)
        return known[function.__code__]


def load_rows(folder: Path, files: dict[str, str], **_: object) -> dict[str, Rows]:
    """What lm-eval calls for the rows of a task: by split, those of each file in the folder."""
    splits = {}
    for split, name in files.items():
        with (folder / name).open("rb") as file:
            table = ParquetFile(file).read()
        splits[split] = Rows(table)
    return splits


def write_tasks(suites: list[Suite], benchmarks: Path, directory: Path, shots: Shots = ZERO_SHOT) -> None:
    """One YAML per task: lm-eval's own, included, with the data replaced by the local files."""
    (directory / "rows.py").write_text(LOADER)
    _link(directory / "official", _official_tasks())
    for suite in suites:
        splits = {suite.split: Split.ITEMS}
        if shots.of(suite):
            splits["train"] = Split.SHOTS
        files = {name: suite.rows_file(split) for name, split in splits.items()}
        for file in files.values():
            _link(directory / file, benchmarks / file)
        for task in suite.tasks:
            definition = {
                "task": task.name,
                "dataset_path": "parquet",
                "dataset_name": None,
                "dataset_kwargs": {"files": files},
                "training_split": "train" if "train" in splits else None,
                "validation_split": None,
                "test_split": None,
                "fewshot_split": None,
                "num_fewshot": shots.of(suite),
            } | {f"{suite.split}_split": suite.split}
            text = f"include: official/{task.definition}\ncustom_dataset: !function rows.load\n"
            (directory / f"{task.name}.yaml").write_text(text + yaml.safe_dump(definition))


def _official_tasks() -> Path:
    """The task definitions in the installed lm-eval, which is not imported for them."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("lm_eval is not installed")
    return Path(package.origin).parent / "tasks"


def _link(link: Path, target: Path) -> None:
    if not link.exists():  # the rows may lie in this folder
        link.symlink_to(target.resolve())
