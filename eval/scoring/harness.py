"""Scores a checkpoint with lm-eval's own task definitions: `python -m eval.scoring.harness CONFIG.json`.

* The official YAMLs are included and only pointed at local Parquet files: prompts are never re-written.
* `AnswerModel` gives the log-likelihoods of lm-eval's `hf` backend on the same weights, in the same `precision`, but
  runs every shared beginning once and the vocabulary projection at answer positions only (`eval/scoring/scorer.py`).
* Several processes (started by tasks/runtime/ranks.py or `torchrun`) score a share each, and the first one writes.
* Writes `samples.parquet` and `scores.json` (`eval/scoring/samples.py`): the same bytes on every run with the same
  execution; another batch size, thread count or device moves log-likelihoods by rounding only.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from model.errors import DailyTrainError, regular_file

# These are read once, when datasets, tokenizers and tqdm are imported, so they precede the imports: no network,
# no threads in a process that may fork, no progress bars between our own output.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"

import lm_eval.tasks
import lm_eval.utils
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from lm_eval.api.model import LM, TemplateLM
from lm_eval.evaluator import evaluate
from safetensors import SafetensorError
from tokenizers import Tokenizer

from eval.command import Progress, emit, run
from eval.scoring.arithmetic import computed_in, set_matmul_precision
from eval.scoring.precision import Precision
from eval.scoring.samples import SAMPLES_SCHEMA, sample_rows, score_rows
from eval.scoring.scorer import RequestScorer, Score, Scorer
from eval.scoring.trained_model import TrainedModel
from eval.suites.items import chosen_items, clusters, read_rows
from eval.suites.suites import METRIC_VERSIONS, ZERO_SHOT, Shots, Split, Suite, suite_named
from eval.suites.task_files import write_tasks
from model.machine.gpu_process import join_process_group, require_own_gpu, use_expandable_segments
from model.machine.thread_waiting import Waiting
from model.network.config import ConfigError
from model.training.checkpoint import CheckpointError, load_final

FEWSHOT_SEED = 1234
"""lm-eval's default, so that its sampler draws the examples it would draw there."""


Encode = Callable[[list[str], bool | None], list[list[int]]]
"""Token ids of texts."""
_ENCODED_AT_ONCE = 4096


class HarnessError(DailyTrainError):
    """A checkpoint cannot be scored; the message names the file or item, and the value."""


@dataclass(frozen=True, kw_only=True)
class ScoringExecution:
    """Where and how fast; never part of a result's identity."""

    device: str | None = None
    """"cpu" or "cuda"; null takes the GPU if there is one."""
    threads: int | None = None
    """CPU threads of torch; null leaves its default."""
    batch_tokens: int | None = None
    """Most tokens of one forward pass, padding included; null: what suits the device."""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """What is scored, whatever the model."""

    benchmarks: Path
    """Directory of normalised rows, `{suite}.parquet`, and of examples, `{suite}-shots.parquet`."""
    suites: tuple[str, ...]
    items_per_suite: int | None
    """Size of the fixed random subset of every suite; null scores all items."""
    seed: int
    """Decides the subset."""
    num_fewshot: Shots = ZERO_SHOT
    precision: Precision = Precision.FP32
    out: Path
    execution: ScoringExecution = ScoringExecution()


@dataclass(frozen=True, kw_only=True)
class HarnessConfig(ScoringConfig):
    checkpoint: Path
    """Directory of a finished model: model.safetensors and config.json."""
    tokenizer: Path
    """tokenizer.json, whose SHA-256 must be the one the model was trained with."""


class AnswerModel(TemplateLM):
    """A network as lm-eval sees it: log-likelihoods of answers only.

    Each of several processes builds all requests (rank and world size stay lm-eval's defaults) and `scorer` shares
    out the work, so that few-shot examples are the same for any number of processes.
    """

    def __init__(
        self, scorer: RequestScorer, encode: Encode, prefix_token: int, origin: dict[str, str | None] | None = None
    ) -> None:
        """`encode(texts, add_special_tokens)` gives token ids, and `prefix_token` stands for an empty context.
        `origin`: id, revision and commit on the hub, for the report."""
        super().__init__()
        self.scorer = scorer
        self.origin = origin
        self._encode = encode
        self._encoded: dict[tuple[str, bool | None], np.ndarray] = {}
        self._ids = lru_cache(64)(self._look_up)  # the choices of an item share the list of their context
        self._prefix_token = prefix_token
        self._items: list[tuple[str, int]] = []
        self.chosen: dict[str, list[int]] = {}
        """By task, the items that are scored: lm-eval numbers the requests of a subset from 0."""
        self.truncated: dict[str, set[int]] = defaultdict(set)
        """By task, the items whose context was cut on the left."""

    @property
    def eot_token_id(self) -> int:
        return self._prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        return self._ids(string, add_special_tokens)

    def _look_up(self, text: str, add_special_tokens: bool | None) -> list[int]:
        known = self._encoded.get((text, add_special_tokens))
        return self._encode([text], add_special_tokens)[0] if known is None else known.tolist()

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[Score]:
        """All tasks' requests arrive in one call; their items are kept for messages and truncation counts."""
        self._items = [(request.task_name, self.chosen[request.task_name][request.doc_id]) for request in requests]
        self._encode_ahead([request.args for request in requests])
        return super().loglikelihood(requests, disable_tqdm=True)

    def _encode_ahead(self, pairs: list[tuple[str, str]]) -> None:
        """Encode on all threads what lm-eval would otherwise encode text by text, each distinct text once.

        That is about half of the time before a GPU gets its first batch.
        """
        whole = [context + continuation for context, continuation in pairs if context]
        contexts = [context.rstrip() for context, _ in pairs if context]  # lm-eval gives their spaces to the answer
        answers = [continuation for context, continuation in pairs if not context]
        for texts, add_special_tokens in ((whole + contexts, None), (answers, False)):
            distinct = list(dict.fromkeys(texts))
            for start in range(0, len(distinct), _ENCODED_AT_ONCE):
                part = distinct[start : start + _ENCODED_AT_ONCE]
                for text, ids in zip(part, self._encode(part, add_special_tokens), strict=True):
                    self._encoded[text, add_special_tokens] = np.array(ids, np.int32)

    def _loglikelihood_tokens(self, requests: list, **kwargs: object) -> list[Score]:
        """The score of each (texts, context ids, continuation ids), in their order."""
        self._encoded.clear()
        by_length = sorted(range(len(requests)), key=lambda number: -len(requests[number][2]))
        inputs = {number: self._input(number, *requests[number][1:]) for number in by_length}  # the worst one is named
        ordered = [inputs[number] for number in range(len(requests))]
        tell = (lambda done: None) if dist.is_initialized() and dist.get_rank() else Progress(len(requests))
        with Waiting(self.scorer.device) as waiting:

            def report(done: int) -> None:
                tell(done)
                if warning := waiting.take_warning():
                    emit({"event": "warning", "message": warning})

            scores = self.scorer(ordered, [request[2] for request in requests], report)
        for number, (logprob, _) in enumerate(scores):
            if not np.isfinite(logprob):
                task, item = self._items[number]
                raise HarnessError(f"log-likelihood is {logprob} for request {number} ({task}, item {item})")
        return scores

    def _input(self, number: int, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """Tokens to run: as the hf backend, cut on the left to the model's length, last token not run."""
        task, item = self._items[number]
        most = self.scorer.max_length
        if not 0 < len(continuation) <= most:  # lm-eval's hf backend asserts the same, it cuts contexts alone
            raise HarnessError(
                f"an answer of {task}, item {item}, has {len(continuation)} tokens: "
                f"the model's sequence_length {most} must hold it, and it must not be empty"
            )
        if len(context) + len(continuation) > most + 1:
            self.truncated[task].add(item)
        return tuple((context + continuation)[-(most + 1) :][:-1])

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = True) -> list[float]:
        raise HarnessError("rolling log-likelihoods are not part of these suites")

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        raise HarnessError("generation is not part of these suites")


def prepare(config: ScoringConfig) -> torch.device:
    """The device to use, threads and arithmetic set; several processes are connected."""
    execution = config.execution
    use_expandable_segments()
    name = execution.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise HarnessError(f"execution.device is {name!r}: expected cpu, or cuda on a machine that has one")
    if any(value is not None and value < 1 for value in (execution.batch_tokens, execution.threads)):
        raise HarnessError(f"execution needs batch_tokens and threads of at least 1, found {execution}")
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))  # of tokenizers
    set_matmul_precision(config.precision)
    rank, count, local_rank = (
        int(os.environ.get(variable, default))
        for variable, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    device = torch.device(name)
    if name == "cuda":
        require_own_gpu(local_rank)
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)  # Triton's kernels run on the current one, wherever their tensors are
    if count > 1:
        join_process_group("gloo", rank, count)  # scores travel, tensors do not
    return device


def require_finite(parameters: Iterable[tuple[str, torch.Tensor]], source: Path | str) -> None:
    for name, weight in parameters:
        if not torch.isfinite(weight).all():
            raise HarnessError(f"{source}: {name} holds values that are not finite")


def require_deterministic(tokenizer: Tokenizer, source: str | Path) -> None:
    """Refuse a tokenizer that draws its tokens at random: scores would be random, too."""
    if dropout := getattr(tokenizer.model, "dropout", None):
        raise HarnessError(f"{source}: its tokenizer has a BPE dropout of {dropout:.4g}, so scores would be random")


def load_model(config: HarnessConfig) -> AnswerModel:
    """The checkpoint, checked: right tokenizer, finite weights. Raises `HarnessError` naming the file."""
    device = prepare(config)
    try:
        final = load_final(config.checkpoint, str(device))
        definition = config.tokenizer.read_bytes()
    except (OSError, RuntimeError, KeyError, SafetensorError, ConfigError, CheckpointError) as error:
        raise HarnessError(f"{config.checkpoint}: cannot be loaded: {error}") from error
    digest = hashlib.sha256(definition).hexdigest()
    if digest != final.tokenizer_sha256:
        raise HarnessError(
            f"{config.tokenizer}: SHA-256 is {digest}, "
            f"but {config.checkpoint} was trained with {final.tokenizer_sha256}"
        )
    require_finite(final.model.named_parameters(), config.checkpoint / "model.safetensors")
    tokenizer = Tokenizer.from_str(definition.decode())
    require_deterministic(tokenizer, config.tokenizer)
    network = TrainedModel(final, device, config.precision)
    if tokenizer.get_vocab_size() > network.vocab_size:
        raise HarnessError(
            f"{config.tokenizer}: {tokenizer.get_vocab_size()} tokens, but the model predicts {network.vocab_size}"
        )

    def encode(texts: list[str], add_special_tokens: bool | None) -> list[list[int]]:
        with tokenized_on_all_threads():
            return [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return AnswerModel(Scorer(network, device, config.execution.batch_tokens), encode, final.eot_token)


@contextmanager
def tokenized_on_all_threads() -> Iterator[None]:
    """Let `tokenizers` use threads. They are off otherwise, because threads and forked processes do not mix."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


def evaluate_checkpoint(config: HarnessConfig) -> dict:
    """Scores a finished model of ours; see `evaluate_model`."""
    return evaluate_model(config, lambda: load_model(config))


def evaluate_model(config: ScoringConfig, load: Callable[[], AnswerModel]) -> dict:
    """Scores every suite and writes the two files; returns what the last event reports."""
    started = time.monotonic()
    if not config.suites or len(set(config.suites)) != len(config.suites):
        raise HarnessError(f"suites must be distinct and at least one, found {list(config.suites)}")
    _require_writable(config.out)
    suites = [suite_named(name) for name in config.suites]
    tables = {suite.name: read_rows(config.benchmarks, suite) for suite in suites}
    items = {suite.name: chosen_items(suite, config.items_per_suite, config.seed) for suite in suites}
    for suite in suites:
        if config.num_fewshot.of(suite):
            read_rows(config.benchmarks, suite, Split.SHOTS)
    model = load()
    model.chosen = {task.name: items[suite.name] for suite in suites for task in suite.tasks}
    with tempfile.TemporaryDirectory(prefix="harness-") as temporary:
        write_tasks(suites, config.benchmarks, Path(temporary), config.num_fewshot)
        with templates_compiled_once():
            results = run_tasks(model, load_tasks(suites, Path(temporary)), model.chosen)
    seconds = round(time.monotonic() - started, 3)
    if dist.is_initialized() and dist.get_rank() > 0:
        return {"seconds": seconds, "tokens": model.scorer.tokens}
    samples, scores = [], []
    for suite in suites:
        rows, groups = tables[suite.name].to_pylist(), clusters(tables[suite.name], suite)
        for task in suite.tasks:
            found = sample_rows(suite, task, results["samples"][task.name], rows, groups)
            samples += found
            scores += score_rows(suite, task, found, len(model.truncated[task.name]), config.num_fewshot.of(suite))
    with (config.out / "samples.parquet").open("wb") as file:
        pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES_SCHEMA), file)
    report = {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "task_versions": {task.name: results["versions"][task.name] for suite in suites for task in suite.tasks},
        "metric_versions": METRIC_VERSIONS,
        "items_per_suite": config.items_per_suite,
        "seed": config.seed,
        # as in the stage's key: the default is left out, so that files of earlier versions mean the same
        **({} if config.precision is Precision.FP32 else {"precision": config.precision}),
        **({"model": model.origin} if model.origin else {}),
        "scores": scores,
    }
    (config.out / "scores.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    device = model.scorer.device
    return {
        "seconds": seconds,
        "tokens": model.scorer.tokens,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "computed_in": computed_in(config.precision, device),
    }


def _require_writable(folder: Path) -> None:
    """Before anything is scored; raises `HarnessError` naming the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in (folder / "scores.json", folder / "samples.parquet"):
            if path.is_symlink() or path.exists():  # of an earlier evaluation
                folder = path
                regular_file(path).open("r+b").close()
    except OSError as error:
        raise HarnessError(f"{folder}: scores cannot be written there: {error.strerror}") from error


def load_tasks(suites: list[Suite], directory: Path) -> dict:
    """lm-eval's tasks from the definitions that `write_tasks` wrote."""
    manager = lm_eval.tasks.TaskManager(include_path=directory, include_defaults=False)
    return manager.load([task.name for suite in suites for task in suite.tasks])


def run_tasks(model: LM, loaded: dict, chosen: dict[str, list[int]]) -> dict:
    """lm-eval's own evaluation, of any model of its interface."""
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    # `evaluate`, not `simple_evaluate`: that one seeds every global generator and probes the machine. No
    # use_cache: it is keyed on the request and not on the model, and would return yesterday's scores.
    return evaluate(model, loaded, samples=chosen, bootstrap_iters=0)


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """lm-eval compiles the template of a prompt again for every item, 2 ms each time; here it is kept."""
    environment = lm_eval.utils.env
    environment.from_string = cache(environment.from_string)  # hides the method of the class
    try:
        yield
    finally:
        del environment.from_string


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], HarnessConfig, evaluate_checkpoint))
