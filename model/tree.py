"""Rows that hold several sequences, each beginning that they share once: a tree in depth-first order.

A token sees its ancestors and itself, so it has the values it has in any of its sequences alone. This is how
answers to one question are scored without running the question again. Not for sparse attention, whose
blocks are stretches of the row. It stands in for Documents, with the same suffixes.
"""

from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

_STRETCH = 64
"""Queries that a CPU takes together."""


class Tree:
    """A batch of such rows: made once a forward pass, read by every layer."""

    def __init__(self, tokens_BT: Tensor, position_BT: Tensor, parent_BT: Tensor, end_BT: Tensor,
                 eot_token: int | None = None) -> None:
        """`position_BT`: place of a token in its sequence; `parent_BT`: place in the row of the token before;
        `end_BT`: place in the row after the last descendant; `eot_token`: see Documents."""
        self.position_BT, self.parent_BT = position_BT, parent_BT
        place_T = torch.arange(tokens_BT.size(1), device=tokens_BT.device)
        self.seen_BTT = (place_T <= place_T[:, None]) & (place_T[:, None] < end_BT[:, None, :])
        self.first_BT = position_BT == 0
        if eot_token is not None:
            self.first_BT = self.first_BT | (tokens_BT == eot_token)
            number_BT = (self.seen_BTT & self.first_BT[:, None, :]).sum(-1)  # documents begun on the way here
            self.seen_BTT &= number_BT[:, :, None] == number_BT[:, None, :]
        self.read_BR: Tensor | None = None
        self._row_B1 = torch.arange(len(tokens_BT), device=tokens_BT.device)[:, None]

    def read_at(self, read_BR: Tensor) -> "Tree":
        """The same tree for a block of which only the states at places `read_BR` of each row are wanted."""
        tree = copy(self)
        tree.read_BR, tree.seen_BTT = read_BR, self.seen_BTT[self._row_B1, read_BR]  # the latter is (B, R, T)
        return tree

    def queries(self, x_BTD: Tensor) -> Tensor:
        """What has a query: x_BTD itself, or x_BRD where only some places are read."""
        return x_BTD if self.read_BR is None else x_BTD[self._row_B1, self.read_BR]

    def before(self, x_BTHK: Tensor) -> Tensor:
        """The same at the token before; the first token of a sequence or document has only itself."""
        first_BT = self.first_BT.view(*self.first_BT.shape, *(1,) * (x_BTHK.ndim - 2))
        return torch.where(first_BT, x_BTHK, x_BTHK[self._row_B1, self.parent_BT])

    def attention(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
        """Attention over ancestors among the last `window` tokens of the sequence, the query's own included."""
        seen_BTT = self.seen_BTT
        if window < seen_BTT.size(2):
            seen_BTT = seen_BTT & (self.queries(self.position_BT)[:, :, None] - self.position_BT[:, None, :] < window)
        if q_BHTK.device.type != "cpu" or self.read_BR is not None:
            return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=seen_BTT[:, None])
        # a CPU computes what the mask hides as well: leave out what stands after the queries
        stretches = []
        for start in range(0, q_BHTK.size(2), _STRETCH):
            own, until = slice(start, start + _STRETCH), slice(start + _STRETCH)
            stretches.append(F.scaled_dot_product_attention(
                q_BHTK[:, :, own], k_BHTK[:, :, until], v_BHTK[:, :, until], attn_mask=seen_BTT[:, None, own, until]))
        return torch.cat(stretches, dim=2)
