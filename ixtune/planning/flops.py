"""Count the floating-point operations of a training step, by part: what the algorithm needs, not what kernels spend.

A product of [n, a] and [a, b] is 2 n a b. Frozen linears have a forward pass and a backward pass to their input, but
no weight gradient. Elementwise work, norms and dequantization are left out: they are bound by memory, not by these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain

from ixtune.checkpoint.sizes import Sizes, Trained


@dataclass(frozen=True, slots=True)
class PackShape:
    """Properties of a pack that determine its cost.

    Attributes:
        lengths: tokens of each segment, image tokens included; a shared prefix is a separate segment.
        image_tokens: tokens of all its images.
        supervised: rows on which the loss is taken.
        crops: (local crops) of each of its images; the tower sees one view more of each.
        prefixes: for each segment, the tokens of the prefix that it sees besides itself; empty where all are 0.
    """

    lengths: tuple[int, ...]
    image_tokens: int = 0
    supervised: int = 1
    crops: tuple[int, ...] = ()
    prefixes: tuple[int, ...] = ()

    @classmethod
    def joined(cls, packs: Sequence[PackShape]) -> PackShape:
        """Return the shape of several packs side by side."""
        shared = any(pack.prefixes for pack in packs)
        return cls(
            lengths=tuple(chain.from_iterable(pack.lengths for pack in packs)),
            image_tokens=sum(pack.image_tokens for pack in packs),
            supervised=sum(pack.supervised for pack in packs),
            crops=tuple(chain.from_iterable(pack.crops for pack in packs)),
            prefixes=tuple(chain.from_iterable(pack.seen for pack in packs)) if shared else (),
        )

    @property
    def tokens(self) -> int:
        """Positions of the pack: the tokens that are computed."""
        return sum(self.lengths)

    @property
    def seen(self) -> tuple[int, ...]:
        """Number of prefix tokens that each segment attends to in addition to itself."""
        return self.prefixes or (0,) * len(self.lengths)

    @property
    def views(self) -> int:
        """Number of views for the vision tower: every crop and one global view of each image."""
        return sum(self.crops) + len(self.crops)


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of the forward and backward pass of a pack.

    Attributes:
        linears: the frozen decoder linears, forward and backward to the input.
        lora: forward, backward to input and weights; with DoRA the norms of the adapted weights too.
        plora: PLoRA on the image rows, forward and backward to the input.
        attention: scores and weighted values, causal inside each segment and to all of its prefix, forward and
            backward.
        vit: forward only.
        projector: forward, and backward as far as it is trained.
        head: output head on the supervised rows, forward and backward to the input.
        recompute: the forward pass of checkpointed layers once more.
    """

    linears: int
    lora: int
    plora: int
    attention: int
    vit: int
    projector: int
    head: int
    recompute: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.needed + self.recompute

    @property
    def needed(self) -> int:
        """Sum without recomputation, from which MFU is calculated."""
        parts = (self.linears, self.lora, self.plora, self.attention, self.vit, self.projector, self.head)
        return sum(parts)

    def times(self, factor: float) -> Flops:
        """Multiply every part by a factor."""
        return Flops(**{part.name: round(getattr(self, part.name) * factor) for part in fields(self)})


def flops(
    sizes: Sizes, trained: Trained, pack: PackShape, checkpointed_layers: int = 0, micro_batches: int = 1
) -> Flops:
    """Count the operations of one pack, or of several side by side.

    Args:
        sizes: sizes of the base.
        trained: trained parts of the adapter.
        pack: the pack to compute.
        checkpointed_layers: layers whose forward pass is repeated.
        micro_batches: number of packs; DoRA takes the norms of its weights once in each.
    """
    tokens, images = pack.tokens, pack.image_tokens
    linears = 2 * tokens * sizes.layer_linears
    lora = 2 * tokens * sum(rank * sum(sizes.linear_shape(name)) for name, rank in trained.ranks.items())
    if trained.dora:
        shapes = [(rank, *sizes.linear_shape(name)) for name, rank in trained.ranks.items()]
        lora += micro_batches * sum(2 * rank * out * into for rank, out, into in shapes)
    plora = 2 * images * sizes.layer_plora
    attention = _attention(pack, sizes.hidden)
    head = 2 * pack.supervised * sizes.vocabulary * sizes.hidden
    passes = sizes.layers + trained.backward_layers(sizes)
    return Flops(
        linears=passes * linears,
        lora=3 * trained.lora_layers(sizes) * lora,
        plora=passes * plora,
        attention=(2 * passes - sizes.layers) * attention,
        vit=pack.views * _view(sizes),
        projector=_projector(sizes, trained, images),
        head=2 * head,
        recompute=checkpointed_layers * (linears + lora + plora + attention),
    )


def _attention(pack: PackShape, width: int) -> int:
    """Count two products over the lower triangle of each segment's scores, and over its scores with its prefix."""
    return sum(
        2 * width * length * (length + 1 + 2 * prefix) for length, prefix in zip(pack.lengths, pack.seen, strict=True)
    )


def _view(sizes: Sizes) -> int:
    """Count the operations of the tower's forward pass on one view."""
    vision = sizes.vision
    patches = 2 * vision.patches * 3 * vision.patch**2 * vision.width
    linears = 2 * vision.tokens * (4 * vision.width**2 + 2 * vision.width * vision.intermediate)
    scores = 4 * vision.tokens**2 * vision.width
    return patches + vision.layers * (linears + scores)


def _projector(sizes: Sizes, trained: Trained, images: int) -> int:
    first, second = 2 * images * sizes.merged * sizes.hidden, 2 * images * sizes.hidden**2
    forward = first + second
    if trained.projector == "full":
        return forward + first + 2 * second + first * trained.separators
    if trained.projector == "lora":
        branch = 2 * images * trained.projector_rank * (sizes.merged + 3 * sizes.hidden)
        return forward + second + first * trained.separators + 3 * branch
    return forward + forward * trained.separators
