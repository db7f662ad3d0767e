"""Native sparse attention (NSA, arXiv 2502.11089), strictly causal.

The past is cut into blocks. A query reads a summary of every block that has *ended* (compressed), and
all tokens of the few blocks whose summaries it attended to most, and of its own up to itself
(selected). The third branch is a sliding window. A public implementation reads blocks that hold the
future; here the summary of a block exists only after its last token.

Differences from the paper: the branches share keys and values, a summary is a learned weighted mean,
and selection is a mask over dense scores, so it costs memory and time as full attention does.

Shape suffixes: B batch, H query heads, J groups of heads that select together, T tokens, K head size,
N blocks, S tokens a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.attention import GATE_CHANNELS, WindowedAttention
from model.network.config import ConfigError, GPTConfig, Window
from model.network.document_mask import Documents
from model.network.prefix_tree import Tree


class SparseAttention(WindowedAttention):
    """A sliding window, summaries of all blocks that have ended and the tokens of a few blocks, added by gates."""

    window = Window.SPARSE
    reads_trees = False  # a block is a stretch of the row

    @classmethod
    def counted_keys(cls, config: GPTConfig, length: int) -> int:
        """Summaries, selected blocks with the query's own, and window."""
        summaries, selected = length // config.sparse_block, (config.sparse_blocks + 1) * config.sparse_block
        return min(cls.span(config, length) + summaries + selected, length)

    @classmethod
    def visible_keys(cls, config: GPTConfig, length: int) -> float:
        """As counted, which is fewer than this dense implementation computes."""
        return cls.counted_keys(config, length)

    @classmethod
    def tensor_sizes(cls, config: GPTConfig) -> set[int]:
        return super().tensor_sizes(config) | {max(1, config.sequence_length // config.sparse_block)}

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.branch_gate = nn.Linear(min(GATE_CHANNELS, config.width), 3 * config.heads, bias=False)
        self.block_weights = nn.Parameter(torch.empty(config.sparse_block))

    def read_values(
        self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, gate_input: Tensor, documents: Documents | Tree | None
    ) -> Tensor:
        if isinstance(documents, Tree):
            raise ConfigError("sparse attention cannot read a tree")
        y_BHTK = super().read_values(q_BHTK, k_BHTK, v_BHTK, gate_input, documents)
        B, T, _ = gate_input.shape
        gates_3BHT1 = torch.sigmoid(self.branch_gate(gate_input)).view(B, T, 3, -1).permute(2, 0, 3, 1)[..., None]
        compressed, selected = sparse_attention(
            q_BHTK,
            k_BHTK,
            v_BHTK,
            self.block_weights,
            blocks=self.config.sparse_blocks,
            shared=self.config.heads // self.config.key_heads,
            documents=documents,
        )
        return gates_3BHT1[0] * y_BHTK + gates_3BHT1[1] * compressed + gates_3BHT1[2] * selected


def sparse_attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    weights_S: Tensor,
    *,
    blocks: int,
    shared: int,
    documents: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs of the compressed and of the selected branch; `shared` query heads select together.

    With `documents`, a block that a document begins in is no summary for anyone: it would mix two.
    """
    size, T, K = len(weights_S), q_BHTK.size(2), q_BHTK.size(3)
    ended = T // size
    weights_S1 = torch.softmax(weights_S, dim=0).to(k_BHTK.dtype)[:, None]
    k_BHNK, v_BHNK = (
        (x[:, :, : ended * size].unflatten(2, (ended, size)) * weights_S1).sum(3) for x in (k_BHTK, v_BHTK)
    )
    time_T1 = torch.arange(T, device=q_BHTK.device)[:, None]
    block_N = torch.arange(ended, device=q_BHTK.device)
    visible_BTN = ((block_N + 1) * size <= time_T1 + 1)[None]
    if documents is not None:  # a block whose first token is of the query's document has no token of another
        visible_BTN = visible_BTN & documents.same_document(documents.number_BT[:, : ended * size : size])
    scores_BHTN = (q_BHTK @ k_BHNK.mT).float() / K**0.5
    scores_BHTN = scores_BHTN.masked_fill(~visible_BTN[:, None], -torch.inf)
    # a score of 0 for "none of them" keeps the softmax defined where no block has ended yet
    probability_BHTN = torch.softmax(F.pad(scores_BHTN, (1, 0)), dim=-1)[..., 1:]
    compressed_BHTK = probability_BHTN.to(v_BHNK.dtype) @ v_BHNK

    own_T1 = time_T1 // size
    importance_BJTN = probability_BHTN.detach().unflatten(1, (-1, shared)).sum(2)
    candidate_BJTN = (visible_BTN & (block_N != own_T1))[:, None]
    importance_BJTN = importance_BJTN.masked_fill(~candidate_BJTN, -1.0)
    chosen = importance_BJTN.topk(min(blocks, ended), dim=-1).indices
    chosen_BJTN = torch.zeros_like(importance_BJTN, dtype=torch.bool).scatter(-1, chosen, True) & candidate_BJTN
    chosen_BJTN = F.pad(chosen_BJTN, (0, 1))  # the last block may not have ended
    chosen_BJTN = chosen_BJTN | (torch.arange(ended + 1, device=own_T1.device) == own_T1)
    seen_BJTT = chosen_BJTN.repeat_interleave(size, dim=-1)[..., :T] & (time_T1 >= time_T1.T)
    if documents is not None:
        seen_BJTT = seen_BJTT & documents.same_document(documents.number_BT)[:, None]
    selected_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BHTK, v_BHTK, attn_mask=seen_BJTT.repeat_interleave(shared, dim=1)
    )
    return compressed_BHTK, selected_BHTK
