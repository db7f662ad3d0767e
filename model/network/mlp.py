"""The feed-forward layer: two matrices with a pointwise activation between them, three with SwiGLU.

Shape suffixes: B batch, T tokens, D width, M hidden size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.config import Activation, GPTConfig


def activate(h: Tensor, activation: Activation) -> Tensor:
    if activation is Activation.GELU:
        return F.gelu(h, approximate="tanh")
    if activation is Activation.SWIGLU:
        return F.silu(h)  # arXiv 2002.05202
    return F.relu(h).square()  # ReLU²: Primer, arXiv 2109.08668


class MLP(nn.Module):
    """Matrices with a pointwise activation between them."""

    def __init__(self, config: GPTConfig, hidden: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.expand = nn.Linear(config.width, hidden, bias=config.bias)
        if self.activation is Activation.SWIGLU:
            self.multiply = nn.Linear(config.width, hidden, bias=config.bias)
        self.project = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTM = activate(self.expand(x_BTD), self.activation)
        if self.activation is Activation.SWIGLU:
            h_BTM = h_BTM * self.multiply(x_BTD)
        return self.project(h_BTM)
