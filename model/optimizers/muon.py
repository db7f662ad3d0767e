"""Muon: the momentum of a matrix, replaced by the nearest orthogonal matrix (Keller Jordan, 2024).

That is found with Polar Express (arXiv 2505.16932), batched over matrices of one shape.

Shape suffixes: N matrices, R rows, C columns.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from model.machine.parallel import local_part, rows_as, whole_matrices

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
    tall = matrices_NRC.size(-2) > matrices_NRC.size(-1)
    size_N11 = matrices_NRC.norm(dim=(-2, -1), keepdim=True) * _RELAXATION + 1e-7
    x = (matrices_NRC / size_N11).to(dtype)  # fp16 would lose small ones
    x = x.mT if tall else x  # the products below are of the smaller side
    for iteration, (a, b, c) in enumerate(_POLAR_EXPRESS):
        if iteration < len(_POLAR_EXPRESS) - 1:
            a, b, c = a / _RELAXATION, b / _RELAXATION**3, c / _RELAXATION**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def direction_(
    gradients_NRC: Tensor,
    momentum_NRC: Tensor,
    square_NR1: Tensor | None,
    momentum: float | Tensor,
    beta2: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """What Muon subtracts from matrices; moves their momentum and the running squares of their rows. Run eagerly, it
    uses the memory of the gradients."""
    momentum_NRC.lerp_(gradients_NRC, 1 - momentum)
    compiled = torch.compiler.is_compiling()  # then what is written is no more than what is kept
    nesterov_NRC = (Tensor.lerp if compiled else Tensor.lerp_)(gradients_NRC, momentum_NRC, momentum)
    update_NRC = orthogonalise(nesterov_NRC, dtype).float()
    return update_NRC if square_NR1 is None or beta2 is None else _normalise_rows(update_NRC, square_NR1, beta2)


def _normalise_rows(update_NRC: Tensor, square_NR1: Tensor, beta2: float) -> Tensor:
    square_NR1.lerp_(update_NRC.square().mean(-1, keepdim=True), 1 - beta2)
    # the first steps see too small a running mean; its common factor goes with the rescaling
    normalised = update_NRC * square_NR1.clamp_min(1e-12).rsqrt()
    before, after = (x.norm(dim=(-2, -1), keepdim=True) for x in (update_NRC, normalised))
    return normalised * (before / after.clamp_min(1e-12))


def subtract_(weight: Tensor, update: Tensor, rate: float | Tensor, decay: float | Tensor, cautious: bool) -> None:
    """Decay a weight, if cautious only where the update also moves it towards 0, and subtract the update."""
    if isinstance(decay, Tensor) or decay:
        weight.mul_(1 - decay * (update * weight > 0) if cautious else 1 - decay)
    if isinstance(rate, Tensor):
        weight.sub_(rate * update)
    else:
        weight.add_(update, alpha=-rate)


def update_(
    weights_NRC: Tensor,
    gradients_NRC: Tensor,
    momentum_NRC: Tensor,
    square_NR1: Tensor | None,
    momentum: Tensor,
    rate: Tensor,
    decay: Tensor,
    beta2: float | None,
    dtype: torch.dtype,
    cautious: bool,
) -> None:
    """A step of Muon for all matrices of one shape. Its numbers are tensors: compiled code reads them each time."""
    update_NRC = direction_(gradients_NRC, momentum_NRC, square_NR1, momentum, beta2, dtype)
    subtract_(weights_NRC, update_NRC, rate, decay, cautious)


class Muon:
    """Nesterov momentum, orthogonalised; decoupled weight decay. State: one stack a shape.

    With `beta2` each row of the update is divided by the running size of that row, and the whole then
    has the size it had (NorMuon, arXiv 2510.05491). `cautious` decays a weight only where the update
    also moves it towards 0 (arXiv 2510.12402). A parameter of 3 dimensions is a stack of matrices.
    Of sharded parameters each process has the state of its share of the whole matrices.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        weight_decay: float,
        dtype: torch.dtype,
        beta2: float | None = None,
        cautious: bool = False,
    ) -> None:
        self.weight_decay, self.dtype, self.beta2, self.cautious = weight_decay, dtype, beta2, cautious
        self.direction_: Callable[..., Tensor] = direction_
        self.update_: Callable[..., None] = update_
        self.weights: dict[str, Tensor] = {}
        """By shape, where the matrices of a shape are one tensor."""
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
    def compile(self, backend: str) -> None:
        """Compile the step, once a shape. The matrices of a shape become parts of one tensor, which few kernels update;
        sharded ones stay as they are, and only the direction is compiled."""
        self.direction_ = torch.compile(direction_, dynamic=False, fullgraph=True, backend=backend)
        self.update_ = torch.compile(update_, dynamic=False, fullgraph=True, backend=backend)
        for shape, group in self.groups.items():
            if not isinstance(group[0], DTensor):
                stack = self.weights[shape] = _stack(group)
                for parameter, part in zip(group, rows_as(stack, group, stack)):
                    parameter.data = part

    @torch.no_grad()
    def step(self, learning_rate: float, momentum: float, decay_multiplier: float = 1.0) -> None:
        decay = learning_rate * self.weight_decay * decay_multiplier
        for shape, group in self.groups.items():
            stack = whole_matrices(_stack(gradients_of(group)))
            rate = learning_rate * self._scale(*group[0].shape[-2:])
            if shape in self.weights:
                numbers = (torch.tensor(number) for number in (momentum, rate, decay))
                self.update_(
                    self.weights[shape], stack, *self._state(shape), *numbers, self.beta2, self.dtype, self.cautious
                )
                continue
            update_NRC = self._direction(shape, local_part(stack), momentum)
            for parameter, update in zip(group, rows_as(update_NRC, group, stack)):
                subtract_(local_part(parameter), update, rate, decay, self.cautious)

    def _scale(self, rows: int, columns: int) -> float:
        """Factor of the rate: a tall matrix of orthonormal columns moves its output less. Same RMS for every shape."""
        return math.sqrt(max(1.0, rows / columns))

    def _state(self, shape: str) -> tuple[Tensor, Tensor | None]:
        square_NR1 = None if self.beta2 is None else local_part(self.state[f"row_square.{shape}"])
        return local_part(self.state[f"momentum.{shape}"]), square_NR1

    def _direction(self, shape: str, gradients_NRC: Tensor, momentum: float) -> Tensor:
        """What is subtracted from the matrices of one shape, times the rate."""
        number = momentum if self.direction_ is direction_ else torch.tensor(momentum)
        return self.direction_(gradients_NRC, *self._state(shape), number, self.beta2, self.dtype)


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of parameters that all have one."""
    gradients = []
    for parameter in parameters:
        assert parameter.grad is not None, "a weight of the network is not part of its loss"
        gradients.append(parameter.grad)
    return gradients


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Matrices and stacks of matrices of one shape as a new stack; of sharded ones each process has some rows."""
    stacks = [tensor.detach().reshape(-1, *tensor.shape[-2:]) for tensor in tensors]
    return torch.cat(
        [stack.redistribute(placements=[Shard(1)]) if isinstance(stack, DTensor) else stack for stack in stacks]
    )
