"""The arithmetic in which a model is scored: part of what a score is, as the rows and the examples are."""

from enum import StrEnum
from typing import Any


class Precision(StrEnum):
    """Scores of different precisions differ by rounding; they are never compared with each other."""

    FP32 = "fp32"
    """Weights and products in fp32, on every device: lm-eval's `hf` backend with dtype=float32."""
    TF32 = "tf32"
    """Weights in fp32, whose products a GPU may round to TF32 (10 bits after the point): dtype=float32 after
    torch.set_float32_matmul_precision("high"). A device without TF32 computes in fp32."""
    BF16 = "bf16"
    """Weights and activations in bf16, log-softmax in fp32: dtype=bfloat16 and softmax_dtype=float32."""


def precision_of(scores: dict[str, Any]) -> str:
    """Of the scores in a scores.json, which names it unless it is fp32."""
    return scores.get("precision", Precision.FP32.value)
