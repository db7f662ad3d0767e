"""Muon or PSGD for the hidden matrices, AdamW for everything else.

Muon (Keller Jordan, 2024) replaces the momentum of a matrix by the nearest orthogonal matrix, found
here with Polar Express (arXiv 2505.16932), batched over matrices of one shape.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from model.config import ConfigError, OptimizerName, Precision, TrainConfig
from model.parallel import assign_, local, rows_as, whole_matrices
from model.psgd import whiten_

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
_PRODUCTS = {Precision.FP32: torch.float32, Precision.FP16: torch.float16}  # else bf16


def orthogonalise(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest (semi-)orthogonal matrix of each: U V' of the SVD U S V'. A zero matrix stays zero."""
    tall = matrices_NRC.size(-2) > matrices_NRC.size(-1)
    x = matrices_NRC.mT if tall else matrices_NRC  # the products below are of the smaller side
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) * _RELAXATION + 1e-7)).to(dtype)  # fp16 would lose small ones
    for iteration, (a, b, c) in enumerate(_POLAR_EXPRESS):
        if iteration < len(_POLAR_EXPRESS) - 1:
            a, b, c = a / _RELAXATION, b / _RELAXATION**3, c / _RELAXATION**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Nesterov momentum, orthogonalised; decoupled weight decay. State: one stack a shape.

    With `beta2` each row of the update is divided by the running size of that row, and the whole then
    has the size it had (NorMuon, arXiv 2510.05491). `cautious` decays a weight only where the update
    also moves it towards 0 (arXiv 2510.12402). A parameter of 3 dimensions is a stack of matrices.
    Of sharded parameters each process has the state of its share of the whole matrices.
    """

    def __init__(self, parameters: list[nn.Parameter], weight_decay: float, dtype: torch.dtype,
                 beta2: float | None = None, cautious: bool = False) -> None:
        self.weight_decay, self.dtype, self.beta2, self.cautious = weight_decay, dtype, beta2, cautious
        self.orthogonalise = orthogonalise
        self.groups: dict[str, list[nn.Parameter]] = {}
        for parameter in parameters:
            rows, columns = parameter.shape[-2:]
            self.groups.setdefault(f"{rows}x{columns}", []).append(parameter)
        self.state: dict[str, Tensor] = {}
        for shape, group in self.groups.items():
            matrices = whole_matrices(_stack(group))
            self.state[f"momentum.{shape}"] = torch.zeros_like(matrices)
            if beta2 is not None:
                self.state[f"row_square.{shape}"] = torch.zeros_like(matrices[..., :1])

    @torch.no_grad()
    def step(self, learning_rate: float, momentum: float, decay_multiplier: float = 1.0) -> None:
        decay = learning_rate * self.weight_decay * decay_multiplier
        for shape, group in self.groups.items():
            stack = whole_matrices(_stack([parameter.grad for parameter in group]))
            update_NRC, scale = self._direction(shape, local(stack), momentum)
            updates, weights = rows_as(update_NRC, group, stack), [local(parameter) for parameter in group]
            if self.cautious and decay:
                torch._foreach_mul_(weights, [1 - decay * (update * weight > 0)
                                              for update, weight in zip(updates, weights)])
            elif decay:
                torch._foreach_mul_(weights, 1 - decay)
            torch._foreach_add_(weights, updates, alpha=-learning_rate * scale)

    def _direction(self, shape: str, gradients_NRC: Tensor, momentum: float) -> tuple[Tensor, float]:
        """What is subtracted from the matrices of one shape, and its factor besides the rate."""
        buffer = local(self.state[f"momentum.{shape}"]).lerp_(gradients_NRC, 1 - momentum)
        update_NRC = self.orthogonalise(gradients_NRC.lerp_(buffer, momentum), self.dtype).float()
        if self.beta2 is not None:
            update_NRC = self._normalise_rows(update_NRC, local(self.state[f"row_square.{shape}"]))
        # a tall matrix of orthonormal columns moves its output less: same RMS for every shape
        return update_NRC, math.sqrt(max(1.0, update_NRC.size(-2) / update_NRC.size(-1)))

    def _normalise_rows(self, update_NRC: Tensor, square_NR1: Tensor) -> Tensor:
        square_NR1.lerp_(update_NRC.square().mean(-1, keepdim=True), 1 - self.beta2)
        # the first steps see too small a running mean; its common factor goes with the rescaling
        normalised = update_NRC * square_NR1.clamp_min(1e-12).rsqrt()
        before, after = (x.norm(dim=(-2, -1), keepdim=True) for x in (update_NRC, normalised))
        return normalised * (before / after.clamp_min(1e-12))


class Kron(Muon):
    """Momentum whitened by PSGD's Kronecker-factored preconditioner: entries of size 1, as AdamW's, whose rates suit.

    State besides the momentum: the two factors of each matrix, of its rows and of its columns, in fp32.
    """

    def __init__(self, parameters: list[nn.Parameter], weight_decay: float, cautious: bool = False) -> None:
        super().__init__(parameters, weight_decay, torch.float32, cautious=cautious)
        for shape in self.groups:
            zeros_NRC = self.state[f"momentum.{shape}"]  # products of it are zero, and shared as it is
            self.state |= {f"left.{shape}": zeros_NRC @ zeros_NRC.mT, f"right.{shape}": zeros_NRC.mT @ zeros_NRC}
            for side in ("left", "right"):
                self.state[f"{side}_curvature.{shape}"] = torch.zeros_like(zeros_NRC[:, :1, :1])

    def _direction(self, shape: str, gradients_NRC: Tensor, momentum: float) -> tuple[Tensor, float]:
        names = ("momentum", "left", "right", "left_curvature", "right_curvature")
        buffer, *fit = (local(self.state[f"{name}.{shape}"]) for name in names)
        begun_N11 = (fit[0][:, :1, :1] != 0).float()  # a first gradient counts in full
        buffer.lerp_(gradients_NRC, 1 - momentum * begun_N11)
        return whiten_(buffer, *fit), 1.0


def _stack(tensors: list[Tensor]) -> Tensor:
    """Matrices and stacks of matrices of one shape as a new stack; of sharded ones each process has some rows."""
    stacks = [tensor.detach().reshape(-1, *tensor.shape[-2:]) for tensor in tensors]
    return torch.cat([stack.redistribute(placements=[Shard(1)]) if isinstance(stack, DTensor) else stack
                      for stack in stacks])


def roles(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by role: matrix (hidden), embedding, head, scalar (norms, biases, lambdas, gates, routers)."""
    grouped: dict[str, list[tuple[str, nn.Parameter]]] = {
        "matrix": [], "embedding": [], "head": [], "scalar": []}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith(("gate.weight", "router.weight")):
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
        self.matrices: Muon | None = None
        if config.optimizer is OptimizerName.PSGD:
            matrices = [parameter for _, parameter in grouped.pop("matrix")]
            self.matrices = Kron(matrices, config.weight_decay, config.cautious_decay)
        elif config.optimizer is OptimizerName.MUON:
            matrices = [parameter for _, parameter in grouped.pop("matrix")]
            dtype = _PRODUCTS.get(config.precision, torch.bfloat16)
            self.matrices = Muon(matrices, config.weight_decay, dtype, config.muon_beta2, config.cautious_decay)
        rates = {
            "matrix": config.learning_rate,
            "embedding": config.embedding_learning_rate or config.learning_rate,
            "head": config.head_learning_rate or config.learning_rate,
            "scalar": config.scalar_learning_rate or config.learning_rate,
        }
        self.names = {parameter: name for group in grouped.values() for name, parameter in group}
        groups = [
            {"params": [parameter for _, parameter in group], "lr": rates[role], "peak": rates[role],
             "weight_decay": config.weight_decay if self.matrices is None and role != "scalar" else 0.0}
            for role, group in grouped.items() if group
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(config.adam_beta1, config.adam_beta2),
                                       eps=config.adam_epsilon, fused=True)
        for parameter in self.names:  # torch would wait for the first step: memory is full before it or not at all
            self.adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | {
                key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}

    def step(self, multiplier: float, momentum: float | None = None) -> None:
        """One update at `multiplier` of every peak rate; `momentum` is Muon's, null: the configured one."""
        if self.matrices is not None:
            self.matrices.step(self.config.learning_rate * multiplier,
                           self.config.momentum if momentum is None else momentum,
                           multiplier if self.config.cautious_decay else 1.0)
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * multiplier
        self.adamw.step()

    def compile(self, backend: str = "inductor") -> None:
        """Compile Muon's products, once a shape: no number of the schedule enters them, so none compiles again."""
        if self.matrices is not None:
            self.matrices.orthogonalise = torch.compile(orthogonalise, dynamic=False, fullgraph=True, backend=backend)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything the next step depends on besides weights and configuration."""
        tensors = {f"adamw.{key}.{self.names[parameter]}": value
                   for parameter, state in self.adamw.state.items() for key, value in state.items()}
        if self.matrices is not None:
            tensors |= {f"{self.config.optimizer.value}.{name}": value for name, value in self.matrices.state.items()}
        return tensors

    def state_bytes(self) -> int:
        """Size of state_tensors() after the first step; before it AdamW has no state."""
        moments = sum(2 * parameter.numel() * parameter.element_size() + 4 for parameter in self.names)
        stacks = self.matrices.state.values() if self.matrices is not None else ()
        return moments + sum(tensor.numel() * tensor.element_size() for tensor in stacks)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of state_tensors; refuses the state of another network or optimizer."""
        keys = ("step", "exp_avg", "exp_avg_sq")
        expected = {f"adamw.{key}.{name}" for name in self.names.values() for key in keys}
        if self.matrices is not None:
            expected |= {f"{self.config.optimizer.value}.{name}" for name in self.matrices.state}
        if different := sorted(expected ^ set(tensors)):
            raise ConfigError(f"the optimizer state is of another run: {different[0]!r} does not match")
        for parameter, name in self.names.items():
            step = tensors[f"adamw.step.{name}"].to(parameter.device, copy=True)
            moments = {key: torch.empty_like(parameter, requires_grad=False) for key in keys[1:]}
            for key, moment in moments.items():
                assign_(moment, tensors[f"adamw.{key}.{name}"])
            self.adamw.state[parameter] = {"step": step} | moments
        if self.matrices is not None:
            for name, value in self.matrices.state.items():
                assign_(value, tensors[f"{self.config.optimizer.value}.{name}"])
