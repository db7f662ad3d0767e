"""Rehearses the scoring of a model that is not trained yet: `python -m eval.scoring.rehearsal CONFIG.json`.

The same code as `eval/scoring/harness.py` builds the same requests from the same rows, with the run's tokenizer and
sequence_length, and writes its files; only the network is left out: every log-likelihood is 0.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from eval.command import run
from eval.scoring.harness import AnswerModel, ScoringConfig, evaluate_model, require_steady, tokenized_on_all_threads
from eval.scoring.prefix_rows import Sequence
from eval.scoring.scorer import Score


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig(ScoringConfig):
    tokenizer: Path
    sequence_length: int
    """Most tokens the model will read at once."""


class Untrained:
    """A scorer without a network."""

    device = torch.device("cpu")
    tokens = 0

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, inputs: list[Sequence], answers: list[list[int]], report: Callable[[int], None]) -> list[Score]:
        return [(0.0, False)] * len(inputs)


def rehearse(config: RehearsalConfig) -> dict:
    """By task, how many items have a context that is cut to the sequence_length. Raises what scoring would raise."""
    tokenizer = Tokenizer.from_str(config.tokenizer.read_bytes().decode())
    require_steady(tokenizer, config.tokenizer)

    def encode(texts: list[str], add_special_tokens: bool | None) -> list[list[int]]:
        with tokenized_on_all_threads():
            return [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    model = AnswerModel(Untrained(config.sequence_length), encode, 0)
    evaluate_model(config, lambda: model)
    return {"cut": {task: [len(model.truncated[task]), len(items)] for task, items in model.chosen.items()}}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], RehearsalConfig, rehearse))
