"""Known GPUs: peak rate of their matrix units, and the measured fraction of it that training reaches."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ixtune import platforms


@dataclass(frozen=True, slots=True)
class Card:
    """GPU model.

    Attributes:
        name: common name.
        tflops: dense products of bf16 summed in fp32, by the maker's data sheet, in 10^12 operations per second.
        measured_share: fraction of that measured in a training run of the 7B; None if not measured.
    """

    name: str
    tflops: float
    measured_share: float | None = None


# From NVIDIA's data sheets and architecture papers, without sparsity. The share of an H200 is that of a run of `ixtune
# train` on packs of 7,191 tokens, 5 steps, nothing computed twice (tests/bench/results/full_size.csv); other times are
# bounds.
CARDS = (
    Card("RTX 3090", 71.0),
    Card("RTX 4090", 165.2),
    Card("RTX 5090", 209.5),
    Card("RTX A6000", 154.8),
    Card("A10", 125.0),
    Card("L4", 121.0),
    Card("L40S", 362.0),
    Card("A100", 312.0),
    Card("H100 PCIe", 756.0),
    Card("H100", 989.5),
    Card("H200", 989.5, 0.32),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Machine for a run.

    Attributes:
        device: `cuda` or `cpu`.
        memory_bytes: memory that a run may use; None if unknown.
        source: source of that figure, in words.
        card: the GPU, if it is a known one.
    """

    device: str
    memory_bytes: int | None
    source: str
    card: Card | None = None


def card_named(name: str) -> Card | None:
    """Return the known card for a driver's name, e.g. `NVIDIA A100-SXM4-80GB`."""
    words = name.replace("-", " ").split()
    if "Laptop" in words:  # slower cards with the same name
        return None
    return next((card for card in CARDS if set(card.name.split()) <= set(words)), None)


def detect(gpu_gib: float | None = None) -> Machine:
    """Describe this machine: its GPU if there is a driver, else its main memory.

    torch is imported to ask the GPU, and only where the driver is there.

    Args:
        gpu_gib: assume a GPU with this much usable memory.
    """
    name, total = _gpu()
    if gpu_gib is not None:
        return Machine("cuda", round(gpu_gib * 2**30), "as given", card_named(name) if name else None)
    if name is not None:
        return Machine("cuda", total, name, card_named(name))
    return Machine("cpu", platforms.available_bytes(), "main memory that is free now; there is no GPU here")


def _gpu() -> tuple[str | None, int | None]:
    """Return name and memory of the first GPU."""
    if "torch" not in sys.modules and not platforms.has_nvidia_driver():
        return None, None
    import torch

    if not torch.cuda.is_available():
        return None, None
    return torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
