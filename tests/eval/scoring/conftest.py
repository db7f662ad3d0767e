"""A small model and invented items, and its scores, computed once a process."""

from pathlib import Path

import pytest

from eval.scoring.harness import HarnessConfig, evaluate_checkpoint
from tests.eval.scoring.invented import write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> HarnessConfig:
    """What is scored."""
    return write_inputs(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="session")
def scored(inputs: HarnessConfig) -> Path:
    """The folder with the scores of `inputs`."""
    evaluate_checkpoint(inputs)
    return inputs.out
