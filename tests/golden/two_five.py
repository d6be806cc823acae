"""Read the fixtures of InternLM-XComposer-2.5: a small random model of the reference and its outputs.

The folder comes from IXTUNE_GOLDEN25, and others of the same form are run through these tests: nothing here knows the
names of samples, their number, or the sizes of the model.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ixtune.data.images.pixels import open_image, place_and_cut
from ixtune.family import TWO_FIVE, Member
from ixtune.layout import PatchLayout, plan
from ixtune.model.configuration import IXC2Config
from ixtune.model.model import IXC2ForCausalLM

ROOT = Path(os.environ.get("IXTUNE_GOLDEN25") or Path(__file__).parents[1] / "fixtures" / "golden25")
RULES = {"finetune": "fine-tuning", "inference": "inference"}


def member(rule: str) -> Member:
    """Return the model family entry with one of the layout rules of the fixtures."""
    return TWO_FIVE.with_rule(RULES[rule])


class TwoFive:
    """Read files of the fixture folder."""

    def __init__(self, folder: Path = ROOT) -> None:
        self.folder = folder
        self.samples: dict[str, Any] = self.json("samples.json")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "samples.safetensors")

    def config(self, **changes: Any) -> IXC2Config:
        """Return the config; sizes missing in config.json come from the tensors, except those of the vision tower."""
        content = self.json("config.json")
        vision = {key: value for key, value in self.samples["vision"].items() if key != "image_size"}
        content |= {"_name_or_path": str(self.folder), "vision_config": vision}
        return IXC2Config.from_dict(content, **changes)

    def model(self, **changes: Any) -> IXC2ForCausalLM:
        model = IXC2ForCausalLM.from_pretrained(self.folder, config=self.config(**changes), dtype=torch.float32)
        return model.eval()

    def layouts(self, images: list[dict[str, Any]]) -> list[PatchLayout]:
        sizes = [open_image(self.folder / image["file"]).size for image in images]
        pairs = zip(images, sizes, strict=True)
        return [plan(*size, image["hd_num"], member=member(image["rule"])) for image, size in pairs]

    def images(self, images: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the model's keyword arguments for some images."""
        layouts = self.layouts(images)
        opened = [open_image(self.folder / image["file"]) for image in images]
        crops = [torch.from_numpy(place_and_cut(*pair)) for pair in zip(opened, layouts, strict=True)]
        return {"crops": torch.cat(crops), "grids": [(one.rows, one.cols) for one in layouts]} if crops else {}

    def rows(self, name: str) -> torch.Tensor | None:
        """Return the flat indices of the image positions of a sample or chat."""
        rows = self.tensors[f"{name}.im_mask"].bool().reshape(-1).nonzero().squeeze(1)
        return rows if len(rows) else None

    def ids(self, name: str, model: IXC2ForCausalLM) -> torch.Tensor:
        """Return input_ids [1, L] with 0 at image positions: the tokens whose embeddings the reference uses."""
        embeds, table = self.tensors[f"{name}.inputs_embeds"][0], model.model.tok_embeddings.weight
        rows = self.rows(name)
        ids = torch.cdist(embeds, table).argmin(dim=1)
        if rows is not None:
            ids[rows] = 0
        return ids[None]

    def labels(self, name: str) -> torch.Tensor:
        """Return unshifted labels [1, L]."""
        shifted = self.tensors[f"{name}.labels_shifted"].long()
        return torch.cat((torch.full_like(shifted[:, :1], -100), shifted), dim=1)


def largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())
