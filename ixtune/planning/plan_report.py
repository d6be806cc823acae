"""Format a plan as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ixtune.checkpoint.sizes import BATCH_PREFIX_BYTES, KEPT_PREFIX_BYTES
from ixtune.planning.advice import RecipeChange
from ixtune.planning.gpus import CARDS
from ixtune.planning.plan import ROOM, Plan

_BAR = 30
_GIB = 2**30
_COMMON = ("RTX 3090", "RTX 4090", "A100", "H100")


def lines(plan: Plan, advice: Sequence[RecipeChange] = ()) -> list[str]:
    """Return the plan as lines of text."""
    return [*_work(plan), *_memory(plan), _verdict(plan), *_advice(plan, advice)]


def as_json(plan: Plan, advice: Sequence[RecipeChange] = ()) -> dict[str, Any]:
    """Return the plan as a JSON-serializable dict."""
    memory, need, worst = plan.memory, plan.need, plan.worst_pack
    return {
        "records": plan.records,
        "record_tokens": plan.record_tokens,
        "supervised_tokens": plan.epoch.supervised,
        "computed_tokens": plan.epoch.tokens,
        "image_tokens": plan.epoch.image_tokens,
        "views": plan.epoch.views,
        "packs": len(need.packs),
        "steps": plan.steps,
        "trained_parameters": plan.trained,
        "flops": dataclasses.asdict(plan.flops) | {"total": plan.flops.total},
        "seconds": plan.seconds,
        "seconds_are": _seconds_are(plan),
        "levers": dataclasses.asdict(plan.saving),
        "worst_pack": {
            "index": need.worst,
            "tokens": worst.tokens,
            "image_tokens": worst.image_tokens,
            "supervised_tokens": worst.supervised,
            "views": worst.views,
        },
        "device": plan.machine.device,
        "peak_moment": memory.moment,
        "memory_bytes": memory.terms | {"total": memory.total},
        "answering_bytes": {
            "token": _cache_bytes(plan),
            "batch": BATCH_PREFIX_BYTES,
            "kept": KEPT_PREFIX_BYTES,
        },
        "available_bytes": plan.machine.memory_bytes,
        "fits": plan.fits,
        "advice": [
            {
                "overrides": change.overrides,
                "hd_num": change.hd_num,
                "memory_bytes": change.need.memory.total,
                "extra_flops": round(change.extra_flops, 4),
                "checkpointed_layers": change.need.saving.checkpointed_layers,
                "effects": [step.effect for step in change.steps],
            }
            for change in advice
        ],
    }


def _work(plan: Plan) -> Iterator[str]:
    recipe, epoch, training = plan.recipe, plan.epoch, plan.recipe.training
    packs = len(plan.need.packs)
    if epoch.tokens == plan.record_tokens:
        yield (
            f"data     {_many(plan.records, 'record')}, {_many(epoch.tokens, 'token')}: "
            f"{epoch.image_tokens:,} from images, {epoch.supervised:,} supervised"
        )
    else:
        tokens = _many(plan.record_tokens, "token")
        yield f"data     {_many(plan.records, 'record')}, {tokens}, {epoch.supervised:,} of them supervised"
        yield (
            f"shared   {epoch.tokens / plan.record_tokens:.0%} of the tokens are computed, because records share "
            f"prefixes: {epoch.tokens:,} tokens, {epoch.image_tokens:,} from images"
        )
    full = epoch.tokens / (packs * training.pack_tokens)
    yield (
        f"packs    {packs:,} of up to {_many(training.pack_tokens, 'token')}, {full:.0%} full; "
        f"{_many(plan.steps, 'optimizer step')} of {_many(training.gradient_accumulation, 'pack')}"
    )
    trained = ", ".join(f"{part} {count / 1e6:,.1f} M" for part, count in plan.trained.items())
    yield f"trained  {trained}; {recipe.adapter.variant}, {training.optimizer}"
    shares = dataclasses.asdict(plan.flops)
    parts = ", ".join(f"{part} {count / plan.flops.total:.1%}" for part, count in shares.items() if count)
    yield f"work     {plan.flops.total:.3g} operations: {parts}"
    yield f"time     {_time(plan)}"
    saving = plan.saving
    waits = "in main memory" if saving.offload_layer_inputs else "on the device"
    whose, verb = ("its", "recomputes") if saving.checkpointed_layers == 1 else ("their", "recompute")
    again = f"{saving.checkpointed_layers} of {_many(plan.sizes.layers, 'layer')} {verb} {whose} activations"
    yield f"options  {again}" + (f", {whose} inputs are kept {waits}" if saving.checkpointed_layers else "")


def _time(plan: Plan) -> str:
    if plan.seconds is not None:
        assert plan.machine.card is not None
        how = "predicted" if plan.machine.card.measured_share else "at least; not measured on this card"
        return f"{_hours(plan.seconds)} on one {plan.machine.card.name} ({how})"
    if plan.machine.device == "cpu":
        return "not predicted without a GPU"
    shown = [card for card in CARDS if card.name in _COMMON]
    bounds = ", ".join(f"{card.name} {_hours(plan.flops.total / card.tflops / 1e12)}" for card in shown)
    return f"at least, from the peak rate of the matrix units: {bounds}"


def _seconds_are(plan: Plan) -> str | None:
    if plan.machine.card is None:
        return None
    return "predicted" if plan.machine.card.measured_share else "lower bound"


def _hours(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _memory(plan: Plan) -> Iterator[str]:
    pack, memory = plan.worst_pack, plan.memory
    yield (
        f"memory   pack with the highest peak: {_many(pack.tokens, 'token')}, {pack.image_tokens:,} from images, "
        f"{_many(pack.views, 'view')}, "
        f"{pack.supervised:,} supervised; the peak is at {memory.moment}"
    )
    most = max(memory.terms.values())
    for term, size in memory.terms.items():
        yield f"  {term:<12}{size / _GIB:>8.2f} GiB  {'█' * round(_BAR * size / most)}".rstrip()
    yield f"  {'total':<12}{memory.total / _GIB:>8.2f} GiB"
    batch, kept = BATCH_PREFIX_BYTES / _GIB, KEPT_PREFIX_BYTES / _GIB
    yield (
        f"answers  later, in addition to the weights: prefixes of at most {batch:.0f} GiB in a batch, "
        f"{kept:.0f} GiB kept; {_cache_bytes(plan) / 1024:.0f} KiB per token"
    )


def _cache_bytes(plan: Plan) -> int:
    """Return the bytes of a token's keys and values while the adapter answers."""
    return plan.sizes.cache_bytes(2 if plan.recipe.training.compute_dtype == "bf16" else 4)


def _verdict(plan: Plan) -> str:
    needed = f"{plan.memory.total / _GIB:.2f}"
    if plan.machine.memory_bytes is None:
        return f"verdict  {needed} GiB needed; the available memory is not known here (pass --gpu-gib)"
    there = f"{plan.machine.memory_bytes / _GIB:.2f} GiB ({plan.machine.source})"
    # tests/bench/results/full_size.csv; the terms are checked on CPUs too
    measured = "; on an H200 plans were within 6 %" if plan.machine.device == "cuda" else ""
    if measured and plan.fits and plan.memory.total > (1 - ROOM) * plan.machine.memory_bytes:
        measured = "; less than 5 % are free, which was the error of plans on an H200"
    return f"verdict  {'fits' if plan.fits else 'DOES NOT FIT'}: {needed} of {there}{measured}"


def _advice(plan: Plan, advice: Sequence[RecipeChange]) -> Iterator[str]:
    if plan.fits is not False:
        return
    if not advice:
        yield "advice   no recipe setting makes it fit: a smaller hd_num, fewer targets, or more memory"
        return
    alone = "each of these alone makes it fit" if len(advice[0].steps) == 1 else "no change alone makes it fit, but"
    yield f"advice   {alone}; the cheapest first:"
    for number, change in enumerate(advice, 1):
        words = [f"{key}={_text(value)}" for key, value in change.overrides.items()]
        if change.hd_num is not None:
            words.insert(0, f"prepare again with --hd-num {change.hd_num}, then")
        yield f"  {number}. {' '.join(words)}"
        saving = change.need.saving
        yield (
            f"     {change.need.memory.total / _GIB:.2f} GiB, {change.extra_flops:+.1%} operations, "
            f"{_many(saving.checkpointed_layers, 'layer')} recomputed; "
            f"{'; '.join(step.effect for step in change.steps)}"
        )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _text(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
