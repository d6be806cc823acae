"""Find changes that make a recipe fit: each change is planned again, the cheapest first.

The cheapest changes do not affect the results and cost only time; then come those that reduce the precision of frozen
weights or of the optimizer's state; then those that learn less.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ixtune.checkpoint.sizes import Sizes, Trained
from ixtune.data.pack import pack
from ixtune.planning.flops import PackShape, flops
from ixtune.planning.gpus import Machine
from ixtune.planning.plan import Need, Packed, Plan, assess
from ixtune.planning.record_shapes import RecordShapes
from ixtune.recipe.recipe import Recipe

_SHOWN = 3
_MOST_TOGETHER = 3
_SMALLEST_RANK = 8
_ROUND_TOKENS = 64
_HD_NUMS = (40, 25, 16, 9, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Step:
    """Change of one setting.

    Attributes:
        overrides: overrides of the recipe.
        cost: loss in quality: 0 for none, 1 for precision of frozen weights or optimizer, 2 and more for less learning.
        effect: side effect, in words.
        hd_num: prepare the data again with this one; None for as they are.
    """

    overrides: Mapping[str, Any]
    cost: int
    effect: str
    hd_num: int | None = None


@dataclass(frozen=True, slots=True)
class RecipeChange:
    """Changes that together make a run fit.

    Attributes:
        steps: changes, all of which are needed.
        need: memory of the pack with the highest peak after the change.
        extra_flops: operations more than now, as a share.
    """

    steps: tuple[Step, ...]
    need: Need
    extra_flops: float

    @property
    def overrides(self) -> dict[str, Any]:
        """Overrides of the recipe, all steps together."""
        return {key: value for step in self.steps for key, value in step.overrides.items()}

    @property
    def hd_num(self) -> int | None:
        """Return the hd_num to prepare the data again with; None to keep the data."""
        return next((step.hd_num for step in self.steps if step.hd_num is not None), None)


def advise(plan: Plan, records: RecordShapes) -> tuple[RecipeChange, ...]:
    """Return the three cheapest changes that each make the run fit; if none does, the cheapest combinations.

    Empty if it fits, if the memory is unknown, or if no recipe setting makes it fit.
    """
    if plan.fits is not False:
        return ()
    search = _Search(plan, records)
    ways = search.ways()
    for count in range(1, _MOST_TOGETHER + 1):
        found = [change for chosen in itertools.combinations(ways, count) if (change := search.mildest(chosen))]
        if found:
            return tuple(sorted(found, key=_price)[:_SHOWN])
    everything = search.mildest(ways)
    return (everything,) if everything else ()


def changed(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some values replaced, validated again."""
    tree = recipe.model_dump(mode="json")
    for key, value in overrides.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    return Recipe.model_validate(tree)


def _price(change: RecipeChange) -> tuple[int, float]:
    return sum(step.cost for step in change.steps), change.extra_flops


class _Search:
    """Plan changed recipes of one run, packing once for each size."""

    def __init__(self, plan: Plan, records: RecordShapes) -> None:
        self.plan, self.records = plan, records
        self.machine: Machine = plan.machine
        self.sizes: Sizes = plan.sizes
        self._records: dict[int | None, RecordShapes] = {None: records}
        self._packed: dict[tuple[int | None, int], Packed] = {}
        self._now = self._operations(plan.recipe, plan.epoch, plan.need)

    def ways(self) -> list[list[Step]]:
        """Return the possible values of each setting that can change, the mildest first."""
        recipe = self.plan.recipe
        adapter, training = recipe.adapter, recipe.training
        ways: list[list[Step]] = []
        if training.gradient_checkpointing != "auto" and training.gradient_checkpointing is not True:
            ways.append([Step({"training.gradient_checkpointing": "auto"}, 0, "recomputes activations")])
        if training.offload_layer_inputs is False and training.gradient_checkpointing is not False:
            ways.append([Step({"training.offload_layer_inputs": "auto"}, 0, "copies layer inputs to main memory")])
        if training.vision_chunk != "auto":
            ways.append([Step({"training.vision_chunk": "auto"}, 0, "the tower processes fewer views at a time")])
        if shorter := list(self._shorter_packs()):
            ways.append(shorter)
        optimizers = {
            "adamw": ["adamw_8bit", "paged_adamw_8bit"],
            "adamw_8bit": ["paged_adamw_8bit"],
            "paged_adamw": ["paged_adamw_8bit"],
        }
        if smaller := optimizers.get(training.optimizer):
            texts = {"adamw_8bit": "optimizer state in 8 bits", "paged_adamw_8bit": "and it may move to main memory"}
            ways.append([Step({"training.optimizer": name}, 1, texts[name]) for name in smaller])
        if training.compute_dtype == "fp32":
            ways.append([Step({"training.compute_dtype": "bf16"}, 1, "activations and frozen weights in 16 bits")])
        if adapter.quantize == "none":
            ways.append([Step({"adapter.quantize": "nf4"}, 1, "frozen decoder linears in 4 bits")])
        if ranks := list(self._lower_ranks()):
            ways.append(ranks)
        if adapter.projector == "full":
            frozen = {"adapter.projector": "frozen", "training.projector_learning_rate": None}
            ways.append(
                [
                    Step({"adapter.projector": "lora"}, 2, "the projector learns through LoRA"),
                    Step(frozen, 3, "the projector does not learn"),
                ]
            )
        if coarser := list(self._coarser_images()):
            ways.append(coarser)
        return ways

    def mildest(self, ways: Sequence[list[Step]]) -> RecipeChange | None:
        """Return the mildest values of these settings that fit, trying the costliest setting first."""
        chosen = [way[-1] for way in ways]
        best = self._fitting(chosen)
        if best is None:
            return None
        for at in sorted(range(len(ways)), key=lambda at: -ways[at][0].cost):
            for step in ways[at][:-1]:
                milder = self._fitting([*chosen[:at], step, *chosen[at + 1 :]])
                if milder is not None:
                    best, chosen[at] = milder, step
                    break
        return best

    def _fitting(self, steps: Sequence[Step]) -> RecipeChange | None:
        change = self._planned(tuple(steps))
        return change if change is not None and change.need.fits else None

    def _planned(self, steps: tuple[Step, ...]) -> RecipeChange | None:
        overrides: dict[str, Any] = {}
        for step in steps:
            overrides |= step.overrides
        hd_num = next((step.hd_num for step in steps if step.hd_num is not None), None)
        records = self._at(hd_num)
        recipe = changed(self.plan.recipe, overrides)
        if recipe.training.pack_tokens < max(records.lengths):
            return None
        key = hd_num, recipe.training.pack_tokens
        if key not in self._packed:
            packs = pack(records.lengths, recipe.training.pack_tokens, records.prefixes)
            self._packed[key] = Packed.of(records, packs)
        need = assess(recipe, self.sizes, self._packed[key], self.machine)
        return RecipeChange(steps, need, self._operations(recipe, self._packed[key].epoch, need) / self._now - 1)

    def _operations(self, recipe: Recipe, epoch: PackShape, need: Need) -> float:
        trained, layers = Trained.of(recipe.adapter), need.saving.checkpointed_layers
        return flops(self.sizes, trained, epoch, layers, len(need.packs)).total

    def _at(self, hd_num: int | None) -> RecordShapes:
        if hd_num not in self._records:
            assert hd_num is not None
            self._records[hd_num] = self.records.at(hd_num)
        return self._records[hd_num]

    def _shorter_packs(self) -> Iterator[Step]:
        """Yield smaller packs, with proportionally more of them per step, down to the longest record."""
        longest = max(self.records.lengths)
        for size in self._sizes_down_to(longest):
            yield Step(self._pack_tokens(size), 0, f"longest record: {longest:,} tokens")

    def _sizes_down_to(self, longest: int) -> list[int]:
        now = self.plan.recipe.training.pack_tokens
        sizes = [now * eighths // 8 // _ROUND_TOKENS * _ROUND_TOKENS for eighths in (7, 6, 5, 4, 3, 2, 1)]
        return [size for size in [*(size for size in sizes if size > longest), longest] if size < now]

    def _pack_tokens(self, size: int) -> dict[str, Any]:
        training = self.plan.recipe.training
        several = max(1, round(training.gradient_accumulation * training.pack_tokens / size))
        return {"training.pack_tokens": size, "training.gradient_accumulation": several}

    def _lower_ranks(self) -> Iterator[Step]:
        adapter = self.plan.recipe.adapter
        rank = adapter.rank // 2
        while rank >= _SMALLEST_RANK:
            # alpha / rank, the strength of LoRA, stays the same
            alpha = adapter.alpha * rank / adapter.rank
            yield Step({"adapter.rank": rank, "adapter.alpha": alpha}, 2, "LoRA learns less")
            rank //= 2

    def _coarser_images(self) -> Iterator[Step]:
        """Yield smaller values of hd_num, with packs shorter than the longest record now."""
        longest = max(self.records.lengths)
        for hd_num in _HD_NUMS:
            if hd_num < self.records.hd_num and (shorter := max(self._at(hd_num).lengths)) < longest:
                effect = f"longest record: {shorter:,} tokens instead of {longest:,}; images lose detail"
                for size in self._sizes_down_to(shorter):
                    if size < longest:  # longer packs do not need coarser images
                        yield Step(self._pack_tokens(size), 3, effect, hd_num)
