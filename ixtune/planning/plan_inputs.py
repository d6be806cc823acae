"""Open the inputs of a plan without weights: sizes of the base, shapes of the records, the machine."""

from __future__ import annotations

import json
from pathlib import Path

from ixtune import base
from ixtune.checkpoint.member import completed
from ixtune.checkpoint.sizes import Sizes
from ixtune.data.prepared.missing_images import require_images
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.errors import IxtuneError, require_at_least
from ixtune.family import member_of_hub_id
from ixtune.files import sha256_file
from ixtune.planning import record_mixes
from ixtune.planning.gpus import Machine, detect
from ixtune.planning.record_shapes import RecordShapes
from ixtune.recipe.recipe import Recipe

_CONFIG, _TOKENIZER = "config.json", "tokenizer.model"


def open_for_plan(
    recipe: Recipe, gpu_gib: float | None = None, mix: str | None = None
) -> tuple[Sizes, RecordShapes, Machine, list[str]]:
    """Open the inputs of a plan.

    Args:
        recipe: recipe of the run.
        gpu_gib: override of the recipe's `training.gpu_gib`.
        mix: plan on this mix of made-up records in place of the recipe's data.

    Returns:
        (sizes of the base, shapes of the records, the machine, lines about the assumptions made)

    Raises:
        IxtuneError: data or base are missing, or do not belong together.
    """
    require_at_least("gpu_gib", gpu_gib, 0.1)
    notes = []
    folder = None
    if (named := member_of_hub_id(recipe.base)) and not Path(recipe.base).exists():
        sizes = Sizes.released(named)
        notes.append(f"base     {recipe.base}: its sizes are known, nothing was looked up")
    else:
        folder = base.resolve_config(recipe.base)
        sizes = sizes_of(folder)
    machine = detect(recipe.training.gpu_gib if gpu_gib is None else gpu_gib)
    if mix is not None:
        records = record_mixes.records_of(mix, sizes.member)
        description = record_mixes.MIXES[mix].describe_for(sizes.member)
        notes.append(f"mix      {mix}: {len(records):,} made-up records; {description}")
        return sizes, records, machine, notes
    train = TrainingSet.load(
        recipe.data.train,
        recipe.data.weights,
        recipe.training.seed,
        recipe.data.image_root,
        share_prefixes=recipe.training.share_prefixes,
        alone_above=sizes.dynamic_above,
    )
    if folder is not None and (tokenizer := folder / _TOKENIZER).is_file():
        train.check_compatible(sha256_file(tokenizer), sizes.member)
    else:
        notes.append("data     not checked against the base's tokenizer, which is not here")
    require_images(train.sets, hint="set data.image_root=FOLDER")
    records = RecordShapes.of(train)
    longest, trained = max(records.lengths), sizes.member.trained_tokens
    if longest > trained:  # positions start anew with each record of a pack
        description = f"{sizes.member.title} was trained on at most {trained:,}"
        notes.append(f"length   the longest record has {longest:,} tokens; {description}")
    notes += records_alone(train)
    return sizes, records, machine, notes


def records_alone(train: TrainingSet) -> list[str]:
    """Return a line about records that have their own pack, if there are any."""
    alone = train.prefixes.alone if train.prefixes else ()
    why = "longer than the base's positions without dynamic rotary scaling: each has its own pack and shares no prefix"
    return [f"alone    {len(alone):,} records are {why}"] if alone else []


def sizes_of(folder: Path) -> Sizes:
    """Read the sizes of a base.

    Raises:
        IxtuneError: its config.json cannot be read.
    """
    path = folder / _CONFIG
    try:
        return Sizes.from_config_json(completed(json.loads(path.read_text(encoding="utf-8")), folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IxtuneError(
            f"config.json cannot be read: {error}",
            where=str(path),
            hint="the file is damaged; download or copy it again",
        ) from error
