"""Scores a checkpoint with lm-eval's own task definitions: `python -m eval.harness CONFIG.json`.

* The official YAMLs are included and only pointed at local Parquet files: prompts are never re-written.
* `CheckpointModel` gives the log-likelihoods of lm-eval's `hf` backend on the same weights, in fp32, but runs
  the vocabulary projection at answer positions only, packs batches by tokens, and runs equal requests once.
* Writes `samples.parquet` and `scores.json` (`eval/samples.py`): the same bytes on every run with the same
  execution; another batch size, thread count or device moves log-likelihoods by rounding only.

Shape suffixes: B rows of a batch, T tokens, D width, N answer positions, V vocabulary.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# These are read once, when datasets, tokenizers and tqdm are imported, so they precede the imports: no network,
# no threads in a process that may fork, no progress bars between our own output.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"

import lm_eval.tasks
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from safetensors import SafetensorError
from tokenizers import Tokenizer

from eval.command import Progress, run
from eval.samples import SAMPLES_SCHEMA, sample_rows, score_rows
from eval.suites import METRIC_VERSIONS, Suite, SuiteError, chosen_items, clusters, read_rows, suite_named
from model.checkpoint import CheckpointError, FinalModel, load_final
from model.config import ConfigError

NUM_FEWSHOT = 0
_LOGITS = 2**26
"""Most logits held at once (256 MiB of fp32)."""


class HarnessError(Exception):
    """A checkpoint cannot be scored; the message names the file or item, and the value."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how fast; never part of a result's identity."""

    device: str | None = None
    """"cpu" or "cuda"; null takes the GPU if there is one."""
    threads: int | None = None
    """CPU threads of torch; null leaves its default."""
    batch_tokens: int = 16384
    """Most tokens of one forward pass, padding included."""


@dataclass(frozen=True, kw_only=True)
class HarnessConfig:
    checkpoint: Path
    """Directory of a finished model: model.safetensors and config.json."""
    tokenizer: Path
    """tokenizer.json, whose SHA-256 must be the one the model was trained with."""
    benchmarks: Path
    """Directory of normalised rows, `{suite}.parquet`."""
    suites: tuple[str, ...]
    items_per_suite: int | None
    """Size of the fixed random subset of every suite; null scores all items."""
    seed: int
    """Decides the subset."""
    out: Path
    execution: Execution = Execution()


class CheckpointModel(TemplateLM):
    """A model of ours as lm-eval sees it: log-likelihoods only."""

    def __init__(self, final: FinalModel, tokenizer: Tokenizer, device: str, batch_tokens: int) -> None:
        super().__init__()
        self._model = final.model
        self._tokenizer = tokenizer
        self._eot_token = final.eot_token
        self._device = torch.device(device)
        self._batch_tokens = batch_tokens
        self._max_length = final.model.config.sequence_length
        self._items: list[tuple[str, int]] = []
        self.chosen: dict[str, list[int]] = {}
        """By task, the items that are scored: lm-eval numbers the requests of a subset from 0."""
        self.truncated: dict[str, set[int]] = defaultdict(set)
        """By task, the items whose context was cut on the left."""
        self.tokens = 0
        """Tokens run through the model, without padding."""
        # a context is encoded once, not once for each of its choices
        self._encode = lru_cache(4096)(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)

    @property
    def eot_token_id(self) -> int:
        return self._eot_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        return self._encode(string)

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """All tasks' requests arrive in one call; their items are kept for messages and truncation counts."""
        self._items = [(request.task_name, self.chosen[request.task_name][request.doc_id]) for request in requests]
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list, **kwargs: object) -> list[tuple[float, bool]]:
        """(sum of log p in nats, is greedy) for each (texts, context ids, continuation ids), in their order."""
        answers: list[tuple[float, bool] | None] = [None] * len(requests)
        # Equal inputs are run once: TruthfulQA's two tasks share most answers, twins and one-token choices all.
        wanted: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, (_, context, continuation) in enumerate(requests):
            wanted[self._input(number, context, continuation)].append(number)
        done, progress = 0, Progress(len(requests))
        for batch in self._batches(sorted(wanted, key=lambda tokens: (-len(tokens), tokens))):
            targets = [(row, number) for row, tokens in enumerate(batch) for number in wanted[tokens]]
            continuations = [requests[number][2] for _, number in targets]
            scores = self._score(batch, [row for row, _ in targets], continuations)
            for (_, number), score in zip(targets, scores):
                if not np.isfinite(score[0]):
                    task, item = self._items[number]
                    raise HarnessError(f"log-likelihood is {score[0]} for request {number} ({task}, item {item})")
                answers[number] = score
            done += len(targets)
            progress(done)
        return answers

    def _input(self, number: int, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """Tokens to run: as the hf backend, cut on the left to the model's length, last token not run."""
        task, item = self._items[number]
        if not 0 < len(continuation) <= self._max_length:
            raise HarnessError(
                f"an answer of {task}, item {item}, has {len(continuation)} tokens: "
                f"the model's sequence_length {self._max_length} must hold it, and it must not be empty"
            )
        if len(context) + len(continuation) > self._max_length + 1:
            self.truncated[task].add(item)
        return tuple((context + continuation)[-(self._max_length + 1) :][:-1])

    def _batches(self, rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Consecutive rows, longest first, so that rows * longest stays within the token budget."""
        start = 0
        while start < len(rows):
            end = start + max(1, self._batch_tokens // len(rows[start]))
            yield rows[start:end]
            start = end

    @torch.inference_mode()
    def _score(self, batch: list[tuple[int, ...]], rows: list[int], continuations: list[list[int]]) -> list:
        """Scores of `continuations[i]` as the end of `batch[rows[i]]` (shifted by one: see `_input`)."""
        tokens_BT = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
        for row, tokens in enumerate(batch):
            tokens_BT[row, : len(tokens)] = torch.tensor(tokens)
            self.tokens += len(tokens)
        # Padding is on the right: a causal model cannot see it from the positions that are read.
        h_BTD = self._model.hidden(tokens_BT.to(self._device))
        lengths = [len(continuation) for continuation in continuations]
        row_N = np.repeat(rows, lengths)
        position_N = np.concatenate(
            [np.arange(len(batch[row]) - length, len(batch[row])) for row, length in zip(rows, lengths)]
        )
        target_N = torch.tensor(np.concatenate(continuations), device=self._device)
        h_ND = h_BTD[torch.from_numpy(row_N).to(self._device), torch.from_numpy(position_N).to(self._device)]
        logprob_N, greedy_N = [], []
        step = max(1, _LOGITS // self._model.config.vocab_size)
        for first in range(0, len(target_N), step):
            target_n = target_N[first : first + step]
            logits_nV = self._model.project(h_ND[first : first + step])
            chosen_n = logits_nV.log_softmax(-1).gather(1, target_n[:, None])[:, 0]
            logprob_N.append(chosen_n.double().cpu().numpy())
            greedy_N.append((logits_nV.argmax(-1) == target_n).cpu().numpy())
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        sums = np.add.reduceat(np.concatenate(logprob_N), starts)
        greedy = np.logical_and.reduceat(np.concatenate(greedy_N), starts)
        return list(zip(sums.tolist(), greedy.tolist()))

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = True) -> list[float]:
        raise HarnessError("rolling log-likelihoods are not part of these suites")

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        raise HarnessError("generation is not part of these suites")


def load_model(config: HarnessConfig) -> CheckpointModel:
    """The checkpoint, checked: right tokenizer, finite weights. Raises `HarnessError` naming the file."""
    execution = config.execution
    device = execution.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise HarnessError(f"execution.device is {device!r}: expected cpu, or cuda on a machine that has one")
    if execution.batch_tokens < 1 or (execution.threads is not None and execution.threads < 1):
        raise HarnessError(f"execution needs batch_tokens and threads of at least 1, found {execution}")
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    try:
        final = load_final(config.checkpoint, device)
        definition = config.tokenizer.read_bytes()
    except (OSError, RuntimeError, KeyError, SafetensorError, ConfigError, CheckpointError) as error:
        raise HarnessError(f"{config.checkpoint}: cannot be loaded: {error}") from error
    digest = hashlib.sha256(definition).hexdigest()
    if digest != final.tokenizer_sha256:
        raise HarnessError(
            f"{config.tokenizer}: SHA-256 is {digest}, "
            f"but {config.checkpoint} was trained with {final.tokenizer_sha256}"
        )
    for name, weight in final.model.named_parameters():
        if not torch.isfinite(weight).all():
            raise HarnessError(f"{config.checkpoint / 'model.safetensors'}: {name} holds values that are not finite")
    tokenizer = Tokenizer.from_str(definition.decode())
    if tokenizer.get_vocab_size() > final.model.config.vocab_size:
        raise HarnessError(
            f"{config.tokenizer}: {tokenizer.get_vocab_size()} tokens, "
            f"but the model predicts {final.model.config.vocab_size}"
        )
    return CheckpointModel(final, tokenizer, device, execution.batch_tokens)


def write_tasks(suites: list[Suite], benchmarks: Path, directory: Path) -> None:
    """One YAML per task: lm-eval's own, included, with the data replaced by the local file.

    JSON is YAML. The datasets cache lies in `directory`, so nothing of another run is ever reused.
    """
    official = Path(lm_eval.tasks.__file__).parent
    for suite in suites:
        data_files = {suite.split: str((benchmarks / f"{suite.name}.parquet").resolve())}
        for task in suite.tasks:
            definition = {
                "include": str(official / task.definition),
                "task": task.name,
                "dataset_path": "parquet",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": data_files, "cache_dir": str(directory / "cache")},
                "training_split": None,
                "validation_split": None,
                "test_split": None,
                "fewshot_split": None,
            } | {f"{suite.split}_split": suite.split}
            (directory / f"{task.name}.yaml").write_text(json.dumps(definition))


def evaluate_checkpoint(config: HarnessConfig) -> dict:
    """Scores every suite and writes the two files; returns what the last event reports."""
    started = time.monotonic()
    if not config.suites or len(set(config.suites)) != len(config.suites):
        raise HarnessError(f"suites must be distinct and at least one, found {list(config.suites)}")
    suites = [suite_named(name) for name in config.suites]
    tables = {suite.name: read_rows(config.benchmarks, suite) for suite in suites}
    items = {suite.name: chosen_items(suite, config.items_per_suite, config.seed) for suite in suites}
    model = load_model(config)
    model.chosen = {task.name: items[suite.name] for suite in suites for task in suite.tasks}
    with tempfile.TemporaryDirectory(prefix="harness-") as temporary:
        write_tasks(suites, config.benchmarks, Path(temporary))
        manager = lm_eval.tasks.TaskManager(include_path=temporary, include_defaults=False)
        loaded = manager.load([task.name for suite in suites for task in suite.tasks])
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=NUM_FEWSHOT)
        # `evaluate`, not `simple_evaluate`: that one seeds every global generator and probes the machine. No
        # use_cache: it is keyed on the request and not on the model, and would return yesterday's scores.
        results = evaluate(
            model,
            loaded,
            samples=model.chosen,
            bootstrap_iters=0,
        )
    samples, scores = [], []
    for suite in suites:
        rows, groups = tables[suite.name].to_pylist(), clusters(tables[suite.name], suite)
        for task in suite.tasks:
            found = sample_rows(suite, task, results["samples"][task.name], rows, groups)
            samples += found
            scores += score_rows(suite, task, found, len(model.truncated[task.name]))
    config.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES_SCHEMA), config.out / "samples.parquet")
    report = {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "num_fewshot": NUM_FEWSHOT,
        "task_versions": {task.name: results["versions"][task.name] for suite in suites for task in suite.tasks},
        "metric_versions": METRIC_VERSIONS,
        "items_per_suite": config.items_per_suite,
        "seed": config.seed,
        "scores": scores,
    }
    (config.out / "scores.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return {"seconds": round(time.monotonic() - started, 3), "tokens": model.tokens}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], HarnessConfig, evaluate_checkpoint, (HarnessError, SuiteError, OSError)))
