"""One GPT network that is both today's block and, with other settings, exactly GPT-2.

Modern: rotary positions, RMSNorm without weights (also after the embedding), QK-norm, ReLU²,
untied head, zero-initialised projections, soft-capped fp32 logits.
GPT-2: learned positions, LayerNorm with bias, tanh GELU, biases, tied head, its initialisation.

Shape suffixes: B batch, T tokens, D width, H heads, K head size, M MLP hidden size, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Activation, ConfigError, GPTConfig, Norm, Position

IGNORED_TARGET = -1
RMS_EPSILON = 1e-6


class RMSNorm(nn.Module):
    """RMSNorm without weights: the next matrix can hold the scale, and there is nothing to tune."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.rms_norm(x_BTD, (x_BTD.size(-1),), eps=RMS_EPSILON)


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm is Norm.RMS:
        return RMSNorm()
    return nn.LayerNorm(config.width, eps=1e-5, bias=config.bias)


def rotary_tables(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of shape (T, 1, K/2), in fp32: bf16 angles lose the position after 256 tokens."""
    half = config.width // config.heads // 2
    frequency = config.rotary_base ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(config.sequence_length, dtype=torch.float64), frequency)
    return angle.cos().float()[:, None, :], angle.sin().float()[:, None, :]


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (k, k + K/2) by its angle (RoFormer, arXiv 2104.09864)."""
    first, second = x_BTHK.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_BTHK.dtype)


class Attention(nn.Module):
    """Causal self-attention. Query, key and value are separate matrices: Muon treats them so."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.width, config.width, bias=config.bias)
        self.key = nn.Linear(config.width, config.width, bias=config.bias)
        self.value = nn.Linear(config.width, config.width, bias=config.bias)
        self.project = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        B, T, D = x_BTD.shape
        heads = (B, T, self.config.heads, D // self.config.heads)
        q_BTHK, k_BTHK, v_BTHK = (layer(x_BTD).view(heads) for layer in (self.query, self.key, self.value))
        if rotary is not None:
            q_BTHK, k_BTHK = rotate(q_BTHK, *rotary), rotate(k_BTHK, *rotary)
        if self.config.qk_norm:
            q_BTHK = F.rms_norm(q_BTHK, heads[-1:], eps=RMS_EPSILON)
            k_BTHK = F.rms_norm(k_BTHK, heads[-1:], eps=RMS_EPSILON)
        q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        # autocast may leave q and k in another type than v (norms run in fp32)
        y_BHTK = F.scaled_dot_product_attention(q_BHTK.to(v_BHTK.dtype), k_BHTK.to(v_BHTK.dtype), v_BHTK,
                                                is_causal=True)
        return self.project(y_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Two matrices with a pointwise activation between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.expand = nn.Linear(config.width, config.mlp_ratio * config.width, bias=config.bias)
        self.project = nn.Linear(config.mlp_ratio * config.width, config.width, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTM = self.expand(x_BTD)
        if self.activation is Activation.GELU:
            return self.project(F.gelu(h_BTM, approximate="tanh"))
        return self.project(F.relu(h_BTM).square())  # ReLU²: Primer, arXiv 2109.08668


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream after a norm of its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class GPT(nn.Module):
    """The network. Weights are meaningless until `initialise` or a checkpoint has set them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.width)
        if config.position is Position.LEARNED:
            self.position_embedding = nn.Embedding(config.sequence_length, config.width)
        else:
            cos, sin = rotary_tables(config)
            self.register_buffer("rotary_cos", cos, persistent=False)
            self.register_buffer("rotary_sin", sin, persistent=False)
        self.embedding_norm = _norm(config) if config.norm is Norm.RMS else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = _norm(config)
        if not config.tied_head:
            self.head = nn.Linear(config.width, config.padded_vocab_size, bias=False)

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Final, normalised residual stream x_BTD; project() any part of it to get logits."""
        length = tokens_BT.size(1)
        if length > self.config.sequence_length:
            raise ConfigError(f"{length} tokens are more than sequence_length {self.config.sequence_length}")
        x_BTD = self.token_embedding(tokens_BT)
        rotary = None
        if self.config.position is Position.LEARNED:
            x_BTD = x_BTD + self.position_embedding.weight[:length]
        else:
            rotary = self.rotary_cos[:length], self.rotary_sin[:length]
        x_BTD = self.embedding_norm(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary)
        return self.final_norm(x_BTD)

    def project(self, h_D: Tensor) -> Tensor:
        """fp32 logits over the true vocabulary for hidden states of any leading shape."""
        weight_VD = self.token_embedding.weight if self.config.tied_head else self.head.weight
        logits_V = F.linear(h_D, weight_VD)
        if self.config.padded_vocab_size != self.config.vocab_size:
            # the padding rows exist for the GEMM only: cut off here, nothing can ever predict them
            # (not sliced in vain: its backward pass fills and copies the largest tensor there is)
            logits_V = logits_V[..., : self.config.vocab_size]
        logits_V = logits_V.float()
        if self.config.softcap is not None:
            logits_V = self.config.softcap * torch.tanh(logits_V / self.config.softcap)
        return logits_V

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V), or with targets the mean nats a token; target -1 is not counted."""
        logits_BTV = self.project(self.hidden(tokens_BT))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED_TARGET)


@torch.no_grad()
def initialise(model: GPT, seed: int) -> None:
    """Set every weight from the seed, in the CPU's generator, so that all devices start equal."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    modern = config.zero_init_projections
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        if name.endswith("project.weight"):
            std = 0.0 if modern else 0.02 / math.sqrt(2 * config.depth)
        elif name == "head.weight":
            std = 0.001 if modern else 0.02  # near-uniform first predictions: the loss starts at ln V
        elif name == "token_embedding.weight":
            # a tied embedding is also the head and has to start as small as one
            std = 1.0 if modern and not config.tied_head else 0.02
        elif name == "position_embedding.weight" or not modern:
            std = 0.02
        else:
            std = 1 / math.sqrt(config.width)  # keeps the variance of a normalised input
        values = torch.empty(parameter.shape).normal_(generator=generator)
        parameter.copy_(values * std)
