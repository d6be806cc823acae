"""What a person sees while training, and what stays in metrics.jsonl."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState

from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_text


class Metrics(TrainerCallback):
    """One line of JSON, and one for the reader, at every log.

    The reader's line: step, loss, learning rate, tokens per second, time left.
    """

    def __init__(self, path: Path, counters: Callable[[], tuple[int, int]], console: Console) -> None:
        """`counters` gives the tokens and supervised tokens trained on so far."""
        self.path, self.counters, self.console = path, counters, console
        self.began = self.last_time = time.monotonic()
        self.last_tokens = self.first_step = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock after loading; drop lines of steps that a resumed run will repeat."""
        self.began = self.last_time = time.monotonic()
        self.first_step = state.global_step
        if self.path.exists():
            kept = [
                line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= state.global_step
            ]
            atomic_write_text(self.path, "".join(line + "\n" for line in kept))

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write both lines."""
        logs = {
            key: value
            for key, value in (logs or {}).items()
            if key in ("loss", "learning_rate", "grad_norm", "validation_loss")
        }
        if not logs:
            return
        for name in ("loss", "grad_norm"):
            if name in logs and not math.isfinite(logs[name]):
                raise IxtuneError(
                    f"training diverged: {name} is {logs[name]} at step {state.global_step}",
                    where=str(self.path.parent),
                    mend="lower training.learning_rate; checkpoints before this step are kept",
                )
        now, (tokens, supervised) = time.monotonic(), self.counters()
        rate = (tokens - self.last_tokens) / max(now - self.last_time, 1e-9)
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **logs}
        if "loss" in logs:
            line |= {"tokens_per_s": round(rate, 1), "tokens": tokens, "supervised_tokens": supervised}
            self.last_time, self.last_tokens = now, tokens
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        done = state.global_step - self.first_step
        left = (now - self.began) / max(done, 1) * (state.max_steps - state.global_step)
        shown = f"step {state.global_step:>5}/{state.max_steps}"
        if "validation_loss" in logs:
            shown += f"  validation loss {logs['validation_loss']:.4f}"
        else:
            shown += f"  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.1e}  {rate:,.0f} tokens/s"
            shown += f"  {_clock(left)} left"
        self.console.print(shown, highlight=False)


class GracefulStop(TrainerCallback):
    """Ctrl-C ends the step, saves a checkpoint and stops; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over SIGINT."""
        self._previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr.write("stopping after this step, with a checkpoint (Ctrl-C again: at once, without)\n")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where asked."""
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give SIGINT back."""
        signal.signal(signal.SIGINT, self._previous or signal.default_int_handler)


def last_loss(path: Path) -> float | None:
    """The last training loss of a metrics.jsonl; the mean over the steps since the last one logged."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [float(line["loss"]) for line in lines if "loss" in line]
    return losses[-1] if losses else None


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a line cut by a crash: not kept


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
