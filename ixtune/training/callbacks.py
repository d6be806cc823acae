"""Callbacks around the steps: the warm-up on the largest pack, log lines on the terminal and in files, and the stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from ixtune.planning.plan import Plan
from ixtune.training.monitoring import metrics
from ixtune.training.monitoring.metrics import TRACKED, VALIDATION, JsonLines
from ixtune.training.monitoring.validation import LOSS
from ixtune.training.monitoring.view import TrainingView
from ixtune.training.step.memory_fallback import rehearse
from ixtune.training.stopping import StopRequested
from ixtune.training.trainer import AdapterTrainer

_LOGGED = {"loss", "grad_norm", *metrics.MEASURED}


class Rehearsal(TrainerCallback):
    """Run the largest pack before the first step, so that memory runs out in the first minute or never."""

    def __init__(self, trainer: AdapterTrainer, pack: Sequence[int], plan: Plan, view: TrainingView) -> None:
        self.trainer, self.pack, self.plan, self.view = trainer, pack, plan, view

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run forward and backward; weights, gradients and random states do not change."""
        trainer, began = self.trainer, time.monotonic()
        if trainer.stop.asked:  # before the first step there is nothing to save: stop as soon as all processes agree
            return
        assert trainer.optimizer is not None
        batch = trainer.collator([{"records": list(self.pack)}])
        # a resumed run has its optimizer's state already, a new one will
        to_come = 0 if trainer.optimizer.state else self.plan.memory.terms["optimizer"]
        supervised = torch.tensor(len(batch["supervised"][1]), device=args.device)
        peak = rehearse(
            trainer.model,
            batch,
            lambda part: trainer.forward_backward(trainer.model, part, supervised),
            reserve_bytes=to_come,
        )
        tokens = batch["input_ids"].numel()
        took = f"warm-up  ran the largest pack first ({tokens:,} tokens): {time.monotonic() - began:.1f} s"
        if peak is not None:
            took += f", {peak / 2**30:.2f} GiB at the peak, {self.plan.memory.total / 2**30:.2f} planned"
        self.view.say(took)


class Journal(TrainerCallback):
    """Write metrics.jsonl and show the same lines to the reader; in the first process only."""

    def __init__(self, trainer: AdapterTrainer, view: TrainingView) -> None:
        self.trainer, self.view = trainer, view
        self.lines = JsonLines(trainer.run_folder / metrics.FILE)
        self.shown_a_split = False
        trainer.on_cut = self.cut

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock after loading; drop the lines of steps that a resumed run repeats."""
        self.lines.rewind(state.global_step)
        self.trainer.meter.start()
        if state.global_step:
            self.event("resumed", tokens=self.trainer.progress.tokens)
        latest = self.trainer.extensions[-1] if self.trainer.extensions else None
        if latest and latest.step == state.global_step:
            self.lines.drop("steps_after", latest.step)  # left by a start that was killed before its first checkpoint
            self.event("extended", steps_before=latest.steps_before, steps_after=latest.steps_after)
        self.view.begin(state.global_step, state.max_steps)

    def event(self, what: str, **details: Any) -> None:
        """Write a line about an event."""
        self.lines.append({"step": self.trainer.state.global_step, "event": what, **details})

    def cut(self, sentence: str) -> None:
        """Record that a pack was split because memory ran out; show the first such event."""
        self.event("out_of_memory", message=sentence)
        if not self.shown_a_split:
            self.view.say(sentence)
        self.shown_a_split = True

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the progress bar by a micro-batch."""
        self.view.advance(self.view.done + 1 / args.gradient_accumulation_steps)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the progress bar to the finished step."""
        self.view.advance(state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a line, unless it is transformers' summary at the end."""
        logs = logs or {}
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        if TRACKED + LOSS in logs:
            tracked = {key: value for key, value in logs.items() if key.startswith(TRACKED)}
            line |= {VALIDATION + key.removeprefix(TRACKED): value for key, value in tracked.items()}
        elif "loss" in logs:
            line |= {key: value for key, value in logs.items() if key in _LOGGED or key.endswith("learning_rate")}
            line.setdefault("mfu", None)
        else:
            return
        self.lines.append(line)
        self.view.show(line)


class GracefulStop(TrainerCallback):
    """End the run at the next step boundary after a signal, all processes at the same one, with a checkpoint."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer
        self._begun = False

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop before the first step if a signal came during the warm-up; the loop would take that step."""
        if not self._begun:
            self._begun = True
            if self.trainer.stop.agree():
                self.trainer.left_together = True
                raise StopRequested(self.trainer.stop.number)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop if a signal was received."""
        if state.global_step >= state.max_steps or self.trainer.progress.stopped_early:
            control.should_log = True  # the last line shows the result of the run, whatever log_every is
        if self.trainer.stop.agree():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop if a signal came during the save; the checkpoint is already written."""
        if self.trainer.stop.agree():
            control.should_training_stop = True
