"""Figures of a run as PNG bytes, drawn from the recorded metrics and scores alone."""

import base64
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.reporting.published_scores import PUBLISHED_SCORES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = 128
"""Of a figure: as many as its lines and letters need, in a third of the bytes of full colour."""
BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#6b7280"


def loss_figure(events: list[dict[str, Any]], unigram_entropy_nats: float | None = None) -> bytes:
    """Training and validation loss (nats a token) over training tokens, with the unigram entropy as a floor to beat,
    and validation bits per byte once there are two. The axis goes from 0 to the tokens that were reached."""
    steps = [event for event in events if event["event"] == "step"]
    validations = [event for event in events if event["event"] == "validation"]
    figure = _figure(10, 4.2)
    panels = figure.subplots(1, 2, width_ratios=(3, 2)) if len(validations) > 1 else [figure.subplots()]
    losses = panels[0]
    losses.plot([s["tokens"] / 1e6 for s in steps], [s["loss"] for s in steps], color=BLUE, alpha=0.5, label="training")
    millions = [event["tokens"] / 1e6 for event in validations]
    label = "validation: {loss:.3f}".format(**validations[-1]) if validations else "validation"
    marks: dict[str, Any] = {"color": ORANGE, "markersize": 4, "clip_on": False}
    losses.plot(millions, [event["loss"] for event in validations], "o-", label=label, **marks)
    if unigram_entropy_nats is not None:
        losses.axhline(unigram_entropy_nats, color=GREY, linestyle="--", label="unigram entropy of the text")
    losses.set_ylabel("loss (nats per token)")
    losses.legend()
    for bits in panels[1:]:
        label = "validation: {bits_per_byte:.3f}".format(**validations[-1])
        bits.plot(millions, [event["bits_per_byte"] for event in validations], "o-", label=label, **marks)
        bits.set_ylabel("bits per byte")
        bits.legend()
    reached = max((event.get("tokens", 0) for event in events if event["event"] != "start"), default=0)
    for axes in panels:
        if reached:
            axes.set_xlim(0, reached / 1e6)
        axes.set_xlabel("training tokens (millions)")
        axes.grid(alpha=0.25)
    return _png(figure)


def loss_shows_something(events: list[dict[str, Any]]) -> bool:
    """Whether `loss_figure` would have a line: two points of one kind."""
    return any(sum(event["event"] == kind for event in events) > 1 for kind in ("step", "validation"))


def score_figure(scores: list[dict[str, Any]]) -> bytes:
    """Scores with 95 % intervals beside the chance level of the same items and published scores of public models."""
    figure = _figure(8, 0.5 * len(scores) + 1.8)
    axes = figure.subplots()
    models = list(dict.fromkeys(published.model for published in PUBLISHED_SCORES))
    shown = set()
    for row, score in enumerate(scores):
        fill, label = "full", "this run, 95 % interval"
        if score["interval"]:
            axes.plot([100 * limit for limit in score["interval"]], [row, row], color=BLUE, linewidth=2)
        else:
            fill, label = "none", "this run, no interval"
        axes.plot(100 * score["value"], row, "o", color=BLUE, fillstyle=fill, label=None if label in shown else label)
        shown.add(label)
        chance = 100 * score["chance"]
        axes.plot([chance] * 2, [row - 0.3, row + 0.3], color=GREY, linestyle="--", label=None if row else "chance")
        for published in PUBLISHED_SCORES:
            if (published.suite, published.metric) == (score["suite"], score["metric"]):
                name = None if published.model in shown else published.model
                shown.add(published.model)
                marker = "D^sv"[models.index(published.model)]
                axes.plot(100 * published.value, row + 0.24, marker, color=ORANGE, fillstyle="none", label=name)
    axes.set_yticks(range(len(scores)), [f"{score['suite']} {score['metric']}" for score in scores])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    highest = [max([score["value"], *(score["interval"] or [])]) for score in scores]
    axes.set_xlim(0, max([60.0, *(10 * math.ceil(10 * value) for value in highest)]))
    axes.set_xlabel("per cent")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3)
    return _png(figure)


def sweep_figure(sweep: list[dict[str, Any]], run: int) -> bytes:
    """How many items of each suite count as contaminated, by the run of words that is asked for."""
    figure = _figure(8, 3.6)
    axes = figure.subplots()
    for suite in sorted({row["suite"] for row in sweep}):
        rows = [row for row in sweep if row["suite"] == suite and row.get("run") is not None]
        axes.plot([row["run"] for row in rows], [row["contaminated"] for row in rows], label=suite)
    axes.axvline(run, color=GREY, linestyle="--", label="threshold of this run")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", integer=True)
    axes.set_xlabel("longest run of words in common, from which an item counts")
    axes.set_ylabel("contaminated items")
    axes.grid(alpha=0.25)
    axes.legend()
    return _png(figure)


def sweep_shows_something(sweep: list[dict[str, Any]]) -> bool:
    """Whether any item counts as contaminated at any run of words: else `sweep_figure` is lines at zero."""
    return any(row["contaminated"] for row in sweep if row.get("run") is not None)


def study_figure(groups: list[dict[str, Any]]) -> bytes:
    """Gains of a contamination study with 95 % intervals, one panel a measure."""
    measures = list(dict.fromkeys(row["measure"] for row in groups))
    names = list(dict.fromkeys(row["group"] for row in groups))
    figure = _figure(9, 0.5 * len(names) + 1.4)
    for axes, measure in zip(figure.subplots(1, len(measures), sharey=True), measures, strict=True):
        for row in (row for row in groups if row["measure"] == measure and row["gain"] is not None):
            place = names.index(row["group"])
            if row["interval"]:
                axes.plot(row["interval"], [place, place], color=BLUE, linewidth=2)
            axes.plot(row["gain"], place, "o", color=BLUE, fillstyle="full" if row["interval"] else "none")
        axes.axvline(0, color=GREY, linestyle="--")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(f"gain in {measure.replace('_', ' ')}")
        axes.grid(axis="x", alpha=0.25)
    axes.invert_yaxis()  # the panels share it
    return _png(figure)


def kept(folder: Path, draw: Callable[..., bytes], *data: Any) -> bytes:
    """What `draw` draws of the data, from the folder where the same code drew it before: a run that finds everything
    done shows its figures again, and drawing takes most of a second."""
    identity = [draw.__name__, data, hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]
    file = folder / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.png"
    if file.is_file():
        return file.read_bytes()
    png = draw(*data)
    with suppress(OSError):  # a folder that cannot be written, or a full disk
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial:
            partial.write(png)
        os.replace(partial.name, file)
    return png


def inline(alt: str, png: bytes) -> str:
    """A PNG as a Markdown image that carries its own bytes, the form in which Prefect's artifacts show figures best."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _figure(width: float, height: float) -> "Figure":
    """A figure of so many inches. No display is needed, and none is looked for."""
    import matplotlib as mpl  # noqa: PLC0415 (takes a third of a second, and many who import this file draw nothing)
    from matplotlib.figure import Figure  # noqa: PLC0415 (see above)

    mpl.use("Agg")
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: "Figure") -> bytes:
    from PIL import Image  # noqa: PLC0415 (see above)

    full, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png")
    few = Image.open(full).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
