"""Read the fixtures in `golden/tiny`: a small random model of the reference and its outputs.

The folder comes from IXTUNE_GOLDEN, and others of the same form are run through these tests: nothing here knows the
names of samples, their number, or the sizes of the model.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ixtune.model.configuration import IXC2Config
from ixtune.model.model import IXC2ForCausalLM


class Tiny:
    """Read files of the folder `golden/tiny`."""

    def __init__(self, golden: Path) -> None:
        self.golden, self.folder = golden, golden / "tiny"

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def samples(self) -> dict[str, Any]:
        return self.json("samples.json")

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "samples.safetensors")

    def config(self, **changes: Any) -> IXC2Config:
        extra = self.json("extra.json")
        plora = {k: {"rank": v["r"], "alpha": v["alpha"]} for k, v in extra["plora"].items()}
        return IXC2Config.from_pretrained(self.folder, vision_config=extra["vision"], plora=plora, **changes)

    def model(self, **changes: Any) -> IXC2ForCausalLM:
        model = IXC2ForCausalLM.from_pretrained(self.folder, config=self.config(**changes), dtype=torch.float32)
        return model.eval()

    def crops(self, name: str) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return uint8 crops and grid of one image, from its HD image."""
        image = self.samples["images"][name]
        rows, cols = image["rows"], image["cols"]
        pixels = np.asarray(Image.open(self.golden / image["hd_file"]))
        blocks = pixels.reshape(rows, 336, cols, 336, 3).transpose(0, 2, 4, 1, 3)
        return torch.from_numpy(blocks.reshape(rows * cols, 3, 336, 336).copy()), (rows, cols)

    def images(self, names: list[Any]) -> dict[str, Any]:
        """Return the model's keyword arguments for the images of a sample (nested lists for a batch)."""
        flat = [n for name in names for n in (name if isinstance(name, list) else [name])]
        parts = [self.crops(name) for name in flat]
        if not parts:
            return {}
        return {"crops": torch.cat([crops for crops, _ in parts]), "grids": [grid for _, grid in parts]}

    def ids(self, name: str) -> torch.Tensor:
        """Return input_ids with 0 at image positions, truncated and padded as in the reference."""
        length = self.tensors[f"{name}.inputs_embeds"].shape[1]
        rows = self.samples["samples"][name]["wrap_ids_before_truncation"]
        ids = [[0 if token == -100 else token for token in row][:length] for row in rows]
        return torch.tensor([row + [2] * (length - len(row)) for row in ids])

    def labels(self, name: str) -> torch.Tensor:
        """Return unshifted labels [B, L]."""
        shifted = self.tensors[f"{name}.labels_shifted"].long()
        return torch.cat((torch.full_like(shifted[:, :1], -100), shifted), dim=1)

    def image_rows(self, name: str) -> torch.Tensor | None:
        rows = self.tensors[f"{name}.im_mask"].bool().reshape(-1).nonzero().squeeze(1)
        return rows if len(rows) else None


def largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())
