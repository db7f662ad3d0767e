"""What is known about a GPU by its name: peak, memory, list price. Data sheets of NVIDIA."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One GPU."""

    name: str
    """Part of the name that torch gives it."""
    peak_flops: float
    """Dense bf16 FLOP/s (fp16 on the T4)."""
    memory_bytes: float
    """Its memory."""
    usd_per_hour: float
    """On-demand list price of late 2026, rounded."""
    mfu: float
    """Share of the peak that a training in bf16 (fp16 on the T4) reaches: measured on the H200 with the network of
    `daily`, derived from that for the H100 (`python -m benchmarks.gpu.day`), assumed for the others."""
    fp8_mfu: float | None = None
    """The same in fp8, of the bf16 peak; None: no fp8 products."""


HARDWARE = (
    Hardware("H200", 989e12, 141e9, 3.50, 0.541, 0.627),
    Hardware("H100", 989e12, 80e9, 3.00, 0.499, 0.531),
    Hardware("A100", 312e12, 80e9, 1.80, 0.4),
    Hardware("T4", 65e12, 16e9, 0.35, 0.3),
)


def hardware_named(name: str) -> Hardware:
    """The GPU of this name in the table; KeyError for another name."""
    return {hardware.name: hardware for hardware in HARDWARE}[name]


def known_hardware(device_name: str) -> Hardware | None:
    """None when the device is not in the table (a CPU)."""
    return next((hardware for hardware in HARDWARE if hardware.name in device_name), None)


if __name__ == "__main__":  # how many GPUs torch would use
    import torch

    print(torch.cuda.device_count() if torch.cuda.is_available() else 0)
