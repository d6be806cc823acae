"""Keep the state between two optimizer steps, so that a checkpoint can be saved after the next step has begun."""

from __future__ import annotations

import copy
import random
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from ixtune.training.processes import launch
from ixtune.training.state.progress import Progress


class Boundary(TrainerCallback):
    """Remember random states and counters of the last finished step.

    The weights stay those of the last finished step until the optimizer changes them. Dropout and the counters do not:
    they move with every micro-batch. With them restored, a run that stops in the middle of a step can be saved as of
    the step before.
    """

    def __init__(self, trainer: Trainer, progress: Progress) -> None:
        self.trainer, self.progress = trainer, progress
        self._random: dict[str, Any] = {}
        self._counted: tuple[dict[str, Any], torch.Tensor] | None = None
        self._updating = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Restore from a checkpoint the state of the steps since the last log line."""
        state.compute_steps(args, state.max_steps)  # the intervals of this recipe, not those the checkpoint names
        trainer, progress = self.trainer, self.progress
        if state.global_step and progress.unlogged_losses:
            trainer._tr_loss = torch.tensor(progress.unlogged_losses[launch.rank()], device=args.device)
            trainer._globalstep_last_logged = progress.logged_step
        self.end_step()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the start of the optimizer's update: until it ends, the weights belong to neither step."""
        self._updating = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the step as finished."""
        self.end_step()

    def end_step(self) -> None:
        """Remember the random states; a step that begins draws from them."""
        self._updating, self._counted = False, None
        self._random = {
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002 - libraries draw from it
            "cpu": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            self._random["cuda"] = torch.cuda.get_rng_state()

    def begin_step(self) -> None:
        """Remember the counters; reading the next batches moves them."""
        self._counted = copy.deepcopy(asdict(self.progress)), self.trainer._tr_loss.clone()

    def restore(self) -> bool:
        """Restore the state before the current step; return False if there is none, or the optimizer has begun."""
        if self._updating or not self._random:  # before the first step: the checkpoint resumed from is still valid
            return False
        if self._counted is not None:
            counters, loss = self._counted
            counters["seconds"] = self.progress.seconds  # the time was spent in any case
            for name, value in counters.items():
                setattr(self.progress, name, value)
            self.trainer._tr_loss = loss
        random.setstate(self._random["python"])
        np.random.set_state(self._random["numpy"])  # noqa: NPY002
        torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random:
            torch.cuda.set_rng_state(self._random["cuda"])
        return True
