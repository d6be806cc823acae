"""Inputs of a run: base, tokenizer, prepared sets and packs, opened and checked before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune import base
from ixtune.adapter.start_from import ancestors, open_start
from ixtune.adapter.weights import AdapterWeights
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.verify import read_config_json
from ixtune.data.pack import pack, packs_sha256
from ixtune.data.prepared import manifest
from ixtune.data.prepared.missing_images import require_images
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.files import sha256_file
from ixtune.recipe.recipe import Recipe
from ixtune.training.processes import launch
from ixtune.training.state import checkpoints, resume

_NAMED_RECORDS = 5


@dataclass(frozen=True, slots=True)
class Inputs:
    """Opened inputs of a run.

    Attributes:
        base: Folder of the base.
        tokenizer: The base's.
        train: The training records.
        validation: The validation records, or None.
        packs: Indices into `train` of the records of each pack.
        hashes: Hashes that must be equal for a run to be resumed.
        start: The adapter to start from, or None.
    """

    base: Path
    tokenizer: Tokenizer
    train: TrainingSet
    validation: TrainingSet | None
    packs: list[tuple[int, ...]]
    hashes: dict[str, Any]
    start: AdapterWeights | None = None


def open_inputs(recipe: Recipe) -> Inputs:
    """Open base, tokenizer and data of a recipe, without loading weights.

    Raises:
        IxtuneError: something is missing, does not fit the base, or has a record without a supervised token.
    """
    folder = base.resolve(recipe.base)
    tokenizer = Tokenizer.from_base(folder)
    data = recipe.data
    share = recipe.training.share_prefixes
    sizes = Sizes.from_config_json(read_config_json(folder))
    how: Any = {"image_root": data.image_root, "share_prefixes": share, "alone_above": sizes.dynamic_above}
    train = TrainingSet.load(data.train, data.weights, recipe.training.seed, **how)
    validation = TrainingSet.load([data.validation], **how) if data.validation else None
    for opened in filter(None, (train, validation)):
        opened.check_compatible(tokenizer.sha256, sizes.member)
        _require_supervised(opened)
    hashes: dict[str, Any] = {
        "base_identity": base_identity(open_checkpoint(folder)),
        resume.TRAIN_SETS: {str(path): sha256_file(path / manifest.MANIFEST) for path in data.train},
        "processes": launch.world_size(),  # other settings would change the steps
        resume.VALIDATION_SET: sha256_file(data.validation / manifest.MANIFEST) if data.validation else None,
    }
    start = _open_start(recipe, hashes)
    packs = pack(train.lengths, recipe.training.pack_tokens, train.prefixes)
    hashes[resume.PACKS] = packs_sha256(packs)  # another version may pack otherwise
    return Inputs(folder, tokenizer, train, validation, packs, hashes, start)


def _open_start(recipe: Recipe, hashes: dict[str, Any]) -> AdapterWeights | None:
    """Open the adapter to start from, and add its ancestry to the hashes.

    Once a run has begun, its folder holds the weights and the ancestry, so the older adapter may be deleted.
    """
    name, begun = recipe.adapter.start_from, recipe.output / resume.INPUTS
    if name is None:
        return None
    try:
        start = open_start(name, hashes["base_identity"])
    except IxtuneError:
        known = json.loads(begun.read_text(encoding="utf-8")) if begun.is_file() else {}
        if not (known.get("ancestors") and checkpoints.listing(recipe.output)):
            raise
        hashes["ancestors"] = known["ancestors"]
        return None
    hashes["ancestors"] = ancestors(start, name)
    return start


def check_images(inputs: Inputs) -> None:
    """Check that every image of the training and the validation set exists and is unchanged, without decoding it.

    Raises:
        IxtuneError: Images are missing or have changed; the message counts them and names the first.
    """
    sets = [opened for records in (inputs.train, inputs.validation) if records for opened in records.sets]
    require_images(sets, hint="set data.image_root=FOLDER")


def images_as_trained(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the layout and image settings of the sets, which inference has to use as well.

    Args:
        manifests: manifests of the sets, which agree in all but hd_num. Where it differs, between sets or between the
            sources of one, the largest counts, so that no image gets fewer crops than one like it had in training.
    """
    options = [manifest.options_of(described) for described in manifests]
    largest = [
        option.hd_num or max(source["hd_num"] for source in described["sources"])
        for option, described in zip(options, manifests, strict=True)
    ]
    return {
        "hd_num": max(largest),
        "upscale": options[0].upscale,
        "corrections": list(options[0].corrections),
        **options[0].member.record(),
    }


def _require_supervised(records: TrainingSet) -> None:
    """Refuse records without a supervised token: they train nothing, and a pack of them has the loss 0/0."""
    nothing = [index for index, count in enumerate(records.supervised) if count == 0]
    if nothing:
        raise IxtuneError(
            f"{len(nothing):,} records have no supervised token, so they cannot be trained on",
            hint="prepare the data again",
            notes=[records.identity(index) for index in nothing[:_NAMED_RECORDS]],
        )
