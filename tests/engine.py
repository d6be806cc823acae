"""Provide a small training set with and without images, and the real trainer on it, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from main_job import write_recipe, write_records
from records import entry, write_source
from transformers import TrainerCallback

from ixtune.adapter import attach
from ixtune.base import resolve
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.sources.source import Source
from ixtune.model.loading import load_base
from ixtune.planning import memory_options
from ixtune.planning.memory_options import MemoryOptions
from ixtune.processing import IXC2Tokenizer
from ixtune.recipe import recipe as recipes
from ixtune.training.batch import ImageSource, PackCollator, pack_dataset
from ixtune.training.trainer import AdapterTrainer
from ixtune.training.trl_settings import sft_config

BASE = resolve("nano")
LONG = " ".join(f"row {number} holds {number * 37 % 101} of {number * 53 % 89}" for number in range(14))
EXACT = ("adapter.dropout=0", "adapter.quantize=none", "adapter.rank=16", "adapter.alpha=16")


def mixed_set(folder: Path) -> Path:
    """Prepare two image records, and text records with one or two, about two hundred, and some supervised tokens."""
    images = write_records(folder / "pictures", 2)
    entries = [entry("short", "Say one", "1"), entry("long", "Say much", LONG), entry("middle", "Say some", LONG[:60])]
    text = write_source(folder / "text", entries)
    sources = [Source(path=str(images)), Source(path=str(text))]
    prepare(sources, folder / "prepared", base=BASE, options=PrepareOptions(hd_num=1))
    return folder / "prepared"


def make_trainer(
    folder: Path, training_set: TrainingSet, packs: Sequence[Sequence[int]], *changes: str
) -> AdapterTrainer:
    """Return the trainer of a run on the given packs: one step, no dropout, unless changed."""
    path = write_recipe(folder / "recipe.yaml", training_set.sets[0].root, folder / "run")
    recipe = recipes.load(path, ("adapter.dropout=0", "training.max_steps=1", *changes))
    torch.manual_seed(0)
    model, _ = load_base(BASE, quantize=recipe.adapter.quantize == "nf4", dtype=torch.float32)
    wrapped = attach.attach(model, recipe.adapter)
    layers = len(model.model.layers) * (recipe.training.gradient_checkpointing is True)
    memory_options.apply(model, MemoryOptions(layers, vision_chunk=64, offload_layer_inputs=False))
    return AdapterTrainer(
        model=wrapped,
        args=sft_config(recipe, folder / "run"),
        train_dataset=pack_dataset(packs),
        data_collator=PackCollator(training_set, ImageSource(training_set.files)),
        processing_class=IXC2Tokenizer(str(BASE / "tokenizer.model")),
        recipe=recipe,
        run_folder=folder / "run",
    )


def stir(model: torch.nn.Module, seed: int = 1) -> None:
    """Fill every LoRA B: while B is zero, no gradient reaches A."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in attach.trainable(model):
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


class Gradients(TrainerCallback):
    """Record the gradients of each optimizer step (unclipped if max_grad_norm is large)."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy the gradients in double precision."""
        self.steps.append(gradients(model))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradient of each trained tensor that has one."""
    return {name: p.grad.double() for name, p in attach.trainable(model) if p.grad is not None}


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference by norm over all tensors; both must have the same tensors."""
    assert found.keys() == wanted.keys()
    assert all(tensor.norm() > 0 for tensor in wanted.values()), "nothing to compare"
    return max(float((found[name] - tensor).norm() / tensor.norm()) for name, tensor in wanted.items())
