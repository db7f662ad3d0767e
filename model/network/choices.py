"""The choices of GPTConfig; its fields say what each one does."""

from enum import StrEnum


class Norm(StrEnum):
    RMS = "rms"
    LAYER = "layer"


class Position(StrEnum):
    ROTARY = "rotary"
    LEARNED = "learned"


class AttentionKind(StrEnum):
    MHA = "mha"
    MLA = "mla"


class Window(StrEnum):
    """What a layer's queries see: one letter of window_pattern."""

    LONG = "L"
    SHORT = "S"
    SPARSE = "N"


class DocumentMask(StrEnum):
    NONE = "none"
    OWN = "own"


class Smear(StrEnum):
    NONE = "none"
    EMBEDDING = "embedding"
    KEY = "key"


class Activation(StrEnum):
    RELU2 = "relu2"
    GELU = "gelu"
    SWIGLU = "swiglu"


class MLPKind(StrEnum):
    DENSE = "dense"
    MOE = "moe"


class Balance(StrEnum):
    BIAS = "bias"
    LOSS = "loss"
