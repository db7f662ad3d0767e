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

    def __init__(
        self,
        tokens_BT: Tensor,
        position_BT: Tensor,
        parent_BT: Tensor,
        end_BT: Tensor,
        eot_token: int | None = None,
        longest: int | None = None,
    ) -> None:
        """`position_BT`: place of a token in its sequence; `parent_BT`: place in the row of the token before;
        `end_BT`: place in the row after the last descendant; `eot_token`: see Documents; `longest`: tokens of the
        longest sequence; null reads it from `position_BT`, for which the host waits for the GPU."""
        self.position_BT, self.parent_BT = position_BT, parent_BT
        self.longest = int(position_BT.max()) + 1 if longest is None else longest
        place_T = torch.arange(tokens_BT.size(1), device=tokens_BT.device)
        self.seen_BTT = (place_T <= place_T[:, None]) & (place_T[:, None] < end_BT[:, None, :])
        self.first_BT = position_BT == 0
        if eot_token is not None:
            self.first_BT = self.first_BT | (tokens_BT == eot_token)
            number_BT = (self.seen_BTT & self.first_BT[:, None, :]).sum(-1)  # documents begun on the way here
            self.seen_BTT &= number_BT[:, :, None] == number_BT[:, None, :]
        self.read_BR: Tensor | None = None
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self._row_B1 = torch.arange(len(tokens_BT), device=tokens_BT.device)[:, None]

    def read_at(self, read_BR: Tensor) -> "Tree":
        """The same tree for a block of which only the states at places `read_BR` of each row are wanted."""
        tree = copy(self)
        tree.read_BR, tree.seen_BTT = read_BR, self.seen_BTT[self._row_B1, read_BR]  # the latter is (B, R, T)
        tree._masks = {}
        return tree

    def query_positions(self, x_BTD: Tensor) -> Tensor:
        """What has a query: x_BTD itself, or x_BRD where only some places are read."""
        return x_BTD if self.read_BR is None else x_BTD[self._row_B1, self.read_BR]

    def previous_token(self, x_BTHK: Tensor) -> Tensor:
        """`x_BTHK` at the token before; the first token of a sequence or document has only itself."""
        first_BT = self.first_BT.view(*self.first_BT.shape, *(1,) * (x_BTHK.ndim - 2))
        return torch.where(first_BT, x_BTHK, x_BTHK[self._row_B1, self.parent_BT])

    def mask(self, window: int, dtype: torch.dtype) -> Tensor:
        """Ancestors among the last `window` tokens of the sequence, for SDPA in `dtype`: made once for all layers.

        On a GPU it is numbers to add to the scores: SDPA would convert truth values in every layer, and copy the result
        where its rows do not start at multiples of 8.
        """
        seen_BTT, length = self.seen_BTT, self.seen_BTT.size(2)
        key = min(window, length), dtype
        if key not in self._masks:
            if window < length:
                near_BTT = self.query_positions(self.position_BT)[:, :, None] - self.position_BT[:, None, :] < window
                seen_BTT = seen_BTT & near_BTT
            self._masks[key] = (seen_BTT if seen_BTT.device.type == "cpu" else additive(seen_BTT, dtype))[:, None]
        return self._masks[key]

    def attention(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
        """Attention over ancestors among the last `window` tokens of the sequence, the query's own included."""
        mask_B1TT = self.mask(window, q_BHTK.dtype)
        if q_BHTK.device.type != "cpu" or self.read_BR is not None:
            return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=mask_B1TT)
        # a CPU computes what the mask hides as well: leave out what stands after the queries
        stretches = []
        for start in range(0, q_BHTK.size(2), _STRETCH):
            own, until = slice(start, start + _STRETCH), slice(start + _STRETCH)
            stretches.append(
                F.scaled_dot_product_attention(
                    q_BHTK[:, :, own], k_BHTK[:, :, until], v_BHTK[:, :, until], attn_mask=mask_B1TT[:, :, own, until]
                )
            )
        return torch.cat(stretches, dim=2)


def additive(seen_BTT: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `seen_BTT` is true and -inf elsewhere; rows start at multiples of 8 numbers."""
    rounded = -(-seen_BTT.size(2) // 8) * 8
    numbers_BTT = torch.zeros(*seen_BTT.shape[:2], rounded, dtype=dtype, device=seen_BTT.device)
    return numbers_BTT[:, :, : seen_BTT.size(2)].masked_fill_(~seen_BTT, -torch.inf)
