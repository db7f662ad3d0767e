"""Published zero-shot scores of public models, the marks that a score is read against.

All by lm-eval's task definitions on the full suites. Few-shot leaderboard scores are not comparable and left out.
"""

from dataclasses import dataclass

from eval.suites.suites import Metric

_GPT2 = "docstring of hellaswag.py in karpathy/build-nanogpt, quoting lm-eval"
_PYTHIA = "EleutherAI/pythia, evals/pythia-v1/pythia-{0}/zero-shot/{0}_step143000.json"


@dataclass(frozen=True)
class PublishedScore:
    """One published score."""

    model: str
    suite: str
    metric: Metric
    value: float
    """Share of right answers."""
    source: str


def _pythia(size: str, suite: str, acc: float, acc_norm: float | None) -> list[PublishedScore]:
    scores = {Metric.ACC: acc, Metric.ACC_NORM: acc_norm}
    return [
        PublishedScore(f"Pythia-{size}", suite, metric, value, _PYTHIA.format(size))
        for metric, value in scores.items()
        if value is not None
    ]


PUBLISHED_SCORES = (
    PublishedScore("GPT-2 124M", "hellaswag", Metric.ACC, 0.2892, _GPT2),
    PublishedScore("GPT-2 124M", "hellaswag", Metric.ACC_NORM, 0.3114, _GPT2),
    PublishedScore("GPT-2 XL", "hellaswag", Metric.ACC, 0.4004, _GPT2),
    PublishedScore("GPT-2 XL", "hellaswag", Metric.ACC_NORM, 0.5089, _GPT2),
    *_pythia("70m", "arc_easy", 0.374, 0.350),
    *_pythia("70m", "arc_challenge", 0.181, 0.221),
    *_pythia("410m", "arc_easy", 0.521, 0.458),
    *_pythia("410m", "arc_challenge", 0.213, 0.243),
    *_pythia("410m", "winogrande", 0.537, None),
)


def published_scores_note(scored: set[tuple[str, str]]) -> str:
    """Where the marks beside these (suite, metric) come from; empty when there are none."""
    sources: dict[str, set[str]] = {}
    for published in PUBLISHED_SCORES:
        if (published.suite, published.metric) in scored:
            sources.setdefault(published.source, set()).add(published.model)
    origins = "; ".join(f"{', '.join(sorted(models))}: {source}" for source, models in sources.items())
    return f"Published zero-shot scores of public models: {origins}." if origins else ""
