"""Compute the names and shapes of all tensors of a checkpoint in the original form from its sizes.

Plain integers: neither torch nor transformers. A test compares the list with the network itself and with the released
model's 942 tensors (MODEL.md 1.3).
"""

from __future__ import annotations

from collections.abc import Iterator

from ixtune.checkpoint.sizes import DECODER_LINEARS, Sizes, VisionSizes

Shape = tuple[int, ...]

_VIT = "vit.vision_tower.vision_model."
_PARENT = {"wqkv": "attention", "wo": "attention"}  # the others belong to feed_forward


def tensor_shapes(sizes: Sizes) -> dict[str, Shape]:
    """Return the shape of every tensor by original name, in the order of the network."""
    return dict(_tensors(sizes))


def linear_name(layer: int, linear: str) -> str:
    """Return the original name of a decoder linear, without `.weight`."""
    return f"model.layers.{layer}.{_PARENT.get(linear, 'feed_forward')}.{linear}"


def _tensors(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    yield "plora_glb_GN", (1, 1, sizes.merged)
    yield "plora_sub_GN", (1, 1, 1, sizes.merged)
    yield "model.tok_embeddings.weight", (sizes.vocabulary, sizes.hidden)
    for layer in range(sizes.layers):
        for linear in DECODER_LINEARS:
            name, (out, into), rank = linear_name(layer, linear), sizes.linear_shape(linear), sizes.plora_rank(linear)
            yield f"{name}.weight", (out, into)
            yield f"{name}.Plora_A.weight", (rank, into)
            yield f"{name}.Plora_B.weight", (out, rank)
        for norm in ("attention_norm", "ffn_norm"):
            yield f"model.layers.{layer}.{norm}.weight", (sizes.hidden,)
    yield "model.norm.weight", (sizes.hidden,)
    yield "output.weight", (sizes.vocabulary, sizes.hidden)
    for number, into in ((0, sizes.merged), (2, sizes.hidden)):
        yield f"vision_proj.{number}.weight", (sizes.hidden, into)
        yield f"vision_proj.{number}.bias", (sizes.hidden,)
    for name, shape in _vision(sizes.vision):
        yield _VIT + name, shape


def _vision(vision: VisionSizes) -> Iterator[tuple[str, Shape]]:
    width, inner = vision.width, vision.intermediate
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, 3, vision.patch, vision.patch)
    yield "embeddings.position_embedding.weight", (vision.tokens, width)
    yield "pre_layrnorm.weight", (width,)  # CLIP's own spelling
    yield "pre_layrnorm.bias", (width,)
    linears = {f"self_attn.{side}_proj": (width, width) for side in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for layer in range(vision.layers):
        for name, shape in linears.items():
            yield f"encoder.layers.{layer}.{name}.weight", shape
            yield f"encoder.layers.{layer}.{name}.bias", shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            for leaf in ("weight", "bias"):
                yield f"encoder.layers.{layer}.{norm}.{leaf}", (width,)
