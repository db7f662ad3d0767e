"""Invented benchmarks and documents, written once a process."""

from pathlib import Path

import pytest

from eval.contamination.references import Reference, references
from tests.eval.contamination.invented import SUITE_NAMES, write_benchmarks, write_documents


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows of three invented suites."""
    directory = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(directory)
    return directory


@pytest.fixture(scope="session")
def items(benchmarks: Path) -> list[Reference]:
    return references(benchmarks, SUITE_NAMES)


@pytest.fixture(scope="session")
def documents(items: list[Reference], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_documents(tmp_path_factory.mktemp("documents"), items)
