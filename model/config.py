"""What a network and its training are: two frozen dataclasses, checked when they are built.

A value that makes no sense is refused here, by name, before a shard is read or a GPU is touched.
`parse` turns the JSON of a run into these classes and refuses keys and types it does not know.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from enum import StrEnum

MAX_VOCABULARY = 65_536  # tokens are stored as uint16


class ConfigError(ValueError):
    """A setting is missing, unknown or makes no sense; the message names it and its value."""


class Norm(StrEnum):
    RMS = "rms"
    LAYER = "layer"


class Position(StrEnum):
    ROTARY = "rotary"
    LEARNED = "learned"


class Activation(StrEnum):
    RELU2 = "relu2"
    GELU = "gelu"


class OptimizerName(StrEnum):
    MUON = "muon"
    ADAMW = "adamw"


class Schedule(StrEnum):
    WSD = "wsd"
    COSINE = "cosine"


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names the field, what was expected and the value."""
    if not condition:
        raise ConfigError(f"{field} must be {expected}, but it is {value!r}")


def _require_each(config: object, fields: str, condition: typing.Callable, expected: str) -> None:
    """Check several fields at once; None and non-finite numbers never pass the comparison."""
    for field in fields.split():
        value = getattr(config, field)
        require(value is not None and condition(value) and math.isfinite(value), field, value, expected)


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """One GPT network. The defaults are the modern block; every field can be set to GPT-2's choice."""

    depth: int
    """Number of transformer blocks."""
    width: int
    """Size of the residual stream."""
    heads: int
    """Attention heads a block; width / heads is the size of a head."""
    mlp_ratio: int = 4
    """Hidden size of the feed-forward layer, in widths."""
    sequence_length: int
    """Tokens the network sees at once; the table size of learned and rotary positions."""
    vocab_size: int | None = None
    """Distinct tokens; null takes the number from the shards."""
    vocab_multiple: int = 64
    """Rows of embedding and head are rounded up to a multiple of this (GEMM alignment); GPT-2 has 1."""
    norm: Norm = Norm.RMS
    """rms: without weights, also after the embedding; layer: LayerNorm with weights."""
    position: Position = Position.ROTARY
    """How a token knows where it stands."""
    activation: Activation = Activation.RELU2
    """relu2: squared ReLU; gelu: the tanh approximation GPT-2 used."""
    qk_norm: bool = True
    """RMS-normalise queries and keys, which bounds the attention logits."""
    tied_head: bool = False
    """The output projection is the token embedding."""
    bias: bool = False
    """Biases in linear layers and in LayerNorm."""
    zero_init_projections: bool = True
    """Blocks start as the identity; false: GPT-2's normal(0, 0.02 / sqrt(2 depth))."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap), 15 is usual; null: not capped, faster on a CPU."""
    rotary_base: float = 10_000.0
    """Longest rotary wavelength, in tokens / 2 pi."""

    def __post_init__(self) -> None:
        sizes = "depth width heads mlp_ratio sequence_length vocab_multiple"
        _require_each(self, sizes, lambda value: value >= 1, "at least 1")
        _require_each(self, "rotary_base", lambda value: value > 1, "over 1")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.position is Position.ROTARY and self.width // self.heads % 2:
            raise ConfigError(f"rotary positions need an even head size, width / heads is "
                              f"{self.width // self.heads}")
        if self.vocab_size is not None:
            require(1 < self.vocab_size <= MAX_VOCABULARY, "vocab_size", self.vocab_size,
                    f"from 2 to {MAX_VOCABULARY} (tokens are stored as uint16)")
        if self.softcap is not None:
            _require_each(self, "softcap", lambda value: value > 0, "positive or null")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head; the rows from vocab_size on are never predicted."""
        if self.vocab_size is None:
            raise ConfigError("vocab_size is not known yet: resolve it with with_vocabulary()")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def with_vocabulary(self, vocab_size: int) -> "GPTConfig":
        """The same network for the vocabulary of the shards; refuses a contradiction."""
        if self.vocab_size not in (None, vocab_size):
            raise ConfigError(f"vocab_size is {self.vocab_size}, but the shards have {vocab_size} tokens")
        return dataclasses.replace(self, vocab_size=vocab_size)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. There is no default seed and no default budget."""

    seed: int
    """Decides the initial weights and the order of the windows."""
    tokens: int | None = None
    """Budget in training tokens; exactly one of tokens and flops is given."""
    flops: float | None = None
    """Budget in training FLOPs, counted as in model.cost."""
    tokens_per_step: int
    """Tokens a weight update sees, over all micro-batches and processes."""
    micro_batch_sequences: int
    """Sequences in one forward pass; the rest of a step is gradient accumulation."""
    optimizer: OptimizerName = OptimizerName.MUON
    """muon: Muon for hidden matrices and AdamW for the rest; adamw: AdamW for everything."""
    learning_rate: float
    """Peak rate of the hidden matrices: the one dial."""
    embedding_learning_rate: float | None = None
    """Peak AdamW rate of embeddings; null: learning_rate (adamw only, muon needs a value)."""
    head_learning_rate: float | None = None
    """Peak AdamW rate of the untied head; null as above."""
    scalar_learning_rate: float | None = None
    """Peak AdamW rate of norms and biases; null as above."""
    weight_decay: float = 0.0
    """Decoupled decay times the rate; muon: hidden matrices, adamw: every parameter of 2 dimensions."""
    adam_beta1: float = 0.9
    """Decay a step of AdamW's first moment."""
    adam_beta2: float = 0.95
    """Decay a step of AdamW's second moment."""
    adam_epsilon: float = 1e-8
    """Added to AdamW's denominator."""
    momentum: float = 0.95
    """Nesterov momentum of Muon."""
    schedule: Schedule = Schedule.WSD
    """wsd: warm-up, stable, linear cooldown; cosine: warm-up, then half a cosine."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    cooldown_fraction: float = 0.5
    """Share of all steps spent in the linear cooldown (wsd only)."""
    final_lr_fraction: float = 0.0
    """Share of the peak rate that the schedule ends on."""
    grad_clip: float | None = None
    """Largest global gradient norm; null: not clipped."""
    precision: Precision = Precision.FP32
    """bf16: autocast with fp32 master weights."""
    validation_every_steps: int
    """Steps between validations; step 0 and the last step are always validated."""
    validation_tokens: int
    """Tokens of the validation split that are read, from its start."""
    checkpoint_every_steps: int
    """Steps between checkpoints."""
    log_every_steps: int = 10
    """Steps between metric lines."""
    sample_tokens: int = 64
    """Tokens generated for each sample prompt, before and after training."""

    def __post_init__(self) -> None:
        given = [name for name in ("tokens", "flops") if getattr(self, name) is not None]
        if len(given) != 1:
            what = "tokens and flops are both" if given else "neither tokens nor flops is"
            raise ConfigError(f"a run has exactly one budget, but {what} given")
        _require_each(self, given[0], lambda value: value > 0, "positive")
        _require_each(self, "tokens_per_step micro_batch_sequences validation_every_steps validation_tokens "
                      "checkpoint_every_steps log_every_steps", lambda value: value >= 1, "at least 1")
        _require_each(self, "learning_rate adam_epsilon", lambda value: value > 0, "positive")
        _require_each(self, "weight_decay warmup_steps sample_tokens", lambda value: value >= 0, "at least 0")
        _require_each(self, "adam_beta1 adam_beta2 momentum", lambda value: 0 <= value < 1, "in [0, 1)")
        _require_each(self, "cooldown_fraction final_lr_fraction", lambda value: 0 <= value <= 1, "in [0, 1]")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2^63)")
        if self.grad_clip is not None:
            _require_each(self, "grad_clip", lambda value: value > 0, "positive or null")
        for name in ("embedding_learning_rate", "head_learning_rate", "scalar_learning_rate"):
            value = getattr(self, name)
            if value is None and self.optimizer is OptimizerName.MUON:
                raise ConfigError(f"{name} must be given when optimizer is 'muon', whose own rate is not "
                                  f"comparable with AdamW's")
            require(value is None or 0 < value < math.inf, name, value, "positive")


def parse(cls: type, values: object, section: str) -> typing.Any:
    """Build dataclass `cls` from parsed JSON; `section` names the place in the errors."""
    if not isinstance(values, dict):
        raise ConfigError(f"{section} must be an object, but it is {values!r}")
    kinds = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{section} has the unknown key {', '.join(map(repr, unknown))}; "
                          f"known are {', '.join(fields)}")
    missing = [name for name, field in fields.items()
               if name not in values and field.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{section} lacks the key {', '.join(map(repr, missing))}")
    try:
        return cls(**{name: _convert(value, kinds[name], name) for name, value in values.items()})
    except ConfigError as error:
        raise ConfigError(f"{section}: {error}") from None


def _convert(value: object, kind: typing.Any, name: str) -> object:
    """One JSON value as the annotated type; JSON's own types are trusted, strings are not numbers."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, name)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        choices = [choice.value for choice in kind]
        require(value in choices, name, value, f"one of {', '.join(choices)}")
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e9 is how people write a token budget
    plain = typing.get_origin(kind) or kind
    require(isinstance(value, plain) and (plain is bool or not isinstance(value, bool)), name, value,
            f"of type {plain.__name__}")
    return value
