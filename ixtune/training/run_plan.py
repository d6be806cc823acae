"""Make the plan at the start of a run: show it, save it in the run folder, and keep it when the run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json
from ixtune.planning import plan_report
from ixtune.planning.advice import advise
from ixtune.planning.gpus import detect
from ixtune.planning.memory_options import MemoryOptions
from ixtune.planning.plan import Plan, make_plan
from ixtune.planning.plan_inputs import records_alone, sizes_of
from ixtune.planning.record_shapes import RecordShapes
from ixtune.recipe.recipe import Recipe
from ixtune.training.inputs import Inputs
from ixtune.training.processes import launch, parallel

FILE = "plan.json"


def plan_run(recipe: Recipe, inputs: Inputs, say: Callable[[str], None]) -> Plan:
    """Make the plan of a run in the first process, show it, and return it in all processes.

    Raises:
        IxtuneError: The run does not fit the GPU. For main memory, which can be swapped, this is only a note.
    """

    def make() -> Plan:
        records, machine = RecordShapes.of(inputs.train), detect(recipe.training.gpu_gib)
        plan = make_plan(
            recipe, sizes_of(inputs.base), records, machine, packs=inputs.packs, processes=launch.world_size()
        )
        for line in (*records_alone(inputs.train), *plan_report.lines(plan, advise(plan, records))):
            say(line)
        if plan.fits is False and machine.device == "cuda":
            raise IxtuneError(
                "the run does not fit this GPU",
                hint="make one of the changes that the plan lists, or set training.gpu_gib to the usable memory",
            )
        return plan

    return parallel.from_first(make)


def flops_per_s(plan: Plan) -> float | None:
    """Return the peak FLOP/s of the run's GPUs together; None if unknown."""
    card = plan.machine.card
    return None if card is None else card.tflops * 1e12 * launch.world_size()


def keep(plan: Plan, run: Path) -> None:
    """Write the plan into the run folder."""
    atomic_write_json(run / FILE, plan_report.as_json(plan))


def kept_memory_options(run: Path) -> MemoryOptions:
    """Return the memory options a run began with; others, chosen by the memory free now, could change its last bits."""
    return MemoryOptions(**json.loads((run / FILE).read_text(encoding="utf-8"))["levers"])
