"""Curves and reports that runs send, and what a page gets of them."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest

from deployments import pages
from deployments.curves import MOST_POINTS, Curve, LineError, parse_line
from deployments.pages import PageStore

RUN = "0af51c6e-1111-4222-8333-{:012d}"


def step(number: int) -> dict:
    return {
        "event": "step",
        "step": number,
        "loss": 10 / number,
        "tokens_per_second": 1000,
        "mfu": None,
        "steps": 20000,
    }


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "no json",
        '{"event": "step"}',
        '{"event": "step", "step": -1}',
        '{"event": "step", "step": true}',
        '{"event": "step", "step": 1, "loss": NaN}',
        '{"event": "step", "step": 1, "loss": 1e400}',
        '{"event": "step", "step": 1, "loss": "<b>"}',
        '{"event": "step", "step": 1, "other": 1}',
        '{"event": "facts", "device": 1}',
        '{"event": "facts", "earlier": 1}',
        f'{{"event": "facts", "device": "{"x" * 201}"}}',
        '{"event": "facts", "generation": 1}',
        '{"event": "phase", "phase": "<script>"}',
        '{"event": "thinned", "step": [1, 2]}',
        '{"thinned": {"step": [1, 2]}}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_metric_is_refused(text: str):
    with pytest.raises(LineError):
        parse_line(text)


def test_a_long_curve_is_thinned_evenly_and_read_again_by_the_next_server(tmp_path: Path):
    curve = Curve(tmp_path / "a.jsonl")
    curve.add([{"event": "facts", "device": "H100"}, {"event": "phase", "phase": "training"}])
    for first in range(1, 20_000, 500):
        curve.add([step(number) for number in range(first, first + 500)])
    seen = curve.after("", 0)
    numbers = [point[0] for point in seen["step"]]
    assert MOST_POINTS / 2 <= len(numbers) <= MOST_POINTS + 1 and (numbers[0], numbers[-1]) == (1, 20_000)
    paces = {after - before for before, after in pairwise(numbers[:-1])}
    assert len(paces) == 1, "evenly"
    assert len(json.dumps(seen)) < 100_000 and (tmp_path / "a.jsonl").stat().st_size < 2_000_000

    again = Curve(tmp_path / "a.jsonl").after(seen["generation"], seen["number"])
    assert (again["step"], again["last"]) == (seen["step"], seen["last"])
    assert again["generation"] != seen["generation"], "a page takes all of it"
    assert (again["facts"], again["phase"]) == (seen["facts"], seen["phase"])


def test_a_page_gets_only_what_is_new_and_everything_after_a_resume(tmp_path: Path):
    curve = Curve(tmp_path / "a.jsonl")
    curve.add([step(number) for number in range(1, 11)])
    seen = curve.after("", 0)
    curve.add([step(11), {"event": "validation", "step": 11, "loss": 3.0, "bits_per_byte": 1.0}])
    new = curve.after(seen["generation"], seen["number"])
    assert [point[0] for point in new["step"]] == [11] and new["validation"] == [[11, 3.0, 1.0]]
    curve.add([step(10), step(11)])  # a run that has not heard our answer
    assert curve.after(new["generation"], new["number"])["step"] == []

    curve.add([{"event": "over"}, *(step(number) for number in range(1, 6))])
    for held in (curve, Curve(tmp_path / "a.jsonl")):
        assert [point[0] for point in held.after(new["generation"], new["number"])["step"]] == [1, 2, 3, 4, 5]


def test_the_oldest_run_makes_room_and_a_killed_servers_half_line_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pages, "MOST_RUNS", 3)
    store = PageStore(tmp_path / "pages")
    for number in range(5):
        assert store.add(RUN.format(number), "a" * 12, [step(1)])
        store.put_report(RUN.format(number), b"<h1>")
    assert sorted(store.newest()) == [RUN.format(number) for number in (2, 3, 4)]
    assert store.report(RUN.format(0)) is None and store.trainings(RUN.format(1)) == []
    assert (tmp_path / "pages").stat().st_mode & 0o077 == 0

    with (tmp_path / "pages" / RUN.format(4) / f"{'a' * 12}.jsonl").open("a") as file:
        file.write('{"event": "step", "ste')
    later = PageStore(tmp_path / "pages")
    assert [point[0] for point in later.after(RUN.format(4), "a" * 12, "", 0)["step"]] == [1]
    later.add(RUN.format(4), "a" * 12, [step(2)])
    later = PageStore(tmp_path / "pages")
    assert [point[0] for point in later.after(RUN.format(4), "a" * 12, "", 0)["step"]] == [1, 2]


def test_threads_of_the_server_do_not_mix_what_two_runs_send(tmp_path: Path):
    store = PageStore(tmp_path / "pages")

    async def send(number: int) -> None:
        await asyncio.to_thread(store.add, RUN.format(number % 2), "a" * 12, [{"event": "usage", "step": number}])

    async def send_all() -> None:
        await asyncio.gather(*map(send, range(60)))

    asyncio.run(send_all())
    for run in (0, 1):
        numbers = {point[0] for point in PageStore(tmp_path / "pages").after(RUN.format(run), "a" * 12, "", 0)["usage"]}
        assert numbers == {number for number in range(60) if number % 2 == run}
