"""Every fault that benchmarks/contamination/control.py puts into the scan can be put there."""

from pathlib import Path

from benchmarks.contamination.mutations import MUTATIONS
from eval.contamination.planted_items import FORMS, LEAST_RECALL

ROOT = Path(__file__).resolve().parents[3]


def test_every_mutation_can_be_made():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 25
    for mutation in MUTATIONS:
        text = (ROOT / mutation.file).read_text()
        assert text.count(mutation.old) == 1, mutation.name
        compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert LEAST_RECALL.keys() == FORMS.keys()
