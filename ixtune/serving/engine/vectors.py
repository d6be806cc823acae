"""Keep image vectors before the projector, bounded, for all models whose vision tower and separators are the base's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from ixtune.model.model import IXC2ForCausalLM
from ixtune.serving.images import Picture


class VectorCache:
    """Vectors of images by content and layout, in main memory; the least recently used are dropped first.

    Attributes:
        computed: Number of images whose vectors were computed.
        reused: Number of images whose vectors were found.
        nbytes: Bytes of all kept vectors.
    """

    def __init__(self, model: IXC2ForCausalLM, max_bytes: int) -> None:
        """Keep at most `max_bytes` of vectors computed with the tower of this network."""
        self.model, self.max_bytes = model, max_bytes
        self.computed = self.reused = self.nbytes = 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def load(self, pictures: Sequence[Picture], shared: bool) -> dict[str, Any]:
        """Return images as the model's keyword arguments.

        Args:
            pictures: The images, at least one.
            shared: The active model has the base's tower and separators; else its images are given as crops.
        """
        if not shared:
            parts = [picture.crops() for picture in pictures]
            return {"crops": torch.cat([crops for crops, _ in parts]), "grids": [grid for _, grid in parts]}
        return {"image_vectors": torch.cat([self._get(picture) for picture in pictures])}

    @torch.no_grad()
    def _get(self, picture: Picture) -> torch.Tensor:
        if picture.key in self._kept:
            self.reused += 1
            self._kept.move_to_end(picture.key)
            return self._kept[picture.key]
        crops, grid = picture.crops()
        made = self.model.get_image_vectors(crops.to(self.model.device), [grid]).cpu()
        self.computed += 1
        self._kept[picture.key] = made
        self.nbytes += made.nbytes
        while len(self._kept) > 1 and self.nbytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.nbytes -= dropped.nbytes
        return made
