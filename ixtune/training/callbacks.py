"""What happens between the steps: lines for people and files, validation, samples, Ctrl-C."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from ixtune.errors import IxtuneError
from ixtune.planning.plan import Plan
from ixtune.scores import SCORES
from ixtune.training.batch import ImageSource
from ixtune.training.inputs import Inputs
from ixtune.training.memory_fallback import rehearse
from ixtune.training.monitoring import answers, metrics, samples, scoring
from ixtune.training.monitoring.metrics import JsonLines
from ixtune.training.monitoring.validation import DTYPES, LOSS, mean_loss, take_note
from ixtune.training.monitoring.view import View
from ixtune.training.processes import parallel
from ixtune.training.state.progress import Progress
from ixtune.training.trainer import AdapterTrainer

_LOGGED = {"loss", "grad_norm", *metrics.MEASURED}
# what the trackers expect in front of the name of a measurement, and what stands there in metrics.jsonl
_TRACKED, _VALIDATION = "eval_", "validation_"


class Rehearsal(TrainerCallback):
    """Tries the worst pack before the first step: memory runs out in the first minute or never."""

    def __init__(self, trainer: AdapterTrainer, pack: Sequence[int], plan: Plan, view: View) -> None:
        self.trainer, self.pack, self.plan, self.view = trainer, pack, plan, view

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forward and backward; nothing is learned, and nothing random is used up."""
        trainer, began = self.trainer, time.monotonic()
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
        took = f"tried    the worst pack first, {batch['input_ids'].numel():,} tokens: {time.monotonic() - began:.1f} s"
        if peak is not None:
            took += f", {peak / 2**30:.2f} GiB at the peak, {self.plan.memory.total / 2**30:.2f} planned"
        self.view.say(took)


class Journal(TrainerCallback):
    """Writes metrics.jsonl and shows the same to the reader. In the first process only."""

    def __init__(self, trainer: AdapterTrainer, view: View) -> None:
        self.trainer, self.view = trainer, view
        self.lines = JsonLines(trainer.run_folder / metrics.FILE)
        self.told_of_cuts = False
        trainer.on_cut = self.cut

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock after loading; forget what a resumed run will repeat."""
        self.lines.rewind(state.global_step)
        self.trainer.meter.start()
        if state.global_step:
            self.event("resumed", tokens=self.trainer.progress.tokens)
        self.view.begin(state.global_step, state.max_steps)

    def event(self, what: str, **details: Any) -> None:
        """A line about something that happened."""
        self.lines.append({"step": self.trainer.state.global_step, "event": what, **details})

    def cut(self, sentence: str) -> None:
        """A pack had to be cut for want of memory: every one is written down, the first one is told."""
        self.event("out_of_memory", message=sentence)
        if not self.told_of_cuts:
            self.view.say(sentence)
        self.told_of_cuts = True

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A micro-batch is done."""
        self.view.advance(self.view.done + 1 / args.gradient_accumulation_steps)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step is done."""
        self.view.advance(state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a line, unless it is transformers' summary at the end."""
        logs = logs or {}
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        if _TRACKED + LOSS in logs:
            tracked = {key: value for key, value in logs.items() if key.startswith(_TRACKED)}
            line |= {_VALIDATION + key.removeprefix(_TRACKED): value for key, value in tracked.items()}
        elif "loss" in logs:
            line |= {key: value for key, value in logs.items() if key in _LOGGED or key.endswith("learning_rate")}
            line.setdefault("mfu", None)
        else:
            return
        self.lines.append(line)
        self.view.show(line)


class Validation(TrainerCallback):
    """Measures validation loss and scores every so many steps and at the end; keeps the best, stops when told to."""

    def __init__(self, trainer: AdapterTrainer, inputs: Inputs, images: ImageSource, view: View) -> None:
        self.trainer, self.inputs, self.images, self.view = trainer, inputs, images, view
        training = trainer.recipe.training
        self.every = training.evaluate_every or training.save_every
        assert inputs.validation is not None
        self.asked = answers.draw(len(inputs.validation), training.score_records, training.seed)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure; the trained state and all random states stay as they are."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        progress, training = self.trainer.progress, self.trainer.recipe.training
        with self.trainer.meter.idle():
            measured = self._measure()
        due = control.should_log
        self.trainer.log({_TRACKED + name: value for name, value in measured.items()})
        control.should_log = due  # logging clears it, and this step's own line would be lost
        best_before = progress.best_step
        if take_note(progress, measured, state.global_step, training.best_by, training.early_stopping):
            control.should_save = True  # the best one is kept
        elif progress.stopped_early:
            control.should_save = control.should_training_stop = True
            self.view.say(
                f"stopping early: {_no_better(training.best_by)} that of step {best_before} "
                f"in {progress.worse_measurements} measurements"
            )

    def _measure(self) -> dict[str, float]:
        """`loss` and the scores, by name."""
        trainer, training, records = self.trainer, self.trainer.recipe.training, self.inputs.validation
        assert records is not None
        dtype = DTYPES[training.compute_dtype]
        with self.view.busy("measuring the validation loss"):
            loss = mean_loss(trainer.model, records, self.images, training.pack_tokens, dtype)
        if not math.isfinite(loss):
            raise IxtuneError(
                f"the validation loss is {loss} at step {trainer.state.global_step}",
                where=str(trainer.recipe.data.validation),
                hint="lower training.learning_rate and resume from a checkpoint, or look at the validation records",
            )
        if not training.scores:
            return {LOSS: loss}
        with self.view.busy("scoring answers to validation records"):
            scores = scoring.measure(
                trainer.model,
                records,
                self.asked,
                training.scores,
                self.images,
                self.inputs.tokenizer,
                training.pack_tokens,
                dtype,
            )
        return {LOSS: loss, **scores}


class Samples(TrainerCallback):
    """Lets the first process answer some validation records, into samples.jsonl and shown in short."""

    def __init__(self, trainer: AdapterTrainer, inputs: Inputs, images: ImageSource, view: View) -> None:
        self.trainer, self.inputs, self.images, self.view = trainer, inputs, images, view
        self.lines = JsonLines(trainer.run_folder / samples.FILE)
        assert inputs.validation is not None
        training = trainer.recipe.training
        self.indices = answers.draw(len(inputs.validation), training.sample_records, training.seed)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forget what a resumed run will repeat."""
        self.lines.rewind(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at some answers."""
        trainer, validation = self.trainer, self.inputs.validation
        every = trainer.recipe.training.sample_every
        assert validation is not None
        if every is None or state.global_step % every or not parallel.is_first():
            return
        dtype = DTYPES[trainer.recipe.training.compute_dtype]
        with trainer.meter.idle(), self.view.busy("answering validation records"):
            made = samples.take(trainer.model, validation, self.indices, self.images, self.inputs.tokenizer, dtype)
        for sample in made:
            self.lines.append({"step": state.global_step, **sample})
            self.view.say(samples.in_short(sample))


def _no_better(by: str) -> str:
    if by == LOSS:
        return "validation loss not below"
    return f"{SCORES[by].title} on validation not {'above' if SCORES[by].higher_is_better else 'below'}"


class GracefulStop(TrainerCallback):
    """Ctrl-C ends the step, saves a checkpoint and stops; a second one stops at once."""

    def __init__(self, view: View, progress: Progress) -> None:
        self.view, self.progress, self.asked = view, progress, False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over SIGINT."""
        self._previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.view.warn("stopping after this step, with a checkpoint (Ctrl-C again: at once, without)")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where asked, all processes in the same step."""
        if state.global_step >= state.max_steps or self.progress.stopped_early:
            control.should_log = True  # what the run came to is in the last line, whatever log_every says
        self.asked = parallel.any_of(self.asked)
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give SIGINT back."""
        signal.signal(signal.SIGINT, self._previous or signal.default_int_handler)
