"""PSGD: momentum whitened by a Kronecker-factored preconditioner, batched over matrices of one shape.

A matrix of momentum M is replaced by (L L) M (R R), where the symmetric L and R are fitted, a step a call, so
that the result has uncorrelated entries of variance 1 (X. Li, arXiv 1512.04202 and 2402.11858). The update of
the factors is the quadratic one of the author's psgd_torch (update_precond_kron_whiten_quad), with two
changes that make it a pure function, as a resumed run needs: the noise that keeps the fit of unused
directions bounded is replaced by its expectation, and the norm of a matrix is estimated by power iteration from its
largest row, not from random vectors.

Shape suffixes: N matrices, R rows, C columns.
"""

import torch
from torch import Tensor, nn

from model.machine.parallel import local_part
from model.optimizers.muon import Muon

FIT_RATE = 0.1  # of the factors
CURVATURE_MEMORY = 0.9  # of the estimated curvature, a step
DAMPING = 1e-9  # the preconditioner stays below its inverse
LARGEST_RMS, LARGEST_ENTRY = 2.0, 10.0  # of an update: while the fit is behind, it is clipped


class PSGD(Muon):
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

    def compile(self, backend: str) -> None:
        """Nothing: the products of the preconditioner are most of its step."""

    def _scale(self, rows: int, columns: int) -> float:
        return 1.0

    def _direction(self, shape: str, gradients_NRC: Tensor, momentum: float) -> Tensor:
        names = ("momentum", "left", "right", "left_curvature", "right_curvature")
        buffer, *fit = (local_part(self.state[f"{name}.{shape}"]) for name in names)
        begun_N11 = (fit[0][:, :1, :1] != 0).float()  # a first gradient counts in full
        buffer.lerp_(gradients_NRC, 1 - momentum * begun_N11)
        return whiten_(buffer, *fit)


def whiten_(
    momentum_NRC: Tensor, left_NRR: Tensor, right_NCC: Tensor, left_curvature_N11: Tensor, right_curvature_N11: Tensor
) -> Tensor:
    """The preconditioned momentum; fits the factors (zero: not begun yet) and the curvatures in place.

    A matrix that never had a gradient is left alone, and its update is zero.
    """
    _begin(momentum_NRC, left_NRR, right_NCC)
    _, rows, columns = momentum_NRC.shape
    powers = [factor @ factor for factor in (left_NRR, right_NCC)]
    white_NRC = powers[0] @ momentum_NRC @ powers[1]
    noise_N = DAMPING + torch.finfo(momentum_NRC.dtype).eps * _rms(momentum_NRC)
    seen = (white_NRC @ white_NRC.mT, white_NRC.mT @ white_NRC)
    sides = (left_NRR, left_curvature_N11, columns), (right_NCC, right_curvature_N11, rows)
    for side, (factor, curvature_N11, wanted) in enumerate(sides):
        # what white noise of this size would add to the covariance that is seen
        unseen = noise_N.square() * powers[1 - side].square().sum((-2, -1))
        covariance = seen[side] + unseen[:, None, None] * (powers[side] @ powers[side])
        size_N11 = _largest_eigenvalue(covariance) + wanted
        curvature_N11.copy_(torch.maximum(curvature_N11.lerp(size_N11, 1 - CURVATURE_MEMORY), size_N11))
        rate = FIT_RATE / 2 / curvature_N11
        half = factor - rate * (covariance @ factor - wanted * factor)
        half = half - rate * (half @ covariance - wanted * half)
        factor.copy_((half + half.mT) / 2)
    clipped = white_NRC * (LARGEST_RMS / _rms(white_NRC).clamp_min(LARGEST_RMS))[:, None, None]
    return clipped.clamp(-LARGEST_ENTRY, LARGEST_ENTRY)


def _begin(momentum_NRC: Tensor, left_NRR: Tensor, right_NCC: Tensor) -> None:
    """Set factors that are zero to the multiple of the identity that gives a first update of size 1."""
    fourth_N = momentum_NRC.pow(4).mean((-2, -1))
    new_N = (left_NRR[:, 0, 0] == 0) & (fourth_N > 0)
    scale_N = torch.where(new_N, fourth_N.clamp_min(DAMPING**4) ** (-1 / 16), 0)
    for factor in (left_NRR, right_NCC):
        factor.diagonal(dim1=-2, dim2=-1).add_(scale_N[:, None])


def _rms(x_NRC: Tensor) -> Tensor:
    return x_NRC.square().mean((-2, -1)).sqrt()


def _largest_eigenvalue(symmetric_NRR: Tensor) -> Tensor:
    """Of positive matrices, from below."""
    row_N = symmetric_NRR.norm(dim=-1).argmax(-1)
    vector_NR1 = symmetric_NRR[torch.arange(len(row_N), device=row_N.device), row_N, :, None]
    for _ in range(4):
        vector_NR1 = symmetric_NRR @ (vector_NR1 / vector_NR1.norm(dim=-2, keepdim=True).clamp_min(1e-30))
    return vector_NR1.norm(dim=-2, keepdim=True)
