"""What is trained: LoRA on the chosen decoder linears, and the projector. Nothing else, and that is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ixtune.errors import IxtuneError
from ixtune.model.model import IXC2ForCausalLM
from ixtune.recipe import AdapterSection

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECTOR = "vision_proj"


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """One row of the table of what is trained."""

    name: str
    tensors: int
    parameters: int
    dtype: str


def lora_config(section: AdapterSection) -> LoraConfig:
    """PEFT's configuration of a recipe's adapter section."""
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # annotated int, only ever divided by r
        lora_dropout=section.dropout,
        target_modules=list(section.targets),
        modules_to_save=[PROJECTOR] if section.projector == "full" else None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def attach(model: IXC2ForCausalLM, section: AdapterSection) -> PeftModel:
    """Wrap the base with a fresh adapter (B = 0, so that it changes nothing yet).

    Raises:
        IxtuneError: something outside the adapter is trainable, or a target is missing.
    """
    wrapped = get_peft_model(model, lora_config(section))
    restore_fp32(wrapped)
    check(wrapped, section)
    return wrapped


def trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Named trainable parameters."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def restore_fp32(model: torch.nn.Module) -> None:
    """Make every trained tensor an fp32 master.

    TRL casts them to bf16 on a 4-bit base; at a learning rate of 2e-5 a projector then never moves (TRAPS.md 10b).
    To be called before the optimizer exists.
    """
    for _, parameter in trainable(model):
        parameter.data = parameter.data.float()


def check(model: torch.nn.Module, section: AdapterSection) -> None:
    """Assert that exactly the adapter is trainable, and in fp32.

    Raises:
        IxtuneError: naming the tensors.
    """
    strangers, lora_targets = [], set()
    for name, parameter in trainable(model):
        if ".lora_A." in name or ".lora_B." in name:
            lora_targets.add(name.split(".lora_")[0].rsplit(".", 1)[-1])
        elif not (section.projector == "full" and f".{PROJECTOR}.modules_to_save." in name):
            strangers.append(name)
        if parameter.dtype != torch.float32:
            strangers.append(f"{name} ({parameter.dtype})")
    missing = sorted(set(section.targets) - lora_targets)
    if strangers or missing:
        raise IxtuneError(
            f"the trainable part is not the adapter: {len(strangers)} other or non-fp32 tensors, "
            f"targets without LoRA: {', '.join(missing) or 'none'}",
            where=", ".join(strangers[:3]) or "adapter",
            mend="this is a fault of ixtune with this version of peft or trl: please report it",
        )


def table(model: torch.nn.Module) -> list[TrainedPart]:
    """What is trained, summed up by part."""
    sums: dict[str, list[int]] = {}
    kinds: dict[str, str] = {}
    for name, parameter in trainable(model):
        part = "projector" if PROJECTOR in name else "LoRA " + name.split(".lora_")[0].rsplit(".", 1)[-1]
        count = sums.setdefault(part, [0, 0])
        count[0] += 1
        count[1] += parameter.numel()
        kinds[part] = str(parameter.dtype).removeprefix("torch.")
    return [TrainedPart(part, tensors, parameters, kinds[part]) for part, (tensors, parameters) in sums.items()]
