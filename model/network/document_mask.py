"""Rows that hold several documents: attention, and every look at the token before, stays inside one.

A document starts with the end-of-text token; what stands before the first of a row is the end of another.
Rotary positions need no reset, because attention sees differences only. Learned positions stay those of the
row: a document's logits then depend on where it stands, but not on what stands before it.

Shape suffixes as in model.network.attention.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Windowed = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""y_BHTK of q_BHTK, k_BHTK, v_BHTK and how many tokens a query sees, itself included."""
STRETCH = 128
"""Queries that `attention_in_stretches` takes together: of 64, 128 and 256 the fastest on a CPU (docs/trainer.md)."""


def attention_in_stretches(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int, number_BT: Tensor | None = None
) -> Tensor:
    """Causal attention over the last `window` tokens by plain SDPA, on every device.

    The queries of a stretch get the keys of their stretch and of the stretches before that hold their windows: about
    window + STRETCH scores a query instead of T. With `number_BT` a query sees only keys of its own number.
    """
    before = -(-(window - 1) // STRETCH)
    place = torch.arange((before + 1) * STRETCH, device=q_BHTK.device)
    distance = place[before * STRETCH :, None] - place
    seen = (distance >= 0) & (distance < window)
    k_parts, v_parts = k_BHTK.split(STRETCH, dim=2), v_BHTK.split(STRETCH, dim=2)
    stretches = []
    for i, q_part in enumerate(q_BHTK.split(STRETCH, dim=2)):
        first = max(0, i - before)
        if first:  # joined: the backward pass of a slice fills a tensor of the whole length
            k, v = (torch.cat(parts[first : i + 1], dim=2) for parts in (k_parts, v_parts))
        else:  # but saves no copy for it, of which an unlimited window would need many
            k, v = (x[:, :, : (i + 1) * STRETCH] for x in (k_BHTK, v_BHTK))
        left = (before - i + first) * STRETCH
        mask = seen[: q_part.size(2), left : left + k.size(2)]
        if number_BT is not None:
            queries = slice(i * STRETCH, (i + 1) * STRETCH)
            keys = slice(first * STRETCH, (i + 1) * STRETCH)
            mask = (mask & (number_BT[:, queries, None] == number_BT[:, None, keys]))[:, None]
        stretches.append(F.scaled_dot_product_attention(q_part, k, v, attn_mask=mask))
    return torch.cat(stretches, dim=2)


class Documents:
    """Where documents begin in a batch of rows: made once a forward pass, read by every layer."""

    def __init__(self, tokens_BT: Tensor, eot_token: int, kernel: Callable[[Tensor], Windowed] | None = None) -> None:
        """`kernel` makes of number_BT the attention within documents; null: that in stretches."""
        self.first_BT = tokens_BT == eot_token
        self.number_BT = self.first_BT.cumsum(1)  # within the row; 0 before the first start
        self.attention: Windowed = (
            partial(attention_in_stretches, number_BT=self.number_BT) if kernel is None else kernel(self.number_BT)
        )

    def previous_token(self, x_BTHK: Tensor) -> Tensor:
        """`x_BTHK` at the token before; the first token of a row or document has only itself."""
        moved_BTHK = torch.cat((x_BTHK[:, :1], x_BTHK[:, :-1]), dim=1)
        return torch.where(self.first_BT[..., None, None], x_BTHK, moved_BTHK)

    def same_document(self, other_BN: Tensor) -> Tensor:
        """(B, T, N): does the document of each token have this number?"""
        return self.number_BT[..., None] == other_BN[:, None]
