"""One GPT network that is both today's block and, with other settings, exactly GPT-2.

Modern: rotary positions, RMSNorm without weights (also after the embedding), QK-norm, ReLU²,
untied head, zero-initialised projections, soft-capped fp32 logits; on demand value embeddings,
lambdas on the residual stream, a smeared embedding and backout (docs/trainer.md has their sources).
GPT-2: learned positions, LayerNorm with bias, tanh GELU, biases, tied head, its initialisation.

Shape suffixes: B batch, T tokens, D width, E size of keys and values, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.network.attention import query_positions, rms_norm, rotary_tables
from model.network.attention_variants import attention_layers
from model.network.config import Balance, ConfigError, DocumentMask, GPTConfig, MLPKind, Norm, Position, Smear
from model.network.document_mask import Documents, Windowed
from model.network.experts import MixtureOfExperts, auxiliary_losses, mixtures
from model.network.head_loss import IGNORED_TARGET, HeadLoss
from model.network.mlp import MLP
from model.network.prefix_tree import Tree

SMEAR_CHANNELS = 24  # of the embedding that the smear gate reads


class RMSNorm(nn.Module):
    """RMSNorm without weights: the next matrix can hold the scale, and there is nothing to tune."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD)


def _products_in_bf16(device: torch.device) -> bool:
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.bfloat16


def _stream(x_BTD: Tensor) -> Tensor:
    """The residual stream, in bf16 where products are: half the memory traffic of everything that is not a product.
    fp16 stays out of it, because sums over layers can exceed its range."""
    return x_BTD.bfloat16() if _products_in_bf16(x_BTD.device) else x_BTD


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm is Norm.RMS:
        return RMSNorm()
    return nn.LayerNorm(config.width, eps=1e-5, bias=config.bias)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream after a norm of its input."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = attention_layers(config)[layer](config, layer)
        self.mlp_norm = _norm(config)
        dense = config.mlp is MLPKind.DENSE
        self.mlp = MLP(config, config.mlp_ratio * config.width) if dense else MixtureOfExperts(config)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        value_embedding_BTE: Tensor | None,
        documents: Documents | Tree | None,
    ) -> Tensor:
        attended_BTD = self.attention(self.attention_norm(x_BTD), rotary, value_embedding_BTE, documents)
        x_BTD = query_positions(x_BTD, documents) + attended_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class _NoInitialisation(TorchFunctionMode):
    """torch's modules draw no first weights."""

    def __torch_function__(
        self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        first = getattr(function, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if first else function(*args, **kwargs)


def _without_initialisation(build: Callable[..., None]) -> Callable[..., None]:
    @wraps(build)
    def built(*arguments, **settings) -> None:
        with _NoInitialisation():
            build(*arguments, **settings)

    return built


class GPT(nn.Module):
    """The network. Weights are whatever is in memory until `initialise` or a checkpoint has set them."""

    rotary_cos: Tensor
    rotary_sin: Tensor

    @_without_initialisation
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.document_kernel: Callable[[Tensor], Windowed] | None = None  # training on a GPU has one
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.width)
        if config.position is Position.LEARNED:
            self.position_embedding = nn.Embedding(config.sequence_length, config.width)
        else:
            cos, sin = rotary_tables(config)
            self.register_buffer("rotary_cos", cos, persistent=False)
            self.register_buffer("rotary_sin", sin, persistent=False)
        self.embedding_norm = _norm(config) if config.norm is Norm.RMS else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.final_norm = _norm(config)
        if not config.tied_head:
            self.head = nn.Linear(config.width, config.padded_vocab_size, bias=False)
        value_size = config.key_heads * config.head_size
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): nn.Embedding(config.padded_vocab_size, value_size)
                for layer in range(config.depth)
                if config.has_value_embedding(layer)
            }
        )
        if config.smear is Smear.EMBEDDING:
            self.smear_gate = nn.Linear(min(SMEAR_CHANNELS, config.width), 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if config.residual_lambdas:
            self.residual_lambdas = nn.Parameter(torch.empty(config.depth))
        if config.embedding_lambdas:
            self.embedding_lambdas = nn.Parameter(torch.empty(config.depth))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1))

    def documents(self, tokens_BT: Tensor) -> Documents | None:
        """Where documents begin, if that matters to this network."""
        config = self.config
        if config.document_mask is DocumentMask.NONE:
            return None
        if config.eot_token is None:
            raise ConfigError("document_mask is 'own', but eot_token, with which documents start, is null")
        # of full rows only: a sample grows token by token, and a kernel would be prepared for each length
        kernel = self.document_kernel if tokens_BT.size(1) == config.sequence_length else None
        return Documents(tokens_BT, config.eot_token, kernel)

    def embed(self, tokens_BT: Tensor, documents: Documents | Tree | None = None) -> Tensor:
        """The residual stream before the first block."""
        x_BTD = _stream(self.token_embedding(tokens_BT))
        if self.config.position is Position.LEARNED:
            places = documents.position_BT if isinstance(documents, Tree) else slice(tokens_BT.size(1))
            x_BTD = x_BTD + self.position_embedding.weight[places]
        x_BTD = self.embedding_norm(x_BTD)
        if self.config.smear is Smear.EMBEDDING and isinstance(documents, Tree):
            gate_BT1 = self.smear_lambda * torch.sigmoid(self.smear_gate(x_BTD[..., :SMEAR_CHANNELS]))
            return x_BTD + gate_BT1.masked_fill(documents.first_BT[..., None], 0.0) * documents.previous_token(x_BTD)
        if self.config.smear is Smear.EMBEDDING:
            gate_BT1 = self.smear_lambda * torch.sigmoid(self.smear_gate(x_BTD[:, 1:, :SMEAR_CHANNELS]))
            if documents is not None:
                gate_BT1 = gate_BT1.masked_fill(documents.first_BT[:, 1:, None], 0.0)
            x_BTD = torch.cat((x_BTD[:, :1], x_BTD[:, 1:] + gate_BT1 * x_BTD[:, :-1]), dim=1)
        return x_BTD

    def hidden(self, tokens_BT: Tensor, tree: Tree | None = None, read_BR: Tensor | None = None) -> Tensor:
        """Final, normalised residual stream x_BTD; project() any part of it to get logits.

        With a tree a row may be longer than sequence_length, its sequences may not. With `read_BR`, places in the
        rows of a tree, it is x_BRD, and the last block runs no more than that needs.
        """
        config, length = self.config, tokens_BT.size(1)
        if tree is not None and not self.shares_beginnings:
            raise ConfigError(f"window_pattern {config.window_pattern!r}: sparse attention cannot read a tree")
        longest = length if tree is None else tree.longest
        if longest > config.sequence_length:
            raise ConfigError(f"{longest} tokens are more than sequence_length {config.sequence_length}")
        rotary = None
        if config.rotary_size:
            places = slice(length) if tree is None else tree.position_BT
            rotary = self.rotary_cos[places], self.rotary_sin[places]
        documents = self.documents(tokens_BT) if tree is None else tree
        x_BTD = embedding_BTD = middle_BTD = _stream(self.embed(tokens_BT, documents))
        for layer, block in enumerate(self.blocks):
            if config.residual_lambdas:
                x_BTD = self.residual_lambdas[layer] * x_BTD
            if config.embedding_lambdas:
                x_BTD = x_BTD + self.embedding_lambdas[layer] * embedding_BTD
            if tree is not None and read_BR is not None and layer == config.depth - 1:
                documents = tree.read_at(read_BR)
                middle_BTD = query_positions(middle_BTD, documents)
            table = self.value_embeddings[str(layer)] if config.has_value_embedding(layer) else None
            x_BTD = block(x_BTD, rotary, table(tokens_BT) if table is not None else None, documents)
            if layer == config.depth // 2:
                middle_BTD = x_BTD
        if config.backout:
            x_BTD = x_BTD - self.backout_lambda.to(x_BTD.dtype) * middle_BTD
        return self.final_norm(x_BTD)

    @property
    def shares_beginnings(self) -> bool:
        """Whether sequences that begin alike can share a row (`Tree`)."""
        return all(layer.reads_trees for layer in attention_layers(self.config))

    @property
    def vocab_size(self) -> int:
        """Distinct tokens; a network is only built of a configuration that knows the number."""
        assert self.config.vocab_size is not None
        return self.config.vocab_size

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the head, of shape (V, D) with the padding of the vocabulary."""
        return self.token_embedding.weight if self.config.tied_head else self.head.weight

    def project(self, h_D: Tensor) -> Tensor:
        """fp32 logits over the true vocabulary for hidden states of any leading shape."""
        logits_V = F.linear(h_D, self.head_weight)
        if self.config.padded_vocab_size != self.config.vocab_size:
            # the padding rows exist for the GEMM only: cut off here, nothing can ever predict them
            # (not sliced in vain: its backward pass fills and copies the largest tensor there is)
            logits_V = logits_V[..., : self.config.vocab_size]
        logits_V = logits_V.float()
        if self.config.softcap is not None:
            logits_V = self.config.softcap * torch.tanh(logits_V / self.config.softcap)
        return logits_V

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits (B, T, V), or with targets the mean nats a token; target -1 is not counted.

        With `reduction` "none" the nats of each of the B T tokens, without the auxiliary loss.
        """
        x_BTD = self.hidden(tokens_BT)
        if targets_BT is None:
            return self.project(x_BTD)
        targets_P = targets_BT.flatten()
        if reduction == "mean" and torch.is_grad_enabled() and _products_in_bf16(x_BTD.device):
            h_PD = _stream(x_BTD).flatten(0, 1)
            loss = HeadLoss.apply(h_PD, self.head_weight, targets_P, self.config.vocab_size, self.config.softcap)
        else:
            loss = F.cross_entropy(
                self.project(x_BTD).flatten(0, 1), targets_P, ignore_index=IGNORED_TARGET, reduction=reduction
            )
        if reduction == "none":
            return loss
        if self.config.mlp is MLPKind.MOE and self.config.balance is Balance.LOSS:
            first, *others = auxiliary_losses(self)
            auxiliary = sum(others, start=first)
            loss = loss + auxiliary - auxiliary.detach()  # its gradient, without its value
        return loss


_FIRST_VALUES = {"smear_lambda": 0.0, "backout_lambda": 0.2}  # nanochat's; norms and other scalars start at 1


@torch.no_grad()
def initialise(model: GPT, seed: int) -> None:
    """Set every weight from the seed, in the CPU's generator, so that all devices start equal."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    modern = config.zero_init_projections
    for name, parameter in model.named_parameters():
        if name == "residual_lambdas":
            parameter.copy_(torch.linspace(1.15, 1.05, config.depth))
        elif name == "embedding_lambdas":
            parameter.copy_(torch.linspace(0.2, 0.05, config.depth))
        elif parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else _FIRST_VALUES.get(name, 1.0))
        elif name.endswith("gate.weight"):
            parameter.zero_()
        else:
            std = _standard_deviation(name, config, modern)
            values = parameter if parameter.device.type == "cpu" else torch.empty(parameter.shape)
            parameter.copy_(values.normal_(generator=generator).mul_(std))
    for mixture in mixtures(model):
        mixture.balance_bias.zero_()


def _standard_deviation(name: str, config: GPTConfig, modern: bool) -> float:
    if name.endswith(("project.weight", "expert_project")):
        return 0.0 if modern else 0.02 / math.sqrt(2 * config.depth)
    if name == "head.weight":
        return 0.001 if modern else 0.02  # near-uniform first predictions: the loss starts at ln V
    if name == "token_embedding.weight":
        # a tied embedding is also the head and has to start as small as one
        return 1.0 if modern and not config.tied_head else 0.02
    if name == "position_embedding.weight" or not modern:
        return 0.02
    return 1 / math.sqrt(config.width)  # keeps the variance of a normalised input
