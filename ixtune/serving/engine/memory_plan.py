"""Bound the memory of a server before it answers: weights, keys and values, kept images, waiting requests."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ixtune.errors import UsageError
from ixtune.model.configuration import IXC2Config
from ixtune.serving.engine.job import Limits
from ixtune.serving.engine.models import Models


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Upper bounds in bytes.

    Attributes:
        weights: Base and adapters, as loaded; without the scales of NF4, a thirtieth of its weights.
        prefixes: Kept keys and values of images.
        running: Keys and values of running answers.
        vectors: Kept image vectors, in main memory.
        requests: Images of waiting requests, in main memory.
        on_gpu: Weights, keys and values are in the memory of a GPU, of which `free` bytes were left after loading.
        free: Free bytes of the GPU; 0 without one.
    """

    weights: int
    prefixes: int
    running: int
    vectors: int
    requests: int
    on_gpu: bool
    free: int

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        device, main = ("GPU", "main memory") if self.on_gpu else ("memory", "")
        return [
            f"{device:<11}  {_gib(self.weights)} weights, up to {_gib(self.prefixes)} of recent images, "
            f"up to {_gib(self.running)} of running answers",
            f"{main:<11}  up to {_gib(self.vectors)} of image vectors, up to {_gib(self.requests)} of waiting requests",
        ]

    def require_room(self) -> None:
        """Refuse bounds that the GPU cannot hold.

        Raises:
            UsageError: Keys and values could take more than is free.
        """
        if self.on_gpu and self.prefixes + self.running > self.free:
            raise UsageError(
                f"keys and values may take {_gib(self.prefixes + self.running)}, and {_gib(self.free)} of the GPU are "
                "free",
                hint="lower --running-tokens or --cache-gib, or pass --quantize nf4",
            )


def plan_of(models: Models, limits: Limits) -> MemoryPlan:
    """Return the bounds for loaded models."""
    networks = [models.base_model, *(models.network(name) for name in models.by_name)]
    tensors = {id(tensor): tensor for network in networks for tensor in (*network.parameters(), *network.buffers())}
    device = next(models.base_model.parameters()).device
    on_gpu = device.type == "cuda"
    return MemoryPlan(
        weights=sum(tensor.nbytes for tensor in tensors.values()),
        prefixes=limits.prefix_bytes,
        running=limits.running_tokens * bytes_per_token(models.base_model.config, models.dtype),
        vectors=limits.vector_bytes,
        requests=limits.waiting_bytes,
        on_gpu=on_gpu,
        free=torch.cuda.mem_get_info(device)[0] if on_gpu else 0,
    )


def bytes_per_token(config: IXC2Config, dtype: torch.dtype) -> int:
    """Return the bytes of the keys and values of one token in all layers: 128 KiB for the 7B in bf16."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"
