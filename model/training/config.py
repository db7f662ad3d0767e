"""What a training is, beside its network: a frozen dataclass, checked when it is built. Torch is not needed."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from model.parsing import Bounds, ConfigError, check_fields

BUDGETS = ("tokens", "flops", "gpu_hours", "usd")


class OptimizerName(StrEnum):
    MUON = "muon"
    PSGD = "psgd"
    ADAMW = "adamw"


class Schedule(StrEnum):
    WSD = "wsd"
    COSINE = "cosine"


class Rows(StrEnum):
    STREAM = "stream"
    DOCUMENTS = "documents"


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. There is no default seed and no default budget."""

    seed: Annotated[int, Bounds(ge=0)]
    """Decides the initial weights and the order of the windows."""
    tokens: Annotated[int | None, Bounds(gt=0)] = None
    """Budget in training tokens; exactly one of tokens, flops, gpu_hours and usd is given."""
    flops: Annotated[float | None, Bounds(gt=0)] = None
    """Budget in training FLOPs, counted as in model/network/flops.py."""
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
