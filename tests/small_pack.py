"""Build packs for `small_base.small_model` without prepared data: batches of several records with images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_base import small_model

from ixtune.family import FOUR_KHD

TARGETS = ["wqkv", "wo", "w1", "w2", "w3"]
Grid = tuple[int, int]
# Text, an image, text, two images, an image.
RECORDS: list[tuple[int, list[Grid]]] = [(9, []), (6, [(1, 1)]), (14, []), (5, [(1, 2), (1, 1)]), (8, [(1, 1)])]


def small_pack(records: Sequence[tuple[int, list[Grid]]] = RECORDS, seed: int = 0) -> dict[str, Any]:
    """Return a batch as from the collator; each record has images, then words, the last three supervised.

    What a record holds depends on the seed and its shape only, not on its neighbors.
    """
    ids, positions, rows, crops, bounds = [], [], [], [], [0]
    for words, grids in records:
        random = torch.Generator().manual_seed(1000 * seed + words)
        shown = sum(FOUR_KHD.tokens(*grid) for grid in grids)
        ids += [1, *[0] * shown, *torch.randint(3, 160, (words,), generator=random).tolist()]
        positions += range(len(ids) - bounds[-1])
        bounds.append(len(ids))
        rows += range(len(ids) - 4, len(ids) - 1)
        shapes = [(r * c, 3, 336, 336) for r, c in grids]
        crops += [torch.randint(0, 256, shape, dtype=torch.uint8, generator=random) for shape in shapes]
    input_ids = torch.tensor([ids])
    batch: dict[str, Any] = {
        "input_ids": input_ids,
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
        "max_length_q": max(stop - start for start, stop in zip(bounds, bounds[1:], strict=False)),
        "supervised": (torch.tensor(rows), input_ids[0, torch.tensor(rows) + 1]),
    }
    if crops:
        batch["image_rows"] = (input_ids[0] == 0).nonzero().squeeze(1)
        batch |= {"crops": torch.cat(crops), "grids": [grid for _, grids in records for grid in grids]}
    return batch


def small_adapter(dropout: float = 0.0, **settings: Any) -> PeftModel:
    """Return the small model in training mode, with non-zero LoRA on all five linears and a trained projector."""
    model = small_model()
    model.set_attn_implementation("segments")
    settings = {"target_modules": TARGETS, "modules_to_save": ["vision_proj"], **settings}
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, **settings)
    wrapped = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return wrapped.train()


def take_step(model: torch.nn.Module, batch: dict[str, Any], items: int | None = None, seed: int = 2) -> torch.Tensor:
    """Run forward and backward with a fixed dropout seed; return the loss."""
    torch.manual_seed(seed)
    loss = model(**batch, use_cache=False, num_items_in_batch=items or len(batch["supervised"][0])).loss
    loss.backward()
    return loss.detach()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradient of every trained tensor, and clear it."""
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return found
