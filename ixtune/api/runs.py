"""The public functions that plan and train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ixtune.api.arguments import StrPath, recipe_of

if TYPE_CHECKING:
    from ixtune.planning.plan import Plan
    from ixtune.recipe.recipe import Recipe
    from ixtune.training.run import RunOutcome


def plan(
    recipe: Recipe | StrPath,
    overrides: Sequence[str] = (),
    *,
    gpu_gib: float | None = None,
    mix: str | None = None,
    processes: int = 1,
) -> Plan:
    """Estimate memory, steps and time of a training run before loading the model.

    Args:
        recipe: A recipe, its file, or the name of one that ships.
        overrides: Changes to it, as `section.key=value`.
        gpu_gib: Memory of the GPU to plan for, in GiB; the one found here by default.
        mix: Plan on 1,000 made-up records of this kind, such as `documents`, instead of on the recipe's data.
        processes: Number of processes that share the packs of a step.

    Returns:
        The plan; `fits` is None if the memory size is unknown.

    Raises:
        IxtuneError: The recipe, the data or the base are wrong, or a record is longer than a pack.

    Examples:
        >>> import ixtune
        >>> plan = ixtune.plan("documents", mix="documents", gpu_gib=22)
        >>> plan.steps, plan.fits
        (56, True)
    """
    from ixtune.errors import require_at_least
    from ixtune.planning.plan import make_plan
    from ixtune.planning.plan_inputs import open_for_plan

    require_at_least("processes", processes, 1)
    chosen = recipe_of(recipe, overrides)
    sizes, records, machine, _ = open_for_plan(chosen, gpu_gib, mix)
    return make_plan(chosen, sizes, records, machine, processes=processes)


def train(
    recipe: Recipe | StrPath,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    dry_run: bool = False,
    grace: float | None = None,
    quiet: bool = False,
) -> RunOutcome | None:
    """Train an adapter according to a recipe.

    Unlike the command, this does not write a report at the end: call `evaluate` with `report=` for one.

    Args:
        recipe: A recipe, its file, or the name of one that ships.
        overrides: Changes to it, as `section.key=value`; `resume=auto` resumes a run or starts a missing one.
        resume: Require an unfinished run in the output folder, and continue it.
        dry_run: Plan, load, take one step on the largest pack, and write nothing.
        grace: Seconds that the current step has to finish after a signal; no limit by default.
        quiet: Print nothing.

    Returns:
        Result of the run: the adapter folder and its step, or after Ctrl-C the last checkpoint. None after a dry run,
        or if `resume=auto` finds the run finished.

    Raises:
        IxtuneError: The recipe, the data, the base or the run folder are wrong, or training diverged.

    Examples:
        >>> import ixtune
        >>> outcome = ixtune.train("recipe.yaml", ["data.train=prepared/train", "output=run"], quiet=True)
        >>> outcome.steps, str(outcome.adapter)
        (2, 'run/adapter')
    """
    from rich.console import Console

    from ixtune.training.run import train as train_run

    console = Console(quiet=quiet, highlight=False)
    return train_run(recipe_of(recipe, overrides), console, must_resume=resume, only_try=dry_run, grace_s=grace)
