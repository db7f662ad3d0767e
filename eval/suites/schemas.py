"""The official columns of each benchmark suite."""

import pyarrow as pa

_TEXT = pa.list_(pa.string())
_TARGETS = pa.struct([("choices", _TEXT), ("labels", pa.list_(pa.int32()))])
_ARC = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("choices", pa.struct([("text", _TEXT), ("label", _TEXT)])),
        ("answerKey", pa.string()),
    ]
)
_HELLASWAG = pa.schema(
    [
        ("ind", pa.int32()),
        ("activity_label", pa.string()),
        ("ctx_a", pa.string()),
        ("ctx_b", pa.string()),
        ("ctx", pa.string()),
        ("endings", _TEXT),
        ("source_id", pa.string()),
        ("split", pa.string()),
        ("split_type", pa.string()),
        ("label", pa.string()),
    ]
)
_WINOGRANDE = pa.schema([(name, pa.string()) for name in ("sentence", "option1", "option2", "answer")])
_TRUTHFULQA = pa.schema([("question", pa.string()), ("mc1_targets", _TARGETS), ("mc2_targets", _TARGETS)])

SCHEMAS: dict[str, pa.Schema] = {
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "hellaswag": _HELLASWAG,
    "winogrande": _WINOGRANDE,
    "truthfulqa": _TRUTHFULQA,
}
"""By the name of the suite."""
