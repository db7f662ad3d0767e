"""Malformed inputs of every kind: refused in one sentence, no hang, no allocation bomb (`make test-inputs`)."""

import pytest

from tests.malformed.failures import failures
from tests.malformed.inputs import Area, areas

INPUTS = 200
KINDS = ("configuration", "tokenizers", "documents", "shards", "manifests", "ledger", "checkpoints", "benchmark rows")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Area]:
    found = areas(tmp_path_factory.mktemp("originals"))
    assert tuple(found) == KINDS
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_malformed_input_is_refused_in_one_sentence(kind: str, known: dict[str, Area]):
    """`python -m tests.malformed 200 KIND` prints each, with the seed that makes it again."""
    assert failures(known[kind], INPUTS // len(KINDS)) == []
