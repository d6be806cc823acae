"""Progress of a run: two live lines on a terminal, one plain line per measurement elsewhere, notebooks included."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ixtune.scores import SCORES

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 24
_LOSS, _VALIDATION = "validation_loss", "validation_"


class TrainingView:
    """Show the progress of a run as plain lines; a context manager, so that an error is printed below it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.first = 0
        self.done = 0.0
        self.began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, step: int, total: int) -> None:
        """Start showing progress before the first step; `step` steps were taken before the checkpoint."""
        self.first, self.done, self.total = step, float(step), total
        self.began = time.monotonic()

    def advance(self, done: float) -> None:
        """Set the number of finished steps; fractions are micro-batches."""
        self.done = done

    def show(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        shown = f"step {line['step']:>5}/{self.total}"
        if _LOSS in line:
            shown += f"  validation loss {line[_LOSS]:.4f}"
            names = (key.removeprefix(_VALIDATION) for key in line)
            shown += "".join(
                f"  {SCORES[name].title} {line[_VALIDATION + name]:.4f}" for name in names if name in SCORES
            )
        else:
            shown += f"  loss {line['loss']:.4f}  lr {line['learning_rate']:.1e}  {line['tokens_per_s']:,.0f} tokens/s"
            shown += f"  {line['memory_gib']:.2f} GiB  {self._left()} left"
        self.say(shown)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Show the answer to a signal, without the buffers that the signal may have interrupted."""
        if not self.console.quiet:
            os.write(sys.stderr.fileno(), f"{text}\n".encode())

    @contextmanager
    def busy(self, with_what: str) -> Iterator[None]:
        """Show the activity between two steps."""
        yield

    def _left(self) -> str:
        done = self.done - self.first
        return clock((time.monotonic() - self.began) / done * (self.total - self.done)) if done else "?"


class LiveView(TrainingView):
    """Show a progress bar, the numbers and the loss curve in the last two lines of a terminal."""

    def __init__(self, console: Console, best_by: str) -> None:
        super().__init__(console)
        self.best_by = best_by
        self.last: dict[str, Any] = {}
        self.warning = self.activity = ""
        self.validation: list[float] = []  # values of the `best_by` measurement
        self.losses: deque[float] = deque(maxlen=_CURVE_POINTS)
        self.live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the live lines; print the last numbers as a plain line."""
        self.live.stop()
        if self.last:
            super().show(self.last)

    def begin(self, step: int, total: int) -> None:
        """Start the live lines."""
        super().begin(step, total)
        self.live.start()

    def show(self, line: dict[str, Any]) -> None:
        """Update the numbers; print measurements on the validation set as lines that stay."""
        if _LOSS in line:
            self.validation.append(line[_VALIDATION + self.best_by])
            super().show(line)
        else:
            self.last = line
            self.losses.append(line["loss"])

    def warn(self, text: str) -> None:
        """Add a third line with the warning."""
        self.warning = text

    @contextmanager
    def busy(self, with_what: str) -> Iterator[None]:
        """Show the activity in place of the numbers."""
        self.activity = with_what
        self.live.refresh()
        try:
            yield
        finally:
            self.activity = ""

    def _draw(self) -> Group:
        bar = Table.grid(padding=(0, 2))
        for _ in range(4):
            bar.add_column(no_wrap=True, overflow="ellipsis")
        width = min(32, self.console.width // 4)
        share = self.done / max(self.total, 1)
        bar.add_row(
            f"step {int(self.done):,}/{self.total:,}",
            ProgressBar(total=max(self.total, 1), completed=self.done, width=width, complete_style="cyan"),
            f"{share:4.0%}",
            f"{clock(time.monotonic() - self.began)} elapsed, {self._left()} left",
        )
        lines = [self.activity or "  ".join(self._numbers()), *filter(None, [self.warning])]
        return Group(bar, *(Text(line, overflow="ellipsis", no_wrap=True) for line in lines))

    def _numbers(self) -> list[str]:
        if not self.last:
            return ["waiting for the first step"]
        last = self.last
        numbers = [f"loss {last['loss']:.4f} {curve(self.losses)}"]
        if self.validation:
            score = SCORES.get(self.best_by)
            best = (max if score and score.higher_is_better else min)(self.validation)
            name = score.title if score else "validation"
            numbers.append(f"{name} {self.validation[-1]:.4f} (best {best:.4f})")
        numbers += [f"lr {last['learning_rate']:.1e}", f"{last['tokens_per_s']:,.0f} tokens/s"]
        if last.get("mfu") is not None:
            numbers.append(f"MFU {last['mfu']:.0%}")
        return [*numbers, f"{last['memory_gib']:.2f} GiB"]


def view_on(console: Console, best_by: str = "loss") -> TrainingView:
    """Return a live view for a terminal and a plain one otherwise; `best_by` is the measurement to follow."""
    # these variables make rich take a log file for a terminal; they ask for colors, not for lines drawn again and again
    claimed = any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    live = console.is_terminal and (console.file.isatty() or not claimed)
    return LiveView(console, best_by) if live else TrainingView(console)


def curve(values: deque[float]) -> str:
    """Return values as a sparkline, scaled from the lowest to the highest."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
