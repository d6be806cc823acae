"""Trainer that writes whole checkpoints: atomically, with the states of all processes, and after a failure too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from trl import SFTTrainer

from ixtune.files import atomic_folder
from ixtune.recipe.recipe import Recipe
from ixtune.training.monitoring.metrics import Meter
from ixtune.training.processes import parallel
from ixtune.training.state import checkpoints, disk
from ixtune.training.state.boundary import Boundary
from ixtune.training.state.progress import Progress
from ixtune.training.stopping import raise_together


class CheckpointTrainer(SFTTrainer):
    """SFTTrainer with checkpoints that are whole or absent, and that several processes write together.

    Attributes:
        recipe: Description of the run.
        run_folder: Folder of the checkpoints.
        progress: Counters, saved in each checkpoint.
        meter: Clock of the run, which is paused while a checkpoint is written.
        boundary: State at the last finished step.
        left_together: Whether all processes left at the same place after an exception, so that they can save together.
        checkpoint_bytes: Approximate size of a checkpoint, for the message about a full disk.
    """

    model: PeftModel  # transformers allows for none

    def __init__(self, *args: Any, recipe: Recipe, run_folder: Path, **kwargs: Any) -> None:
        self.recipe, self.run_folder = recipe, run_folder
        self.progress = Progress()
        self.meter = Meter(self.progress)
        self.boundary = Boundary(self, self.progress)
        self.left_together = False
        self.checkpoint_bytes = 0
        self._random_states: list[bytes] = []
        self._partial: Path | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(self.boundary)

    def meet(self, error: BaseException | None) -> None:
        """Raise an exception of one process in all processes."""
        with self.leaving_together():
            raise_together(error)

    @contextmanager
    def leaving_together(self) -> Iterator[None]:
        """Remember, for `save_last_step`, that what the block raises is raised in all processes."""
        try:
            yield
        except BaseException as error:
            self.left_together = not parallel.is_lost_peer(error)
            raise

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Let transformers write its checkpoint into a temporary folder, then seal it and move it into place."""
        final = self.run_folder / f"{checkpoints.PREFIX}{self.state.global_step}"
        if parallel.from_first(final.exists):
            return  # a stop right after a regular save asks for the same step again
        with self.meter.idle():
            # all collectives before anything is written: the others would wait in one that a failed write never reaches
            self.store_flos()
            gathered = parallel.gather((self._random_state(), float(self._tr_loss)))
            self._random_states = [state for state, _ in gathered]
            self.progress.unlogged_losses = [loss for _, loss in gathered]
            self.progress.logged_step = self._globalstep_last_logged
            error: Exception | None = None
            if parallel.is_first():
                try:
                    self._write_checkpoint(model, trial, final)
                except Exception as raised:
                    error = raised
            self.meet(error)

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, final: Path) -> None:
        try:
            with atomic_folder(final) as partial:
                self._partial = partial
                try:
                    super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
                finally:
                    self._partial = None
                written = partial / final.name
                for entry in written.iterdir():
                    entry.rename(partial / entry.name)
                written.rmdir()
                self.meter.update_seconds()
                self.progress.save(partial)
                checkpoints.seal(partial)
            progress, training = self.progress, self.recipe.training
            if progress.best_step == self.state.global_step:
                checkpoints.mark_best(final, training.best_by, progress.best_loss, progress.best_scores)
            checkpoints.rotate(self.run_folder, training.keep_checkpoints, progress.best_step)
        except Exception as error:
            if disk.is_full(error):
                raise disk.DiskFullError(self.run_folder, self.checkpoint_bytes, "a checkpoint needs") from error
            raise

    def store_flos(self) -> None:
        """Add up the operations of all processes; while the first one writes a checkpoint, that is done already."""
        if self._partial is None:
            super().store_flos()

    def save_last_step(self) -> Path | None:
        """Save a checkpoint of the last finished step after something was raised in the middle of the next one.

        Weights and optimizer are those of the last finished step until the optimizer changes them. Random states and
        counters are restored to that step, so that the resumed run repeats the step bit for bit.

        Returns:
            The checkpoint, or None if no step was finished, the weights are between two steps, or another process has
            ended, whose random state is needed to resume bit for bit.
        """
        if not self.state.global_step or not self.boundary.restore():
            return None
        if self.args.world_size > 1 and not self.left_together:
            return None
        self._save_checkpoint(self.model, None)
        return self.run_folder / f"{checkpoints.PREFIX}{self.state.global_step}"

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the random states of all processes, in transformers' file format."""
        for number, content in enumerate(self._random_states):
            name = "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{number}.pth"
            (Path(output_dir) / name).write_bytes(content)

    def _random_state(self) -> bytes:
        """Return the random state of this process as transformers writes it into a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            (path,) = Path(folder).iterdir()
            return path.read_bytes()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: TRL's would name neither the base's terms nor ours, and the bundle writes one."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the adapter only: no tokenizer copies, and no pickled training arguments (TRAPS.md 10c)."""
        if not self.args.should_save:  # only the first process writes
            return
        assert output_dir is not None  # transformers names the folder at every save
        self.model.save_pretrained(output_dir, state_dict=state_dict)
        (Path(output_dir) / "README.md").unlink(missing_ok=True)
