"""Published zero-shot scores of public models, the marks that a score is read against.

All by lm-eval's task definitions on the full suites. Few-shot leaderboard scores are not comparable and left out.
"""

from dataclasses import dataclass

_GPT2 = "docstring of hellaswag.py in karpathy/build-nanogpt, quoting lm-eval"
_PYTHIA = "EleutherAI/pythia, evals/pythia-v1/pythia-{0}/zero-shot/{0}_step143000.json"


@dataclass(frozen=True)
class Anchor:
    """One published score."""

    model: str
    suite: str
    metric: str
    value: float
    """Share of right answers."""
    source: str


def _pythia(size: str, suite: str, acc: float, acc_norm: float | None) -> list[Anchor]:
    scores = {"acc": acc, "acc_norm": acc_norm}
    return [
        Anchor(f"Pythia-{size}", suite, metric, value, _PYTHIA.format(size))
        for metric, value in scores.items()
        if value is not None
    ]


PUBLISHED_SCORES = (
    Anchor("GPT-2 124M", "hellaswag", "acc", 0.2892, _GPT2),
    Anchor("GPT-2 124M", "hellaswag", "acc_norm", 0.3114, _GPT2),
    Anchor("GPT-2 XL", "hellaswag", "acc", 0.4004, _GPT2),
    Anchor("GPT-2 XL", "hellaswag", "acc_norm", 0.5089, _GPT2),
    *_pythia("70m", "arc_easy", 0.374, 0.350),
    *_pythia("70m", "arc_challenge", 0.181, 0.221),
    *_pythia("410m", "arc_easy", 0.521, 0.458),
    *_pythia("410m", "arc_challenge", 0.213, 0.243),
    *_pythia("410m", "winogrande", 0.537, None),
)


def published_scores_note(scored: set[tuple[str, str]]) -> str:
    """Where the marks beside these (suite, metric) come from; empty when there are none."""
    sources: dict[str, set[str]] = {}
    for anchor in PUBLISHED_SCORES:
        if (anchor.suite, anchor.metric) in scored:
            sources.setdefault(anchor.source, set()).add(anchor.model)
    told = "; ".join(f"{', '.join(sorted(models))}: {source}" for source, models in sources.items())
    return f"Published zero-shot scores of public models: {told}." if told else ""
