"""Rows that hold several documents: attention, and every look at the token before, stays inside one.

A document starts with the end-of-text token; what stands before the first of a row is the end of another.
Rotary positions need no reset, because attention sees differences only. Learned positions stay those of the
row: a document's logits then depend on where it stands, but not on what stands before it.

On a GPU FlexAttention skips the blocks of scores that no document needs; elsewhere SDPA gets a mask, with
equal results. Shape suffixes as in model.attention.
"""

from collections.abc import Callable, Iterable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

SMALLEST_HEAD = 16  # that FlexAttention has kernels for
_compiled = cache(torch.compile)  # on first use: importing the compiler takes seconds


def fused(function: Callable) -> Callable:
    """The function compiled, also where the network around it is not."""
    return function if torch.compiler.is_compiling() else _compiled(function)


class Documents:
    """Where documents begin in a batch of rows: made once a forward pass, read by every layer."""

    def __init__(self, tokens_BT: Tensor, eot_token: int, windows: Iterable[int]) -> None:
        """`windows`: how many tokens the queries of the network's layers see, themselves included."""
        self.first_BT = tokens_BT == eot_token
        self.number_BT = self.first_BT.cumsum(1)  # within the row; 0 before the first start
        self.blocks: dict[int, BlockMask] = {}
        if tokens_BT.device.type == "cuda":
            create = fused(create_block_mask)
            self.blocks = {window: block_mask(self.number_BT, window, create) for window in set(windows)}

    def attention(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
        """Causal attention over the last `window` tokens, each query within its document."""
        if window in self.blocks and q_BHTK.size(-1) >= SMALLEST_HEAD:
            return fused(flex_attention)(q_BHTK, k_BHTK, v_BHTK, block_mask=self.blocks[window])
        time_T = torch.arange(q_BHTK.size(2), device=q_BHTK.device)
        distance_TT = time_T[:, None] - time_T
        seen_BTT = self.same(self.number_BT) & (distance_TT >= 0) & (distance_TT < window)
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=seen_BTT[:, None])

    def before(self, x_BTHK: Tensor) -> Tensor:
        """The same at the token before; the first token of a row or document has only itself."""
        moved_BTHK = torch.cat((x_BTHK[:, :1], x_BTHK[:, :-1]), dim=1)
        return torch.where(self.first_BT[..., None, None], x_BTHK, moved_BTHK)

    def same(self, other_BN: Tensor) -> Tensor:
        """(B, T, N): does the document of each token have this number?"""
        return self.number_BT[..., None] == other_BN[:, None]


def block_mask(number_BT: Tensor, window: int, create: Callable = create_block_mask) -> BlockMask:
    """What Documents.attention masks, for FlexAttention."""
    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (key <= query) & (query - key < window)
        return near & (number_BT[row, query] == number_BT[row, key])

    B, T = number_BT.shape
    return create(seen, B, None, T, T, device=number_BT.device)
