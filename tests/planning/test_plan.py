"""Test the plan of a run: its counts, the memory options it chooses, and that its advice works."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixtune import layout
from ixtune.checkpoint.sizes import Sizes, Trained
from ixtune.data.shared_prefixes import Prefixes
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD
from ixtune.planning import plan_report
from ixtune.planning.advice import advise, changed
from ixtune.planning.flops import PackShape, flops
from ixtune.planning.gpus import CARDS, Machine, card_named, detect
from ixtune.planning.memory_options import MemoryOptions
from ixtune.planning.plan import ROOM, Plan, choose, flops_of, make_plan
from ixtune.planning.record_shapes import ImageShape, RecordShapes
from ixtune.recipe.recipe import Recipe

GIB = 2**30


def recipe(**changes: Any) -> Recipe:
    plain = Recipe.model_validate({"base": "nano", "data": {"train": "prepared"}, "output": "run"})
    return changed(plain, {key.replace("__", "."): value for key, value in changes.items()})


def image(width: int, height: int, hd_num: int) -> ImageShape:
    made = layout.plan(width, height, hd_num)
    return ImageShape(width, height, True, hd_num, made.rows, made.cols, made.tokens)


def texts(*lengths: int) -> RecordShapes:
    return RecordShapes(lengths, [max(1, length // 8) for length in lengths], [()] * len(lengths))


def pages(count: int, hd_num: int = 25) -> RecordShapes:
    one = image(1000, 1400, hd_num)
    return RecordShapes([one.tokens + 100] * count, [60] * count, [(one,)] * count)


def gpu(gib: float) -> Machine:
    return Machine("cuda", round(gib * GIB), "as given")


def planned(records: RecordShapes, machine: Machine | None = None, **changes: Any) -> Plan:
    return make_plan(recipe(**changes), Sizes(), records, machine or gpu(80))


def test_packs_steps_and_tokens_are_counted():
    records = texts(*[1000] * 17)
    made = planned(records, training__pack_tokens=4000, training__gradient_accumulation=2, training__epochs=2.5)
    assert len(made.need.packs) == 5
    assert made.steps == 8  # 3 an epoch
    assert (made.epoch.tokens, made.epoch.supervised, made.epoch.image_tokens) == (17_000, 17 * 125, 0)
    assert make_plan(recipe(training__pack_tokens=4000), Sizes(), records, gpu(80), processes=2).steps == 3


def test_shared_prefixes_are_planned_once_per_pack():
    """Plan eight questions about two pages: four questions share each page, at any hd_num."""
    page = image(1000, 1400, 25)
    apart = RecordShapes([page.tokens + 100] * 8, [60] * 8, [(page,)] * 8)
    shared = dataclasses.replace(apart, prefixes=Prefixes([0, 1] * 4, [page.tokens + 10] * 2, [1, 1]))
    one, other = planned(apart, training__pack_tokens=8000), planned(shared, training__pack_tokens=8000)
    assert one.record_tokens == other.record_tokens == one.epoch.tokens == 8 * (page.tokens + 100)
    assert other.epoch.tokens == 2 * (page.tokens + 10) + 8 * 90
    assert (one.epoch.supervised, one.epoch.views) == (480, 8 * (page.crops + 1))
    assert (other.epoch.supervised, other.epoch.views) == (480, 2 * (page.crops + 1))
    assert other.epoch.image_tokens == 2 * page.tokens
    assert len(other.need.packs) == 1
    assert other.flops.attention < other.flops.total < 0.3 * one.flops.total
    numbers, text = plan_report.as_json(other), "\n".join(plan_report.lines(other))
    assert (numbers["record_tokens"], numbers["computed_tokens"]) == (other.record_tokens, other.epoch.tokens)
    assert f"{other.epoch.tokens / other.record_tokens:.0%} of the tokens are computed" in text
    assert "are computed" not in "\n".join(plan_report.lines(one))
    smaller = shared.at(9).pack([0, 2, 4, 6])
    assert smaller.lengths[0] == page.at(9, FOUR_KHD).tokens + 10
    assert smaller.lengths[1:] == (90,) * 4


def test_attention_with_a_prefix_is_counted_as_in_a_whole_record():
    """The first 100 tokens of a record of 150 and its other 50 after them add up to the record."""
    sizes, trained = Sizes(), Trained.of(recipe().adapter)
    parts = flops(sizes, trained, PackShape((100, 50), prefixes=(0, 100)))
    assert parts.attention == flops(sizes, trained, PackShape((150,))).attention
    assert PackShape.joined([PackShape((7,)), PackShape((5, 2), prefixes=(0, 5))]).seen == (0, 0, 5)


def test_flops_cover_the_whole_run():
    records = pages(6)
    once, twice = (planned(records, training__epochs=epochs) for epochs in (1, 2))
    assert twice.flops.total == 2 * once.flops.total
    by_steps = planned(records, training__max_steps=2 * once.steps)
    assert by_steps.flops.total == twice.flops.total
    count = flops_of(once, records)
    assert sum(count(indices) for indices in once.need.packs) == once.flops.needed


def test_a_record_longer_than_a_pack_is_refused_before_loading():
    with pytest.raises(IxtuneError, match="a pack holds 4,096"):
        planned(texts(5000), training__pack_tokens=4096)


def test_the_worst_pack_has_the_highest_peak_not_the_most_tokens():
    page = image(1400, 1400, 25)
    records = RecordShapes([page.tokens + 120, page.tokens + 100], [10, 10], [(), (page,)])
    made = planned(records, training__pack_tokens=page.tokens + 120)
    assert made.need.packs[made.need.worst] == (1,)
    assert made.worst_pack.views == page.crops + 1


@pytest.mark.parametrize("given", [True, False, 5])
def test_a_layer_count_set_in_the_recipe_is_kept(given: Any):
    made = planned(pages(2), gpu(4), training__gradient_checkpointing=given)
    assert made.saving.checkpointed_layers == {True: 32, False: 0, 5: 5}[given]


def test_only_as_many_layers_as_needed_are_recomputed():
    counts = [planned(pages(8), gpu(gib)).saving.checkpointed_layers for gib in (200, 24, 20, 16)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert len(set(counts)) > 2
    made = planned(pages(8), gpu(20))
    assert made.fits
    one_less = {"training__gradient_checkpointing": made.saving.checkpointed_layers - 1}
    fuller = planned(pages(8), gpu(20), **one_less, training__offload_layer_inputs=False)
    assert made.memory.total <= (1 - ROOM) * 20 * GIB < fuller.memory.total


def test_a_gpu_is_filled_completely_before_layer_inputs_are_offloaded():
    full = planned(pages(8), gpu(80), training__gradient_checkpointing=True, training__vision_chunk=1)
    brim = planned(pages(8), gpu(full.memory.total / GIB + 0.01))
    assert brim.fits
    assert not brim.saving.offload_layer_inputs
    assert "less than 5 % are free" in "\n".join(plan_report.lines(brim))
    assert "less than 5 % are free" not in "\n".join(plan_report.lines(planned(pages(8), gpu(80))))


def test_layer_inputs_are_offloaded_only_if_recomputing_is_not_enough():
    full = planned(pages(8), gpu(80), training__gradient_checkpointing=True)
    enough = full.memory.total / GIB
    assert not planned(pages(8), gpu(enough + 0.01)).saving.offload_layer_inputs
    short = planned(pages(8), gpu(enough - 0.01))
    assert short.fits
    assert short.saving.offload_layer_inputs


@given(st.floats(1, 100), st.integers(0, 10), st.integers(0, 20))
def test_the_cheapest_memory_options_that_fit_are_chosen(available: float, per_layer: int, per_view: int):
    def needed(saving: MemoryOptions) -> int:
        kept = (8 - saving.checkpointed_layers) * per_layer
        kept += saving.checkpointed_layers * (not saving.offload_layer_inputs)
        return max(kept, saving.vision_chunk * per_view)

    chosen = choose(recipe(), 8, needed, round(available))
    every = [
        MemoryOptions(n, chunk, offload) for n in range(9) for chunk in (16, 8, 4, 2, 1) for offload in (False, True)
    ]
    fitting = [saving for saving in every if needed(saving) <= round(available)]
    if fitting:
        assert needed(chosen) <= round(available)
        staying = [saving.checkpointed_layers for saving in fitting if not saving.offload_layer_inputs]
        assert chosen.offload_layer_inputs == (not staying)
        if staying:
            assert chosen.checkpointed_layers == min(staying)
    else:
        assert chosen == MemoryOptions(8, 1, True)


def test_without_a_memory_size_all_layers_are_recomputed():
    made = planned(pages(2), Machine("cpu", None, "unknown"))
    assert made.fits is None
    assert made.saving.checkpointed_layers == 32
    assert advise(made, pages(2)) == ()
    assert "not known" in "\n".join(plan_report.lines(made))


SHAPES = st.sampled_from([pages(9, 25), pages(5, 36), texts(*range(200, 8000, 700)), pages(20, 9)])
RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "training__gradient_checkpointing": st.sampled_from([False, 4, True]),
        "training__offload_layer_inputs": st.just("auto"),
        "training__optimizer": st.sampled_from(["adamw", "adamw_8bit", "paged_adamw"]),
        "adapter__rank": st.sampled_from([8, 64, 256]),
        "adapter__quantize": st.sampled_from(["nf4", "none"]),
        "adapter__projector": st.sampled_from(["full", "lora", "frozen"]),
    },
)


@settings(max_examples=40, deadline=None)
@given(SHAPES, RECIPES, st.sampled_from([7.5, 8.5, 10.0, 14.0, 20.0, 30.0]))
def test_following_the_advice_makes_the_run_fit(records: RecordShapes, changes: dict[str, Any], gib: float):
    made = planned(records, gpu(gib), **changes)
    advice = advise(made, records)
    assert len(advice) <= 3
    if made.fits:
        assert advice == ()
    for change in advice:
        data = records if change.hd_num is None else records.at(change.hd_num)
        again = make_plan(changed(made.recipe, change.overrides), Sizes(), data, gpu(gib))
        assert again.fits
        assert again.memory.total == change.need.memory.total


def test_several_changes_are_advised_only_if_no_single_one_suffices():
    records = pages(9)
    tight = {"adapter__quantize": "none", "training__optimizer": "adamw", "adapter__rank": 256}
    seen = set()
    for gib in (30, 24, 20, 16, 12, 10, 8):
        made = planned(records, gpu(gib), **tight)
        counts = {len(change.steps) for change in advise(made, records)}
        assert len(counts) <= 1
        seen |= counts
    assert {1, 2} <= seen


def test_the_first_advice_does_not_change_the_results():
    made = planned(pages(8), gpu(24), training__gradient_checkpointing=False)
    first = advise(made, pages(8))[0]
    assert sum(step.cost for step in first.steps) == 0
    costs = [sum(step.cost for step in change.steps) for change in advise(made, pages(8))]
    assert costs == sorted(costs)


def test_advice_for_smaller_images_gives_the_longest_record_in_tokens():
    records = pages(1, 55)
    made = planned(records, gpu(9.2), training__pack_tokens=9000, training__optimizer="paged_adamw_8bit")
    assert made.fits is False
    asked = [change for change in advise(made, records) if change.hd_num]
    assert asked
    shorter = records.at(asked[0].hd_num).lengths[0]
    assert f"longest record: {shorter:,} tokens instead of {records.lengths[0]:,}" in next(
        step.effect for step in asked[0].steps if step.hd_num
    )


def test_a_run_that_no_recipe_can_fit_is_reported():
    made = planned(texts(4000), gpu(2))
    assert advise(made, texts(4000)) == ()
    assert "no recipe setting makes it fit" in plan_report.lines(made)[-1]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_gpus_are_recognized_by_their_driver_name(name: str, known: str | None):
    found = card_named(name)
    assert (found.name if found else None) == known


def test_the_time_on_an_unmeasured_gpu_is_a_lower_bound():
    card = CARDS[0]
    machine = Machine("cuda", 24 * GIB, card.name, card)
    made = make_plan(recipe(), Sizes(), pages(8), machine)
    assert made.seconds == pytest.approx(made.flops.total / (card.tflops * 1e12))
    assert "at least; not measured on this card" in "\n".join(plan_report.lines(made))
    assert plan_report.as_json(made)["seconds_are"] == "lower bound"


def test_without_a_gpu_free_main_memory_is_used():
    found = detect()
    if found.device == "cpu":  # where these tests run without one
        assert (found.memory_bytes or 0) > GIB // 4  # in bytes, not KiB; other processes may leave little
    assert detect(24).memory_bytes == 24 * GIB


def test_the_lines_show_every_memory_term_and_the_verdict():
    made = planned(pages(8), gpu(24))
    told = "\n".join(plan_report.lines(made, advise(made, pages(8))))
    for term in ("weights", "adapter", "optimizer", "activations", "loss", "vision", "slack", "total"):
        assert term in told
    assert "verdict  fits" in told
    assert "prefixes of at most 4 GiB in a batch, 1 GiB kept; 128 KiB per token" in told
    assert plan_report.as_json(made)["answering_bytes"] == {"token": 2**17, "batch": 2**32, "kept": 2**30}


@pytest.mark.parametrize(
    ("records", "accumulation", "layers", "told"),
    [
        (
            1, 1, 1,
            ("1 record,", "; 1 optimizer step of 1 pack\n", "1 of 32 layers recomputes its activations, its"),
        ),
        (
            9, 2, 2,
            ("9 records,", "; 5 optimizer steps of 2 packs\n", "2 of 32 layers recompute their activations, their"),
        ),
    ],
)  # fmt: skip
def test_singular_and_plural_are_used_correctly(records: int, accumulation: int, layers: int, told: tuple[str, ...]):
    made = planned(
        texts(*[2000] * records),
        training__pack_tokens=2048,
        training__gradient_accumulation=accumulation,
        training__gradient_checkpointing=layers,
    )
    lines = "\n".join(plan_report.lines(made))
    for words in told:
        assert words in lines
