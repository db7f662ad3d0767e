"""Time, kernels and memory of a call on the GPU; on the CPU where there is none."""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = (
    ("fused elementwise", ("triton",)),
    ("attention", ("flash", "fmha", "sdpa", "cudnn_generated", "attention")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "sm90_")),
    ("copies", ("memcpy", "memset")),
)
"""Kinds of kernels by words in their names; the first that matches counts."""


def cuda() -> bool:
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if cuda() else "cpu")


def synchronise() -> None:
    if cuda():
        torch.cuda.synchronize()


def milliseconds(function: Callable[[], object], times: int = 10) -> float:
    """Mean duration of a call, after three that are not counted."""
    for _ in range(3):
        function()
    synchronise()
    began = time.perf_counter()
    for _ in range(times):
        function()
    synchronise()
    return 1e3 * (time.perf_counter() - began) / times


def kernels(function: Callable[[], object]) -> list[tuple[str, float, int]]:
    """Name, milliseconds and count of what a call runs on the device, the longest first."""
    activity = ProfilerActivity.CUDA if cuda() else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        function()
        synchronise()
    rows = [
        (event.key, (event.device_time_total if cuda() else event.self_cpu_time_total) / 1e3, event.count)
        for event in profiler.key_averages()
        if not cuda() or str(event.device_type).endswith("CUDA")
    ]
    return sorted(rows, key=lambda row: -row[1])


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS if any(word in name for word in words)), "other")


def by_kind(rows: list[tuple[str, float, int]]) -> dict[str, float]:
    """Milliseconds of each kind of kernel."""
    sums = dict.fromkeys([*(kind for kind, _ in KINDS), "other"], 0.0)
    for name, took, _ in rows:
        sums[kind_of(name)] += took
    return {kind: round(took, 2) for kind, took in sums.items()}


def gigabytes(peak: bool = True) -> float | None:
    if not cuda():
        return None
    return round((torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e9, 2)
