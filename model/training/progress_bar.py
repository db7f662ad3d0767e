"""One line in a terminal that shows how far a training is, and the other events above it."""

import shutil
from typing import TextIO

BAR = 24  # characters


class ProgressBar:
    """Draws the events of the metrics file."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.drawn = ""

    def show(self, event: dict) -> None:
        """Redraw the bar for a step; print any other event above it."""
        if event["event"] == "step":
            self.clear()
            self.drawn = describe(event)[: shutil.get_terminal_size().columns - 1]
        else:
            values = (
                f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
                for name, value in event.items()
                if name != "event" and not isinstance(value, list | dict)
            )
            self.clear()
            print(event["event"], ", ".join(values), file=self.stream)
        self.redraw()

    def clear(self) -> None:
        """Make room for a line of somebody else's."""
        if self.drawn:
            self.stream.write("\r\x1b[K")

    def redraw(self) -> None:
        self.stream.write(self.drawn)
        self.stream.flush()


def seconds_left(event: dict) -> float:
    """Of a training at this step, as fast as it is now; validations and checkpoints are not counted."""
    tokens_left = (event["steps"] - event["step"]) * event["tokens"] / event["step"]
    return tokens_left / event["tokens_per_second"]


def describe(event: dict) -> str:
    """A step as one line: bar, step, loss, speed, time left."""
    done = BAR * event["step"] // event["steps"]
    minutes, seconds = divmod(round(seconds_left(event)), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{'█' * done}{'░' * (BAR - done)} {event['step']:,}/{event['steps']:,}  loss {event['loss']:.4f}  "
        f"{event['tokens_per_second']:,} tok/s  {hours}:{minutes:02}:{seconds:02} left"
    )
