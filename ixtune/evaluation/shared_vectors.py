"""Image vectors that several models of an evaluation share: each image is encoded once for all of them."""

from __future__ import annotations

import hashlib

import torch

from ixtune.data.prepared.image_files import ImageFiles
from ixtune.evaluation.session import CACHE_BYTES, Loaded
from ixtune.model.model import IXC2ForCausalLM
from ixtune.platforms import available_bytes
from ixtune.training.batch import ImageSource

_EDGE = 16 << 10  # number of values at each end of a tensor that identify it, as in the identity of a base


class SharedVectors:
    """Image sources by vision tower; one at a time is bound to the loaded model."""

    def __init__(self, files: ImageFiles) -> None:
        """Keep vectors up to a quarter of the free main memory for each vision tower."""
        self.files, self.max_bytes = files, max(CACHE_BYTES, (available_bytes() or 0) // 4)
        self._sources: dict[str, ImageSource] = {}

    def source(self, loaded: Loaded) -> ImageSource:
        """Return the images for a model: vectors before the projector, shared by models with the same tower.

        Trained separators are among the vectors, so an adapter with its own gets crops.
        """
        if loaded.trains_separators():
            return ImageSource(self.files)
        identity = vision_identity(loaded.base_model)
        found = self._sources.setdefault(identity, ImageSource(self.files, None, self.max_bytes))
        found.model = loaded.base_model
        return found

    def release(self) -> None:
        """Forget the loaded model and keep the vectors."""
        for source in self._sources.values():
            source.model = None


def vision_identity(model: IXC2ForCausalLM) -> str:
    """Return a hash of vision tower and separators: names, shapes, dtypes and both ends of every tensor."""
    digest = hashlib.sha256()
    for part in ("vit", "separators"):
        for name, tensor in sorted(getattr(model, part).state_dict().items()):
            flat = tensor.detach().reshape(-1)
            digest.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            for edge in (flat[:_EDGE], flat[-_EDGE:]):
                digest.update(edge.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
