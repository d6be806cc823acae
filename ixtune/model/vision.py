"""Compute image tokens from crops: the CLIP tower, the 2x2 merge, and newline and separator tokens.

Shape letters: N crops of all images, V views (global view of an image, then its crops), P patches of a view, h vectors
along the side of a merged view,
v vision width, m = 4v merged width, I image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class PatchEmbedding(nn.Module):
    """Embed patches, a class token and learned positions.

    transformers' own keeps its position ids in a buffer that is not in the checkpoint and stays uninitialized when
    this tower is loaded through the meta device; this one has no buffer at all (TRAPS.md 18).
    """

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        # transformers' types allow pairs; this tower's crops and patches are square.
        width, patch, side = config.hidden_size, cast(int, config.patch_size), cast(int, config.image_size)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((side // patch) ** 2 + 1, width)

    def forward(self, views_V3HW: torch.Tensor) -> torch.Tensor:
        """Map [V, 3, side, side] to [V, 1 + P, v]."""
        patches = self.patch_embedding(views_V3HW).flatten(2).transpose(1, 2)
        classes = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat((classes, patches), dim=1) + self.position_embedding.weight


class VisionTower(nn.Module):
    """CLIP's vision transformer without its post layer norm, which the released checkpoint lacks (MODEL.md 1.3)."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        # The tower is not a PreTrainedModel itself, so nothing else sets this.
        config._attn_implementation = config._attn_implementation or "sdpa"
        self.embeddings = PatchEmbedding(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # It is annotated with the two-tower configuration, but reads one tower's, as transformers itself passes it.
        self.encoder = CLIPEncoder(config)  # type: ignore[arg-type]

    def forward(self, views_V3HW: torch.Tensor) -> torch.Tensor:
        """Map normalized views [V, 3, side, side] to the last hidden state [V, 1 + P, v], class token first."""
        hidden = self.pre_layrnorm(self.embeddings(views_V3HW))
        last: torch.Tensor = self.encoder(inputs_embeds=hidden).last_hidden_state
        return last


class Separators(nn.Module):
    """Two learned vectors of the layout, in a separate module so that PEFT can save them (TRAPS.md 14b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.glb = nn.Parameter(torch.zeros(1, 1, width))
        self.sub = nn.Parameter(torch.zeros(1, 1, 1, width))


def normalise(crops: torch.Tensor) -> torch.Tensor:
    """Normalize uint8 [.., 3, H, W] to float32 by CLIP's mean and standard deviation (MODEL.md 2.3)."""
    mean = torch.tensor(MEAN, device=crops.device).view(3, 1, 1)
    std = torch.tensor(STD, device=crops.device).view(3, 1, 1)
    return (crops.float() / 255 - mean) / std


def overview_of(crops_N3HW: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Compute the global view of one image.

    It is the whole padded and normalized image, downscaled in fp32 by bicubic interpolation without antialiasing
    (MODEL.md 2.4); the image is reassembled from its crops, so that only uint8 crops have to be moved.

    Args:
        crops_N3HW: uint8 [rows*cols, 3, side, side], row-major.
        rows: crops in a column.
        cols: crops in a row.

    Returns:
        float32 [1, 3, side, side]
    """
    side = crops_N3HW.shape[-1]
    image = crops_N3HW.view(rows, cols, 3, side, side).permute(2, 0, 3, 1, 4)
    image = normalise(image.reshape(1, 3, rows * side, cols * side))
    return interpolate(image, size=(side, side), mode="bicubic", align_corners=False)


def chunks_of_views(
    crops_N3HW: torch.Tensor, grids: Sequence[tuple[int, int]], chunk: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Yield the views of all images in chunks, in the tower's order: each image's global view first.

    Crops stay uint8 until their chunk is made, and a chunk is no longer referenced here when it is yielded.
    """
    waiting: list[torch.Tensor] = []
    room = chunk
    for crops, (rows, cols) in zip(crops_N3HW.split([r * c for r, c in grids]), grids, strict=True):
        start = -1  # for the global view
        while start < len(crops):
            if start < 0:
                part, start = overview_of(crops, rows, cols), 0
            else:
                part = normalise(crops[start : start + room])
                start += len(part)
            waiting.append(part.to(dtype))
            room -= len(part)
            if not room:
                views, waiting, room = torch.cat(waiting), [], chunk
                yield views
                del views
    if waiting:
        yield torch.cat(waiting)


def merge_2x2(hidden_VPv: torch.Tensor) -> torch.Tensor:
    """Merge patches [V, P, v] into maps [V, h, h, 4v]: of each 2x2 block, the top row first, from left to right."""
    count, patches, width = hidden_VPv.shape
    side = int(patches**0.5)
    half = side // 2
    blocks = hidden_VPv.view(count, half, 2, half, 2, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(count, half, half, 4 * width)


def lay_out(maps_Vhwm: torch.Tensor, rows: int, cols: int, separators: Separators) -> torch.Tensor:
    """Arrange one image's merged maps as its sequence of vectors before the projector (MODEL.md 2.5).

    Args:
        maps_Vhwm: [1 + rows*cols, h, h, m], the global view first.
        rows: crops in a column.
        cols: crops in a row.
        separators: the newline vector ends every map row, the separator vector comes between the two maps.

    Returns:
        [tokens, m], see `Member.tokens`
    """
    side, width = maps_Vhwm.shape[1], maps_Vhwm.shape[-1]
    newline = separators.sub.view(1, 1, width).to(maps_Vhwm.dtype)
    overview = torch.cat((maps_Vhwm[0], newline.expand(side, 1, width)), dim=1)
    local = maps_Vhwm[1:].view(rows, cols, side, side, width).permute(0, 2, 1, 3, 4)
    local = local.reshape(rows * side, cols * side, width)
    local = torch.cat((local, newline.expand(rows * side, 1, width)), dim=1)
    separator = separators.glb.view(1, width).to(maps_Vhwm.dtype)
    return torch.cat((overview.reshape(-1, width), separator, local.reshape(-1, width)))


def image_vectors(
    tower: VisionTower,
    separators: Separators,
    crops_N3HW: torch.Tensor,
    grids: Sequence[tuple[int, int]],
    chunk: int = 64,
) -> torch.Tensor:
    """Compute the vectors before the projector of all images of a batch, one image after the other.

    Args:
        tower: the vision tower.
        separators: newline and separator vectors, m wide.
        crops_N3HW: uint8 local crops of all images, in order.
        grids: (rows, cols) of each image.
        chunk: views the tower sees at a time, which bounds its memory.

    Returns:
        [I, m] in the tower's dtype.
    """
    dtype = tower.embeddings.patch_embedding.weight.dtype
    counts = [rows * cols for rows, cols in grids]
    if sum(counts) != len(crops_N3HW):
        raise ValueError(f"the grids hold {sum(counts)} crops, but {len(crops_N3HW)} were given")
    # A frozen tower always runs without gradients: its activations would take gigabytes at 4K.
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in tower.parameters())
    # It runs in its own dtype: autocast on a GPU would use fp32 norms, and cached vectors would differ.
    with torch.set_grad_enabled(trains), torch.autocast(crops_N3HW.device.type, enabled=False):
        parts = []
        for views in chunks_of_views(crops_N3HW, grids, chunk, dtype):
            parts.append(merge_2x2(tower(views)[:, 1:]))
            del views  # before the next chunk is built
    maps = torch.cat(parts)
    per_image = maps.split([1 + count for count in counts])
    return torch.cat([lay_out(m, *grid, separators) for m, grid in zip(per_image, grids, strict=True)])
