"""What a network is: a frozen dataclass, checked when it is built.

A value that makes no sense is refused here, by name, before a shard is read or a GPU is touched.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from model.network.choices import (
    Activation,
    AttentionKind,
    Balance,
    DocumentMask,
    MLPKind,
    Norm,
    Position,
    Smear,
    Window,
)
from model.parsing import Bounds, ConfigError, check_fields, require
from model.parsing import parse as parse

MAX_VOCABULARY = 65_536  # tokens are stored as uint16


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """One GPT network. The defaults are the modern block; every field can be set to GPT-2's choice."""

    depth: Annotated[int, Bounds(ge=1, le=10_000)]
    """Number of transformer blocks."""
    width: Annotated[int, Bounds(ge=1, le=2**20)]
    """Size of the residual stream."""
    heads: Annotated[int, Bounds(ge=1, le=2**20)]
    """Attention heads a block; width / heads is the size of a head."""
    kv_heads: Annotated[int | None, Bounds(ge=1)] = None
    """Heads of keys and values, each shared by heads / kv_heads queries (GQA); null: as many as heads."""
    mlp_ratio: Annotated[int, Bounds(ge=1, le=2**10)] = 4
    """Hidden size of the feed-forward layer, in widths."""
    sequence_length: Annotated[int, Bounds(ge=1, le=2**24)]
    """Tokens the network sees at once; the table size of learned and rotary positions."""
    vocab_size: Annotated[int | None, Bounds(ge=2, le=MAX_VOCABULARY)] = None
    """Distinct tokens; null takes the number from the shards."""
    eot_token: Annotated[int | None, Bounds(ge=0, lt=MAX_VOCABULARY)] = None
    """The token every document starts with; null takes it from the shards."""
    vocab_multiple: Annotated[int, Bounds(ge=1, le=MAX_VOCABULARY)] = 64
    """Rows of embedding and head are rounded up to a multiple of this (GEMM alignment); GPT-2 has 1."""
    norm: Norm = Norm.RMS
    """rms: without weights, also after the embedding; layer: LayerNorm with weights."""
    position: Position = Position.ROTARY
    """How a token knows where it stands."""
    attention: AttentionKind = AttentionKind.MHA
    """mha: keys and values straight from the stream; mla: through a shared low-rank latent."""
    latent_size: Annotated[int | None, Bounds(ge=1, le=2**20)] = None
    """Size of the latent of mla; null: width / 4."""
    window_pattern: Annotated[str, Bounds(pattern="^[LSN]+$")] = "L"
    """One letter a layer, repeated over the depth: L full, S short window, N native sparse attention."""
    short_window: Annotated[int | None, Bounds(ge=1, le=2**24)] = None
    """Tokens a query of an S layer sees, itself included; null: sequence_length / 4."""
    document_mask: DocumentMask = DocumentMask.NONE
    """none: a token sees its whole row; own: only its own document, in attention, smear and key offset."""
    sparse_block: Annotated[int, Bounds(ge=1, le=2**24)] = 16
    """Tokens a block of an N layer."""
    sparse_blocks: Annotated[int, Bounds(ge=1, le=2**24)] = 4
    """Earlier blocks a query of an N layer reads in full."""
    attention_gate: bool = False
    """Every head's output is scaled by a gate read from the layer's input."""
    activation: Activation = Activation.RELU2
    """relu2: squared ReLU; gelu: the tanh approximation GPT-2 used; swiglu: gated, with a third matrix."""
    mlp: MLPKind = MLPKind.DENSE
    """dense: one feed-forward layer; moe: a router sends each token to a few of many small ones."""
    experts: Annotated[int, Bounds(ge=1, le=2**16)] = 16
    """Routed experts of moe."""
    experts_per_token: Annotated[int, Bounds(ge=1, le=2**16)] = 3
    """Routed experts that work on a token."""
    shared_experts: Annotated[int, Bounds(ge=0, le=2**16)] = 1
    """Experts that work on every token."""
    expert_hidden: Annotated[int | None, Bounds(ge=1, le=2**20)] = None
    """Hidden size of one expert, a multiple of 8; null: a token costs about as much as with dense."""
    balance: Balance = Balance.BIAS
    """How routers spread load: bias moves their choice, not their weights; loss is an added loss."""
    balance_rate: Annotated[float, Bounds(ge=0)] = 0.001
    """bias: step of the bias a weight update; loss: weight of the loss."""
    qk_norm: bool = True
    """RMS-normalise queries and keys, which bounds the attention logits."""
    qk_scale: Annotated[float, Bounds(gt=0)] = 1.0
    """Factor on queries and on keys after qk_norm; over 1 sharpens attention."""
    rotary_base: Annotated[float, Bounds(gt=1)] = 10_000.0
    """Longest rotary wavelength, in tokens / 2 pi."""
    rotary_fraction: Annotated[float, Bounds(gt=0, le=1)] = 1.0
    """Share of a head that is rotated; mla takes at most half."""
    partial_key_offset: bool = False
    """In L layers the dimensions that are not rotated take the key of the token before."""
    smear: Smear = Smear.NONE
    """Mix in the token before: embedding, by a learned gate; key, a learned share a head."""
    value_embeddings: bool = False
    """Every other layer adds a gated embedding of the token itself to its values."""
    residual_lambdas: bool = False
    """Every layer scales the residual stream by a learned number."""
    embedding_lambdas: bool = False
    """Every layer adds the embedding again, by a learned number."""
    backout: bool = False
    """Take a learned share of the middle layer's stream out again before the head."""
    tied_head: bool = False
    """The output projection is the token embedding."""
    bias: bool = False
    """Biases in linear layers and in LayerNorm."""
    zero_init_projections: bool = True
    """Blocks start as the identity; false: GPT-2's normal(0, 0.02 / sqrt(2 depth))."""
    softcap: Annotated[float | None, Bounds(gt=0)] = None
    """Logits become softcap * tanh(logits / softcap), 15 is usual; null: not capped, faster on a CPU."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.experts_per_token <= self.experts,
            "experts_per_token",
            self.experts_per_token,
            f"at most experts, {self.experts}",
        )
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.heads % self.key_heads:
            raise ConfigError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.position is Position.ROTARY and (self.head_size % 2 or self.rotary_size < 2):
            raise ConfigError(
                f"rotary positions need an even head size, width / heads is {self.head_size} of "
                f"which {self.rotary_size} are rotated"
            )
        if self.attention is AttentionKind.MLA and self.key_heads != self.heads:
            raise ConfigError(f"mla shares a latent, not heads: kv_heads is {self.kv_heads}, null is expected")
        if self.partial_key_offset and self.rotary_size == self.head_size:
            raise ConfigError(
                "partial_key_offset moves the dimensions that are not rotated, but rotary_fraction 1.0 leaves none"
            )
        if self.mlp is MLPKind.MOE and (self.width % 8 or self.expert_size % 8):
            raise ConfigError(
                f"grouped products need multiples of 8: width is {self.width}, expert_hidden {self.expert_size}"
            )
        require(
            self.eot_token is None or self.eot_token < (self.vocab_size or MAX_VOCABULARY),
            "eot_token",
            self.eot_token,
            "a token below vocab_size",
        )

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def rotary_size(self) -> int:
        """Leading dimensions of a head that are rotated."""
        if self.position is Position.LEARNED:
            return 0
        most = 0.5 if self.attention is AttentionKind.MLA else 1.0
        return int(self.head_size * min(most, self.rotary_fraction)) // 2 * 2

    @property
    def windows(self) -> tuple[Window, ...]:
        """What each layer sees; the last layer of a pattern with L is L, so that the logits saw everything."""
        pattern = [Window(self.window_pattern[layer % len(self.window_pattern)]) for layer in range(self.depth)]
        if Window.LONG in self.window_pattern:
            pattern[-1] = Window.LONG
        return tuple(pattern)

    @property
    def short_window_tokens(self) -> int:
        return min(self.short_window or max(1, self.sequence_length // 4), self.sequence_length)

    @property
    def expert_size(self) -> int:
        """Hidden size of one expert."""
        working = self.experts_per_token + self.shared_experts
        return self.expert_hidden or max(8, self.mlp_ratio * self.width // working // 8 * 8)

    def has_value_embedding(self, layer: int) -> bool:
        """Every other layer, the last among them."""
        return self.value_embeddings and layer % 2 == (self.depth - 1) % 2

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head; the rows from vocab_size on are never predicted."""
        if self.vocab_size is None:
            raise ConfigError("vocab_size is not known yet: resolve it with with_vocabulary()")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def with_vocabulary(self, vocab_size: int, eot_token: int | None = None) -> "GPTConfig":
        """The same network for the vocabulary of the shards; refuses a contradiction."""
        if self.vocab_size not in (None, vocab_size):
            raise ConfigError(f"vocab_size is {self.vocab_size}, but the shards have {vocab_size} tokens")
        if self.eot_token is not None and eot_token not in (None, self.eot_token):
            raise ConfigError(f"eot_token is {self.eot_token}, but documents of the shards start with {eot_token}")
        eot_token = self.eot_token if eot_token is None else eot_token
        return dataclasses.replace(self, vocab_size=vocab_size, eot_token=eot_token)
