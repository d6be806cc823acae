"""One training run, from a recipe to an adapter folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed

import ixtune
from ixtune import base
from ixtune.adapter import attach, bundle
from ixtune.data import manifest, store
from ixtune.data.pack import pack
from ixtune.data.template import TEMPLATE_VERSION
from ixtune.data.tokenizer import Tokenizer
from ixtune.files import sha256_file
from ixtune.model.identity import base_identity
from ixtune.model.loading import load_base
from ixtune.model.shards import open_checkpoint
from ixtune.processing import IXC2Tokenizer
from ixtune.recipe import Recipe
from ixtune.training import checkpoints
from ixtune.training.batch import PackCollator, PictureSource, make_batch
from ixtune.training.progress import GracefulStop, Metrics, last_loss
from ixtune.training.resume import is_last, resume_point, write_start
from ixtune.training.trainer import AdapterTrainer, sft_config

_VERSIONS = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    adapter: Path | None  # None where it was stopped before the end
    checkpoint: Path | None
    steps: int
    loss: float | None


def train(recipe: Recipe, console: Console, resume: bool = False) -> Outcome:
    """Train as the recipe says.

    Args:
        recipe: the whole description of the run.
        console: where the reader's lines go.
        resume: continue from the newest whole checkpoint of `recipe.output`.

    Raises:
        IxtuneError: the data, the base or the run folder do not fit; nothing was started, or the state so far is kept.
    """
    run = recipe.output
    folder = base.resolve(recipe.base)
    tokenizer = Tokenizer.from_base(folder)
    prepared = store.load(recipe.data.train[0])
    manifest.check_compatible(prepared.manifest, tokenizer.sha256)
    validation = store.load(recipe.data.validation) if recipe.data.validation else None
    if validation is not None:
        manifest.check_compatible(validation.manifest, tokenizer.sha256)
    packs = pack(prepared.dataset["length"], recipe.training.pack_tokens)
    inputs: dict[str, Any] = {
        "base_identity": base_identity(open_checkpoint(folder)),
        "train_manifest_sha256": sha256_file(recipe.data.train[0] / manifest.MANIFEST),
        "validation_manifest_sha256": sha256_file(validation.root / manifest.MANIFEST) if validation else None,
    }
    start: Path | None = None
    if resume:
        start = resume_point(recipe, inputs, run, console)
    else:
        checkpoints.require_empty(run)

    set_seed(recipe.training.seed)
    dtype = DTYPES[recipe.training.compute_dtype]
    model, quantized = load_base(folder, quantize=recipe.adapter.quantize == "nf4", dtype=dtype)
    console.print(f"base     {recipe.base}: {quantized or 'decoder linears not quantised'}", highlight=False)
    wrapped = attach.attach(model, recipe.adapter)
    for part in attach.table(wrapped):
        console.print(f"trained  {part.name}: {part.parameters:,} parameters in {part.dtype}", highlight=False)
    total = sum(prepared.dataset["length"])
    console.print(
        f"data     {len(prepared.dataset):,} records, {total:,} tokens in {len(packs):,} packs of up to "
        f"{recipe.training.pack_tokens:,} tokens ({total / (len(packs) * recipe.training.pack_tokens):.0%} full)",
        highlight=False,
    )
    write_start(run, recipe, inputs)
    cached = model if recipe.training.cache_vision_features else None
    trainer = AdapterTrainer(
        model=wrapped,
        args=sft_config(recipe, run),
        train_dataset=Dataset.from_dict({"records": [list(indices) for indices in packs]}),
        data_collator=PackCollator(prepared, PictureSource(prepared.files, cached)),
        processing_class=IXC2Tokenizer(str(folder / "tokenizer.model")),
        recipe=recipe,
        run_folder=run,
    )
    stop = GracefulStop()
    for unwanted in ("PrinterCallback", "ProgressCallback"):
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == unwanted]:
            trainer.remove_callback(callback)
    trainer.add_callback(
        Metrics(run / "metrics.jsonl", lambda: (trainer.seen_tokens, trainer.seen_supervised), console)
    )
    if validation is not None:
        source = PictureSource(validation.files, cached)
        trainer.add_callback(
            _Validation(
                trainer, lambda: mean_loss(wrapped, validation, source, recipe.training.pack_tokens, dtype), recipe
            )
        )
    trainer.add_callback(stop)
    if start is not None and is_last(start):  # only the adapter folder was still to be written
        trainer._load_from_checkpoint(str(start))
        trainer.state.global_step = trainer.state.max_steps = checkpoints.step_of(start)
    else:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    steps = trainer.state.global_step
    if stop.asked and steps < trainer.state.max_steps:
        return Outcome(None, run / f"{checkpoints.PREFIX}{steps}", steps, None)
    loss = last_loss(run / "metrics.jsonl")
    info = {
        "format": 1,
        "ixtune_version": ixtune.__version__,
        "base": recipe.base,
        "base_identity": inputs["base_identity"],
        "quantize": recipe.adapter.quantize,
        "template_version": TEMPLATE_VERSION,
        "tokenizer_sha256": tokenizer.sha256,
        **pictures_as_trained(prepared.manifest),
        "data": {
            "records": len(prepared.dataset),
            "manifest_sha256": inputs["train_manifest_sha256"],
        },
        "steps": steps,
        "loss": loss,
        "recipe": recipe.model_dump(mode="json"),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }
    bundle.save(wrapped, run / "adapter", info)
    return Outcome(run / "adapter", None, steps, loss)


def pictures_as_trained(described: dict[str, Any]) -> dict[str, Any]:
    """How the pictures of a set were laid out and opened, which is how the adapter wants to see others.

    Args:
        described: its manifest. Where each source has an hd_num of its own, the largest counts, so that no picture
            gets fewer crops than one like it had in training.
    """
    options = manifest.options_of(described)
    return {
        "hd_num": options.hd_num or max(source["hd_num"] for source in described["sources"]),
        "upscale": options.upscale,
        "corrections": list(options.corrections),
    }


def mean_loss(
    model: torch.nn.Module,
    prepared: store.PreparedSet,
    pictures: PictureSource,
    pack_tokens: int,
    dtype: torch.dtype,
) -> float:
    """Mean cross-entropy over all supervised tokens of a prepared set, in evaluation mode."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    # a record of the set may be longer than any that is trained on
    pack_tokens = max(pack_tokens, *prepared.dataset["length"])
    try:
        for indices in pack(prepared.dataset["length"], pack_tokens):
            batch = make_batch([prepared.dataset[index] for index in indices], pictures)
            batch = {key: _to(value, device) for key, value in batch.items()}
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                total += float(model(**batch, num_items_in_batch=1.0, use_cache=False).loss)
            count += len(batch["supervised"][1])
    finally:
        model.train(training)
    return total / count


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return tuple(item.to(device) for item in value) if isinstance(value, tuple) else value


class _Validation(TrainerCallback):
    """Logs the validation loss wherever a checkpoint is saved, and at the end."""

    def __init__(self, trainer: AdapterTrainer, measure: Callable[[], float], recipe: Recipe) -> None:
        self.trainer, self.measure, self.every = trainer, measure, recipe.training.save_every

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure; the trained state and all random states stay as they are."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            due = control.should_log
            self.trainer.log({"validation_loss": self.measure()})
            control.should_log = due  # logging clears it, and this step's own line would be lost
