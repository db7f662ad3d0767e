"""Causal self-attention: heads or latent (MLA) keys and values, over the whole past or a window of it.

Every step is optional and read from GPTConfig: grouped keys (GQA, arXiv 2305.13245), low-rank latent
(MLA, arXiv 2405.04434), partial rotation, smeared keys (transformer-circuits.pub/2022, "smeared key"),
partial key offset, value embeddings (arXiv 2410.17897) and an output gate (arXiv 2505.06708).

Shape suffixes: B batch, T tokens, D width, H query heads, J key and value heads, K head size,
R rotated part of a head, L latent.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.config import AttentionKind, GPTConfig, Smear, Window
from model.network.document_mask import Documents, Windowed, attention_in_stretches
from model.network.prefix_tree import Tree

RMS_EPSILON = 1e-6
GATE_CHANNELS = 12  # of the input that a gate reads; more did not help nanochat or modded-nanogpt


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm of the last dimension without weights, in the type of `x`, summed in fp32.

    Outside autocast, which on CUDA runs it in fp32 and returns fp32 from torch 2.12 on.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, x.shape[-1:], eps=RMS_EPSILON)


def rotary_tables(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of shape (T, 1, R/2), in fp32: bf16 angles lose the position after 256 tokens."""
    half = config.rotary_size // 2
    frequency = config.rotary_base ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(config.sequence_length, dtype=torch.float64), frequency)
    return angle.cos().float()[:, None, :], angle.sin().float()[:, None, :]


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (r, r + R/2) of the first R dimensions by its angle (RoFormer, arXiv 2104.09864)."""
    rotated = 2 * cos.size(-1)
    # of both halves at once: Inductor would write halves to memory in fp32
    x_BTHR = x_BTHK[..., :rotated].float()
    other_BTHR = x_BTHR.roll(rotated // 2, dims=-1)
    turned = (x_BTHR * torch.cat((cos, cos), dim=-1) + other_BTHR * torch.cat((-sin, sin), dim=-1)).to(x_BTHK.dtype)
    return turned if rotated == x_BTHK.size(-1) else torch.cat((turned, x_BTHK[..., rotated:]), dim=-1)


def previous_token(x_BTHK: Tensor, documents: Documents | Tree | None) -> Tensor:
    """`x_BTHK` at the token before; the first token of a row or document has only itself."""
    if documents is not None:
        return documents.previous_token(x_BTHK)
    return torch.cat((x_BTHK[:, :1], x_BTHK[:, :-1]), dim=1)


def query_positions(x_BTD: Tensor, documents: Documents | Tree | None) -> Tensor:
    """The part of `x_BTD` that has queries: all of it, but for a tree of which only some places are read."""
    return documents.query_positions(x_BTD) if isinstance(documents, Tree) else x_BTD


def windowed_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """A query sees itself and the window - 1 tokens before it, by plain SDPA on every device."""
    if window >= q_BHTK.size(2):
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    return attention_in_stretches(q_BHTK, k_BHTK, v_BHTK, window)


class Attention(nn.Module):
    """Attention over the whole past. What sees less of it is a subclass, listed in model.network.attention_variants.

    Query, key and value are separate matrices: Muon treats them so.
    """

    window: ClassVar[Window] = Window.LONG
    """The letter of window_pattern that stands for this class."""
    reads_trees: ClassVar[bool] = True
    """Whether sequences that begin alike can share a row (`Tree`)."""

    @classmethod
    def span(cls, config: GPTConfig, length: int) -> int:
        """Tokens that `attend` shows a query in sequences of this length, itself included."""
        return length

    @classmethod
    def counted_keys(cls, config: GPTConfig, length: int) -> int:
        """Keys that a query is counted with in FLOPs (model.network.flops)."""
        return cls.span(config, length)

    @classmethod
    def visible_keys(cls, config: GPTConfig, length: int) -> float:
        """Keys that a query sees, as the mean over a sequence: no kernel computes fewer scores."""
        span = cls.span(config, length)
        return span - span * (span - 1) / (2 * length)

    @classmethod
    def tensor_sizes(cls, config: GPTConfig) -> set[int]:
        """Sizes that intermediate tensors have in some dimension (model.planning.memory_use)."""
        return {config.sequence_length}

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attend: Windowed = windowed_attention  # on a GPU model/kernels sets a faster one
        D, H, J, K = config.width, config.heads, config.key_heads, config.head_size
        self.query = nn.Linear(D, D, bias=config.bias)
        if config.attention is AttentionKind.MLA:
            latent = config.latent_size or max(1, D // 4)
            self.latent = nn.Linear(D, latent, bias=config.bias)
            self.key = nn.Linear(latent, H * (K - config.rotary_size), bias=config.bias)
            if config.rotary_size:
                self.rotary_key = nn.Linear(D, config.rotary_size, bias=config.bias)  # one for all heads
            self.value = nn.Linear(latent, D, bias=config.bias)
        else:
            self.key = nn.Linear(D, J * K, bias=config.bias)
            self.value = nn.Linear(D, J * K, bias=config.bias)
        self.project = nn.Linear(D, D, bias=config.bias)
        channels = min(GATE_CHANNELS, D)
        if config.smear is Smear.KEY:
            self.key_smear = nn.Parameter(torch.empty(J))
        if config.has_value_embedding(layer):
            self.value_gate = nn.Linear(channels, J, bias=False)
        if config.attention_gate:
            self.output_gate = nn.Linear(channels, H, bias=False)

    def keys_and_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """k_BTJK and v_BTJK, not yet rotated."""
        B, T, _ = x_BTD.shape
        heads = (B, T, self.config.key_heads, -1)
        if self.config.attention is AttentionKind.MHA:
            return self.key(x_BTD).view(heads), self.value(x_BTD).view(heads)
        latent_BTL = rms_norm(self.latent(x_BTD))
        k_BTJK, v_BTJK = self.key(latent_BTL).view(heads), self.value(latent_BTL).view(heads)
        if self.config.rotary_size:
            shared_BTJR = self.rotary_key(x_BTD).unsqueeze(2).expand(-1, -1, self.config.heads, -1)
            k_BTJK = torch.cat((shared_BTJR, k_BTJK), dim=-1)
        return k_BTJK, v_BTJK

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        value_embedding_BTE: Tensor | None,
        documents: Documents | Tree | None = None,
    ) -> Tensor:
        """y_BTD, or y_BRD where only R places of each row are read (`Tree.read_at`)."""
        config = self.config
        own_BTD = query_positions(x_BTD, documents)
        B, T, D = own_BTD.shape
        gate_input = own_BTD[..., :GATE_CHANNELS]
        q_BTHK = self.query(own_BTD).view(B, T, config.heads, -1)
        k_BTJK, v_BTJK = self.keys_and_values(x_BTD)
        if value_embedding_BTE is not None:  # gates start at 1
            gate_BTJ1 = 2 * torch.sigmoid(self.value_gate(x_BTD[..., :GATE_CHANNELS])).unsqueeze(-1)
            v_BTJK = v_BTJK + gate_BTJ1 * value_embedding_BTE.view(v_BTJK.shape).to(v_BTJK.dtype)
        if config.smear is Smear.KEY:
            own_J1 = torch.sigmoid(self.key_smear).unsqueeze(-1).to(k_BTJK.dtype)
            k_BTJK = own_J1 * k_BTJK + (1 - own_J1) * previous_token(k_BTJK, documents)
        if rotary is not None:
            q_BTHK = rotate(q_BTHK, *(query_positions(table, documents) for table in rotary))
            k_BTJK = rotate(k_BTJK, *rotary)
        if config.qk_norm:
            q_BTHK, k_BTJK = rms_norm(q_BTHK), rms_norm(k_BTJK)
            if config.qk_scale != 1:
                q_BTHK, k_BTJK = config.qk_scale * q_BTHK, config.qk_scale * k_BTJK
        if config.partial_key_offset and self.window is Window.LONG:
            # a query that finds a token reads the value of the one after it: induction in one layer
            rotated, still = k_BTJK.split((config.rotary_size, config.head_size - config.rotary_size), dim=-1)
            k_BTJK = torch.cat((rotated, previous_token(still, documents)), dim=-1)
        # a smeared or scaled key may have another type than v
        q_BHTK, k_BJTK, v_BJTK = (x.to(v_BTJK.dtype).transpose(1, 2) for x in (q_BTHK, k_BTJK, v_BTJK))
        shared = config.heads // config.key_heads
        k_BHTK, v_BHTK = (x.repeat_interleave(shared, 1) if shared > 1 else x for x in (k_BJTK, v_BJTK))
        y_BTHK = self.read_values(q_BHTK, k_BHTK, v_BHTK, gate_input, documents).transpose(1, 2)
        if config.attention_gate:
            y_BTHK = y_BTHK * (2 * torch.sigmoid(self.output_gate(gate_input))).unsqueeze(-1)
        return self.project(y_BTHK.reshape(B, T, D))

    def read_values(
        self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, gate_input: Tensor, documents: Documents | Tree | None
    ) -> Tensor:
        """y_BHTK: the values that each query reads; `gate_input` is the part of the layer's input that gates read."""
        attend = self.attend if documents is None else documents.attention
        return attend(q_BHTK, k_BHTK, v_BHTK, self.span(self.config, k_BHTK.size(2)))


class WindowedAttention(Attention):
    """A query sees the last short_window tokens."""

    window = Window.SHORT

    @classmethod
    def span(cls, config: GPTConfig, length: int) -> int:
        return min(config.short_window_tokens, length)

    @classmethod
    def tensor_sizes(cls, config: GPTConfig) -> set[int]:
        window = config.short_window_tokens
        return super().tensor_sizes(config) | {window, -(-config.sequence_length // window)}
