"""Muon for the hidden matrices, AdamW for everything else, and the learning-rate schedule.

Muon (Keller Jordan, 2024) replaces the momentum of a matrix by the nearest orthogonal matrix, found
here with Polar Express (arXiv 2505.16932), batched over matrices of one shape.
"""

import math

import torch
from torch import Tensor, nn

from model.config import ConfigError, OptimizerName, Precision, Schedule, TrainConfig

# Polar Express, table for 5 iterations: the minimax-optimal odd quintic for the singular values that
# the iterations before it leave. Each but the last is relaxed by 1.01, so that a bf16 rounding error
# over 1 cannot diverge.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
_RELAXATION = 1.01


def orthogonalise(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest (semi-)orthogonal matrix of each: U V' of the SVD U S V'. A zero matrix stays zero."""
    x = matrices_NRC.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT  # the products below are then of the smaller side
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * _RELAXATION + 1e-7)
    for iteration, (a, b, c) in enumerate(_POLAR_EXPRESS):
        if iteration < len(_POLAR_EXPRESS) - 1:
            a, b, c = a / _RELAXATION, b / _RELAXATION**3, c / _RELAXATION**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Nesterov momentum, orthogonalised; decoupled weight decay. State: one stack a shape."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float, weight_decay: float,
                 dtype: torch.dtype) -> None:
        self.momentum, self.weight_decay, self.dtype = momentum, weight_decay, dtype
        self.groups: dict[str, list[nn.Parameter]] = {}
        for parameter in parameters:
            rows, columns = parameter.shape
            self.groups.setdefault(f"{rows}x{columns}", []).append(parameter)
        self.buffers = {shape: torch.zeros(len(group), *group[0].shape, device=group[0].device)
                        for shape, group in self.groups.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for shape, group in self.groups.items():
            gradients = torch.stack([parameter.grad for parameter in group])
            buffer = self.buffers[shape].lerp_(gradients, 1 - self.momentum)
            update = orthogonalise(gradients.lerp_(buffer, self.momentum), self.dtype).float()
            rows, columns = group[0].shape
            # a tall matrix of orthonormal columns moves its output less: same RMS for every shape
            scale = math.sqrt(max(1.0, rows / columns))
            torch._foreach_mul_(group, 1 - learning_rate * self.weight_decay)
            torch._foreach_add_(group, list(update.unbind()), alpha=-learning_rate * scale)


def roles(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by role: matrix (hidden, 2-D), embedding, head, scalar (norms and biases)."""
    grouped: dict[str, list[tuple[str, nn.Parameter]]] = {
        "matrix": [], "embedding": [], "head": [], "scalar": []}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            role = "scalar"
        elif "embedding" in name:
            role = "embedding"
        elif name.startswith("head"):
            role = "head"
        else:
            role = "matrix"
        grouped[role].append((name, parameter))
    return grouped


class Optimizer:
    """All parameters of a model under one schedule; its state is a flat dict of tensors."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        grouped = roles(model)
        muon = config.optimizer is OptimizerName.MUON
        self.muon = None
        if muon:
            matrices = [parameter for _, parameter in grouped.pop("matrix")]
            dtype = torch.bfloat16 if config.precision is Precision.BF16 else torch.float32
            self.muon = Muon(matrices, config.momentum, config.weight_decay, dtype)
        rates = {
            "matrix": config.learning_rate,
            "embedding": config.embedding_learning_rate or config.learning_rate,
            "head": config.head_learning_rate or config.learning_rate,
            "scalar": config.scalar_learning_rate or config.learning_rate,
        }
        self.names = {parameter: name for group in grouped.values() for name, parameter in group}
        groups = [
            {"params": [parameter for _, parameter in group], "lr": rates[role], "peak": rates[role],
             "weight_decay": 0.0 if muon or role == "scalar" else config.weight_decay}
            for role, group in grouped.items() if group
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(config.adam_beta1, config.adam_beta2),
                                       eps=config.adam_epsilon, fused=True)

    def step(self, multiplier: float) -> None:
        """One update at `multiplier` of every peak rate."""
        if self.muon is not None:
            self.muon.step(self.config.learning_rate * multiplier)
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * multiplier
        self.adamw.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything the next step depends on besides weights and configuration."""
        tensors = {f"adamw.{key}.{self.names[parameter]}": value
                   for parameter, state in self.adamw.state.items() for key, value in state.items()}
        if self.muon is not None:
            tensors |= {f"muon.momentum.{shape}": buffer for shape, buffer in self.muon.buffers.items()}
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of state_tensors; refuses the state of another network or optimizer."""
        keys = ("step", "exp_avg", "exp_avg_sq")
        expected = {f"adamw.{key}.{name}" for name in self.names.values() for key in keys}
        if self.muon is not None:
            expected |= {f"muon.momentum.{shape}" for shape in self.muon.buffers}
        if different := sorted(expected ^ set(tensors)):
            raise ConfigError(f"the optimizer state is of another run: {different[0]!r} does not match")
        for parameter, name in self.names.items():
            self.adamw.state[parameter] = {
                key: tensors[f"adamw.{key}.{name}"].to(parameter.device, copy=True) for key in keys}
        if self.muon is not None:
            for shape, buffer in self.muon.buffers.items():
                buffer.copy_(tensors[f"muon.momentum.{shape}"])


def learning_rate_multiplier(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the peak rate at 0-based `step`: a pure function, so a resumed run needs no state.

    The first step is not 0 and the last not final_lr_fraction: no step is spent on a zero rate.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule is Schedule.COSINE:
        progress = max(0.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        cooldown_steps = config.cooldown_fraction * steps
        decay = min(1.0, (steps - step) / cooldown_steps) if cooldown_steps else 1.0
    return warmup * (config.final_lr_fraction + (1 - config.final_lr_fraction) * decay)
