"""`ixtune.json`: what an adapter records of the run that made it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import ixtune
from ixtune.checkpoint.terms import terms_of
from ixtune.data.text.template import TEMPLATE_VERSION
from ixtune.planning.plan_inputs import sizes_of
from ixtune.recipe.recipe import Recipe
from ixtune.training.inputs import Inputs, images_as_trained
from ixtune.training.monitoring import metrics
from ixtune.training.state import extension
from ixtune.training.trainer import AdapterTrainer

_VERSIONS = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


def record(recipe: Recipe, inputs: Inputs, trainer: AdapterTrainer, step: int) -> dict[str, Any]:
    """Return the content of an adapter's `ixtune.json`."""
    progress = trainer.progress
    return {
        "format": 1,
        "ixtune_version": ixtune.__version__,
        "base": recipe.base,
        "base_identity": inputs.hashes["base_identity"],
        "terms": terms_of(inputs.base, sizes_of(inputs.base)),
        "quantize": recipe.adapter.quantize,
        "template_version": TEMPLATE_VERSION,
        "tokenizer_sha256": inputs.tokenizer.sha256,
        **images_as_trained(inputs.train.manifests),
        "data": {
            "records": len(inputs.train),
            "manifest_sha256": inputs.hashes["train_manifest_sha256"],
        },
        "steps": step,
        "trained_steps": trainer.state.global_step,
        "tokens": progress.tokens,
        "loss": metrics.last_loss(trainer.run_folder / metrics.FILE),
        **measured(trainer, step),
        "reproducible": progress.reproducible,
        "ancestors": inputs.hashes.get("ancestors", []),
        "extensions": extension.as_json(trainer.extensions),
        "recipe": recipe.model_dump(mode="json"),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def measured(trainer: AdapterTrainer, step: int) -> dict[str, Any]:
    """Return the validation measurements of a step; only the best step has any."""
    progress = trainer.progress
    if step != progress.best_step:
        return {"validation_loss": None, "validation_scores": {}, "best_by": None}
    by = trainer.recipe.training.best_by
    return {"validation_loss": progress.best_loss, "validation_scores": progress.best_scores, "best_by": by}
