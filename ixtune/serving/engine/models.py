"""Load a base once, with any number of adapters on it.

Each adapter gets its own network: its modules are copies, its weights are the base's tensors.
PEFT can hold several adapters in one network, but not every pair: where one trains the projector itself and another has
LoRA on it, the second has no effect.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ixtune import base
from ixtune.adapter import bundle
from ixtune.adapter.weights import read_adapter
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import UsageError
from ixtune.evaluation.contenders import Contender
from ixtune.evaluation.questions import ImageView
from ixtune.evaluation.session import record_of, view_of
from ixtune.model.loading import load_base
from ixtune.model.model import IXC2ForCausalLM
from ixtune.training.monitoring.validation import DTYPES


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that clients can name.

    Attributes:
        name: Name in requests.
        adapter: Its folder; None for the base itself or a merged model.
        view: Image layout of its training.
        shares_vectors: Its images have the same vectors before the projector as those of the base.
    """

    name: str
    adapter: Path | None
    view: ImageView
    shares_vectors: bool


def require_one_base(served: Sequence[Contender]) -> str:
    """Return the base of all models, before anything is loaded.

    Raises:
        UsageError: There are several.
    """
    bases = list(dict.fromkeys(one.base for one in served))
    if len(bases) > 1:
        raise UsageError(
            f"the models have {len(bases)} bases, {' and '.join(bases)}, and one is loaded",
            hint="start one server for each, or pass --base if it is one base under two names",
        )
    return bases[0]


class Models:
    """A base in memory with its adapters.

    Attributes:
        by_name: The models that clients can name, the first adapter first: the default of the page.
        tokenizer: The base's.
        base_model: The network without an adapter.
        member: Member of the family.
        created: Time of loading, in seconds since 1970.
    """

    def __init__(self, served: Sequence[Contender], quantize: str | None, force: bool = False) -> None:
        """Load.

        Args:
            served: Models on one base; those with an adapter have the name of the adapter.
            quantize: `nf4` or `none`; None as the adapters were trained.
            force: Accept another base than the adapters were trained on.

        Raises:
            UsageError: The adapters were trained with different quantization or dtype.
            IxtuneError: An adapter does not fit the base.
        """
        folder = base.resolve(require_one_base(served))
        records = {one.name: record_of(folder, one.adapter) for one in served}
        trained = [records[one.name] for one in served if one.adapter] or [records[served[0].name]]
        self.quantize = quantize or str(_common(trained, "quantize", [str(r.get("quantize", "none")) for r in trained]))
        self.dtype = DTYPES[_common(trained, "training.compute_dtype", [_dtype(record) for record in trained])]
        self.tokenizer = Tokenizer.from_base(folder)
        self.base_model, _ = load_base(folder, quantize=self.quantize == "nf4", dtype=self.dtype)
        self.member = self.base_model.config.member
        self.created = int(time.time())
        identity = base_identity(open_checkpoint(folder))
        self._networks: dict[str, Any] = {}
        for one in served:
            network: Any = self.base_model
            if one.adapter is not None:
                network = bundle.load(sharing_copy(self.base_model), one.adapter, identity, force)
            self._networks[one.name] = network
        order = sorted(served, key=lambda one: one.adapter is None)
        self.by_name = {one.name: self._served(one, records[one.name]) for one in order}

    def network(self, name: str) -> Any:
        """Return the network of a model, bare or with its adapter."""
        return self._networks[name]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run under autocast in the dtype of training, which adapters' fp32 parts need on a bf16 base."""
        device = next(self.base_model.parameters()).device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            yield

    def _served(self, one: Contender, record: dict[str, Any]) -> ServedModel:
        # trained separators are part of the vectors
        own = one.adapter is not None and any("plora_" in name for name in read_adapter(one.adapter).whole)
        return ServedModel(one.name, one.adapter, view_of(record, None, self.member), not own)


def sharing_copy(model: IXC2ForCausalLM) -> IXC2ForCausalLM:
    """Return a copy of a network that shares the parameters and buffers of the original."""
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    # scales of NF4 weights are not buffers
    states = [tensor.quant_state for tensor in tensors if getattr(tensor, "quant_state", None) is not None]
    return copy.deepcopy(model, {id(one): one for one in (*tensors, *states)})


def _dtype(record: dict[str, Any]) -> str:
    recipe = record.get("recipe") or (record.get("adapters") or [{}])[-1].get("recipe") or {}
    return str(recipe.get("training", {}).get("compute_dtype", "bf16"))


def _common(records: Sequence[dict[str, Any]], key: str, values: Sequence[str]) -> str:
    """Return the value that all adapters have."""
    if len(set(values)) > 1:
        raise UsageError(
            f"the adapters were trained with different {key}: {' and '.join(sorted(set(values)))}",
            hint="start one server for each" + (", or pass --quantize" if key == "quantize" else ""),
        )
    return values[0]
