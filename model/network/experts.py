"""A mixture of experts in place of the feed-forward layer: a router sends each token to a few of many small ones.

It follows DeepSeekMoE (arXiv 2401.06066): fine-grained experts, some shared by every token, sigmoid
scores, no token dropped. The load is balanced by a bias that only the choice sees (arXiv 2408.15664)
or by the usual auxiliary loss (arXiv 2101.03961).

Shape suffixes: B batch, T tokens, D width, M hidden size, E experts, C chosen experts a token,
P tokens of the batch, Q = P C pairs of token and expert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.config import Activation, Balance, GPTConfig
from model.network.mlp import MLP, activate


class MixtureOfExperts(nn.Module):
    """Each token goes to the experts with the highest scores; `auxiliary_loss` is that of the last pass."""

    balance_bias: Tensor
    load: Tensor
    """Tokens that each expert got since the last weight update."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        E, D, M = config.experts, config.width, config.expert_size
        self.router = nn.Linear(D, E, bias=False)
        self.expert_expand = nn.Parameter(torch.empty(E, M, D))
        if config.activation is Activation.SWIGLU:
            self.expert_multiply = nn.Parameter(torch.empty(E, M, D))
        self.expert_project = nn.Parameter(torch.empty(E, D, M))
        self.shared = MLP(config, config.shared_experts * M) if config.shared_experts else None
        self.register_buffer("balance_bias", torch.zeros(E))
        self.register_buffer("load", torch.zeros(E), persistent=False)
        self.auxiliary_loss: Tensor | None = None

    def route(self, x_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts (P, C) and their weights, which add up to 1."""
        config = self.config
        with torch.autocast(x_PD.device.type, enabled=False):  # a rounded score sends tokens elsewhere
            scores_PE = torch.sigmoid(F.linear(x_PD.float(), self.router.weight.float()))
        chosen_PC = (scores_PE + self.balance_bias).topk(config.experts_per_token, dim=-1).indices
        weights_PC = scores_PE.gather(-1, chosen_PC)
        counts_E = F.one_hot(chosen_PC, config.experts).sum((0, 1))
        if torch.is_grad_enabled():
            self.load += counts_E
        if config.balance is Balance.LOSS:
            share_E = (scores_PE / scores_PE.sum(-1, keepdim=True)).mean(0)
            self.auxiliary_loss = config.balance_rate * config.experts * (share_E * counts_E / counts_E.sum()).sum()
        return chosen_PC, weights_PC / weights_PC.sum(-1, keepdim=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_PD = x_BTD.flatten(0, 1)
        chosen_PC, weights_PC = self.route(x_PD)
        order_Q = chosen_PC.flatten().argsort(stable=True)  # pairs, expert by expert
        ends_E = F.one_hot(chosen_PC, self.config.experts).sum((0, 1)).cumsum(0).int()
        device = x_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_PD.dtype

        def multiply(x: Tensor, weights: Tensor) -> Tensor:
            return F.grouped_mm(x, weights.to(dtype).mT, offs=ends_E)

        x_QD = x_PD.to(dtype)[order_Q // self.config.experts_per_token]
        h_QM = activate(multiply(x_QD, self.expert_expand), self.config.activation)
        if self.config.activation is Activation.SWIGLU:
            h_QM = h_QM * multiply(x_QD, self.expert_multiply)
        y_QD = multiply(h_QM, self.expert_project)[order_Q.argsort()]
        y_PCD = y_QD.unflatten(0, weights_PC.shape) * weights_PC.unsqueeze(-1).to(dtype)
        y_BTD = y_PCD.sum(1).view(x_BTD.shape)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)


def mixtures(model: nn.Module) -> list[MixtureOfExperts]:
    """The mixtures of a network, from its first layer to its last."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def auxiliary_losses(model: nn.Module) -> list[Tensor]:
    """Those of the last forward pass, one a mixture."""
    return [mixture.auxiliary_loss for mixture in mixtures(model) if mixture.auxiliary_loss is not None]


@torch.no_grad()
def rebalance(model: nn.Module) -> float | None:
    """After a weight update: move the biases towards even load. The largest load of any expert over
    the mean of its layer, 1 is even; None without a mixture. `load` is that of all processes."""
    worst = None
    for mixture in mixtures(model):
        mean = mixture.load.mean()
        worst = max(worst or 0.0, (mixture.load.max() / mean).item())
        if mixture.config.balance is Balance.BIAS:
            mixture.balance_bias += mixture.config.balance_rate * torch.sign(mean - mixture.load)
        mixture.load.zero_()
    return worst
