"""What a comparison of two designs may be configured to."""

import pytest

from tasks.config import CompareConfig


def test_budgets_must_hold_the_presets_own():
    with pytest.raises(ValueError, match="1 must be one of them"):
        CompareConfig(budgets=(0.5, 2.0))
