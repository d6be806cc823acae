"""Where a stopped run goes on, and whether it is still the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json, atomic_write_text
from ixtune.recipe import recipe as recipes
from ixtune.recipe.recipe import Recipe
from ixtune.training.state import checkpoints

RECIPE = "recipe.yaml"
INPUTS = "inputs.json"
# how the run is started, and where its folder and the images are now, make no other run of it
_NOT_COMPARED = ("resume", "output")
_NOT_COMPARED_DATA = ("image_root",)


def write_start(run: Path, recipe: Recipe, inputs: dict[str, Any]) -> None:
    """Note what a run is made of: the resolved recipe, and the hashes of base and data."""
    run.mkdir(parents=True, exist_ok=True)
    atomic_write_json(run / INPUTS, inputs)
    atomic_write_text(run / RECIPE, recipes.dump(recipe))


def is_begun(run: Path) -> bool:
    """Whether there is a run in this folder."""
    return (run / RECIPE).is_file() and (run / INPUTS).is_file()


def is_finished(run: Path) -> bool:
    """Whether the run in this folder has come to its end."""
    return is_begun(run) and (run / "adapter").exists()


def require_run(run: Path) -> None:
    """Refuse to resume what is not there, or at its end.

    Raises:
        IxtuneError: there is no unfinished run in this folder.
    """
    if not is_begun(run):
        raise IxtuneError("there is no run to resume", where=str(run), hint="start it without --resume")
    if is_finished(run):
        raise IxtuneError("the run is finished already", where=str(run), hint="its adapter is in the folder `adapter`")


def resume_point(recipe: Recipe, inputs: dict[str, Any], run: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from; None where the run never reached one.

    Raises:
        IxtuneError: its recipe, base or data are other ones now, or it has just been finished.
    """
    require_run(run)
    before, now = (_compared(some) for some in (recipes.load(run / RECIPE), recipe))
    _require_same(
        before,
        now,
        "the recipe differs from the one the run began with",
        where=run / RECIPE,
        hint="resume with the same recipe",
    )
    _require_same(
        json.loads((run / INPUTS).read_text(encoding="utf-8")),
        inputs,
        "the base or the data have changed since the run began",
        where=run / INPUTS,
        hint="put them back as they were",
    )
    found, damaged = checkpoints.newest_whole(run)
    for folder, problem in damaged:
        say(f"damaged checkpoint passed over: {folder}: {problem}")
        checkpoints.set_aside(folder)
    say(f"resume   {found or 'from the start: no whole checkpoint yet'}")
    return found


def is_last(checkpoint: Path) -> bool:
    """Whether a checkpoint is of the run's last step, so that nothing is left to train."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state["global_step"]) >= int(state["max_steps"])


def _compared(recipe: Recipe) -> dict[str, Any]:
    compared = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in _NOT_COMPARED}
    data = {key: value for key, value in compared["data"].items() if key not in _NOT_COMPARED_DATA}
    return {**compared, "data": data}


def _require_same(before: dict[str, Any], now: dict[str, Any], what: str, *, where: Path, hint: str) -> None:
    """Raise an IxtuneError that shows every differing value of both."""
    if notes := _differences(before, now):
        raise IxtuneError(what, where=str(where), hint=f"{hint}, or start a new run with another output", notes=notes)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    notes = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            notes += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            notes.append(f"{prefix}{key}: {json.dumps(old)} in the run, {json.dumps(new)} now")
    return notes
