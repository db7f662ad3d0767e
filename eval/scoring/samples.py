"""What an evaluation leaves behind: one row per task and item, and the scores computed from these rows.

`samples.parquet` holds everything a later question needs (log-probability and length of every choice), so that
scores on clean items, paired differences or another normalisation never need the model again.
"""

import math

import numpy as np
import pyarrow as pa

from eval.reporting.stats import score_summary
from eval.suites.items import gold
from eval.suites.suites import BenchmarkTask, Metric, Suite

SAMPLES_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("task", pa.string()),
        ("item", pa.int32()),  # row of the suite, lm-eval's doc_id
        *((metric.value, pa.float64()) for metric in Metric),  # null where the task has no such metric
        ("gold_logprob", pa.float64()),  # nats, summed over all right answers
        ("gold_bytes", pa.int64()),  # UTF-8 bytes of the same text, with the delimiter that was scored
        ("choice_logprobs", pa.list_(pa.float64())),  # nats
        ("choice_bytes", pa.list_(pa.int64())),
        ("gold", pa.list_(pa.int32())),
        ("cluster", pa.string()),  # items of one cluster are not independent
        ("doc_hash", pa.string()),  # lm-eval's, of the row as the task saw it
    ]
)


def sample_rows(
    suite: Suite, task: BenchmarkTask, logged: list[dict], rows: list[dict], clusters: list[str]
) -> list[dict]:
    """Rows of `SAMPLES_SCHEMA` from lm-eval's logged samples of one task, in the order of items.

    `rows` and `clusters` belong to the whole suite, `logged` to the items that were scored. The metrics are
    lm-eval's own values.
    """
    found = []
    for sample in sorted(logged, key=lambda sample: sample["doc_id"]):
        item = sample["doc_id"]
        logprobs = [response[0][0] for response in sample["resps"]]
        lengths = [len(continuation.encode()) for _, continuation in sample["arguments"]]
        right = gold(rows[item], task)
        metrics = {metric.value: float(sample[key]) for metric, key in task.metrics.items()}
        found.append(
            {metric.value: None for metric in Metric}
            | metrics
            | {
                "suite": suite.name,
                "task": task.name,
                "item": item,
                "gold_logprob": math.fsum(logprobs[choice] for choice in right),
                "gold_bytes": sum(lengths[choice] for choice in right),
                "choice_logprobs": logprobs,
                "choice_bytes": lengths,
                "gold": right,
                "cluster": clusters[item],
                "doc_hash": sample["doc_hash"],
            }
        )
    return found


def score_rows(suite: Suite, task: BenchmarkTask, samples: list[dict], truncated: int, num_fewshot: int) -> list[dict]:
    """One row per metric of one task, from its `sample_rows`; `truncated` counts items whose context was cut.

    `chance` is what guessing scores on these items: the mean of 1 / choices, for mc2 the mean share of right
    answers. `gold_bits_per_byte` is -sum of log p(right answers) / (ln 2 * their UTF-8 bytes).
    """
    nats = -math.fsum(sample["gold_logprob"] for sample in samples)
    length = sum(sample["gold_bytes"] for sample in samples)
    choices = [len(sample["choice_logprobs"]) for sample in samples]
    scores = []
    for metric in task.metrics:
        values = [sample[metric.value] for sample in samples]
        # guessing draws one choice; mc2 spreads its mass evenly over all of them
        right = [len(sample["gold"]) if metric is Metric.MC2 else 1 for sample in samples]
        found = score_summary(values, [sample["cluster"] for sample in samples])
        scores.append(
            {
                "suite": suite.name,
                "task": task.name,
                "metric": metric.value,
                "num_fewshot": num_fewshot,
                "n": len(samples),
                "n_total": suite.rows,
                "subset": len(samples) < suite.rows,
                "value": found["value"],
                "standard_error": found["standard_error"],
                "interval": found["interval"],
                "no_interval": found["no_interval"],
                "chance": float(np.mean([share / count for share, count in zip(right, choices)])),
                "gold_bits_per_byte": nats / (math.log(2) * length),
                "truncated": truncated,
            }
        )
    return scores
