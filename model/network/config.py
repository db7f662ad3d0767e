"""What a network and its training are: two frozen dataclasses, checked when they are built.

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
    OptimizerName,
    Position,
    Precision,
    Rows,
    Schedule,
    Smear,
    Window,
)
from model.parsing import Bounds, ConfigError, check_fields, require
from model.parsing import parse as parse

MAX_VOCABULARY = 65_536  # tokens are stored as uint16
BUDGETS = ("tokens", "flops", "gpu_hours", "usd")


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
    def shares_beginnings(self) -> bool:
        """Whether sequences that begin alike can share a row (`model.attention.Tree`)."""
        return Window.SPARSE not in self.windows

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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. There is no default seed and no default budget."""

    seed: Annotated[int, Bounds(ge=0)]
    """Decides the initial weights and the order of the windows."""
    tokens: Annotated[int | None, Bounds(gt=0)] = None
    """Budget in training tokens; exactly one of tokens, flops, gpu_hours and usd is given."""
    flops: Annotated[float | None, Bounds(gt=0)] = None
    """Budget in training FLOPs, counted as in model.cost."""
    gpu_hours: Annotated[float | None, Bounds(gt=0)] = None
    """Budget in hours times processes; becomes steps by a short timing on the machine."""
    usd: Annotated[float | None, Bounds(gt=0)] = None
    """Budget in US dollars of this machine; becomes hours by its price, then steps."""
    tokens_per_step: Annotated[int, Bounds(ge=1)]
    """Tokens a weight update sees, over all micro-batches and processes."""
    micro_batch_sequences: Annotated[int | None, Bounds(ge=1)] = None
    """Sequences in one forward pass of a process; the rest of a step is gradient accumulation. null: the most that fit
    in the memory of the GPU, on a CPU 2,048 tokens. Another number changes how results are rounded."""
    rows: Rows = Rows.STREAM
    """What a training sequence is: stream, the next tokens wherever documents end; documents, whole documents
    packed to start at its start, what is too long or does not fit cropped (validation always reads the stream)."""
    optimizer: OptimizerName = OptimizerName.MUON
    """muon, psgd: that for hidden matrices and AdamW for the rest; adamw: AdamW for everything."""
    learning_rate: Annotated[float, Bounds(gt=0)]
    """Peak rate of the hidden matrices: the one dial."""
    embedding_learning_rate: Annotated[float | None, Bounds(gt=0)] = None
    """Peak AdamW rate of embeddings; null: learning_rate (adamw only, the others need a value)."""
    head_learning_rate: Annotated[float | None, Bounds(gt=0)] = None
    """Peak AdamW rate of the untied head; null as above."""
    scalar_learning_rate: Annotated[float | None, Bounds(gt=0)] = None
    """Peak AdamW rate of norms, biases, gates and lambdas; null as above."""
    weight_decay: Annotated[float, Bounds(ge=0)] = 0.0
    """Decoupled decay times the rate; muon, psgd: hidden matrices, adamw: every parameter of 2 dimensions."""
    cautious_decay: bool = False
    """Muon and PSGD decay only weights that its update also moves towards 0, and fades decay with the schedule."""
    adam_beta1: Annotated[float, Bounds(ge=0, lt=1)] = 0.9
    """Decay a step of AdamW's first moment."""
    adam_beta2: Annotated[float, Bounds(ge=0, lt=1)] = 0.95
    """Decay a step of AdamW's second moment."""
    adam_epsilon: Annotated[float, Bounds(gt=0)] = 1e-8
    """Added to AdamW's denominator."""
    momentum: Annotated[float, Bounds(ge=0, lt=1)] = 0.95
    """Nesterov momentum of Muon; of PSGD, plain."""
    momentum_warmup_steps: Annotated[int, Bounds(ge=0)] = 0
    """Steps in which Muon's momentum rises from 0.85."""
    momentum_final: Annotated[float | None, Bounds(ge=0, lt=1)] = None
    """Momentum of Muon at the end of the cooldown; null: as before it."""
    muon_beta2: Annotated[float | None, Bounds(ge=0, lt=1)] = None
    """Decay a step of the second moment of each row of Muon's update (NorMuon); null: not normalised."""
    schedule: Schedule = Schedule.WSD
    """wsd: warm-up, stable, linear cooldown; cosine: warm-up, then half a cosine."""
    warmup_steps: Annotated[int, Bounds(ge=0)] = 0
    """Steps of linear warm-up."""
    cooldown_fraction: Annotated[float, Bounds(ge=0, le=1)] = 0.5
    """Share of all steps spent in the linear cooldown (wsd only)."""
    final_lr_fraction: Annotated[float, Bounds(ge=0, le=1)] = 0.0
    """Share of the peak rate that the schedule ends on."""
    grad_clip: Annotated[float | None, Bounds(gt=0)] = None
    """Largest global gradient norm; null: not clipped."""
    spike_deviations: Annotated[float | None, Bounds(gt=0)] = 8.0
    """A loss this many standard deviations over its running mean is a spike; null: no guard."""
    spike_steps: Annotated[int, Bounds(ge=1)] = 20
    """Spikes in a row that stop the run."""
    precision: Precision = Precision.FP32
    """bf16: autocast with fp32 master weights; fp16: the same, with a dynamic loss scale; fp8: bf16, and in training
    large linear layers of the blocks multiply in fp8."""
    fp8_smallest_size: Annotated[int, Bounds(ge=1)] = 1024
    """fp8: linear layers with inputs and outputs of at least this size multiply in fp8."""
    validation_every_steps: Annotated[int, Bounds(ge=1)]
    """Steps between validations; step 0 and the last step are always validated."""
    validation_tokens: Annotated[int, Bounds(ge=1)]
    """Tokens of the validation split that are read, from its start; all of it where it has fewer."""
    checkpoint_every_steps: Annotated[int, Bounds(ge=1)]
    """Steps between checkpoints."""
    log_every_steps: Annotated[int, Bounds(ge=1)] = 10
    """Steps between metric lines."""
    sample_tokens: Annotated[int, Bounds(ge=0)] = 64
    """Tokens generated for each sample prompt, before and after training."""

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are both" if given else f"neither {' nor '.join(BUDGETS)} is"
            raise ConfigError(f"a run has exactly one budget, but {what} given")
        for name in ("embedding_learning_rate", "head_learning_rate", "scalar_learning_rate"):
            if getattr(self, name) is None and self.optimizer is not OptimizerName.ADAMW:
                raise ConfigError(
                    f"{name} must be given when optimizer is {self.optimizer.value!r}, whose own rate "
                    f"is not comparable with AdamW's"
                )

    @property
    def budget_unit(self) -> str:
        """The one budget that is given."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)
