"""What can be known before training is checked before training.

* `check_run`, the first task of a run: this machine, the files that are named, settings that contradict each other, and
  whether it can train it (`tasks/feasibility.py`). Nothing is downloaded before.
* Each stage before training refuses its own bad input: documents, benchmark rows, tokenizer, shards.
* `rehearse_evaluation`, when tokenizer and items are there: the requests of the evaluation are made, by the code that
  scores, with everything but the network. What it would find after training is found now.

docs/operating.md lists what is checked when.
"""

import getpass
import locale
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from eval.suites.hellaswag import without_wikihow_marks
from eval.suites.suites import SUITES, Suite, chosen_items
from model.network.config import ConfigError, GPTConfig
from model.training.config import TrainConfig
from tasks.benchmarks import Items, find_source
from tasks.evaluate import EvaluationConfig, defining_versions, scoring_settings
from tasks.feasibility import ANY_CPU, Training, are_trained, most_flops, require_feasible
from tasks.runtime.child_process import run_module
from tasks.runtime.logs import logger
from tasks.store import provenance
from tasks.store.context import RunContext
from tasks.store.manifest import sha256_json
from tasks.store.run_states import add_to_state, stage_task
from tasks.store.stage import StageResult, fetch_outputs
from tasks.token_bytes import END_OF_TEXT, GPT2_VOCABULARY, check_tokenizer
from tasks.tokenizer import TokenizerConfig, TokenizerKind, existing_file, load_tokenizer

MOST_SAMPLED = 10_000
"""Tokens of a sample."""
WORTH_REHEARSING = 600.0
"""Seconds of training on any CPU from which the evaluation is rehearsed, which takes 10 to 20 of them."""


@stage_task("plan")
def check_run(
    trainings: Sequence[Training], tokenizer: TokenizerConfig, evaluation: EvaluationConfig | None, context: RunContext
) -> None:
    """The first task of a run, see `require_ready`."""
    require_ready(trainings, tokenizer, evaluation, context)
    add_to_state("nothing that the run needs is missing here")


def require_ready(
    trainings: Sequence[Training], tokenizer: TokenizerConfig, evaluation: EvaluationConfig | None, context: RunContext
) -> None:
    """Raise one sentence when something that is needed later is known to be missing now, see docs/operating.md."""
    require_machine(context)
    vocabulary, end_of_text = None, None
    match tokenizer:
        case TokenizerConfig(kind=TokenizerKind.TRAIN):
            vocabulary, end_of_text = tokenizer.vocab_size, 0
        case TokenizerConfig(kind=TokenizerKind.GPT2):
            vocabulary, end_of_text = GPT2_VOCABULARY, GPT2_VOCABULARY - 1
        case TokenizerConfig(kind=TokenizerKind.FILE, path=str(path)):
            loaded = load_tokenizer(existing_file(path))
            check_tokenizer(loaded, path)
            vocabulary, end_of_text = loaded.get_vocab_size(), loaded.token_to_id(END_OF_TEXT)
    for model, train in trainings:
        require_coherent(model, train, vocabulary, end_of_text)
    for name in evaluation.suites if evaluation else ():
        find_source(SUITES[name], context)  # a folder of benchmarks that is not there
    require_feasible(trainings, tokenizer.entries, context)


def require_coherent(model: GPTConfig, train: TrainConfig, vocabulary: int | None, end_of_text: int | None) -> None:
    """Raise ConfigError for a training that contradicts itself or its tokenizer, which the trainer would find when
    documents and shards are there. `vocabulary` and `end_of_text` of a tokenizer that is not here yet are None."""
    for name, there in (("vocab_size", vocabulary), ("eot_token", end_of_text)):
        given = getattr(model, name)
        if None not in (given, there) and given != there:
            raise ConfigError(f"model.{name} is {given}, but that of the tokenizer is {there}; leave it out")
    sequences = train.micro_batch_sequences or 1
    if train.tokens_per_step % (sequences * model.sequence_length):
        raise ConfigError(
            f"train.tokens_per_step {train.tokens_per_step} must be a multiple of train."
            f"micro_batch_sequences {sequences} times model.sequence_length {model.sequence_length}"
        )
    if train.tokens is not None and train.tokens < train.tokens_per_step:
        raise ConfigError(
            f"train.tokens {train.tokens} is less than one step, train.tokens_per_step {train.tokens_per_step}"
        )
    if train.sample_tokens > MOST_SAMPLED:
        raise ConfigError(
            f"train.sample_tokens is {train.sample_tokens}, expected at most {MOST_SAMPLED:,}: each is "
            "drawn by itself, before and after training"
        )


def require_machine(context: RunContext) -> None:
    """Raise ConfigError for a machine on which a later stage could not write its files."""
    if (encoding := locale.getpreferredencoding(False)).lower().replace("-", "") != "utf8":
        raise ConfigError(f"Python reads and writes text as {encoding} here; set PYTHONUTF8=1")
    for folder, setting in ((context.cache, "execution.cache"), (Path(tempfile.gettempdir()), "TMPDIR")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise ConfigError(f"{folder}: a run cannot write there: {error.strerror}; set {setting}") from error
    _require_own_compiler()


def _require_own_compiler() -> None:
    """Where torch keeps compiled code of what the trainer has no folder for (`compiled/` of the cache), it has a name
    in the temporary folder that any user of the machine can take first, and runs what it finds there."""
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())  # as torch writes it
    except (KeyError, OSError):  # no entry in /etc/passwd, as in some containers
        user = f"uid_{os.getuid()}"
    folder = Path(tempfile.gettempdir()) / f"torchinductor_{user}"
    if provenance.hardware()["gpus"]:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    if not os.path.lexists(folder):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ConfigError(
            f"{folder} is another user's or a link, and torch would run the code it finds there; set "
            "TORCHINDUCTOR_CACHE_DIR or TMPDIR to a folder of your own"
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~0o022)


@stage_task("rehearsal")
def rehearse_evaluation(
    config: EvaluationConfig, trainings: Sequence[Training], tokenizer: StageResult, items: Items, context: RunContext
) -> None:
    """Refuse a model whose evaluation would fail after its training, such as one that cannot hold an answer.

    Trainings that are short on any CPU are only rehearsed when an estimate of their longest answer comes near to the
    sequence_length; those that the store holds already are not. The outcome is kept in `plans/` of the cache.
    """
    lengths = {model.sequence_length for model, _ in trainings}
    folder = fetch_outputs(tokenizer, context)
    most = min(lengths)
    entries = load_tokenizer(folder / "tokenizer.json")
    resolved = [
        (replace(model, vocab_size=model.vocab_size or entries.get_vocab_size()), train) for model, train in trainings
    ]
    seconds = sum(most_flops(model, train) for model, train in resolved) / ANY_CPU
    few_shot = any(vars(config.num_fewshot).values())
    if (
        seconds < WORTH_REHEARSING
        and not few_shot
        and 1.25 * _longest_answer(config, entries, items, context) + 8 < most
    ):
        add_to_state("every answer fits into the model")
        return
    literal = scoring_settings(config, items)
    digests = {name: result.digest for name, result in {**items.results, **items.shots}.items()}
    identity = {**literal, **defining_versions(), **digests, "tokenizer": tokenizer.digest, "sequence_length": most}
    kept = context.cache / "plans" / f"rehearsal-{sha256_json(identity)}"
    if kept.exists() or are_trained(trainings, context):
        add_to_state("rehearsed or trained before")
        return
    done: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        work = Path(temporary)
        rehearsal = {
            **literal,
            "benchmarks": str(items.folder(context, work / "benchmarks")),
            "tokenizer": str(folder / "tokenizer.json"),
            "sequence_length": most,
            "out": str(work / "out"),
        }
        run_module("eval.scoring.rehearsal", rehearsal, work, done.update)
    add_to_state("the requests of the evaluation can be scored")
    for name, (cut, count) in done["cut"].items():
        if cut:
            logger().warning(
                "%s: %d of %d questions are longer than model.sequence_length %d and lose their beginning",
                name,
                cut,
                count,
                most,
            )
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.touch()


def _longest_answer(config: EvaluationConfig, tokenizer: Tokenizer, items: Items, context: RunContext) -> int:
    """Tokens of the longest answer that is asked about, each encoded without its question."""
    texts: set[str] = set()
    for name, result in items.results.items():
        suite = SUITES[name]
        with (fetch_outputs(result, context) / f"{name}.parquet").open("rb") as file:
            rows = pq.ParquetFile(file).read()
        for row in rows.take(chosen_items(suite, config.items_per_suite, config.seed)).to_pylist():
            texts.update(f" {answer.strip()}" for answer in _answers(suite, row))
    return max(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))


def _answers(suite: Suite, row: dict[str, Any]) -> list[str]:
    match suite.name:
        case "hellaswag":
            return [without_wikihow_marks(ending) for ending in row["endings"]]
        case "winogrande":
            return [row["sentence"].partition("_")[2]]
        case "truthfulqa":
            return [*row["mc1_targets"]["choices"], *row["mc2_targets"]["choices"]]
        case _:
            return row["choices"]["text"]
