"""What a run sends to the server's pages holds nothing up; what it logs of its training is sentences."""

import re
import threading
from functools import partial
from typing import Any

import pytest

from tasks.runtime.progress import ServerUpdates, event_sentence, step_sentence


def test_a_server_that_hangs_or_fails_holds_nothing_up(caplog: pytest.LogCaptureFixture):
    sent: list[int] = []
    hung, answers = threading.Event(), threading.Event()

    def hang() -> None:
        hung.set()
        answers.wait(60)

    def fail() -> None:
        raise ConnectionError("away")

    with ServerUpdates() as tell:
        tell("progress", hang)
        hung.wait(60)
        tell("figure", fail)
        for number in range(100):
            tell("progress", partial(sent.append, number))
        assert not sent
        answers.set()
    assert sent == [99], "of what had waited, the newest"
    assert "the run goes on: away" in caplog.text


STEP = {"event": "step", "step": 20, "steps": 40, "tokens": 40_960, "loss": 5.0, "lr": 0.02, "tokens_per_second": 1000}
PLACE = {"step": 20, "tokens": 40_960, "flops": 5_637_144_576}
LOSS = {"loss": 4.978022, "bits_per_byte": 2.413564}
START = {
    "event": "start",
    **PLACE,
    "steps": 40,
    "tokens": 81_920,
    "parameters": 229_376,
    "device": "NVIDIA H100",
    "window_kernel": "sdpa",
    "past_kernel": "flash",
    "document_kernel": "sdpa",
    "threads": 1,
    "deterministic": True,
    "micro_batch_sequences": 8,
    "peak_flops": None,
    "processes": 2,
    "checkpoint_bytes": 2_359_304,
    "cropped": None,
}


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (START, "from step 20; on NVIDIA H100: 2 processes, 1 thread, 8 sequences at a time; attention by sdpa, flash"),
        (START | {"cropped": 0.041}, "4.1 % of the text is cropped"),
        ({"event": "validation", **PLACE, **LOSS}, "after step 20: loss 4.9780 nats per token, 2.4136 bits per byte"),
        ({"event": "validation", **PLACE, **LOSS, "hellaswag_acc_norm": 0.25}, "HellaSwag 25.0 % (acc_norm)"),
        ({"event": "checkpoint", **PLACE, "seconds": 352.0}, "checkpoint of step 20 saved, after 5 min 52 s"),
        ({"event": "resume", "step": 20}, "resumed at step 20"),
        (
            {"event": "damaged_checkpoint", "step": 20, "reason": "weights.bin is cut"},
            "passed over: weights.bin is cut",
        ),
        ({"event": "interrupted", **PLACE, "seconds": 3.0}, "interrupted after step 20, which is saved"),
        ({"event": "done", **PLACE, **LOSS, "seconds": 4.0}, "trained 20 steps, 40,960 tokens in 4.0 s: loss 4.978"),
        ({"event": "done", **PLACE, **LOSS, "seconds": None}, "trained 20 steps, 40,960 tokens: loss 4.978"),
        ({"event": "execution", "step": 0, "message": "it has 2 threads now"}, "it has 2 threads now"),
        ({"event": "out_of_memory", "before": 8, "message": "full; it has 4 from here on"}, "full; it has 4"),
        ({"event": "ending", "at_most_seconds": 91}, "ends, within 91 s"),
        ({"event": "waiting", "until": "until x.lock is free"}, "waits until x.lock is free"),
        ({"event": "output", "line": "a library's line"}, "a library's line"),
        ({"event": "of_tomorrow", "parts": {"a": [1]}, "no": None, "share": 0.123456}, "of tomorrow: share 0.1235"),
        ({"event": "of_tomorrow"}, "of tomorrow"),
    ],
)
def test_every_event_is_told_in_a_sentence(event: dict[str, Any], told: str):
    sentence = event_sentence(event)
    assert told in sentence and not re.search(r"[{}]|\[|None|\d{7}", sentence)


def test_a_step_is_told_with_units():
    told = "step 20/40 loss 5.0000, learning rate 0.02{}, 1,000 tokens/s, 41 s left"
    assert step_sentence(STEP | {"grad_norm": 0.3}) == told.format(", gradient norm 0.30")
    assert step_sentence(STEP | {"grad_norm": None}) == told.format("")
    assert not step_sentence(STEP | {"grad_norm": None, "step": 40}).endswith("left")
