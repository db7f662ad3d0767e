"""Writes docs/gpu.md from the results files: python -m benchmarks.gpu.page [--out FILE] [RESULTS ...]

Of each measurement the newest counts. What a results file does not hold is written as "not measured".
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.goals import goal_line
from eval.reporting.markdown import markdown_table

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
FORECAST = (
    # what, the forecast for an H100, the finding, its conditions, the value of it
    (
        "tokens/s of `daily` in bf16, micro-batch 8, as it was",
        "71,000 to 78,000",
        "step",
        {"stage": "daily-bf16"},
        "tokens_per_second",
    ),
    ("its MFU", "34 to 38 %", "step", {"stage": "daily-bf16"}, "mfu"),
    ("its peak memory, GB", "54", "step", {"stage": "daily-bf16"}, "peak_gb"),
    ("compiling it, s", "90 to 150", "start", {"stage": "daily-bf16"}, "first_step_s"),
    (
        "nanochat's tokens/s in bf16",
        "95,000 to 100,000",
        "step",
        {"what": "nanochat", "precision": "bf16"},
        "tokens_per_second",
    ),
    ("nanochat's tokens/s in fp8", "123,000", "step", {"what": "nanochat", "precision": "fp8"}, "tokens_per_second"),
    ("writing a checkpoint of 13.9 GB, s", "60", "checkpoint, until it is written", {"stage": "daily-bf16"}, "seconds"),
)
"""Made before anything had run on a GPU, so the first finding is beside it."""
MFU_GOAL, NANOCHAT_GOAL, SCORING_GOAL = 0.55, 1.1, 5

Finding = dict


def read(files: Iterable[Path]) -> list[Finding]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def newest(findings: list[Finding], name: str, *keys: str, where: Callable[[Finding], bool] = bool) -> list[Finding]:
    """The last finding of this name for each combination of `keys`, without failures."""
    found: dict[tuple, Finding] = {}
    for finding in findings:
        if finding["finding"] == name and "error" not in finding and where(finding):
            found.pop(tuple(finding.get(key) for key in keys), None)
            found[tuple(finding.get(key) for key in keys)] = finding
    return list(found.values())


def only(findings: list[Finding], name: str, where: Callable[[Finding], bool] = bool) -> Finding:
    """The newest of a name, empty when there is none."""
    return next(iter(newest(findings, name, where=where)), {})


def of_same_stage(step: Finding) -> Callable[[Finding], bool]:
    """Whether a finding was made by the stage that made this one, at the same commit."""
    return lambda line: (line["stage"], line["commit"]) == (step["stage"], step["commit"])


def table(header: list[str], rows: Sequence[Sequence[object]]) -> str:
    return markdown_table(header, rows) if rows else "Not measured."


def steps(findings: list[Finding]) -> str:
    planned = {
        (line["stage"], line["commit"]): line.get("planned_gb") for line in newest(findings, "start", "stage", "commit")
    }
    rows = [
        [
            line["what"],
            line["depth"],
            line["precision"],
            line["micro_batch"],
            line["micro_batch_ms"],
            line["update_ms"],
            line["tokens_per_second"],
            line.get("mfu") and round(100 * line["mfu"], 1),
            line["peak_gb"],
            planned.get((line["stage"], line["commit"])),
        ]
        for line in newest(findings, "step", "what", "depth", "precision", "micro_batch")
    ]
    header = [
        "system",
        "layers",
        "precision",
        "micro-batch",
        "ms a micro-batch",
        "ms an update",
        "tokens/s",
        "MFU %",
        "peak GB",
        "planned GB",
    ]
    return table(header, rows)


def kinds(findings: list[Finding]) -> str:
    lines = newest(findings, "profile", "what", "stage")
    names = list(lines[0]["kinds"]) if lines else []
    rows = [
        [
            f"{line['what']} ({line['stage']})",
            line["wall_ms"],
            line["busy_ms"],
            *(line["kinds"][name] for name in names),
        ]
        for line in lines
    ]
    return table(["system (stage)", "wall", "kernels", *names], rows)


def goals(findings: list[Finding]) -> list[str]:
    """One line a goal, as the benchmarks print them."""

    def ours(precision: str) -> Finding:
        return only(findings, "step", lambda line: line["what"] == "daily" and line["precision"] == precision)

    def nanochat(precision: str) -> Finding:
        lines = newest(
            findings,
            "step",
            "what",
            where=lambda line: "nanochat" in line["what"] and line["depth"] == 24 and line["precision"] == precision,
        )
        return max(lines, key=lambda line: line["tokens_per_second"], default={})

    def scored(precision: str) -> Finding:
        return only(findings, "scoring", lambda line: line["precision"] == precision)

    lines = [goal_line("MFU of daily in bf16", ours("bf16").get("mfu"), MFU_GOAL)]
    for precision in ("bf16", "fp8"):
        one, other = ours(precision).get("tokens_per_second"), nanochat(precision).get("tokens_per_second")
        ratio = one / other if one and other else None
        lines.append(goal_line(f"tokens/s of daily in {precision} over nanochat's", ratio, NANOCHAT_GOAL))
    for precision in ("fp32", "tf32", "bf16"):
        line = scored(precision)
        ratio = line["padded_seconds"] / line["seconds"] if line else None
        lines.append(goal_line(f"scoring in {precision} over padded batches", ratio, SCORING_GOAL))
    return lines


def columns(lines: list[Finding], *names: str) -> list[list[object]]:
    """A row of these values for each finding."""
    return [[line[name] for name in names] for line in lines]


def attention(findings: list[Finding]) -> str:
    rows = [
        [
            *columns([line], "path", "forward_ms", "both_ms")[0],
            line.get("kernels_ms"),
            line["relative_difference"],
            line["kernels"][0][:44],
        ]
        for line in newest(findings, "attention", "path")
    ]
    return table(["path", "forward", "both", "kernels", "relative difference", "longest kernel"], rows)


def scoring(findings: list[Finding]) -> str:
    rows = [
        [
            *columns([line], "precision", "requests", "seconds", "padded_seconds")[0],
            line["padded_seconds"] / line["seconds"],
            line["largest_difference"],
        ]
        for line in newest(findings, "scoring", "precision")
    ]
    return table(["precision", "requests", "ours, s", "padded, s", "ratio", "largest difference, nats"], rows)


def around_the_steps(findings: list[Finding]) -> str:
    names = (
        "validation, with its compilation",
        "validation",
        "samples",
        "checkpoint, until training goes on",
        "checkpoint, until it is written",
        "resume",
    )
    lines = [line for name in names for line in newest(findings, name, "stage")]
    return table(["stage", "what", "seconds"], columns(lines, "stage", "finding", "seconds"))


def same_bytes(findings: list[Finding]) -> str:
    rows = [
        [line["stage"], "yes" if line["same_bytes"] else "no", line["largest_weight_difference"]]
        for line in newest(findings, "repeated after resuming", "stage")
    ]
    return table(["stage", "the same bytes", "largest difference of a weight"], rows)


def race_results(races: list[Finding]) -> str:
    names = ("system", "tokens", "seconds", "tokens_per_second", "validation_loss", "peak_gb")
    header = ["system", "tokens", "seconds", "tokens/s", "validation loss", "peak GB"]
    return table(header, columns(races, *names))


def section(device: str, findings: list[Finding]) -> str:
    """All tables of one device."""
    first, last = findings[0], findings[-1]
    commits = list(dict.fromkeys(str(line["commit"]) for line in findings))
    races = newest(findings, "race", "system")
    parts = [
        f"## {device}",
        f"{first['memory_gb']} GB, driver {last['driver']}, torch {last['torch']}, cuDNN {last['cudnn']}, Python "
        f"{last['python']}; {first['date']} to {last['date']}, commits {', '.join(commits)}. "
        f"Copy of 1 GiB: {only(findings, 'copy').get('gigabytes_per_second')} GB/s read and written.",
        "```text\n" + "\n".join(goals(findings)) + "\n```",
        "### A training step at the shapes of `daily`",
        "Width 1536, 2,048 tokens a sequence, vocabulary 32,768. Tokens/s and MFU are for updates of 1,048,576 tokens: "
        "micro-batches, and one update of the optimizer. `d4` is a network of 4 such layers on which variants were "
        "tried; its head is a larger share, so only rows of equal depth compare.",
        steps(findings),
        "### Milliseconds of a micro-batch by kind of kernel",
        "The kernels are those of one profiled micro-batch, which follows a pause and runs at a higher clock: their "
        "sum is below the wall time also where the GPU is never idle.",
        kinds(findings),
        "### Attention of one layer",
        "8 × 2,048 tokens, 12 heads of 128, window 512, bf16, run eagerly: ms of forward, of forward and backward, and "
        "of the latter's kernels alone.",
        attention(findings),
        "### Matrix products, TFLOP/s",
        table(["product", "TFLOP/s"], columns(newest(findings, "product", "kind"), "kind", "tflops")),
        "### Around the steps, seconds",
        around_the_steps(findings),
        "### Bytes after resuming",
        same_bytes(findings),
        "### Scoring",
        "Questions of 80 tokens with four answers of 26, 24 layers: ours, and padded batches of whole requests as "
        "lm-eval's `hf` backend runs them.",
        scoring(findings),
        "### 124 M parameters on the same text",
        race_results(races),
        curves(races),
    ]
    return "\n\n".join(part for part in parts if part)


def curves(races: list[Finding]) -> str:
    """Training loss over seconds, one row a measured moment."""
    rows = [[line["system"], step, seconds, loss] for line in races for step, seconds, loss in line["curve"]]
    return table(["system", "step", "seconds", "training loss"], rows) if rows else ""


def forecast(findings: list[Finding], devices: list[str]) -> str:
    """What was expected of an H100, and the first that was measured on each device."""
    rows = []
    for what, expected, name, conditions, value in FORECAST:
        row: list[object] = [what, expected]
        for device in devices:
            found = (
                line[value]
                for line in findings
                if line["device"] == device and line["finding"] == name and conditions.items() <= line.items()
            )
            row.append(next(found, None))
        rows.append(row)
    return table(["what", "forecast, H100", *devices], rows)


def page(findings: list[Finding]) -> str:
    devices = dict.fromkeys(line["device"] for line in findings if line["device"] != "CPU")
    parts = [
        "# On a GPU",
        "Written by `python -m benchmarks.gpu.page` from the findings in `benchmarks/results/`, which "
        "`make bench-gpu` adds to. What they led to is in docs/log.md.",
    ]
    if not devices:
        parts.append("Not measured: no results of a GPU.")
    parts += [section(device, [line for line in findings if line["device"] == device]) for device in devices]
    parts += ["## The forecast made without a GPU", forecast(findings, list(devices))]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.page", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, default=sorted(RESULTS.glob("*.jsonl")))
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args(argv)
    arguments.out.write_text(page(read(arguments.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
