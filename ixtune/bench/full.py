"""Measure the 7B's own shapes with random NF4 weights on this machine's GPU, and compare with the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ixtune.adapter import attach
from ixtune.adapter.low_memory import lean_lora
from ixtune.bench import mix, synthetic, twin
from ixtune.bench.mix import MixRecord
from ixtune.checkpoint.sizes import Sizes
from ixtune.errors import IxtuneError
from ixtune.planning import memory
from ixtune.planning.flops import flops
from ixtune.planning.memory_options import MemoryOptions, apply
from ixtune.recipe.recipe import AdapterSection

# a page of 3x3, 4x6 and 6x9 crops, with text up to about 1.6, 4 and 8.9 thousand tokens
PAGES = (MixRecord(111, (3, 3), 100), MixRecord(339, (4, 6), 250), MixRecord(895, (6, 9), 556))
_QUESTION_TOKENS, _ANSWER_TOKENS = 45, 8
_STEPS = 3
_VISION_CHUNK = 16


def measure(
    *,
    layers: int | None = None,
    config: dict[str, Any] | None = None,
    pages: Sequence[MixRecord] = PAGES,
    questions: int = 1,
    device: str = "cuda",
    log: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure peak memory and speed of training steps on one page, with and without checkpointing every layer.

    LoRA of rank 64 on all five linears with its default dropout, the whole projector, AdamW in 8 bits.

    Args:
        layers: number of decoder layers; None for all 32.
        config: sizes other than the 7B's, as config.json has them.
        pages: pages to measure, one pack each.
        questions: if more than one, the last page is also measured with this number of separate questions: a pack
            for each question, and one pack in which they share the page.
        device: device to measure on; without a GPU the memory is not measured.
        log: callback that receives the lines to print.

    Raises:
        IxtuneError: No GPU was found.

    Returns:
        For each page and either checkpointing: questions, shared (whether they share the page), tokens (of all records
        of a step), seconds (of a step), peak_gib (of tensors), reserved_gib (by the allocator), used_gib (of the whole
        GPU), planned_gib (of the whole GPU), tokens_per_s and limit_share.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise IxtuneError(
            "the 7B's own shapes are measured on a GPU, and torch sees none",
            hint="run it where `python -c 'import torch; print(torch.cuda.is_available())'` prints True; "
            "without --full-size the twin is measured on the CPU",
        )
    given = {**(config or {}), **({"num_hidden_layers": layers} if layers else {})}
    sizes = Sizes.from_config_json(given)
    rank = twin.FULL_RANK if config is None else twin.RANK
    network = twin.build(given, nf4=True, device=device)
    wrapped = attach.attach(network, AdapterSection(rank=rank, alpha=rank))
    lean_lora(wrapped)
    wrapped.train()
    limit = _matmul_flops_per_s(device)
    log(f"base     {sizes.layers} layers with random weights in NF4; matmul limit {limit / 1e12:.1f} TFLOP/s")
    steps = [([page], False) for page in pages]
    if questions > 1:
        asked = [MixRecord(_QUESTION_TOKENS, pages[-1].grid, _ANSWER_TOKENS, page=0)] * questions
        steps += [(asked, False), (asked, True)]
    rows = []
    for records, shared in steps:
        for checkpointed in (True, False):
            row = _step(wrapped, network, sizes, rank, records, shared=shared, checkpointed=checkpointed, device=device)
            row["limit_share"] = row.pop("flops_per_s") / limit
            log(f"{row['tokens']:,} tokens: {row['tokens_per_s']:,.0f} tokens/s, {row['used_gib']:.2f} GiB")
            rows.append(row)
    return rows


def _step(
    wrapped: Any,
    network: Any,
    sizes: Sizes,
    rank: int,
    records: Sequence[MixRecord],
    *,
    shared: bool,
    checkpointed: bool,
    device: str,
) -> dict[str, Any]:
    import bitsandbytes

    saving = MemoryOptions(sizes.layers if checkpointed else 0, _VISION_CHUNK, False)
    apply(network, saving)
    contents = synthetic.contents(records, sizes.vocabulary)
    if shared:
        packs = [synthetic.pack(contents, list(mix.prefixes(records).groups(range(len(records)))))]
        shapes = [mix.shapes(records).pack(range(len(records)))]
    else:
        packs = [synthetic.pack([content]) for content in contents]
        shapes = [mix.shape([record]) for record in records]
    batches = [{key: _to(value, device) for key, value in batch.items()} for batch in packs]
    optimizer = bitsandbytes.optim.AdamW8bit([p for _, p in attach.trainable(wrapped)], lr=1e-5)
    cuda = device == "cuda"
    spent: list[float] = []
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + _STEPS):
        _wait(cuda)
        began = time.perf_counter()
        for batch in batches:
            with torch.autocast(device, torch.bfloat16):
                loss = wrapped(**batch, use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(cuda)
        spent.append(time.perf_counter() - began)
    seconds = sorted(spent[1:])[_STEPS // 2]
    setup = _setup(sizes, rank, saving, accumulates=len(packs) > 1)
    plan = max(memory.peak(setup, shape).total for shape in shapes)
    free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
    tokens = sum(record.tokens for record in records)
    return {
        "questions": len(records),
        "shared": shared,
        "tokens": tokens,
        "checkpointed": checkpointed,
        "seconds": seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0,
        "used_gib": (total - free) / 2**30,
        "planned_gib": plan / 2**30,
        "tokens_per_s": tokens / seconds,
        "flops_per_s": sum(flops(sizes, twin.trained(rank), shape).needed for shape in shapes) / seconds,
    }


def _setup(sizes: Sizes, rank: int, saving: MemoryOptions, *, accumulates: bool = False) -> memory.Setup:
    """Return the measured setup in the plan's terms."""
    return memory.Setup(
        sizes=sizes,
        trained=twin.trained(rank),
        nf4=True,
        float_bytes=2,
        optimizer="adamw_8bit",
        accumulates=accumulates,
        dropout=True,
        device="cuda",
        saving=saving,
    )


def _matmul_flops_per_s(device: str, width: int = 4096, inner: int = 14336, times: int = 10) -> float:
    """Return the FLOP/s of one large bf16 product on this device, the best of a few."""
    cuda = device == "cuda"
    rows = 8192 if cuda else 64
    a = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    b = torch.randn(width, inner, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(times):
        _wait(cuda)
        began = time.perf_counter()
        a @ b
        _wait(cuda)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * width * inner / best


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def _to(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    return value
