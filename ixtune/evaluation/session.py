"""Open a model for commands: a base with an optional adapter, and the image layout it was trained with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ixtune import base
from ixtune.adapter import bundle
from ixtune.adapter.folder import RECORD_FILE, WEIGHTS_FILE, read_info
from ixtune.adapter.weights import read_adapter
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.images.pixels import Corrections
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError, require_at_least
from ixtune.evaluation.contenders import contender, require_form
from ixtune.evaluation.questions import ImageView
from ixtune.family import Member, member_of
from ixtune.files import sha256_file
from ixtune.model.loading import load_base
from ixtune.training.monitoring.validation import DTYPES

CACHE_BYTES = 1 << 30  # bound of the image vectors that base and adapter share


class Loaded:
    """Loaded base with an optional adapter."""

    def __init__(self, base_name: str | None, adapter: Path | None, quantize: str | None, force: bool = False) -> None:
        """Load.

        Args:
            base_name: `nano`, a checkpoint folder or a hub id; None for the base named by the adapter.
            adapter: Adapter or run folder.
            quantize: `nf4` or `none`; None as the adapter was trained.
            force: Accept another base than the adapter was trained on.

        Raises:
            UsageError: Neither base nor adapter is given, or `quantize` is unknown.
        """
        require_form(quantize)
        named = contender(base_name, adapter)
        folder_of_adapter = named.adapter
        self.base_name = named.base
        folder = base.resolve(self.base_name)
        info = record_of(folder, folder_of_adapter)
        self.quantize = quantize or str(info.get("quantize", "none"))
        self.tokenizer = Tokenizer.from_base(folder)
        recipe = info.get("recipe") or (info.get("adapters") or [{}])[-1].get("recipe") or {}
        self.dtype = DTYPES[recipe.get("training", {}).get("compute_dtype", "bf16")]
        # the layout of training; None for a base
        self.hd_num: int | None = info.get("hd_num")
        self.info = info
        self.base_model, self.quantized = load_base(folder, quantize=self.quantize == "nf4", dtype=self.dtype)
        self.member = self.base_model.config.member
        self.adapter = folder_of_adapter
        self.model: Any = self.base_model
        self.identity = base_identity(open_checkpoint(folder))
        if folder_of_adapter is not None:
            self.model = bundle.load(self.base_model, folder_of_adapter, self.identity, force)

    def description(self) -> dict[str, Any]:
        """Return the properties that identify this model."""
        weights = sha256_file(self.adapter / WEIGHTS_FILE) if self.adapter else None
        return {"base_identity": self.identity, "adapter_sha256": weights, "quantize": self.quantize}

    def view(self, hd_num: int | None) -> ImageView:
        """Return the image layout of training, with another `hd_num` if one is given."""
        return view_of(self.info, hd_num, self.member)

    def trains_separators(self) -> bool:
        """Return whether the adapter has trained separators."""
        return self.adapter is not None and any("plora_" in name for name in read_adapter(self.adapter).whole)

    @contextmanager
    def as_base(self) -> Iterator[Any]:
        """Yield the model with the adapter, projector included, switched off."""
        if self.adapter is None:
            yield self.model
        else:
            with self.model.disable_adapter():
                yield self.model

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run under autocast in the dtype of training, which the adapter's fp32 parts need on a bf16 base."""
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            yield


def record_of(base_folder: Path, adapter: Path | None) -> dict[str, Any]:
    """Return `ixtune.json` of an adapter or a merged model; empty for a base.

    Raises:
        IxtuneError: It exists and cannot be read.
    """
    return read_info(adapter) if adapter else _record_of_merged(base_folder)


def view_of(record: Mapping[str, Any], hd_num: int | None, member: Member, usual: int | None = None) -> ImageView:
    """Return a model's image layout: as in its training, with another `hd_num` if one is given.

    Args:
        record: From `record_of`.
        hd_num: Maximum crops per image; None as in training.
        member: Member of the base, whose chat decides the layout rule of an untrained model.
        usual: Maximum crops per image for an untrained model; None for the reference's own.

    Raises:
        UsageError: `hd_num` is less than 1.
    """
    require_at_least("hd_num", hd_num, 1)
    corrections = Corrections.of(record.get("corrections", ()))
    laid_out = member_of(record) if record else member.at_inference
    given = hd_num or record.get("hd_num") or usual
    among = None if given else member.hd_num_among
    return ImageView(given or member.hd_num, bool(record.get("upscale", True)), corrections, laid_out, among)


def _record_of_merged(folder: Path) -> dict[str, Any]:
    """Return `ixtune.json` of a merged or exported model; empty for another base.

    Raises:
        IxtuneError: It exists and cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IxtuneError(f"{RECORD_FILE} cannot be read", where=str(path), hint="merge again") from error
    return record if isinstance(record, dict) and record.get("kind") == "merged" else {}
