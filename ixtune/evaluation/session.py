"""A model as commands open it: a base with its adapter if there is one, and how it was trained to see images."""

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
from ixtune.data.processor_files import DEFAULT_HD_NUM
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.evaluation.contenders import contender, require_form
from ixtune.evaluation.questions import View
from ixtune.files import sha256_file
from ixtune.model.loading import load_base
from ixtune.training.monitoring.validation import DTYPES

CACHE_BYTES = 1 << 30  # of image vectors, which base and adapter share


class Loaded:
    """A base, with its adapter if there is one, ready to answer."""

    def __init__(self, base_name: str | None, adapter: Path | None, quantize: str | None, force: bool = False) -> None:
        """Load.

        Args:
            base_name: None for the base the adapter names.
            adapter: adapter or run folder.
            quantize: `nf4` or `none`; None as the adapter was trained.
            force: accept another base than the adapter was trained on.

        Raises:
            UsageError: neither base nor adapter is named, or `quantize` is something else.
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
        # how training saw images; a base has no such habits
        self.hd_num: int | None = info.get("hd_num")
        self.info = info
        self.base_model, self.quantized = load_base(folder, quantize=self.quantize == "nf4", dtype=self.dtype)
        self.adapter = folder_of_adapter
        self.model: Any = self.base_model
        self.identity = base_identity(open_checkpoint(folder))
        if folder_of_adapter is not None:
            self.model = bundle.load(self.base_model, folder_of_adapter, self.identity, force)

    def description(self) -> dict[str, Any]:
        """What tells this model from others."""
        weights = sha256_file(self.adapter / WEIGHTS_FILE) if self.adapter else None
        return {"base_identity": self.identity, "adapter_sha256": weights, "quantize": self.quantize}

    def view(self, hd_num: int | None) -> View:
        """How to show it images: as in training, but for an `hd_num` that is given."""
        return view_of(self.info, hd_num)

    def trains_separators(self) -> bool:
        """Whether the adapter has separators of its own."""
        return self.adapter is not None and any("plora_" in name for name in read_adapter(self.adapter).whole)

    @contextmanager
    def as_base(self) -> Iterator[Any]:
        """The model with the adapter, projector included, switched off."""
        if self.adapter is None:
            yield self.model
        else:
            with self.model.disable_adapter():
                yield self.model

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The type training ran in; the adapter's fp32 parts need it on a bf16 base."""
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            yield


def record_of(base_folder: Path, adapter: Path | None) -> dict[str, Any]:
    """`ixtune.json` of an adapter, or of a merged model; empty for a base.

    Raises:
        IxtuneError: there is one that cannot be read.
    """
    return read_info(adapter) if adapter else _record_of_merged(base_folder)


def view_of(record: Mapping[str, Any], hd_num: int | None, usual: int | None = None) -> View:
    """How to show images to a model: as in its training, but for an `hd_num` that is given.

    Args:
        record: Of `record_of`.
        hd_num: The most crops; None as in training.
        usual: The most crops where nothing was trained; None for the reference's own.
    """
    corrections = Corrections.of(record.get("corrections", ()))
    most = hd_num or record.get("hd_num") or usual or DEFAULT_HD_NUM
    return View(most, bool(record.get("upscale", True)), corrections)


def _record_of_merged(folder: Path) -> dict[str, Any]:
    """`ixtune.json` of a merged or exported model; empty for another base.

    Raises:
        IxtuneError: there is one that cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IxtuneError(f"{RECORD_FILE} cannot be read", where=str(path), hint="merge again") from error
    return record if isinstance(record, dict) and record.get("kind") == "merged" else {}
