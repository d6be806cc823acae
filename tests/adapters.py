"""Build every kind of adapter on the small base, for the tests of adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ixtune.adapter import attach, bundle
from ixtune.base import shipped
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.model.loading import load_base
from ixtune.recipe.recipe import AdapterSection

LINEARS = ("wqkv", "wo", "w1", "w2", "w3")
PER_TARGET = {
    "w1": {"rank": 6, "dropout": 0.2},
    "w3": {"alpha": 2.0, "dropout": 0.0},
    "projector": {"rank": 2, "alpha": 3.0},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora with everything": {
        "variant": "rslora",
        "per_target": PER_TARGET,
        "projector": "lora",
        "separators": True,
    },
    "dora": {"variant": "dora", "targets": ("wqkv", "w2"), "per_target": {"w2": {"rank": 3}}},
    "dora with everything": {"variant": "dora", "projector": "lora", "separators": True},
    "projector only": {"targets": ()},
    "decoder only": {"targets": ("wo", "w1"), "projector": "frozen"},
    "separators through a frozen projector": {"targets": ("wqkv",), "projector": "frozen", "separators": True},
}


def section(kind: str, **changes: Any) -> AdapterSection:
    return AdapterSection.model_validate({"rank": 4, "alpha": 8.0, "dropout": 0.0, **KINDS[kind], **changes})


def stir(model: torch.nn.Module, size: float = 0.05) -> None:
    """Make every trained tensor non-zero: while LoRA's B is zero, only B gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in attach.trainable(model):
            parameter += torch.randn(parameter.shape, generator=generator) * size


def save_on_nano(folder: Path, kind: str = "plain", size: float = 0.01, rank: int = 4, **info: Any) -> Path:
    """Save an adapter of the nano base with random tensors; `size` sets the distance from the base."""
    base = shipped("nano")
    model = attach.attach(load_base(base, quantize=False, dtype=torch.float32)[0], section(kind, rank=rank))
    stir(model, size)
    identity = base_identity(open_checkpoint(base))
    bundle.save(model, folder, {"base": "nano", "base_identity": identity, "quantize": "none", **info})
    return folder


def image_batch() -> dict[str, Any]:
    """Return the model inputs of one record with an image of one crop."""
    crops = torch.randint(0, 256, (1, 3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.tensor([[1, 5, 6, *[0] * 313, 7, 8, 9]]), "crops": crops, "grids": [(1, 1)]}


def text_batch() -> dict[str, Any]:
    return {"input_ids": torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11]])}
