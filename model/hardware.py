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


HARDWARE = (
    Hardware("H200", 989e12, 141e9, 3.50),
    Hardware("H100", 989e12, 80e9, 3.00),
    Hardware("A100", 312e12, 80e9, 1.80),
    Hardware("T4", 65e12, 16e9, 0.35),
)


def known_hardware(device_name: str) -> Hardware | None:
    """None when the device is not in the table (a CPU)."""
    return next((hardware for hardware in HARDWARE if hardware.name in device_name), None)
