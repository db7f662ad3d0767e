"""Values that must not change by accident: `python -m tests.golden` prints what differs from golden.json, and with
`--write` accepts it. A change of them is a change of what a run does: name it, and a stage's raised version, in the
changelog."""

import difflib
import hashlib
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import tasks.budget
import tasks.contamination
import tasks.download
import tasks.evaluate
import tasks.report
import tasks.shard
import tasks.tokenizer
import tasks.train
from eval.document_parquet import SCHEMA
from eval.suites.suites import SUITES, chosen_items
from flows.config import compose
from flows.preset_files import Preset
from model.network.gpt import GPT, initialise
from tasks.benchmarks import Items
from tasks.shard import ShardConfig, write_shards
from tasks.store.context import RunContext, open_context
from tasks.store.manifest import Manifest, Output
from tasks.store.objects import digest_file
from tasks.store.stage import Stage, StageResult
from tasks.tokenizer import train_bpe
from tests.flows.test_presets import first_losses

FILE = Path(__file__).with_name("golden.json")
SLICE = 24
TEXTS = [f"Speech {number}: the “Union” is {number * number} years old, naïve 日本 🚂.\n" * 3 for number in range(40)]


def initial_weights(preset: str) -> dict[str, list[float]]:
    """Mean and standard deviation of the first weights by role, from the initialisation of the preset's full size on
    slices of each tensor."""
    config = compose(preset, {"model": {"vocab_size": 4096, "eot_token": 0}}).model
    with torch.device("meta"):
        model = GPT(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            shape = [min(SLICE, size) for size in parameter.shape] if parameter.ndim > 1 else parameter.shape
            setattr(module, name, nn.Parameter(torch.empty(shape)))
    initialise(model, 1)
    roles = defaultdict(list)
    for name, parameter in model.named_parameters():
        roles[re.sub(r"\.\d+\b", "", name)].append(parameter.detach().flatten())
    return {
        role: [_short(torch.cat(parts).mean()), _short(torch.cat(parts).std(correction=0))]
        for role, parts in roles.items()
    }


def _short(value: torch.Tensor) -> float:
    return float(f"{value.item():.5g}")


def item_subsets() -> dict[str, list[int]]:
    """A subset of each suite by the seed 0."""
    return {suite.name: chosen_items(suite, 8, 0) for suite in SUITES.values()}


def shard_files(folder: Path) -> dict[str, str]:
    """SHA-256 of a trained tokenizer and of each file of the shards of a small corpus."""
    documents = folder / "documents"
    documents.mkdir()
    for split, texts in (("train", TEXTS), ("val", TEXTS[:7])):
        names = [f"{split}/{number}" for number in range(len(texts))]
        columns = {"id": names, "text": texts, "source": [""] * len(texts)}
        pq.write_table(pa.table(columns, schema=SCHEMA), documents / f"{split}_000000.parquet")
    train_bpe(iter(TEXTS), 300, 1).save(str(folder / "tokenizer.json"))
    (folder / "shards").mkdir()
    write_shards(ShardConfig(tokens_per_shard=1024), documents, folder / "tokenizer.json", 1, folder / "shards")
    files = [folder / "tokenizer.json", *sorted((folder / "shards").iterdir())]
    return {path.name: digest_file(path).sha256 for path in files}


class _Reached(Exception):
    """A stage was about to be looked for in the store."""


def stage_keys(preset: str, context: RunContext) -> dict[str, str]:
    """Key of each stage of a run whose inputs are fixed, as the stage itself computes it."""
    config = compose(preset, {})
    one = _result("documents", "tokenizer.json", "model.safetensors", "config.json", "flagged.parquet")
    items = Items({name: one for name in config.evaluation.suites}, {}, {})
    stages = {
        "download": lambda: tasks.download.download.fn(config.data, context),
        "tokenizer": lambda: tasks.tokenizer.build_tokenizer.fn(config.tokenizer, one, context),
        "shard": lambda: tasks.shard.build_shards.fn(config.shard, one, one, context),
        "contamination": lambda: tasks.contamination.check_contamination.fn(config.contamination, one, items, context),
        "filter": lambda: tasks.contamination.drop_contaminated.fn(one, one, context),
        "train": lambda: tasks.train.training_stage(config.model, config.train, one, one, None, context),
        "evaluate": lambda: tasks.evaluate.evaluate_model.fn(config.evaluation, one, one, items, context),
        "report": lambda: tasks.report.publish_report.fn(preset, "", [one], items, context, {}),
    }
    return {name: key for name, build in stages.items() for key in _key(build)}


@contextmanager
def _stopped(found: list[Stage]) -> Iterator[None]:
    """Stages end where they would begin; the source of the trainer, which changes with each edit, is left out."""

    def stop(stage: Stage, *_: object) -> None:
        found.append(stage)
        raise _Reached

    modules = ("budget", "contamination", "download", "evaluate", "report", "shard", "tokenizer", "train")
    with patch.object(tasks.train, "model_source_digest", lambda: "0" * 64):
        patches = [patch.object(getattr(tasks, name), "build_or_skip", stop) for name in modules]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()


def _key(build: Any) -> list[str]:
    found: list[Stage] = []
    with _stopped(found), suppress(_Reached):
        build()
    return [stage.key for stage in found]


def _result(stage: str, *outputs: str) -> StageResult:
    files = tuple(Output(path=name, bytes=1, sha256=hashlib.sha256(name.encode()).hexdigest()) for name in outputs)
    manifest = Manifest(key="0" * 64, stage=stage, version=1, config={}, inputs={}, attempt="a", outputs=files)
    return StageResult(manifest=manifest, skipped=True, seconds=0.0)


def key_context(folder: Path) -> RunContext:
    return open_context(str(folder / "store"), None, 1, "cpu", None, 0.0)


def values(folder: Path) -> dict[str, Any]:
    """All of golden.json."""
    context = key_context(folder)
    return {
        "initial weights": {preset: initial_weights(preset) for preset in Preset},
        "first losses": {preset: first_losses(folder, preset) for preset in Preset},
        "item subsets": item_subsets(),
        "shard files": shard_files(folder),
        "stage keys": {preset: stage_keys(preset, context) for preset in Preset},
    }


def golden(name: str) -> Any:
    """What golden.json holds under a name."""
    return json.loads(FILE.read_text())[name]


def main(arguments: list[str]) -> int:
    """0 when nothing differs, or when it was written."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        now = _text(values(Path(folder)))
    before = FILE.read_text() if FILE.exists() else ""
    if arguments == ["--write"]:
        FILE.write_text(now)
    for line in difflib.unified_diff(before.splitlines(), now.splitlines(), "golden.json", "now", n=1, lineterm=""):
        print(line)
    return int(now != before and arguments != ["--write"])


def _text(found: dict[str, Any]) -> str:
    """JSON with a line for each value, lists in one line."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
