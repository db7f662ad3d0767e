"""Hours and memory that a training is projected to need."""

from dataclasses import replace

import pytest

from model.machine.parallel import Parallelism
from model.planning.projection import hours, memory
from tests.tasks.store.test_checkpoints import MODEL, TRAIN


def test_the_plan_follows_the_number_of_processes():
    model, train = replace(MODEL, vocab_size=512, eot_token=0), replace(TRAIN, micro_batch_sequences=None)
    one, several = (hours(model, train, {"device": "cuda", "name": "NVIDIA H100"}, None, count) for count in (1, 4))
    assert several == pytest.approx(one / 4 / 0.9)
    alone, shared, parts = (
        memory(model, train, 10**9, *settings) for settings in ((1,), (4, Parallelism.DDP), (4, Parallelism.FSDP))
    )
    assert [found["fitting_micro_batch"] for found in (alone, shared, parts)] == [8, 2, 2]
    for name in ("weights", "gradients", "optimizer"):
        assert parts["memory_bytes"][name] == pytest.approx(shared["memory_bytes"][name] / 4, abs=1)
        assert shared["memory_bytes"][name] == alone["memory_bytes"][name]
    assert parts["memory_bytes"]["gathered"] > 0
    assert parts["memory_bytes"]["activations"] == shared["memory_bytes"]["activations"]
