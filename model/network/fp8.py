"""Linear layers that multiply in fp8 in training: e4m3 forward, e5m2 for gradients, one scale a tensor.

A tensor is divided by its largest absolute value so that this becomes the largest number of the format,
rounded, and multiplied with tensor cores that add up in fp32; the scale is multiplied back in ("FP8
Formats for Deep Learning", arXiv 2209.05433; scaling by the tensor at hand as in nanochat and torchao, where
it beat a scale a row). Weights stay fp32 in memory and in the optimizer. What is saved for the backward
pass is the fp8 copies: half of bf16.

The same product runs on a GPU of compute capability 8.9 or more and, slowly, on a CPU, so that numbers can be
checked without the GPU. Shape suffixes: P tokens, D inputs, E outputs.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.network.choices import Activation
from model.network.gpt import GPT
from model.network.mlp import MLP
from model.parsing import ConfigError

MULTIPLE = 16  # of every size of a product, asked for by the hardware
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2  # more precision; more range
GRADIENT_SAMPLE = 16
"""Of so many tokens one is read for the scale of the largest gradient: to read all costs 2 % of a training step."""
GRADIENT_MARGIN = 64
"""Times its largest number is where that scale ends: e5m2 has 32 powers of 2. What is larger becomes the largest."""


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in fp8 and the fp32 scale that gives x back: x is about x8 * scale."""
    scale = _scale(x.abs().max().float(), dtype)
    return _divided(x.float(), scale, dtype), scale


def _scale(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """That makes this number the largest of the type."""
    return largest.clamp_min(1e-12) / torch.finfo(dtype).max


def _divided(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x / scale in fp8; what is larger than its largest number becomes that."""
    largest = torch.finfo(dtype).max
    return (x / scale).clamp(-largest, largest).to(dtype)


def _product(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """a @ b in `dtype`; the hardware reads a by rows and b by columns. `fast` adds up in fewer bits."""
    return torch._scaled_mm(
        a.contiguous(), b.mT.contiguous().mT, scale_a=scale_a, scale_b=scale_b, out_dtype=dtype, use_fast_accum=fast
    )


class _Product(torch.autograd.Function):
    """x_PD @ weight_ED', all three products of the forward and the backward pass in fp8."""

    @staticmethod
    def forward(ctx, x_PD: Tensor, weight_ED: Tensor, dtype: torch.dtype) -> Tensor:
        x8_PD, x_scale = quantise(x_PD, FORWARD)
        w8_ED, w_scale = quantise(weight_ED, FORWARD)
        ctx.save_for_backward(x8_PD, x_scale, w8_ED, w_scale)
        ctx.dtypes = x_PD.dtype, weight_ED.dtype
        return _product(x8_PD, x_scale, w8_ED.mT, w_scale, dtype, fast=True)

    @staticmethod
    def backward(ctx, gradient_PE: Tensor) -> tuple[Tensor, Tensor, None]:
        x8_PD, x_scale, w8_ED, w_scale = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        g8_PE, g_scale = quantise(gradient_PE, BACKWARD)
        to_x_PD = _product(g8_PE, g_scale, w8_ED, w_scale, x_dtype, fast=False)
        # as bf16 gives it: the kernels with fp32 results are slower
        to_weight_ED = _product(g8_PE.mT, g_scale, x8_PD, x_scale, gradient_PE.dtype, fast=False)
        return to_x_PD, to_weight_ED.to(w_dtype), None


class _ReluSquaredMLP(torch.autograd.Function):
    """project(relu(expand(x))²) with the six products in fp8, for fewer passes over its largest tensors."""

    @staticmethod
    def forward(ctx, x_PD: Tensor, expand_MD: Tensor, project_DM: Tensor, dtype: torch.dtype) -> Tensor:
        (x8_PD, x_scale), (e8_MD, e_scale), (p8_DM, p_scale) = (
            quantise(x, FORWARD) for x in (x_PD, expand_MD, project_DM)
        )
        h_PM = _product(x8_PD, x_scale, e8_MD.mT, e_scale, dtype, fast=True)
        y_scale = _scale(h_PM.max().float().relu().square(), FORWARD)
        y8_PM = _divided(h_PM.float().relu().square(), y_scale, FORWARD)
        ctx.save_for_backward(x8_PD, x_scale, e8_MD, e_scale, h_PM, y8_PM, y_scale, p8_DM, p_scale)
        ctx.dtypes = x_PD.dtype, expand_MD.dtype
        return _product(y8_PM, y_scale, p8_DM.mT, p_scale, dtype, fast=True)

    @staticmethod
    def backward(ctx, gradient_PD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x8_PD, x_scale, e8_MD, e_scale, h_PM, y8_PM, y_scale, p8_DM, p_scale = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        dtype = gradient_PD.dtype
        g8_PD, g_scale = quantise(gradient_PD, BACKWARD)
        dy_PM = _product(g8_PD, g_scale, p8_DM, p_scale, dtype, fast=False)
        to_project_DM = _product(g8_PD.mT, g_scale, y8_PM, y_scale, dtype, fast=False)
        some_PM = 2 * h_PM[::GRADIENT_SAMPLE].float().relu() * dy_PM[::GRADIENT_SAMPLE].float()
        h_scale = _scale(GRADIENT_MARGIN * some_PM.abs().max(), BACKWARD)
        dh8_PM = _divided(2 * h_PM.float().relu() * dy_PM.float(), h_scale, BACKWARD)
        to_x_PD = _product(dh8_PM, h_scale, e8_MD, e_scale, x_dtype, fast=False)
        to_expand_MD = _product(_transposed(dh8_PM), h_scale, x8_PD, x_scale, dtype, fast=False)
        return to_x_PD, to_expand_MD.to(w_dtype), to_project_DM.to(w_dtype), None


@torch.library.custom_op("daily_train::transposed", mutates_args=())
def _transposed(x_PM: Tensor) -> Tensor:
    """x_MP, contiguous. Of its own, because Inductor would write it in the kernel that computes x, which then reaches
    1.7 TB/s on an H200; apart they reach 3.9 and 2.6."""
    return _copy(x_PM.device)(x_PM)


@_transposed.register_fake
def _(x_PM: Tensor) -> Tensor:
    return x_PM.new_empty(x_PM.mT.shape)


def _copy_transposed(x_PM: Tensor) -> Tensor:
    return x_PM.mT.contiguous()


@functools.cache
def _copy(device: torch.device) -> Callable[[Tensor], Tensor]:
    """The fastest on this device that works: torch's own copy of transposed fp8 takes four times as long."""
    if device.type == "cuda":
        compiled = torch.compile(_copy_transposed, dynamic=False)
        try:
            compiled(torch.zeros(32, 64, dtype=BACKWARD, device=device))
            return compiled
        except Exception as error:  # without a compiler, networks run eagerly, too
            logging.getLogger(__name__).warning("fp8 is copied without torch.compile on %s: %s", device, error)
    return _copy_transposed


class Float8Linear(nn.Linear):
    """nn.Linear with fp8 products under autocast while gradients are recorded, which is in training only.

    Validation, samples and scores get the plain product, which is bf16 under autocast: rounding to fp8 would be noise
    in the loss that runs are compared by, and costs more time than its product saves where nothing is compiled
    (nanochat switches to bf16 there, too).
    """

    def forward(self, x: Tensor) -> Tensor:
        x_PD = x.flatten(0, -2)
        if not _in_training(x_PD):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(x.device.type)
        # autocast squares in fp32: an fp32 input would get an fp32 gradient, of twice the memory
        y_PE = _Product.apply(x_PD.to(dtype), self.weight, dtype)
        if self.bias is not None:
            y_PE = y_PE + self.bias.to(dtype)
        return y_PE.unflatten(0, x.shape[:-1])


class Float8MLP(MLP):
    """MLP of ReLU² whose layers are Float8Linear, with products in fp8 where those have them."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_PD = x_BTD.flatten(0, -2)
        if not _in_training(x_PD):
            return super().forward(x_BTD)
        dtype = torch.get_autocast_dtype(x_BTD.device.type)
        y_PD = _ReluSquaredMLP.apply(x_PD.to(dtype), self.expand.weight, self.project.weight, dtype)
        return y_PD.unflatten(0, x_BTD.shape[:-1])


def _in_training(x_PD: Tensor) -> bool:
    """Whether a layer multiplies this input in fp8."""
    recorded = torch.is_autocast_enabled(x_PD.device.type) and torch.is_grad_enabled()
    return recorded and len(x_PD) % MULTIPLE == 0


def use_fp8(model: GPT, smallest_size: int) -> None:
    """Make the linear layers of the blocks with inputs and outputs of at least `smallest_size` Float8Linear.

    The head and small layers stay in bf16: the head costs loss, and a small product is faster in bf16 than the
    rounding to fp8. Raises ConfigError where the device has no fp8 products or no layer is large enough.
    """
    device = next(model.parameters()).device
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        raise ConfigError(
            f"precision is 'fp8', but {torch.cuda.get_device_name(device)} has no fp8 products: its "
            f"compute capability is {capability[0]}.{capability[1]}, 8.9 is needed"
        )
    chosen = [
        layer
        for layer in model.blocks.modules()
        if type(layer) is nn.Linear
        and min(layer.weight.shape) >= smallest_size
        and all(size % MULTIPLE == 0 for size in layer.weight.shape)
    ]
    if not chosen:
        raise ConfigError(
            f"precision is 'fp8', but no linear layer of the blocks has inputs and outputs of at least "
            f"fp8_smallest_size {smallest_size}, both multiples of {MULTIPLE}"
        )
    for layer in chosen:
        layer.__class__ = Float8Linear  # nothing but forward differs: parameters and names stay
    for mlp in model.blocks.modules():
        if (
            type(mlp) is MLP
            and mlp.activation is Activation.RELU2
            and mlp.expand.bias is None
            and type(mlp.expand) is type(mlp.project) is Float8Linear
        ):
            mlp.__class__ = Float8MLP
