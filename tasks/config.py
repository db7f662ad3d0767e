"""The settings of the stages, a section of a run's configuration each.

They are read before anything is started, at every call of the command line: nothing large is imported here.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any

from eval.contamination.config import ContaminationConfig
from eval.scoring.precision import Precision
from eval.suites.suites import SUITES, ZERO_SHOT, Shots
from model.errors import did_you_mean
from model.network.config import MAX_VOCABULARY
from model.parsing import Bounds, ConfigError, check_fields
from tasks.sources.config import COMMIT, Source, require_repository_id

GPT2_VOCABULARY = 50_257


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the model reads."""

    source: Source
    """Where the documents come from."""
    validation_fraction: Annotated[float, Bounds(gt=0, lt=0.5)]
    """Share of documents kept for validation, chosen by the digest of their text."""

    def __post_init__(self) -> None:
        check_fields(self)


class TokenizerKind(StrEnum):
    """How the tokenizer comes to be."""

    TRAIN = "train"
    GPT2 = "gpt2"
    FILE = "file"
    HUB = "hub"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer the run uses."""

    kind: TokenizerKind
    """Train a BPE, take GPT-2's, or load one from a file or the hub."""
    vocab_size: Annotated[int | None, Bounds(ge=257, le=MAX_VOCABULARY)] = None
    """Entries of a trained vocabulary; tokens must fit uint16."""
    training_bytes: Annotated[int, Bounds(ge=1)] = 2_000_000_000
    """Train the BPE on the first so many bytes of training text."""
    path: str | None = None
    """For `file`: a tokenizer.json. For `hub`: `id@40-digit-commit`."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.kind is TokenizerKind.TRAIN) != (self.vocab_size is not None):
            raise ConfigError(
                f"tokenizer kind {self.kind.value!r} with vocab_size {self.vocab_size}: "
                "a trained tokenizer needs one, a loaded one has its own"
            )
        if (self.kind in (TokenizerKind.FILE, TokenizerKind.HUB)) != (self.path is not None):
            raise ConfigError(
                f"tokenizer kind {self.kind.value!r} with path {self.path!r}: "
                "`file` and `hub` need one, the others have none"
            )
        if self.kind is TokenizerKind.HUB and self.path is not None:
            repository, _, commit = self.path.rpartition("@")
            if not COMMIT.fullmatch(commit):
                raise ConfigError(f"tokenizer {self.path!r}: expected `id@40-digit-commit`, since a branch can move")
            require_repository_id(repository, f"tokenizer {self.path!r}")

    @property
    def entries(self) -> int:
        """Size of the vocabulary; of one that is not loaded yet, the largest there can be."""
        return self.vocab_size or (GPT2_VOCABULARY if self.kind is TokenizerKind.GPT2 else MAX_VOCABULARY)


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How tokens are cut into files."""

    tokens_per_shard: Annotated[int, Bounds(ge=1024, le=2**30)]
    """Tokens a shard file holds (2 bytes each)."""

    def __post_init__(self) -> None:
        check_fields(self)


class Mode(StrEnum):
    """What follows from contaminated items."""

    REPORT = "report"
    REFUSE = "refuse"
    FILTER = "filter"


@dataclass(frozen=True, kw_only=True)
class CheckConfig(ContaminationConfig):
    """When an item counts as contaminated, and what follows."""

    mode: Mode = Mode.REPORT
    """report: say so; refuse: the run ends before training; filter: drop the documents, count them, check again."""

    @property
    def thresholds(self) -> dict[str, Any]:
        """What decides a verdict."""
        return {name: value for name, value in asdict(self).items() if name != "mode"}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What the model is scored on."""

    suites: tuple[str, ...]
    """Which of arc_easy, arc_challenge, hellaswag, winogrande, truthfulqa."""
    items_per_suite: Annotated[int | None, Bounds(ge=1)] = None
    """Score a fixed, seeded subset of so many items of each suite. Empty: all of them."""
    seed: Annotated[int, Bounds(ge=0)]
    """Chooses the subset."""
    num_fewshot: Shots = ZERO_SHOT
    """Solved examples before each question, by suite; 0 by default. Public leaderboards: arc_challenge 25, hellaswag
    10, winogrande 5. They are drawn from the train split, which the wheel does not carry."""
    precision: Precision = Precision.FP32
    """Arithmetic of the scores: `fp32`; `tf32`: the same with products in TF32, on a GPU that has it; `bf16`: weights
    and activations in bf16. Scores of different precisions are not compared with each other."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.suites:
            if name not in SUITES:
                raise ConfigError(f"unknown suite {name!r}{did_you_mean(name, SUITES)}; known are {', '.join(SUITES)}")
        if not self.suites or len(set(self.suites)) < len(self.suites):
            raise ConfigError(f"suites are {list(self.suites)}: expected at least one, and each once")
        for name, count in vars(self.num_fewshot).items():
            if count and name not in self.suites:
                raise ConfigError(f"num_fewshot.{name} is {count}, but {name} is not one of the suites")
            if count > (most := SUITES[name].train_rows):
                raise ConfigError(f"num_fewshot.{name} is {count}, but its train split has {most} examples")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Which items are planted, and how often."""

    suite: str = "arc_easy"
    """The suite whose items are planted."""
    items: Annotated[int, Bounds(ge=2)] = 100
    """How many of its scored items are planted."""
    copies: Annotated[int, Bounds(ge=0)] = 8
    """Copies of each. 0 is an A/A run: nothing planted, another seed."""
    seeds: Annotated[int, Bounds(ge=1)] = 1
    """Pairs of trainings."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.suite not in SUITES:
            hint = did_you_mean(self.suite, SUITES)
            raise ConfigError(f"unknown suite {self.suite!r}{hint}; known are {', '.join(SUITES)}")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How often, and at which budgets, the designs are trained."""

    seeds: Annotated[int, Bounds(ge=1, le=20)] = 3
    """Seeds of each training; from two on there are intervals."""
    budgets: tuple[Annotated[float, Bounds(gt=0)], ...] = (0.5, 1.0, 2.0)
    """Shares of its own budget that the baseline is trained for; 1 must be one of them."""

    def __post_init__(self) -> None:
        check_fields(self)
        if 1 not in self.budgets or len(set(self.budgets)) != len(self.budgets):
            raise ConfigError(f"budgets {self.budgets} must be positive, different, and 1 must be one of them")
