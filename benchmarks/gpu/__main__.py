"""Measures this project on one GPU: make bench-gpu, or with torch, numpy and safetensors alone

    python -m benchmarks.gpu [--minutes 9] [--nanochat DIR] [--only STAGE ...]

Stages (benchmarks/gpu/stages.py) are independent and run in order of value, each in processes of its own. Every finding
is one line of JSON, printed and appended to a results file at once; what that file already holds is not measured again.
Without a GPU everything runs once at a tiny size, to see that it starts.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.gpu import race, stages
from benchmarks.gpu.scheduler import Context, Stage, run_stages

STAGES = stages.STAGES + race.STAGES
RESULTS = Path(__file__).parents[1] / "results"
RESERVED_GIGABYTES = 4
"""For the contexts of the processes."""


def commit() -> str | None:
    """Of this checkout, with "-dirty" where files differ from it; None for a copy without its history."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or None


def driver() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def machine(named_commit: str | None) -> dict:
    """What a result depends on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if cuda else None,
        "driver": driver(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
        "commit": named_commit or commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def parse(argv: list[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="a hard bound for everything together")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument("--nanochat", type=Path, metavar="DIR", help="a checkout of github.com/karpathy/nanochat")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="shards of real text, at most 25 M tokens are read")
    parser.add_argument("--together", type=int, default=6, help="stages that run side by side at most")
    parser.add_argument("--results", type=Path, metavar="FILE", help="results file; by default one a device")
    parser.add_argument("--commit", help="of this code, where it is a copy without its history")
    return parser.parse_args(argv)


def completed(results: Path, at_commit: str | None) -> set[str]:
    """Stages of which the file holds every finding of this commit; files that differ from a commit hold nothing."""
    if not results.exists() or at_commit is None or at_commit.endswith("-dirty"):
        return set()
    recorded = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["stage"] for line in recorded if line["finding"] == "completed" and line["commit"] == at_commit}


def context(cuda: bool) -> Context:
    """How stages start: each in a new interpreter, or, where no GPU could be harmed by it, forked from a process that
    has imported torch."""
    if cuda:
        return get_context("spawn")
    forking = get_context("forkserver")
    forking.set_forkserver_preload([stages.__name__, race.__name__])
    return forking


def main(argv: list[str] | None = None, stages: list[Stage] = STAGES) -> int:
    arguments, began = parse(argv, [stage.name for stage in stages]), time.time()
    about = machine(arguments.commit)
    device = about["device"].lower().replace(" ", "-")
    results = arguments.results or RESULTS / f"{device}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    done = completed(results, about["commit"])
    chosen = [
        stage
        for stage in stages
        if stage.name not in done
        and (arguments.only is None or stage.name in arguments.only)
        and (arguments.nanochat is not None or "nanochat" not in stage.name)
        and (arguments.shards is not None or not stage.name.startswith("race"))
    ]
    with results.open("a") as file:

        def keep(finding: dict) -> None:
            line = json.dumps({"t": round(time.time() - began, 1)} | finding | about)
            print(json.dumps({"t": round(time.time() - began, 1)} | finding), flush=True)
            file.write(line + "\n")
            file.flush()

        keep({"stage": "machine", "finding": "machine"})
        memory = about["memory_gb"]
        run_stages(
            chosen,
            arguments,
            60 * arguments.minutes - (time.time() - began),
            memory and memory - RESERVED_GIGABYTES,
            arguments.together if memory else 1,
            keep,
            context(memory is not None),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
