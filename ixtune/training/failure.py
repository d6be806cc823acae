"""Report a run that ended with an error: the exception, the step, and the checkpoint to resume from."""

from __future__ import annotations

from pathlib import Path

from ixtune.errors import IxtuneError


class RunFailedError(IxtuneError):
    """Training ended by an error after it had begun.

    The message is that of the error itself. `resume_hint` adds the command that continues the run.

    Attributes:
        step: The last finished optimizer step.
        checkpoint: Newest complete checkpoint, or None if there is none yet.
    """

    def __init__(self, error: IxtuneError, step: int, checkpoint: Path | None, unsaved: str | None = None) -> None:
        notes = [*error.notes]
        if unsaved:
            notes.append(f"step {step} could not be saved: {unsaved}")
        notes.append(f"checkpoint of the run: {checkpoint}" if checkpoint else "there is no checkpoint yet")
        super().__init__(error.what, where=error.where, hint=error.hint, notes=notes)
        self.exit_code = error.exit_code
        self.step, self.checkpoint = step, checkpoint

    def resume_hint(self, command: str) -> None:
        """Append the command that continues the run to the hint."""
        self.hint = f"{self.hint}; then resume with: {command}"
