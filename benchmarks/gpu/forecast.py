"""Speed of `daily` and of nanochat without a GPU: python -m benchmarks.gpu.forecast --nanochat DIR [--micro-batch 8 16]

Both networks are counted alike, as they are now (benchmarks.gpu.compiled_work), and the counts divided by the same
rates: those assumed for an H100 before anything had run on a GPU, and those fitted to what was measured on an H200 (for
an H100 with memory slower in the ratio of the data sheets). Attention is cuDNN's in ours and FlashAttention-3 in
nanochat: fitted rates differ for the two, the assumed ones do not. Below each forecast for the H200 is what was
measured.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.goals import print_goal
from benchmarks.gpu import compiled_work
from benchmarks.gpu.compiled_work import Work
from benchmarks.gpu.day import BANDWIDTH
from benchmarks.gpu.page import RESULTS, Finding, newest, of_same_stage, only, read
from benchmarks.gpu.shapes import DAILY_STEP
from eval.reporting.markdown import markdown_table
from flows.run_config import compose
from model.machine.hardware import hardware_named
from model.network import flops
from model.network.config import GPTConfig
from model.training.config import Precision

GOAL = 1.0
PRECISIONS = (Precision.BF16, Precision.FP8)
COLUMNS = ("products", "attention", "elementwise", "accumulation", "micro-batch", "update")
"""In milliseconds: four kinds of kernels of a micro-batch, its wall time, and an update of the weights."""


@dataclass(frozen=True)
class Rates:
    """Of a GPU."""

    bf16: float
    """FLOP/s of products."""
    fp8: float
    attention: dict[str, float]
    """FLOP/s by system, beside the time for its bytes."""
    memory: float
    """Bytes/s."""
    rounding: float
    """The same of kernels that write an fp8 tensor transposed as well."""
    loss: float
    """Elements/s of the loss's kernels."""
    wall: float
    """Wall time over the time of the kernels."""

    def milliseconds(self, system: str, work: Work) -> dict[str, float]:
        """Of the kernels of one micro-batch, by kind."""
        seconds = {
            "products": work["bf16 products"] / self.bf16 + work["fp8 products"] / self.fp8,
            "attention": work["attention"] / self.attention[system] + work["attention bytes"] / self.memory,
            "elementwise": (
                work["elementwise"] / self.memory + work["rounding"] / self.rounding + work["loss"] / self.loss
            ),
            "accumulation": work["accumulation"] / self.memory,
        }
        return {kind: 1e3 * value for kind, value in seconds.items()}


ASSUMED = Rates(
    bf16=620e12,
    fp8=1097e12,
    attention={"daily": 560e12, "nanochat": 560e12},
    memory=2.6e12,
    rounding=1.3e12,
    loss=5.3e11,
    wall=1.0,
)
"""For an H100, before anything had run: 620 TFLOP/s and 2.6 TB/s. Attention 430 (forward) and 360 TFLOP/s (backward) in
windows, 450 and 380 without: 560 where its bytes are counted besides. fp8 products took 0.70 of the time with the
rounding: 1097 TFLOP/s where that is counted besides. A kernel that transposes has half the bandwidth; the loss is as on
the H200."""


@dataclass(frozen=True)
class Counted:
    """A network, and what it was counted to do."""

    system: str
    """daily or nanochat."""
    model: GPTConfig
    precision: Precision
    sequences: int
    """Of a micro-batch."""
    work: Work
    update: tuple[float, float]
    """FLOPs and bytes of the optimizer."""

    def row(self, rates: Rates) -> dict[str, float]:
        """Milliseconds by kind, of a micro-batch and of an update; tokens/s and MFU at the step of `daily`."""
        kinds = rates.milliseconds(self.system, self.work)
        wall = rates.wall * sum(kinds.values())
        update = 1e3 * (self.update[0] / rates.bf16 + self.update[1] / rates.memory)
        tokens = self.sequences * self.model.sequence_length
        rate = 1e3 * DAILY_STEP / (wall * DAILY_STEP / tokens + update)
        token_flops = flops.flops_per_token(self.model, self.model.sequence_length)
        return kinds | {
            "micro-batch": wall,
            "update": update,
            "tokens/s": rate,
            "MFU %": 100 * rate * token_flops / hardware_named("H100").peak_flops,
        }


def measured_kinds(profile: Finding) -> dict[str, float]:
    """Milliseconds by the kinds of this file: helpers of attention and sums of gradients are `other` in the results."""
    kinds, rows = profile["kinds"], profile["kernels"]
    adds = sum(took for name, took, _ in rows if "CUDAFunctor_add" in name)
    helpers = sum(took for name, took, _ in rows if name.startswith("void cudnn::"))
    return {
        "products": kinds["matrix products"],
        "attention": kinds["attention"] + helpers,
        "elementwise": kinds["fused elementwise"],
        "accumulation": adds,
    }


def measured(findings: list[Finding], counted: Counted) -> tuple[Finding, Finding] | None:
    """Newest step and profile of such a network on an H200."""
    names = {"daily": ("daily", "d4 cudnn", "d4 cudnn+fp8"), "nanochat": ("nanochat", "nanochat d4 fa3")}[
        counted.system
    ]
    lines = [line for line in findings if "H200" in line["device"]]
    step = only(
        lines,
        "step",
        where=lambda line: (
            line["what"] in names
            and line["depth"] == counted.model.depth
            and line["precision"] == counted.precision
            and line["micro_batch"] == counted.sequences
        ),
    )
    profiles = newest(lines, "profile", where=of_same_stage(step)) if step else []
    return (step, profiles[-1]) if profiles else None


def fitted(findings: list[Finding], counted: list[Counted]) -> Rates:
    """Of an H200: products and attention from all networks measured there, whose FLOPs have not changed since; bytes
    and elements from nanochat alone, so that the elementwise time of ours is a forecast."""
    rows = [(one, *pair) for one in counted if (pair := measured(findings, one))]
    peer = {one.precision: (one, profile) for one, _, profile in rows if one.system == "nanochat"}
    if set(peer) != set(PRECISIONS):
        raise LookupError(f"no results of nanochat in bf16 and fp8 on an H200 in {RESULTS}")

    def took(profile: Finding, kind: str) -> float:
        return measured_kinds(profile)[kind] / 1e3

    plain, plain_profile = peer[Precision.BF16]
    rounded, rounded_profile = peer[Precision.FP8]
    softmax = sum(row[1] for row in plain_profile["kernels"] if "softmax" in row[0]) / 1e3
    loss = plain.work["loss"] / softmax
    memory = plain.work["elementwise"] / (took(plain_profile, "elementwise") - softmax)
    rest = took(rounded_profile, "elementwise") - rounded.work["loss"] / loss
    rest -= rounded.work["elementwise"] / memory
    bf16 = sum(one.work["bf16 products"] for one, *_ in rows if one.precision is Precision.BF16) / sum(
        took(profile, "products") for one, _, profile in rows if one.precision is Precision.BF16
    )
    fp8 = sum(one.work["fp8 products"] for one, *_ in rows if one.precision is Precision.FP8) / sum(
        took(profile, "products") - one.work["bf16 products"] / bf16
        for one, _, profile in rows
        if one.precision is Precision.FP8
    )
    attention = {
        system: sum(one.work["attention"] for one, *_ in rows if one.system == system)
        / sum(
            took(profile, "attention") - one.work["attention bytes"] / memory
            for one, _, profile in rows
            if one.system == system
        )
        for system in ("daily", "nanochat")
    }
    return Rates(
        bf16,
        fp8,
        attention,
        memory,
        rounded.work["rounding"] / rest,
        loss,
        sum(step["micro_batch_ms"] for _, step, _ in rows) / sum(profile["busy_ms"] for *_, profile in rows),
    )


def slower_memory(rates: Rates, factor: float) -> Rates:
    return replace(rates, memory=rates.memory / factor, rounding=rates.rounding / factor)


def count(checkout: Path, micro_batches: list[int]) -> list[Counted]:
    """Both systems in both precisions: their first 4 layers, and all."""
    run = compose("daily", {})
    model = run.model.with_vocabulary(run.tokenizer.entries, run.model.eot_token)
    systems: dict[str, tuple[Callable, Callable]] = {
        "daily": (compiled_work.ours, compiled_work.update_of_ours),
        "nanochat": (partial(compiled_work.nanochat, checkout), partial(compiled_work.update_of_nanochat, checkout)),
    }
    counted = []
    for (system, (work, update)), precision, sequences in product(systems.items(), PRECISIONS, micro_batches):
        train = replace(run.train, precision=precision, micro_batch_sequences=sequences)
        parts = {depth: work(replace(model, depth=depth), train) for depth in (4, 8)}
        for depth in (4, model.depth):
            network = replace(model, depth=depth)
            expect_products(compiled_work.at_depth(depth, parts), network, sequences)
            counted.append(
                Counted(
                    system, network, precision, sequences, compiled_work.at_depth(depth, parts), update(network, train)
                )
            )
        print(f"counted {system} in {precision}, micro-batch {sequences}", file=sys.stderr)
    return counted


def expect_products(work: Work, model: GPTConfig, sequences: int) -> None:
    """Raise ValueError where the trace does not hold 6 FLOPs a token for each weight of a matrix, within 1 %."""
    weights = flops.parameters(model)
    multiplied = weights["matrices"] + weights["gates"] + model.padded_vocab_size * model.width
    expected, traced = 6 * multiplied * sequences * model.sequence_length, work["bf16 products"] + work["fp8 products"]
    if abs(traced / expected - 1) > 0.01:
        raise ValueError(
            f"the trace has {traced:.4g} FLOPs of products, {expected:.4g} are expected: "
            "benchmarks.gpu.compiled_work does not know an operator of this network or version of torch"
        )


def table(counted: list[Counted], rates: Rates, findings: list[Finding]) -> str:
    """A row for each; below it what was measured on an H200, and the error of the forecast."""
    rows = []
    for one in counted:
        row = one.row(rates)
        rows.append(
            [
                f"{one.system}, {one.model.depth} layers",
                one.precision,
                one.sequences,
                *(f"{row[kind]:.1f}" for kind in COLUMNS),
                f"{row['tokens/s']:,.0f}",
                f"{row['MFU %']:.1f}",
            ]
        )
        if pair := measured(findings, one):
            step, profile = pair
            real = measured_kinds(profile) | {"micro-batch": step["micro_batch_ms"], "update": step["update_ms"]}
            mfu = step.get("mfu")
            rows.append(
                [
                    f"measured, commit {step['commit']}",
                    "",
                    "",
                    *(f"{value:.1f}" for value in real.values()),
                    f"{step['tokens_per_second']:,}",
                    f"{100 * mfu:.1f}" if mfu else "–",
                ]
            )
            errors = [row[kind] / value - 1 for kind, value in real.items()]
            errors.append(row["tokens/s"] / step["tokens_per_second"] - 1)
            rows.append(["error of the forecast, %", "", "", *(f"{100 * error:+.1f}" for error in errors), ""])
    header = ["network", "precision", "micro-batch", *(f"{column}, ms" for column in COLUMNS), "tokens/s", "MFU %"]
    return markdown_table(header, rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.forecast", description=__doc__.splitlines()[0])
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout of github.com/karpathy/nanochat")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[8, 16])
    arguments = parser.parse_args(argv)
    findings = read(sorted(RESULTS.glob("*.jsonl")))
    counted = count(arguments.nanochat, arguments.micro_batch)
    deep = [one for one in counted if one.model.depth > 4]
    h200 = fitted(findings, counted)
    h100 = slower_memory(h200, BANDWIDTH["H200"] / BANDWIDTH["H100"])
    gpus = {
        "H100, assumed rates": (ASSUMED, deep),
        "H100, fitted rates": (h100, deep),
        "H200, fitted rates": (h200, counted),
    }
    for name, (rates, networks) in gpus.items():
        print(f"{name}: {rates}\n\n{table(networks, rates, findings if rates is h200 else [])}\n")
    for name, (rates, _) in gpus.items():
        for sequences in arguments.micro_batch:
            speed = {
                one.system: one.row(rates)["tokens/s"]
                for one in deep
                if one.precision is Precision.FP8 and one.sequences == sequences
            }
            print_goal(
                f"forecast of daily in fp8 over nanochat's ({name}, micro-batch {sequences})",
                speed["daily"] / speed["nanochat"],
                GOAL,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
