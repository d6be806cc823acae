"""Measure the 7B's own shapes with random NF4 weights on this machine's GPU, and compare with the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ixtune.adapter import attach
from ixtune.adapter.low_memory import lean_lora
from ixtune.bench import synthetic, twin
from ixtune.bench.mix import MixRecord
from ixtune.checkpoint.sizes import Sizes
from ixtune.errors import IxtuneError
from ixtune.planning import memory
from ixtune.planning.flops import PackShape, flops
from ixtune.planning.memory_options import MemoryOptions, apply
from ixtune.recipe.recipe import AdapterSection

# a page of 3x3, 4x6 and 6x9 crops, with text up to about 1.6, 4 and 8.9 thousand tokens
PAGES = (MixRecord(111, (3, 3), 100), MixRecord(339, (4, 6), 250), MixRecord(895, (6, 9), 556))
_STEPS = 3
_VISION_CHUNK = 16


def measure(
    *,
    layers: int | None = None,
    config: dict[str, Any] | None = None,
    pages: Sequence[MixRecord] = PAGES,
    device: str = "cuda",
    log: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure peak memory and speed of training steps on one page, with and without checkpointing every layer.

    LoRA of rank 64 on all five linears with its default dropout, the whole projector, AdamW in 8 bits.

    Args:
        layers: number of decoder layers; None for all 32.
        config: sizes other than the 7B's, as config.json has them.
        pages: pages to measure, one pack each.
        device: device to measure on; without a GPU the memory is not measured.
        log: callback that receives the lines to print.

    Raises:
        IxtuneError: No GPU was found.

    Returns:
        For each page and either checkpointing: tokens, peak_gib (of tensors), reserved_gib (by the allocator),
        used_gib (of the whole GPU), planned_gib (of the whole GPU), tokens_per_s and limit_share.
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
    rows = []
    for page in pages:
        for checkpointed in (True, False):
            row = _page(wrapped, network, sizes, rank, page, checkpointed=checkpointed, device=device)
            row["limit_share"] = row.pop("flops_per_s") / limit
            log(f"{row['tokens']:,} tokens: {row['tokens_per_s']:,.0f} tokens/s, {row['used_gib']:.2f} GiB")
            rows.append(row)
    return rows


def _page(
    wrapped: Any, network: Any, sizes: Sizes, rank: int, page: MixRecord, *, checkpointed: bool, device: str
) -> dict[str, Any]:
    import bitsandbytes

    saving = MemoryOptions(sizes.layers if checkpointed else 0, _VISION_CHUNK, False)
    apply(network, saving)
    batch = {
        key: _to(value, device) for key, value in synthetic.pack(synthetic.contents([page], sizes.vocabulary)).items()
    }
    optimizer = bitsandbytes.optim.AdamW8bit([p for _, p in attach.trainable(wrapped)], lr=1e-5)
    cuda = device == "cuda"
    spent: list[float] = []
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + _STEPS):
        _wait(cuda)
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = wrapped(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(cuda)
        spent.append(time.perf_counter() - began)
    seconds = sorted(spent[1:])[_STEPS // 2]
    image = page.grid
    shape = PackShape((page.tokens,), page.image_tokens, page.supervised, (image[0] * image[1],) if image else ())
    plan = memory.peak(_setup(sizes, rank, saving), shape)
    free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
    return {
        "tokens": page.tokens,
        "checkpointed": checkpointed,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0,
        "used_gib": (total - free) / 2**30,
        "planned_gib": plan.total / 2**30,
        "tokens_per_s": page.tokens / seconds,
        "flops_per_s": flops(sizes, twin.trained(rank), shape).needed / seconds,
    }


def _setup(sizes: Sizes, rank: int, saving: MemoryOptions) -> memory.Setup:
    """Return the measured setup in the plan's terms."""
    return memory.Setup(
        sizes=sizes,
        trained=twin.trained(rank),
        nf4=True,
        float_bytes=2,
        optimizer="adamw_8bit",
        accumulates=False,
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
