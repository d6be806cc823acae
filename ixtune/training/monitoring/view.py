"""What a person sees of a run: two lines that live on a terminal, one plain line for each measurement elsewhere."""

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


class View:
    """Tells a reader how the run goes; a context manager, so that an error is printed below it and not into it."""

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
        """The first step is about to be taken, after `step` others that a checkpoint holds."""
        self.first, self.done, self.total = step, float(step), total
        self.began = time.monotonic()

    def advance(self, done: float) -> None:
        """So many steps are done; fractions are micro-batches."""
        self.done = done

    def show(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
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
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Answer a signal, past every buffer that it may have interrupted."""
        if not self.console.quiet:
            os.write(sys.stderr.fileno(), f"{text}\n".encode())

    @contextmanager
    def busy(self, with_what: str) -> Iterator[None]:
        """While something else than a step is done."""
        yield

    def _left(self) -> str:
        done = self.done - self.first
        return clock((time.monotonic() - self.began) / done * (self.total - self.done)) if done else "?"


class LiveView(View):
    """A bar, the numbers and the course of the loss, drawn again and again in the last two lines of a terminal."""

    def __init__(self, console: Console, best_by: str) -> None:
        super().__init__(console)
        self.best_by = best_by
        self.last: dict[str, Any] = {}
        self.warning = self.activity = ""
        self.validation: list[float] = []  # of what is the best by
        self.losses: deque[float] = deque(maxlen=_CURVE_POINTS)
        self.live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the two lines away; what they last said stays as a plain one."""
        self.live.stop()
        if self.last:
            super().show(self.last)

    def begin(self, step: int, total: int) -> None:
        """Draw from now on."""
        super().begin(step, total)
        self.live.start()

    def show(self, line: dict[str, Any]) -> None:
        """Take the numbers over; what was measured on the validation set stays above as well."""
        if _LOSS in line:
            self.validation.append(line[_VALIDATION + self.best_by])
            super().show(line)
        else:
            self.last = line
            self.losses.append(line["loss"])

    def warn(self, text: str) -> None:
        """A third line from now on."""
        self.warning = text

    @contextmanager
    def busy(self, with_what: str) -> Iterator[None]:
        """Say so in place of the numbers."""
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
            f"{clock(time.monotonic() - self.began)} gone, {self._left()} left",
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


def view_on(console: Console, best_by: str = "loss") -> View:
    """The view that fits where the console writes to; `best_by` says which measurement it follows."""
    return LiveView(console, best_by) if console.is_terminal else View(console)


def curve(values: deque[float]) -> str:
    """The course of some values in one line of blocks, the lowest to the highest."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
