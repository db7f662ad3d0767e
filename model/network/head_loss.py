"""Cross-entropy of the head in bf16, some tokens at a time, with its gradients computed in the forward pass.

Logits are the largest tensor of a training: those of `daily` at a micro-batch of 32 are 4.3 GB in bf16, and their
gradient is as large. Here only those of TOKENS_AT_ONCE tokens exist at a time. What is saved for the backward pass is
the gradient of the hidden states and that of the head, so no product is computed twice. (As FusedLinearCrossEntropy of
Liger-Kernel does, arXiv 2410.10989; here in operations that torch.compile fuses.)

Shape suffixes: P tokens, D width, V vocabulary with its padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_TARGET = -1
TOKENS_AT_ONCE = 8192
"""The products are at full speed, and the gradient of the head is added up only once in so many tokens."""


class HeadLoss(torch.autograd.Function):
    """Mean nats of the targets in fp32; IGNORED_TARGET is not counted."""

    @staticmethod
    def forward(
        ctx, h_PD: Tensor, weight_VD: Tensor, targets_P: Tensor, vocab_size: int, softcap: float | None
    ) -> Tensor:
        """`h_PD` in bf16; of the rows of `weight_VD` those from `vocab_size` on are padding."""
        head_VD = weight_VD.to(h_PD.dtype)
        counted_P1 = (targets_P != IGNORED_TARGET)[:, None]
        share_P1 = counted_P1 / counted_P1.sum()
        loss = torch.zeros((), device=h_PD.device)
        to_h_PD, to_head_VD = [], None
        for h, targets, share in zip(*(x.split(TOKENS_AT_ONCE) for x in (h_PD, targets_P[:, None], share_P1))):
            logits, targets = (h @ head_VD.mT)[:, :vocab_size].float(), targets.clamp_min(0)
            if softcap is not None:
                tanh = logits.div_(softcap).tanh_()
                logits = softcap * tanh
            # softmax, as Inductor recognises it: it then reads the logits once for maximum and sum ("online softmax")
            largest, right = logits.amax(-1, keepdim=True), logits.gather(-1, targets)
            exponentials = (logits - largest).exp_()
            total = exponentials.sum(-1, keepdim=True)
            loss = loss + ((largest + total.log() - right) * share).sum()
            to_logits, to_right = exponentials.mul_(share / total), ((right - largest).exp() / total - 1) * share
            if softcap is not None:
                to_logits, to_right = to_logits.mul_(1 - tanh.square_()), to_right * (1 - (right / softcap).square())
            to_logits = to_logits.to(h.dtype).scatter_(-1, targets, to_right.to(h.dtype))
            if vocab_size < len(head_VD):  # products of odd sizes are slow
                to_logits = F.pad(to_logits, (0, len(head_VD) - vocab_size))
            to_h_PD.append(to_logits @ head_VD)
            part_VD = to_logits.mT @ h
            to_head_VD = part_VD if to_head_VD is None else to_head_VD.float().add_(part_VD)
        ctx.save_for_backward(torch.cat(to_h_PD), to_head_VD)
        return loss

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        to_h_PD, to_head_VD = ctx.saved_tensors
        return to_h_PD * gradient, to_head_VD * gradient[None], None, None, None  # the latter in fp32
