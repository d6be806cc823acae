"""Estimate the peak memory of a training step by term, before anything is loaded.

The peak is the largest of a few moments of a step, and each is added up from what is alive then: the frozen tower's
work on its last chunk of views, the end of the forward pass, the backward pass of the first and of the last layer that
is computed again, the projector's backward pass, and the optimizer's step.

Letters: T tokens of the pack, I image tokens, S supervised rows, D hidden, F intermediate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ixtune.checkpoint.sizes import Sizes, Trained
from ixtune.planning.flops import PackShape
from ixtune.planning.memory_options import MemoryOptions
from ixtune.recipe.recipe import Recipe

TERMS = ("weights", "adapter", "optimizer", "activations", "loss", "vision", "slack")
_CHUNK_ROWS = 512
# Measured on an H200 (tests/bench/results/full_size.csv): the driver's context with its libraries, and idle memory of
# the allocator, a constant and a share of its blocks.
_CUDA_CONTEXT, _CUDA_IDLE, _CUDA_FRAGMENTS = 760 * 2**20, 400 * 2**20, 0.03
# Measured on CPUs: code and tables loaded at first use; the tower's take three quarters of it again.
_CPU_LIBRARIES = 20 * 2**20
_MASTER = 4  # bytes of a trained parameter, and of its gradient


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings, other than the pack, that determine the memory of a step.

    Attributes:
        sizes: sizes of the base.
        trained: trained parts of the adapter.
        nf4: decoder linears in NF4.
        float_bytes: bytes of a number in the activations and the other weights.
        optimizer: name in the recipe.
        accumulates: gradients are kept from one micro-batch to the next.
        dropout: LoRA uses dropout.
        device: `cuda` or `cpu`, whose kernels need different extra memory.
        saving: memory options.
    """

    sizes: Sizes
    trained: Trained
    nf4: bool
    float_bytes: int
    optimizer: str
    accumulates: bool
    dropout: bool
    device: Literal["cuda", "cpu"]
    saving: MemoryOptions

    @classmethod
    def of(cls, recipe: Recipe, sizes: Sizes, device: Literal["cuda", "cpu"], saving: MemoryOptions) -> Setup:
        """Read the settings of a recipe."""
        adapter, training = recipe.adapter, recipe.training
        dropouts = [adapter.dropout, *(one.dropout for one in adapter.per_target.values() if one.dropout is not None)]
        return cls(
            sizes=sizes,
            trained=Trained.of(adapter),
            nf4=adapter.quantize == "nf4",
            float_bytes=2 if training.compute_dtype == "bf16" else 4,
            optimizer=training.optimizer,
            accumulates=training.gradient_accumulation > 1,
            dropout=any(dropouts),
            device=device,
            saving=saving,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use at one moment of a step.

    Attributes:
        moment: phase of the step.
        terms: bytes of each of `TERMS`.
    """

    moment: str
    terms: dict[str, int]

    @property
    def total(self) -> int:
        """Sum of all terms."""
        return sum(self.terms.values())


def peak(setup: Setup, pack: PackShape) -> Memory:
    """Return the memory at the peak of a step on this pack."""
    return max(moments(setup, pack), key=lambda moment: moment.total)


def moments(setup: Setup, pack: PackShape) -> list[Memory]:
    """Return the memory at each moment of a step that may be the peak."""
    sizes, layers, checkpointed = setup.sizes, setup.sizes.layers, setup.saving.checkpointed_layers
    kept, work, stream = layer_kept(setup, pack), _layer_work(setup, pack), _stream(setup, pack)
    waiting = 0 if setup.saving.offload_layer_inputs else stream
    start, projected = _before_layers(setup, pack), _projected(setup, pack)
    trained = setup.trained.parameters(sizes)
    gradients = _MASTER * sum(trained.values())
    per_layer = 0 if setup.accumulates else _MASTER * trained.get("lora", 0) // layers
    held = gradients if setup.accumulates else 0  # from the previous micro-batch
    # torch's AdamW on a GPU computes the roots of all second moments at once
    scratch = gradients if setup.device == "cuda" and setup.optimizer == "adamw" else 0
    all_kept = (layers - checkpointed) * kept + checkpointed * waiting
    found = [
        _memory(setup, pack, "the vision tower", held, vision=_tower(setup, pack)),
        _memory(
            setup,
            pack,
            "the loss",
            held,
            start + all_kept + _after_layers(setup, pack),
            _loss(setup, pack),
            projected,
        ),
        _memory(setup, pack, "the optimizer's step", gradients + scratch),
    ]
    if checkpointed < layers:
        found.append(_memory(setup, pack, "the last layer", held, start + all_kept + stream + work, vision=projected))
    if checkpointed:
        for last in (True, False):
            below = checkpointed if last else 1
            found.append(
                _memory(
                    setup,
                    pack,
                    f"layer {below}, recomputed",
                    held + (layers - below) * per_layer,
                    start + below * waiting + kept + work,
                    vision=projected,
                )
            )
    return found


def _memory(
    setup: Setup,
    pack: PackShape,
    moment: str,
    gradients: int,
    activations: int = 0,
    loss: int = 0,
    vision: int = 0,
) -> Memory:
    weights = sum(setup.sizes.weight_bytes(nf4=setup.nf4, float_bytes=setup.float_bytes).values())
    trained = sum(setup.trained.parameters(setup.sizes).values())
    # paged state moves to main memory when the GPU is full
    per_number = {"adamw": 8, "adamw_8bit": 2 + 2 * 4 / 256, "paged_adamw": 0, "paged_adamw_8bit": 0}
    if setup.device == "cpu":
        per_number |= {"paged_adamw": 8, "paged_adamw_8bit": per_number["adamw_8bit"]}
    terms = {
        "weights": weights,
        "adapter": _MASTER * trained + gradients,
        "optimizer": round(per_number[setup.optimizer] * trained),
        "activations": activations,
        "loss": loss,
        "vision": vision,
        "slack": 0,
    }
    terms["slack"] = _slack(setup, terms, pack)
    return Memory(moment, terms)


def _slack(setup: Setup, terms: dict[str, int], pack: PackShape) -> int:
    """Return the bytes that libraries and the allocator take in addition to tensors."""
    if setup.device == "cuda":
        return _CUDA_CONTEXT + _CUDA_IDLE + round(_CUDA_FRAGMENTS * sum(terms.values()))
    libraries = _CPU_LIBRARIES + bool(pack.crops) * _CPU_LIBRARIES * 3 // 4
    if setup.float_bytes == 4:
        return libraries
    # oneDNN repacks the operands of 16-bit products; it keeps those of the head
    return libraries + 2 * (setup.sizes.vocabulary * setup.sizes.hidden + pack.tokens * setup.sizes.intermediate)


def _stream(setup: Setup, pack: PackShape) -> int:
    """Return the bytes of the hidden states between two layers."""
    return pack.tokens * setup.sizes.hidden * setup.float_bytes


def layer_kept(setup: Setup, pack: PackShape) -> int:
    """Return the bytes that one layer saves for its backward pass."""
    sizes, number = setup.sizes, setup.float_bytes
    hidden, inner, kv = sizes.hidden, sizes.intermediate, sizes.kv_width
    norms = 2 * (number * hidden + 4)  # inputs of the layers: the residual stream
    attention = number * (2 * hidden + 2 * kv) + 4 * sizes.heads
    per_token: float = norms + attention + 2 * number * inner
    for name, rank in setup.trained.ranks.items():
        out, into = sizes.linear_shape(name)
        per_token += number * rank + into * setup.dropout / 8  # one bit per number for the dropout mask
        per_token += number * out * setup.trained.dora  # for the gradient of the magnitude
    return round(pack.tokens * per_token)


def _layer_work(setup: Setup, pack: PackShape) -> int:
    """Return the largest temporary memory of a layer's backward pass.

    One of three: the gate, where its gradient becomes two; a linear, where the gradient is multiplied by decoded
    weights; or the dropout of w2's input, with LoRA's part of the gradient and, on a CPU, a mask.
    """
    sizes, number = setup.sizes, setup.float_bytes
    numbers = pack.tokens * sizes.intermediate
    decoded = sizes.hidden * sizes.intermediate * number if setup.nf4 else 0
    masks = numbers * (1 + number) if setup.device == "cpu" else 0
    dropped = (2 * numbers * number + masks) * setup.dropout
    return max(
        3 * numbers * number,
        dropped,
        2 * numbers * number + decoded,
        _dora_work(setup, pack),
    )


def _dora_work(setup: Setup, pack: PackShape) -> int:
    """Return the largest temporary memory with DoRA, whose branches are separate products.

    Either the fp32 gradients of the magnitudes, over the whole output, after the gate has freed its inputs; or LoRA's
    dropout: its gradient, the recomputed dropped input and a mask, in addition to the gradient through PLoRA.
    """
    if not setup.trained.dora:
        return 0
    numbers, number = pack.tokens * setup.sizes.intermediate, setup.float_bytes
    dropped = ((3 + bool(pack.image_tokens)) * numbers * number + numbers) * setup.dropout
    return max(10 * numbers, dropped)


def _before_layers(setup: Setup, pack: PackShape) -> int:
    """Return the bytes of the rotary angles; the embeddings count as the first layer's input."""
    return 2 * pack.tokens * setup.sizes.head_dim * setup.float_bytes


def _after_layers(setup: Setup, pack: PackShape) -> int:
    """Return the bytes of the last norm's input and output, and of states and gradients of the supervised rows."""
    return 2 * _stream(setup, pack) + 2 * pack.supervised * setup.sizes.hidden * setup.float_bytes


def _loss(setup: Setup, pack: PackShape) -> int:
    """Return the bytes of a chunk's fp32 logits, which become its gradients, and of their 16-bit copy."""
    return min(pack.supervised, _CHUNK_ROWS) * setup.sizes.vocabulary * (6 if setup.float_bytes == 2 else 4)


def _projected(setup: Setup, pack: PackShape) -> int:
    """Return the bytes of the crops, and of what the projector saves if it is trained."""
    sizes, number = setup.sizes, setup.float_bytes
    crops = sum(pack.crops) * 3 * sizes.vision.side**2
    if setup.trained.projector == "frozen" or not pack.image_tokens:
        return crops
    cast = 2 * sizes.hidden**2 * (number == 2 and setup.trained.projector == "full")
    return crops + pack.image_tokens * (sizes.merged + 3 * sizes.hidden) * number + cast


def _tower(setup: Setup, pack: PackShape) -> int:
    """Return the bytes of the crops, the features so far, and the largest temporary on top.

    The largest of three: a global view in fp32, a chunk inside a layer of the tower, all features in their final order.
    """
    vision, number = setup.sizes.vision, setup.float_bytes
    pixels = 3 * vision.side**2
    chunk = min(setup.saving.vision_chunk, pack.views)
    features = pack.views * vision.patches * vision.width * number
    overview = 9 * pixels * max(pack.crops, default=0)
    working = chunk * (pixels * number + vision.tokens * 16 * vision.width * number)
    return sum(pack.crops) * pixels + features + max(overview, working, 2 * features)
