"""Progress of a run, counted from its first start over all resumes; every checkpoint holds a copy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "progress.json"
PENDING_VALIDATION, PENDING_SAMPLES = "validation", "samples"


@dataclass(slots=True)
class Progress:
    """Counters and best measurement of a run.

    Attributes:
        tokens: tokens of the records trained on, image tokens included, over all processes.
        computed_tokens: tokens computed for them; fewer if records of a pack share a prefix.
        supervised_tokens: number of these with a loss.
        flops: operations computed for them.
        seconds: duration of training, validation and saving.
        best_step: the step with the best measurement on the validation set, by the recipe's `best_by`.
        best_loss: the validation loss at that step.
        best_scores: the scores at that step, by name.
        worse_measurements: number of measurements since the best one.
        stopped_early: whether they reached the limit of early stopping.
        reproducible: False once a pack had to be split because memory ran out.
        pending: measurements due at this step but not done because of a stop or an error: `validation`, `samples`.
        logged_step: the step of the last logged line.
        unlogged_losses: for each process, the sum of its losses since then.
    """

    tokens: int = 0
    computed_tokens: int = 0
    supervised_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    best_scores: dict[str, float] = field(default_factory=dict)
    worse_measurements: int = 0
    stopped_early: bool = False
    reproducible: bool = True
    pending: list[str] = field(default_factory=list)
    logged_step: int = 0
    unlogged_losses: list[float] = field(default_factory=list)

    def postpone(self, measurement: str) -> None:
        """Note that a measurement of this step is still to be done."""
        if measurement not in self.pending:
            self.pending.append(measurement)

    def save(self, checkpoint: Path) -> None:
        """Write this progress into a checkpoint that is not sealed yet."""
        (checkpoint / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Replace all values by those saved in a checkpoint."""
        for name, value in json.loads((checkpoint / FILE).read_text(encoding="utf-8")).items():
            setattr(self, name, value)
