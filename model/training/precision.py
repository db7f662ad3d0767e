"""How a precision is computed: the type that products have."""

import torch

from model.training.config import Precision

TYPES = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP8: torch.bfloat16,
}
"""Types of products; in fp8, of those outside the linear layers that multiply in fp8."""


def autocast(device_type: str, precision: Precision) -> torch.autocast:
    """The context in which the network runs; in fp32 it does nothing."""
    enabled = precision is not Precision.FP32
    return torch.autocast(device_type, TYPES[precision] if enabled else None, enabled=enabled)
