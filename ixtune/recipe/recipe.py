"""Recipe: everything that describes a training run, in one frozen value read from YAML.

Unknown keys are errors. All mistakes of a file and its overrides are reported at once, each with its line
and, for a misspelled key, the nearest valid one. The docstring under each field is its help text. Paths are
relative to the current directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ixtune.errors import UsageError
from ixtune.recipe.mistakes import CONTRADICTION, Contradiction, describe
from ixtune.recipe.shipped_recipes import kind_of
from ixtune.recipe.value_types import (
    HUB_ID_PATTERN,
    BestBy,
    Chunk,
    Layers,
    Linear,
    RecipePath,
    ScoreName,
    Switch,
    Target,
    TrackerName,
    Weight,
)
from ixtune.recipe.yaml_text import Dumper, YamlText


class Section(BaseModel):
    """Common settings of all recipe sections."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class DataSection(Section):
    """Training and validation data."""

    train: Annotated[tuple[RecipePath, ...], Field(strict=False)]
    """Folder of a prepared training set, written by `ixtune prepare`, or a list of folders."""
    weights: Annotated[tuple[Weight, ...], Field(strict=False)] | None = None
    """Repeats of each record per epoch, one number per set, fractions allowed; null for once."""
    validation: RecipePath | None = None
    """Folder of a prepared set on which loss and scores are measured during training; null for none."""
    image_root: RecipePath | None = None
    """Folder of the images, if they moved after preparation; null for the folder stored in the prepared sets."""

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, train: object) -> object:
        return train if isinstance(train, list | tuple) else [train]

    @field_serializer("train")
    def _as_written(self, train: tuple[Path, ...]) -> str | list[str]:
        return str(train[0]) if len(train) == 1 else [str(path) for path in train]

    @field_validator("train")
    @classmethod
    def _some_and_distinct(cls, train: tuple[Path, ...]) -> tuple[Path, ...]:
        if not train or len(set(train)) < len(train):
            raise ValueError("should list at least one prepared set, each once")
        return train


class LoraSettings(Section):
    """LoRA settings of one target; null takes the value of `adapter`."""

    rank: int | None = Field(default=None, ge=1)
    """LoRA rank on this target."""
    alpha: float | None = Field(default=None, gt=0)
    """LoRA alpha on this target."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """LoRA dropout on this target."""


class AdapterSection(Section):
    """Trained parts, and precision of the base."""

    variant: Literal["lora", "rslora", "dora"] = "lora"
    """lora, rslora (rank-stabilized LoRA, scaled by alpha / sqrt(rank)), or dora (separate direction and magnitude)."""
    targets: Annotated[tuple[Linear, ...], Field(strict=False)] = ("wqkv", "wo", "w1", "w2", "w3")
    """Decoder linears that get LoRA; [] for none, to train only the projector or the separators."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] | None = None
    """Decoder layers that get LoRA, counted from 0, e.g. [30, 31]; null for all."""
    start_from: Annotated[str, Field(min_length=1)] | None = None
    """Adapter to start from, with a fresh optimizer: a run folder, an adapter folder, or a hub id; null for a new one.
    """
    rank: int = Field(default=64, ge=1)
    """LoRA rank."""
    alpha: float = Field(default=64, gt=0)
    """LoRA alpha: the update is scaled by alpha / rank, with rslora by alpha / sqrt(rank)."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the input of LoRA's A matrix."""
    per_target: dict[Target, LoraSettings] = {}
    """Overrides of rank, alpha and dropout per target (wqkv, wo, w1, w2, w3, projector)."""
    projector: Literal["full", "lora", "frozen"] = "full"
    """full: train the whole projector in fp32; lora: train LoRA on it; frozen: leave it. Saved with the adapter."""
    separators: bool = False
    """Also train the newline and separator tokens of the image layout."""
    quantize: Literal["nf4", "none"] = "nf4"
    """Precision of the frozen decoder linears: nf4 (double quantization), or none for that of compute_dtype."""

    @field_validator("targets")
    @classmethod
    def _distinct(cls, targets: tuple[Linear, ...]) -> tuple[Linear, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError("should list each linear once")
        return targets

    @field_validator("layers")
    @classmethod
    def _sorted(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise ValueError("should list at least one layer, each once")
        return None if layers is None else tuple(sorted(layers))


class TrainingSection(Section):
    """Optimization, memory, validation and checkpoints."""

    epochs: float = Field(default=1, gt=0)
    """Passes over the training set, fractions allowed; ignored if `max_steps` is set."""
    max_steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps; null to use `epochs`."""
    pack_tokens: int = Field(default=8192, ge=1)
    """Maximum number of tokens per micro-batch, image tokens included; records are packed into it without padding."""
    share_prefixes: bool = True
    """Compute a common prefix of records, such as the image of several questions, once per pack."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of LoRA."""
    projector_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the projector; null for `learning_rate`."""
    separators_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the separator tokens; null for `learning_rate`."""
    lora_plus_ratio: float | None = Field(default=None, ge=1)
    """LoRA+: ratio of the learning rate of B to that of A; null for 1."""
    neftune_alpha: float | None = Field(default=None, gt=0)
    """NEFTune: scale of the noise added to text embeddings during training; null for none."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)
    """Adam's beta2, the decay of the second moment."""
    warmup_ratio: float = Field(default=0.01, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after the warmup."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm; larger gradients are clipped to it."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW with fp32 or 8-bit state (bitsandbytes); paged: the state may move to main memory."""
    gradient_checkpointing: Layers = "auto"
    """Activation checkpointing: true for all layers, false for none, a number of layers, or auto for as few as the
    memory plan needs."""
    vision_chunk: Chunk = "auto"
    """Number of views the frozen vision tower processes at a time; auto for as many as the memory plan allows."""
    offload_layer_inputs: Switch = "auto"
    """Offload the inputs of checkpointed layers to main memory between forward and backward pass."""
    gpu_gib: float | None = Field(default=None, gt=0)
    """GPU memory in GiB that the plan may use; null for all of it."""
    compute_dtype: Literal["bf16", "fp32"] = "bf16"
    """Dtype of the activations (autocast)."""
    cache_vision_features: bool = False
    """Cache the frozen vision tower's output of every image in memory, so that later epochs skip the tower."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Random seed of the initial adapter, dropout and the order of packs."""
    log_every: int = Field(default=10, ge=1)
    """Log to metrics.jsonl every N optimizer steps."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Measure validation loss and scores every N optimizer steps; null for `save_every`."""
    scores: Annotated[tuple[ScoreName, ...], Field(strict=False)] = ()
    """Scores of generated answers to validation records, measured with the validation loss: exact_match, anls,
    relaxed_accuracy, … (those of `ixtune evaluate`)."""
    score_records: int = Field(default=64, ge=1)
    """Number of validation records to answer for the scores, the same ones each time."""
    best_by: BestBy = "loss"
    """Measurement that selects the best checkpoint and the adapter, and that `early_stopping` watches: loss, or one of
    `scores`."""
    sample_every: int | None = Field(default=None, ge=1)
    """Generate sample answers to validation records every N optimizer steps; null for never."""
    sample_records: int = Field(default=4, ge=1)
    """Number of validation records to answer for samples."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many measurements without improvement of `best_by`; null for never."""
    save_every: int = Field(default=500, ge=1)
    """Save a checkpoint every N optimizer steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep, besides the best one by `best_by`."""
    report_to: Annotated[tuple[TrackerName, ...], Field(strict=False)] = ()
    """Trackers that receive the metrics, those of transformers: tensorboard, wandb, mlflow, trackio, comet_ml, …; each
    needs its package."""
    push_to_hub: Annotated[str, Field(pattern=HUB_ID_PATTERN)] | None = None
    """Hub repository, OWNER/NAME, that receives the adapter with its card and the report at the end; it is created,
    private, if it does not exist. null for none."""

    @field_validator("scores")
    @classmethod
    def _none_twice(cls, scores: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(scores)) < len(scores):
            raise ValueError("should list each score once")
        return scores


class Recipe(Section):
    """Training run."""

    base: str = Field(min_length=1)
    """`nano` for the embedded base, a checkpoint folder, or a hub id."""
    data: DataSection
    adapter: AdapterSection = AdapterSection()
    training: TrainingSection = TrainingSection()
    output: RecipePath
    """Run folder, which receives adapter, checkpoints and metrics."""
    resume: Literal["never", "auto", "extend"] = "never"
    """What to do with a run in the output folder. never: refuse it. auto: resume it, or start it if there is none.
    extend: train a stopped or finished run for more `epochs` or `max_steps` than it had."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        if found := contradictions(self):
            text = "; ".join(one.text for one in found)
            raise PydanticCustomError(CONTRADICTION, "{text}", {"text": text, "found": found})
        return self


def contradictions(recipe: Recipe) -> list[Contradiction]:
    """Return every contradiction between keys of a recipe."""
    data, training, adapter = recipe.data, recipe.training, recipe.adapter
    names = ("evaluate_every", "scores", "sample_every", "early_stopping")
    validated = [name for name in names if getattr(training, name)]
    with_lora = {*adapter.targets, *(["projector"] if adapter.projector == "lora" else [])}
    found = [Contradiction((f"training.{name}", "data.validation"), "needs data.validation") for name in validated] * (
        data.validation is None
    )
    if data.weights is not None and len(data.weights) != len(data.train):
        text = f"should have one value per set in data.train, {len(data.train)}, not {len(data.weights)}"
        found.append(Contradiction(("data.weights", "data.train"), text))
    if strangers := sorted(set(adapter.per_target) - with_lora):
        text = f"lists {', '.join(strangers)}, which has no LoRA here"
        found.append(Contradiction(("adapter.per_target", "adapter.targets", "adapter.projector"), text))
    if adapter.layers is not None and not adapter.targets:
        found.append(
            Contradiction(("adapter.layers", "adapter.targets"), "needs adapter.targets: LoRA on those layers")
        )
    if not (with_lora or adapter.separators or adapter.projector == "full"):
        text = "should list at least one linear if neither the projector nor the separators are trained"
        found.append(Contradiction(("adapter.targets", "adapter.projector", "adapter.separators"), text))
    if training.best_by not in ("loss", *training.scores):
        text = f"is {training.best_by}, which is not in training.scores"
        found.append(Contradiction(("training.best_by", "training.scores"), text))
    if training.cache_vision_features and adapter.separators:
        text = "does not work with adapter.separators: cached vectors contain them"
        found.append(Contradiction(("training.cache_vision_features", "adapter.separators"), text))
    if training.separators_learning_rate and not adapter.separators:
        keys = ("training.separators_learning_rate", "adapter.separators")
        found.append(Contradiction(keys, "needs adapter.separators"))
    if training.projector_learning_rate and adapter.projector == "frozen":
        keys = ("training.projector_learning_rate", "adapter.projector")
        found.append(Contradiction(keys, "needs a projector that is trained"))
    if training.offload_layer_inputs is True and training.gradient_checkpointing is False:
        keys = ("training.offload_layer_inputs", "training.gradient_checkpointing")
        found.append(Contradiction(keys, "needs gradient_checkpointing: it offloads the inputs of checkpointed layers"))
    return found


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file in UTF-8.
        overrides: `section.key=value` texts with the value in YAML; later ones win.

    Raises:
        UsageError: The file cannot be read, or it and the overrides hold mistakes; `notes` lists every one.
    """
    reading = YamlText(path, kind_of(path))
    tree = reading.file()
    for override in overrides:
        reading.override(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        for keys, text in describe(error, tree, Recipe):
            reading.mistake(reading.place(keys), text)
    else:
        if not reading.mistakes:
            return recipe
    count = len(reading.mistakes)
    raise UsageError(
        f"{count} mistake{'s' * (count > 1)} in the recipe",
        where=str(path),
        hint="correct the lines listed; nothing was started",
        notes=[f"{place.text}: {text}" for place, text in sorted(reading.mistakes)],
    )


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with all defaults; `load` reads it back to an equal value."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)
