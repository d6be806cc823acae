"""Callbacks that look at the model between two steps: validation loss and scores, the best step, and samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from ixtune.errors import IxtuneError
from ixtune.scores import SCORES
from ixtune.training.batch import ImageSource
from ixtune.training.inputs import Inputs
from ixtune.training.monitoring import answers, samples, scoring
from ixtune.training.monitoring.metrics import FILE, TRACKED, VALIDATION, JsonLines
from ixtune.training.monitoring.validation import DTYPES, LOSS, mean_loss, take_note
from ixtune.training.monitoring.view import TrainingView
from ixtune.training.processes import parallel
from ixtune.training.state import checkpoints
from ixtune.training.state.progress import PENDING_SAMPLES, PENDING_VALIDATION
from ixtune.training.stopping import together
from ixtune.training.trainer import AdapterTrainer


class Validation(TrainerCallback):
    """Measure validation loss and scores at intervals and at the end; keep the best step and stop early."""

    def __init__(self, trainer: AdapterTrainer, inputs: Inputs, images: ImageSource, view: TrainingView) -> None:
        self.trainer, self.inputs, self.images, self.view = trainer, inputs, images, view
        training = trainer.recipe.training
        self.every = training.evaluate_every or training.save_every
        assert inputs.validation is not None
        self.asked = answers.draw(len(inputs.validation), training.score_records, training.seed)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure if due; weights and random states do not change."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        if samples_due(self.trainer):
            self.trainer.progress.postpone(PENDING_SAMPLES)  # taken after this measurement, which may fail
        due = control.should_log
        try:
            measured, best = self.measure()
        except Exception as error:
            if not self.trainer.left_together:
                raise
            self.trainer.failure = error  # raised after this step's own line and checkpoint
            control.should_log, control.should_save = due, True
            return
        control.should_log = due  # logging clears it, and this step's own line would be lost
        if best:
            control.should_save = True  # the best one is kept
        if not measured or self.trainer.progress.stopped_early:
            control.should_save = control.should_training_stop = True

    def measure(self) -> tuple[bool, bool]:
        """Measure and log the current step; after a stop or an error, the progress says that it is still to be done.

        Returns:
            Whether it was measured, and whether it is the best step so far.
        """
        trainer, progress, training = self.trainer, self.trainer.progress, self.trainer.recipe.training
        step, best_before = trainer.state.global_step, progress.best_step
        progress.postpone(PENDING_VALIDATION)
        with trainer.meter.idle(), trainer.leaving_together():
            measured = None if trainer.stop.agree() else self._measure()
        if measured is None:
            trainer.stop.agree()  # one process got the signal meanwhile; now all processes know
            return False, False
        progress.pending.remove(PENDING_VALIDATION)
        trainer.log({TRACKED + name: value for name, value in measured.items()})
        best = take_note(progress, measured, step, training.best_by, training.early_stopping)
        if progress.stopped_early:
            self.view.say(
                f"stopping early: {_no_better(training.best_by)} that of step {best_before} "
                f"in {progress.worse_measurements} measurements"
            )
        return True, best

    def _measure(self) -> dict[str, float] | None:
        """Return `loss` and the scores by name, or None if the run was asked to stop meanwhile."""
        trainer, training, records = self.trainer, self.trainer.recipe.training, self.inputs.validation
        assert records is not None
        dtype, leave = DTYPES[training.compute_dtype], lambda: trainer.stop.asked
        with self.view.busy("measuring the validation loss"):
            loss = mean_loss(trainer.model, records, self.images, training.pack_tokens, dtype, leave)
        if loss is None:
            return None
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
                leave,
            )
        return None if scores is None else {LOSS: loss, **scores}


class Samples(TrainerCallback):
    """Let the first process answer some validation records; write them to samples.jsonl and print them."""

    def __init__(self, trainer: AdapterTrainer, inputs: Inputs, images: ImageSource, view: TrainingView) -> None:
        self.trainer, self.inputs, self.images, self.view = trainer, inputs, images, view
        self.lines = JsonLines(trainer.run_folder / samples.FILE)
        assert inputs.validation is not None
        training = trainer.recipe.training
        self.indices = answers.draw(len(inputs.validation), training.sample_records, training.seed)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop the samples that a resumed run will repeat."""
        self.lines.rewind(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Answer if due."""
        if not samples_due(self.trainer) or self.trainer.failure is not None:
            return
        try:
            self.take()
        except Exception as error:
            if not self.trainer.left_together:
                raise
            self.trainer.failure, control.should_save = error, True

    def take(self) -> None:
        """Answer and write; after a stop or an error, the progress says that this is still to be done."""
        trainer, taken = self.trainer, False
        trainer.progress.postpone(PENDING_SAMPLES)
        with trainer.leaving_together(), together():
            if parallel.is_first() and not trainer.stop.asked:
                taken = self._take()
        if parallel.any_of(taken):
            trainer.progress.pending.remove(PENDING_SAMPLES)

    def _take(self) -> bool:
        """Answer and write; return False where the run was asked to stop meanwhile."""
        trainer, validation, step = self.trainer, self.inputs.validation, self.trainer.state.global_step
        assert validation is not None
        dtype = DTYPES[trainer.recipe.training.compute_dtype]
        with trainer.meter.idle(), self.view.busy("answering validation records"):
            made = samples.take(
                trainer.model,
                validation,
                self.indices,
                self.images,
                self.inputs.tokenizer,
                dtype,
                lambda: trainer.stop.asked,
            )
        for sample in made or ():
            self.lines.append({"step": step, **sample})
            self.view.say(samples.in_short(sample))
        return made is not None


def samples_due(trainer: AdapterTrainer) -> bool:
    """Return whether samples are taken at the current step."""
    every = trainer.recipe.training.sample_every
    return every is not None and not trainer.state.global_step % every


def catch_up(trainer: AdapterTrainer, validation: Validation, sampling: Samples | None, checkpoint: Path) -> bool:
    """Measure and sample what was due at a checkpoint's step when the run ended.

    The model holds the weights of the checkpoint. Random states are loaded from the checkpoint later.

    Returns:
        Whether all of it was done; False where the run was asked to stop once more.
    """
    progress = trainer.progress
    if sampling is None and PENDING_SAMPLES in progress.pending:
        progress.pending.remove(PENDING_SAMPLES)  # the recipe does not ask for them any more
    if PENDING_VALIDATION in progress.pending:
        if parallel.is_first():
            JsonLines(trainer.run_folder / FILE).drop(VALIDATION + LOSS, trainer.state.global_step)
        measured, best = validation.measure()
        if not measured:
            return False
        if best and parallel.is_first():
            checkpoints.mark_best(checkpoint, trainer.recipe.training.best_by, progress.best_loss, progress.best_scores)
    if PENDING_SAMPLES in progress.pending and sampling is not None:
        if parallel.is_first():
            sampling.lines.drop("answer", trainer.state.global_step)
        sampling.take()
    return not trainer.stop.agree()


def _no_better(by: str) -> str:
    if by == LOSS:
        return "validation loss not below"
    return f"{SCORES[by].title} on validation not {'above' if SCORES[by].higher_is_better else 'below'}"
