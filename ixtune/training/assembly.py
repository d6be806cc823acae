"""Build the network and the trainer of a run from its opened inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from ixtune.adapter import attach
from ixtune.adapter.low_memory import lean_lora
from ixtune.adapter.start_from import load_start
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.model.loading import load_base
from ixtune.model.model import IXC2ForCausalLM
from ixtune.planning.memory_options import MemoryOptions, apply
from ixtune.recipe.recipe import Recipe
from ixtune.tokenization import IXC2Tokenizer
from ixtune.training.batch import ImageSource, pack_dataset
from ixtune.training.inputs import Inputs
from ixtune.training.monitoring.validation import DTYPES
from ixtune.training.naming_collator import NamingCollator
from ixtune.training.processes import launch
from ixtune.training.step import neftune
from ixtune.training.step.optimizer import table_lines
from ixtune.training.trainer import AdapterTrainer
from ixtune.training.trl_settings import sft_config

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Network:
    """Base with its adapter.

    Attributes:
        base: The bare model, which computes image vectors for a cache.
        wrapped: The model to train.
    """

    base: IXC2ForCausalLM
    wrapped: PeftModel


def build(recipe: Recipe, inputs: Inputs, saving: MemoryOptions, say: Say) -> Network:
    """Load the base, attach the adapter and apply the memory options; show what is quantized and trained."""
    model, quantized = load_base(
        inputs.base, quantize=recipe.adapter.quantize == "nf4", dtype=DTYPES[recipe.training.compute_dtype]
    )
    say(f"base     {recipe.base}: {quantized or 'decoder linears not quantized'}")
    wrapped = attach.attach(model, recipe.adapter)
    for number, line in enumerate(table_lines(wrapped, recipe)):
        say(f"{'' if number else 'trained':<9}{line}")
    if inputs.start is not None:
        for line in load_start(wrapped, inputs.start):
            say(line)
    lean_lora(wrapped)
    apply(model, saving)
    if recipe.training.neftune_alpha:
        neftune.enable(wrapped, recipe.training.neftune_alpha)
    return Network(model, wrapped)


def assemble(
    recipe: Recipe, inputs: Inputs, network: Network, folder: Path, packs: list[tuple[int, ...]] | None = None
) -> AdapterTrainer:
    """Return the trainer on the packs of the inputs, or on `packs`, without the libraries' own printed lines."""
    collator = NamingCollator(inputs.train, images_of(recipe, inputs.train.files, network))
    trainer = AdapterTrainer(
        model=network.wrapped,
        args=sft_config(recipe, folder),
        train_dataset=pack_dataset(inputs.packs if packs is None else packs, launch.world_size()),
        data_collator=collator,
        processing_class=IXC2Tokenizer(str(inputs.base / "tokenizer.model")),
        recipe=recipe,
        run_folder=folder,
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    return trainer


def images_of(recipe: Recipe, files: ImageFiles, network: Network) -> ImageSource:
    """Return the source of images, with a cache of their vectors if the recipe asks for one."""
    return ImageSource(files, network.base if recipe.training.cache_vision_features else None)
