"""Compute the sizes of the network and its adapter in plain integers, without torch or transformers.

`plan` uses this before any tensor library is loaded. The constants that the released model keeps in code are defined
here, and `configuration` imports them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ixtune.family import FOUR_KHD, Member, member_of_crop

if TYPE_CHECKING:
    from ixtune.recipe.recipe import AdapterSection

DECODER_LINEARS = ("wqkv", "wo", "w1", "w2", "w3")

# The original hard-codes its vision tower; these are CLIP-L/14-336's sizes (MODEL.md 2.5).
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": FOUR_KHD.crop,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

# NF4 with double quantization, as bitsandbytes stores it: two weights per byte, one byte of scale per block, one float
# per group of these scales and one offset, and the two code tables.
_NF4_BLOCK, _NF4_GROUP = 64, 256
_NF4_TABLES_BYTES = 4 * (16 + 256)

KEPT_PREFIX_BYTES = 1 << 30
"""Default bound of the keys and values that answering keeps of prefixes, such as pages, for later questions."""
BATCH_PREFIX_BYTES = 4 << 30
"""Bound of those in one batch of several prompts. The 7B in bf16 takes 128 KiB a token: 10 A4 pages at hd_num 25."""


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """Sizes of the vision tower."""

    width: int = 1024
    intermediate: int = 4096
    layers: int = 24
    heads: int = 16
    side: int = FOUR_KHD.crop
    patch: int = 14

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> VisionSizes:
        """Read a `vision_config` of config.json; missing values are those of CLIP-L/14-336."""
        known = {**CLIP_L_336, **given}
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return cls(*(int(known[name]) for name in (*names, "image_size", "patch_size")))

    @property
    def patches(self) -> int:
        """Number of patches of a view."""
        return (self.side // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """Number of positions of a view in the tower: its patches and the class token."""
        return self.patches + 1

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of one layer: four square linears, two of the MLP, their biases, two norms."""
        width, inner = self.width, self.intermediate
        return 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width

    @property
    def parameters(self) -> int:
        """Number of parameters; the released tower has no post layer norm (MODEL.md 1.3)."""
        embeddings = self.width + 3 * self.patch**2 * self.width + self.tokens * self.width
        return embeddings + 2 * self.width + self.layers * self.layer_parameters


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the whole network; the defaults are those of the first member's released 7B."""

    vocabulary: int = 92544
    hidden: int = 4096
    intermediate: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    plora_ranks: tuple[int, int] = FOUR_KHD.plora_ranks
    """PLoRA ranks of `wqkv` and of the other linears."""
    vision: VisionSizes = field(default_factory=VisionSizes)
    dynamic_above: int | None = field(default=None, compare=False)
    """Tokens above which the length of a sequence changes all its rotary angles (`dynamic` scaling); None for none."""

    @classmethod
    def from_config_json(cls, given: Mapping[str, Any]) -> Sizes:
        """Read the content of a base's config.json; missing values are those of the released model with such crops."""
        released = cls()
        vision = VisionSizes.of(given.get("vision_config") or {})
        plora = given.get("plora") or (member_of_crop(vision.side) or FOUR_KHD).plora()
        rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
        dynamic = rope.get("rope_type", rope.get("type")) == "dynamic"
        return cls(
            vocabulary=int(given.get("vocab_size", released.vocabulary)),
            hidden=int(given.get("hidden_size", released.hidden)),
            intermediate=int(given.get("intermediate_size", released.intermediate)),
            layers=int(given.get("num_hidden_layers", released.layers)),
            heads=int(given.get("num_attention_heads", released.heads)),
            kv_heads=int(given.get("num_key_value_heads", released.kv_heads)),
            plora_ranks=(int(plora["wqkv"]["rank"]), int(plora["others"]["rank"])),
            vision=vision,
            dynamic_above=int(given.get("max_position_embeddings", 32768)) if dynamic else None,
        )

    @classmethod
    def released(cls, member: Member) -> Sizes:
        """Return the sizes of a member's released 7B."""
        return cls(plora_ranks=member.plora_ranks, vision=VisionSizes(side=member.crop))

    @property
    def member(self) -> Member:
        """Return the model of the family that has these sizes, with its fine-tuning layout rule.

        Raises:
            ValueError: No member has crops of this size.
        """
        if (found := member_of_crop(self.vision.side)) is None:
            raise ValueError(f"no known model has crops of {self.vision.side} pixels")
        return found

    @property
    def is_released(self) -> bool:
        """Return whether these are the sizes of a released 7B."""
        member = member_of_crop(self.vision.side)
        return member is not None and self == Sizes.released(member)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    def cache_bytes(self, float_bytes: int) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_width * float_bytes

    @property
    def merged(self) -> int:
        """Width of one image token before the projector: a 2x2 block of patches side by side."""
        return 4 * self.vision.width

    def linear_shape(self, linear: str) -> tuple[int, int]:
        """Return (out, in) features of a decoder linear."""
        return {
            "wqkv": (self.hidden + 2 * self.kv_width, self.hidden),
            "wo": (self.hidden, self.hidden),
            "w1": (self.intermediate, self.hidden),
            "w3": (self.intermediate, self.hidden),
            "w2": (self.hidden, self.intermediate),
        }[linear]

    def plora_rank(self, linear: str) -> int:
        """Return the rank of the PLoRA branch of a decoder linear."""
        return self.plora_ranks[0 if linear == "wqkv" else 1]

    @property
    def layer_linears(self) -> int:
        """Number of parameters of the five linears of one decoder layer."""
        return sum(out * into for out, into in map(self.linear_shape, DECODER_LINEARS))

    @property
    def layer_plora(self) -> int:
        """Number of parameters of the five PLoRA branches of one decoder layer."""
        return sum(self.plora_rank(name) * sum(self.linear_shape(name)) for name in DECODER_LINEARS)

    @property
    def projector(self) -> int:
        """Number of parameters of the projector, biases included."""
        return self.merged * self.hidden + self.hidden**2 + 2 * self.hidden

    def parameters(self) -> dict[str, int]:
        """Return the number of parameters of the base by part."""
        return {
            "linears": self.layers * self.layer_linears,
            "norms": (2 * self.layers + 1) * self.hidden,
            "embeddings": self.vocabulary * self.hidden,
            "head": self.vocabulary * self.hidden,
            "plora": self.layers * self.layer_plora,
            "vit": self.vision.parameters,
            "projector": self.projector,
            "separators": 2 * self.merged,
        }

    def weight_bytes(self, *, nf4: bool, float_bytes: int) -> dict[str, int]:
        """Return the bytes of the base by part: decoder linears in NF4 if requested, everything else in floats.

        Args:
            nf4: decoder linears in NF4 with double quantization.
            float_bytes: bytes of a number in everything else: 2 for bf16, 4 for fp32.
        """
        sizes = {part: count * float_bytes for part, count in self.parameters().items()}
        if nf4:
            shapes = [self.linear_shape(name) for name in DECODER_LINEARS]
            sizes["linears"] = self.layers * sum(nf4_bytes(out * into) for out, into in shapes)
        return sizes


@dataclass(frozen=True, slots=True)
class Trained:
    """Parts of the network that an adapter adds or trains.

    Attributes:
        ranks: LoRA's rank on each decoder linear that carries it.
        dora: whether each of them has a magnitude too.
        projector: `full`, `lora` or `frozen`.
        projector_rank: LoRA's rank on the projector's two linears.
        separators: whether the newline and the separator token are trained.
        layers: the decoder layers that carry LoRA; None for all.
    """

    ranks: Mapping[str, int]
    dora: bool = False
    projector: str = "full"
    projector_rank: int = 0
    separators: bool = False
    layers: tuple[int, ...] | None = None

    @classmethod
    def of(cls, section: AdapterSection) -> Trained:
        """Read the adapter section of a recipe."""

        def rank(target: str) -> int:
            own = section.per_target.get(target)  # type: ignore[call-overload]  # a plain text as good as a Literal
            return section.rank if own is None or own.rank is None else int(own.rank)

        return cls(
            ranks={target: rank(target) for target in section.targets},
            dora=section.variant == "dora",
            projector=section.projector,
            projector_rank=rank("projector") if section.projector == "lora" else 0,
            separators=section.separators,
            layers=section.layers,
        )

    def lora_layers(self, sizes: Sizes) -> int:
        """Return the number of decoder layers with LoRA."""
        return sizes.layers if self.layers is None else len(self.layers)

    def backward_layers(self, sizes: Sizes) -> int:
        """Return the number of decoder layers in the backward pass: down to the lowest trained one."""
        if self.projector != "frozen" or self.separators or self.layers is None:
            return sizes.layers
        return sizes.layers - min(self.layers)

    def parameters(self, sizes: Sizes) -> dict[str, int]:
        """Return the number of trained parameters by part, without parts that have none."""
        shapes = {name: sizes.linear_shape(name) for name in self.ranks}
        lora = sum(rank * sum(shapes[name]) for name, rank in self.ranks.items())
        found = {
            "lora": self.lora_layers(sizes) * lora,
            "magnitudes": self.lora_layers(sizes) * sum(out for out, _ in shapes.values()) * self.dora,
            "projector": {
                "full": sizes.projector,
                "lora": self.projector_rank * (sizes.merged + 3 * sizes.hidden) + 2 * sizes.hidden * self.dora,
                "frozen": 0,
            }[self.projector],
            "separators": 2 * sizes.merged * self.separators,
        }
        return {part: count for part, count in found.items() if count}


def nf4_bytes(parameters: int) -> int:
    """Return the bytes of one linear in NF4 with double quantization."""
    blocks = -(-parameters // _NF4_BLOCK)
    return -(-parameters // 2) + blocks + 4 * -(-blocks // _NF4_GROUP) + 4 + _NF4_TABLES_BYTES
