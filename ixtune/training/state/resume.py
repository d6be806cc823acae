"""Resume a run: find the starting point, and check that the run is the same or may be extended."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from ixtune.data.prepared.manifest import MANIFEST
from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json, atomic_write_text, sha256_file
from ixtune.recipe import recipe as recipes
from ixtune.recipe.recipe import Recipe
from ixtune.training.state import checkpoints, extension
from ixtune.training.state.extension import Extension

RECIPE = "recipe.yaml"
INPUTS = "inputs.json"
TRAIN_SETS, VALIDATION_SET = "train_manifest_sha256", "validation_manifest_sha256"
"""Keys in inputs.json of the hashes of the prepared sets' manifests."""
PACKS = "packs_sha256"
"""Key in inputs.json of the hash of the packs, in the order of their first records."""
MEMORY_KEYS = (
    "training.gradient_checkpointing",
    "training.offload_layer_inputs",
    "training.vision_chunk",
    "training.gpu_gib",
)
"""Keys that trade memory for time. A resumed run that changes none of them keeps the options it began with."""
_FREE_KEYS = {
    *MEMORY_KEYS,
    "resume",
    "output",
    "data.image_root",
    "training.log_every",
    "training.save_every",
    "training.keep_checkpoints",
    "training.report_to",
    "training.push_to_hub",
    "training.sample_every",
    "training.sample_records",
}
"""Keys that do not affect the result of training: a resumed run may change them."""
_LENGTH_KEYS = {"training.epochs", "training.max_steps", "training.early_stopping"}
"""Keys that `resume=extend` may also change."""
_LONGER = "to train longer, raise training.epochs or training.max_steps with resume=extend"
_ONWARD = "to continue from its adapter, start a new run with adapter.start_from="


class Start(NamedTuple):
    """Starting point of a run.

    Attributes:
        checkpoint: The checkpoint to continue from; None for the beginning.
        extensions: All extensions of the run, the present one included.
        extended: Whether the run is extended by this start.
    """

    checkpoint: Path | None = None
    extensions: tuple[Extension, ...] = ()
    extended: bool = False


def write_start(run: Path, recipe: Recipe, inputs: dict[str, Any]) -> None:
    """Write the inputs of a run: the resolved recipe, and the hashes of base and data."""
    run.mkdir(parents=True, exist_ok=True)
    atomic_write_json(run / INPUTS, inputs)
    atomic_write_text(run / RECIPE, recipes.dump(recipe))


def is_begun(run: Path) -> bool:
    """Return whether there is a run in this folder."""
    return (run / RECIPE).is_file() and (run / INPUTS).is_file()


def is_finished(run: Path) -> bool:
    """Return whether the run in this folder is finished."""
    return is_begun(run) and (run / "adapter").exists()


def require_run(run: Path) -> None:
    """Refuse to resume a run that does not exist or is finished.

    Raises:
        IxtuneError: There is no unfinished run in this folder.
    """
    _require_begun(run)
    if is_finished(run):
        raise IxtuneError("the run is finished already", where=str(run), hint=f"{_LONGER}; {_ONWARD}{run}")


def resume_point(recipe: Recipe, inputs: dict[str, Any], run: Path, say: Callable[[str], None]) -> Start:
    """Return the starting point of a resumed run; step 0 if it never reached a checkpoint.

    Raises:
        IxtuneError: Its recipe, base or data have changed, or it is finished.
    """
    require_run(run)
    _require_same_run(recipe, inputs, run, free=_FREE_KEYS)
    return Start(_newest_checkpoint(run, say), extension.read(run))


def extension_point(recipe: Recipe, inputs: dict[str, Any], run: Path, steps: int, say: Callable[[str], None]) -> Start:
    """Return the starting point of a stopped or finished run that is extended.

    Args:
        recipe: The recipe now.
        inputs: Hashes of base and data now.
        run: The run folder.
        steps: Optimizer steps by the recipe now.
        say: Shows a line to the reader.

    Raises:
        IxtuneError: There is no run, the number of steps is not raised, or something else differs.
    """
    _require_begun(run)
    if not is_finished(run) and not is_longer(recipe, run):  # the extension has begun already
        return resume_point(recipe, inputs, run, say)
    _require_same_run(recipe, inputs, run, free=_FREE_KEYS | _LENGTH_KEYS)
    found = _newest_checkpoint(run, say)
    if found is None:
        raise IxtuneError(
            "there is no checkpoint to extend the run from",
            where=str(run),
            hint=f"{_ONWARD}{run}" if is_finished(run) else "start again with another output",
        )
    step, before = checkpoints.step_of(found), _steps_of(found)
    known = extension.read(run)
    if known and known[-1].step >= step:  # begun, and ended before its first checkpoint
        before = known[-1].steps_before
    if steps <= max(before, step):
        raise IxtuneError(
            f"resume=extend needs more steps than the run has: it has {before:,} and is at step {step:,}, "
            f"the recipe gives {steps:,}",
            where=str(run),
            hint="raise training.epochs or training.max_steps",
        )
    _require_not_stopped_early(recipe, found, run)
    say(f"extend   from step {step:,}: {before:,} optimizer steps become {steps:,}")
    return Start(found, extension.added(known, Extension(step, before, steps)), extended=True)


def is_longer(recipe: Recipe, run: Path) -> bool:
    """Return whether a recipe gives another length than the one the run was last started with."""
    before, now = (_flat(some.model_dump(mode="json")) for some in (recipes.load(run / RECIPE), recipe))
    return any(before[key] != now[key] for key in _LENGTH_KEYS)


def changes_memory(recipe: Recipe, run: Path) -> bool:
    """Return whether a recipe asks for other memory options than the run was started with."""
    before, now = (_flat(some.model_dump(mode="json")) for some in (recipes.load(run / RECIPE), recipe))
    return any(before[key] != now[key] for key in MEMORY_KEYS)


def set_adapter_aside(run: Path, steps: int) -> None:
    """Rename the adapter of a finished run that is extended, to `adapter-STEPS`."""
    if (run / "adapter").exists():
        (run / "adapter").rename(run / f"adapter-{steps}")


def _require_begun(run: Path) -> None:
    if not is_begun(run):
        raise IxtuneError("there is no run to resume", where=str(run), hint="start it without --resume")


def _require_not_stopped_early(recipe: Recipe, checkpoint: Path, run: Path) -> None:
    progress = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    patience = recipe.training.early_stopping
    if progress.get("stopped_early") and patience is not None and progress["worse_measurements"] >= patience:
        raise IxtuneError(
            f"the run stopped early: {progress['worse_measurements']} measurements were no better than that of step "
            f"{progress['best_step']}",
            where=str(run),
            hint="raise training.early_stopping, or set it to null, to continue training",
        )


def _newest_checkpoint(run: Path, say: Callable[[str], None]) -> Path | None:
    found, damaged = checkpoints.newest_whole(run)
    for folder, problem in damaged:
        say(f"damaged checkpoint skipped: {folder}: {problem}")
        checkpoints.set_aside(folder)
    say(f"resume   {found or 'from the start: no complete checkpoint yet'}")
    return found


def _steps_of(checkpoint: Path) -> int:
    """Return the optimizer steps that a run was to have when it wrote a checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state["max_steps"])


def require_same_recipe(recipe: Recipe, run: Path, *, free: Collection[str] = _FREE_KEYS) -> None:
    """Refuse a recipe that differs from that of a run in more than the `free` keys.

    Raises:
        IxtuneError: It differs.
    """
    before, now = (_compared(some, free) for some in (recipes.load(run / RECIPE), recipe))
    before |= {key: now[key] for key in _moved_sets(recipe, run)}
    hints = ["resume with the same recipe"]
    if any(before[key] != now[key] for key in _LENGTH_KEYS & before.keys()):
        hints.append(_LONGER)
    _require_same(
        before,
        now,
        "the recipe differs from the one the run began with",
        where=run / RECIPE,
        hint="; ".join(hints),
        run=run,
    )


def _require_same_run(recipe: Recipe, inputs: dict[str, Any], run: Path, *, free: Collection[str]) -> None:
    require_same_recipe(recipe, run, free=free)
    then, now = _read_inputs(run), dict(inputs)
    if len(then[TRAIN_SETS]) == len(now[TRAIN_SETS]):  # in order, not by path: a set may move
        now[TRAIN_SETS] = dict(zip(then[TRAIN_SETS], now[TRAIN_SETS].values(), strict=True))
    began, given = _flat(then), _flat(now)
    if {key for key in began | given if began.get(key) != given.get(key)} == {PACKS}:
        what = "the run began with records in other packs, which another version of ixtune made"
        hint = "resume with the version that it began with"
    else:
        what, hint = "the base or the data have changed since the run began", "restore them"
    _require_same(began, given, what, where=run / INPUTS, hint=hint, run=run)


def _read_inputs(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / INPUTS).read_text(encoding="utf-8")))


def _moved_sets(recipe: Recipe, run: Path) -> set[str]:
    """Return the keys of the sets that are those the run began with, whatever their paths."""
    began, data = _read_inputs(run), recipe.data
    return {
        key
        for key, sets, known in (
            ("data.train", data.train, [*began[TRAIN_SETS].values()]),
            ("data.validation", [data.validation] if data.validation else [], [began[VALIDATION_SET]]),
        )
        if [sha256_file(one / MANIFEST) for one in sets if (one / MANIFEST).is_file()] == known
    }


def _compared(recipe: Recipe, free: Collection[str]) -> dict[str, Any]:
    values = _flat(recipe.model_dump(mode="json"))
    if recipe.data.validation is not None:  # the best step depends on when it is measured
        values["training.evaluate_every"] = recipe.training.evaluate_every or recipe.training.save_every
    return {key: value for key, value in values.items() if key not in free}


def _require_same(before: dict[str, Any], now: dict[str, Any], what: str, *, where: Path, hint: str, run: Path) -> None:
    """Raise an IxtuneError that shows every differing value of both."""
    notes = [
        f"{key}: {json.dumps(before.get(key))} in the run, {json.dumps(now.get(key))} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if notes:
        raise IxtuneError(
            what,
            where=str(where),
            hint=f"{hint}, or start a new run with another output (adapter.start_from={run} continues from this one)",
            notes=notes,
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
