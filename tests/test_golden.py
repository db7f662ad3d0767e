"""What golden.json holds is still so; the first losses are checked where they are trained, in flows/test_presets.py."""

from pathlib import Path

import pytest

from flows.preset_files import Preset
from tests.golden import golden, initial_weights, item_subsets, key_context, shard_files, stage_keys


def test_initial_weights_of_every_preset():
    for preset in Preset:
        expected = golden("initial weights")[preset]
        found = initial_weights(preset)
        assert found.keys() == expected.keys()
        for role, numbers in found.items():
            assert numbers == pytest.approx(expected[role], rel=1e-3, abs=1e-6), (preset, role)


def test_item_subsets():
    assert item_subsets() == golden("item subsets")


def test_shard_files(tmp_path: Path):
    assert shard_files(tmp_path) == golden("shard files")


def test_stage_keys(tmp_path: Path):
    """A change of a key makes every store forget what it holds: raise a stage's version instead, and say so."""
    place = key_context(tmp_path)
    for preset in Preset:
        assert stage_keys(preset, place) == golden("stage keys")[preset], preset
