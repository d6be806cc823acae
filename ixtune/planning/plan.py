"""Plan a run before loading anything: packs, steps, operations, memory, and memory options that are `auto`.

No tensor library is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from ixtune.checkpoint.sizes import Sizes, Trained
from ixtune.data.pack import pack
from ixtune.errors import UsageError
from ixtune.planning.flops import Flops, PackShape, flops
from ixtune.planning.gpus import Machine
from ixtune.planning.memory import Memory, Setup, peak
from ixtune.planning.memory_options import MemoryOptions
from ixtune.planning.record_shapes import RecordShapes
from ixtune.recipe.recipe import Recipe

Packs = Sequence[Sequence[int]]

ROOM = 0.05
"""Share of a GPU that memory options leave free if possible; see tests/bench/results/full_size.csv."""
# Views per chunk to choose from; with more than the first the tower runs no faster.
VISION_CHUNKS = (16, 8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Packed:
    """Records in packs.

    Attributes:
        packs: indices of the records of each pack.
        largest: number and shape of those packs that may need the most memory.
        epoch: the shape of all packs side by side.
    """

    packs: Packs
    largest: Sequence[tuple[int, PackShape]]
    epoch: PackShape

    @classmethod
    def of(cls, records: RecordShapes, packs: Packs) -> Packed:
        """Compute the shapes of packs."""
        shapes = [records.pack(indices) for indices in packs]
        return cls(packs, _largest(shapes), PackShape.joined(shapes))


@dataclass(frozen=True, slots=True)
class Need:
    """Memory need of the pack with the highest peak.

    Attributes:
        packs: indices of the records of each pack.
        worst: the pack that takes the most memory.
        saving: memory options of the recipe; for `auto`, as few as needed.
        memory: peak memory of that pack with these options.
        available_bytes: available memory; None if unknown.
    """

    packs: Packs
    worst: int
    saving: MemoryOptions
    memory: Memory
    available_bytes: int | None

    @property
    def fits(self) -> bool | None:
        """Return whether the run fits; None if the available memory is unknown."""
        return None if self.available_bytes is None else self.memory.total <= self.available_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Plan of a run.

    Attributes:
        recipe: recipe of the run.
        sizes: sizes of the base.
        machine: machine for the run.
        records: records of the training set, as often as they are drawn.
        need: packs, saving, memory.
        record_tokens: tokens of all records of an epoch, each counted by itself.
        epoch: all packs of an epoch side by side, prefixes that records share counted once a pack.
        worst_pack: the shape of the pack with the highest peak.
        steps: optimizer steps.
        flops: operations of the whole run.
    """

    recipe: Recipe
    sizes: Sizes
    machine: Machine
    records: int
    need: Need
    record_tokens: int
    epoch: PackShape
    worst_pack: PackShape
    steps: int
    flops: Flops

    @property
    def saving(self) -> MemoryOptions:
        """Memory options to start the run with."""
        return self.need.saving

    @property
    def memory(self) -> Memory:
        """Peak memory of the pack with the highest peak."""
        return self.need.memory

    @property
    def fits(self) -> bool | None:
        """Return whether the run fits; None if the available memory is unknown."""
        return self.need.fits

    @property
    def trained(self) -> dict[str, int]:
        """Number of trained parameters by part."""
        return Trained.of(self.recipe.adapter).parameters(self.sizes)

    @property
    def seconds(self) -> float | None:
        """Predicted duration on a measured card, a lower bound on a known one, None on any other."""
        card = self.machine.card
        return None if card is None else self.flops.total / (card.tflops * 1e12 * (card.measured_share or 1.0))


def make_plan(
    recipe: Recipe,
    sizes: Sizes,
    records: RecordShapes,
    machine: Machine,
    *,
    packs: Packs | None = None,
    processes: int = 1,
) -> Plan:
    """Plan a run.

    Args:
        recipe: recipe of the run.
        sizes: sizes of its base.
        records: training records.
        machine: machine for the run.
        packs: the records in packs, if they are already made.
        processes: number of processes that share the packs of a step.

    Raises:
        UsageError: the recipe names a layer that the base does not have.
        IxtuneError: a record is longer than a pack.
    """
    highest = max(recipe.adapter.layers or (0,))
    if highest >= sizes.layers:
        raise UsageError(
            f"adapter.layers names layer {highest}; the base has layers 0 to {sizes.layers - 1}",
            hint=f"name layers below {sizes.layers}",
        )
    made = pack(records.lengths, recipe.training.pack_tokens, records.prefixes) if packs is None else packs
    packed = Packed.of(records, made)
    need = assess(recipe, sizes, packed, machine)
    steps, passes = _duration(recipe, len(made), processes)
    per_epoch = flops(sizes, Trained.of(recipe.adapter), packed.epoch, need.saving.checkpointed_layers, len(made))
    return Plan(
        recipe=recipe,
        sizes=sizes,
        machine=machine,
        records=len(records),
        need=need,
        record_tokens=sum(records.lengths),
        epoch=packed.epoch,
        worst_pack=records.pack(need.packs[need.worst]),
        steps=steps,
        flops=per_epoch.times(passes),
    )


def flops_of(plan: Plan, records: RecordShapes) -> Callable[[Sequence[int]], float]:
    """Return a function that counts the operations of a pack from its records, without recomputation."""
    trained = Trained.of(plan.recipe.adapter)
    return lambda indices: float(flops(plan.sizes, trained, records.pack(indices)).needed)


def assess(recipe: Recipe, sizes: Sizes, packed: Packed, machine: Machine) -> Need:
    """Compute the highest memory peak over the packs of a recipe, and choose the memory options that are `auto`."""
    device = cast(Literal["cuda", "cpu"], machine.device)

    def worst(saving: MemoryOptions) -> tuple[int, Memory]:
        setup = Setup.of(recipe, sizes, device, saving)
        peaks = [(peak(setup, shape), index) for index, shape in packed.largest]
        memory, index = max(peaks, key=lambda found: found[0].total)
        return index, memory

    def chosen(available: int | None) -> MemoryOptions:
        return choose(recipe, sizes.layers, lambda saving: worst(saving)[1].total, available)

    saving = chosen(machine.memory_bytes)
    if device == "cuda" and machine.memory_bytes is not None:
        # leave room for the plan's error on a GPU, unless that needs slow copies to main memory
        roomy = chosen(int(machine.memory_bytes * (1 - ROOM)))
        saving = saving if roomy.offload_layer_inputs and not saving.offload_layer_inputs else roomy
    index, memory = worst(saving)
    return Need(packed.packs, index, saving, memory, machine.memory_bytes)


def choose(
    recipe: Recipe, layers: int, needed_bytes: Callable[[MemoryOptions], int], available_bytes: int | None
) -> MemoryOptions:
    """Choose the memory options of a recipe; for `auto`, those that cost the least time and fit.

    As few checkpointed layers as possible, then as many views at a time as still fit; layer inputs leave the GPU
    only if checkpointing every layer is not enough. If nothing fits, or the memory is unknown, everything that saves
    memory is on.
    """
    training = recipe.training
    counts = _allowed_layers(training.gradient_checkpointing, layers)
    chunks = VISION_CHUNKS if training.vision_chunk == "auto" else (training.vision_chunk,)
    offloads = (False, True) if training.offload_layer_inputs == "auto" else (training.offload_layer_inputs,)
    if available_bytes is not None:
        for offload in offloads:

            def fits(count: int, chunk: int, offload: bool = offload) -> bool:
                return needed_bytes(MemoryOptions(count, chunk, offload)) <= available_bytes

            if not fits(counts[-1], chunks[-1]):
                continue
            count = _first(counts, lambda count: fits(count, chunks[-1]))
            chunk = next(chunk for chunk in chunks if fits(count, chunk))
            return MemoryOptions(count, chunk, offload and count > 0)
    return MemoryOptions(counts[-1], chunks[-1], offloads[-1] and available_bytes is not None and counts[-1] > 0)


def _allowed_layers(given: str | bool | int, layers: int) -> range:
    if given == "auto":
        return range(layers + 1)
    if isinstance(given, bool):
        return range(layers, layers + 1) if given else range(1)
    count = min(int(given), layers)
    return range(count, count + 1)


def _first(counts: range, fits: Callable[[int], bool]) -> int:
    """Find the smallest count that fits by bisection: every further layer reduces the need."""
    low, high = 0, len(counts) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(counts[middle]):
            high = middle
        else:
            low = middle + 1
    return counts[low]


def _largest(shapes: Sequence[PackShape]) -> list[tuple[int, PackShape]]:
    """Return the packs that may need the most memory: those that no other pack dominates in every size."""

    def sizes_of(shape: PackShape) -> tuple[int, ...]:
        suffix = max((own * prefix for own, prefix in zip(shape.lengths, shape.prefixes, strict=False)), default=0)
        return shape.tokens, shape.image_tokens, shape.supervised, shape.views, max(shape.crops, default=0), suffix

    kept: list[tuple[int, tuple[int, ...]]] = []
    measured = sorted(((sizes_of(shape), -index) for index, shape in enumerate(shapes)), reverse=True)
    for own, index in measured:
        if not any(all(map(int.__ge__, other, own)) for _, other in kept):
            kept.append((-index, own))
    return [(index, shapes[index]) for index, _ in kept]


def _duration(recipe: Recipe, packs: int, processes: int) -> tuple[int, float]:
    """Return optimizer steps, and passes over the data, as transformers counts them."""
    training = recipe.training
    per_epoch = math.ceil(math.ceil(packs / processes) / training.gradient_accumulation)
    if training.max_steps is None:
        return math.ceil(training.epochs * per_epoch), training.epochs
    return training.max_steps, training.max_steps / per_epoch
