"""Attach the trainable parts to a base: LoRA on chosen linears, projector, separators; check that only they train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from ixtune.adapter import dora
from ixtune.errors import IxtuneError
from ixtune.model.model import IXC2ForCausalLM
from ixtune.model.nf4 import is_decoder_linear
from ixtune.recipe.recipe import AdapterSection
from ixtune.recipe.value_types import Target

PROJECTOR = "vision_proj"
SEPARATORS = "separators"

_PROJECTOR_LINEARS = (f"{PROJECTOR}.0", f"{PROJECTOR}.2")
ADAPTER = "default"  # PEFT's name of the single adapter
_VARIANTS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}
_ROLES = {"lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "magnitude"}


class Tensor(NamedTuple):
    """Part, place and role of a trained tensor.

    Attributes:
        part: `lora`, `projector` or `separators`.
        place: The decoder linear; for other parts, the part itself.
        role: A, B or magnitude of LoRA; `whole` for a tensor that is trained in full.
    """

    part: Literal["lora", "projector", "separators"]
    place: str
    role: Literal["A", "B", "magnitude", "whole"]


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """Row of the table of trained parts; rank, alpha and dropout are None without LoRA.

    Attributes:
        name: Such as `LoRA wqkv`, `projector`.
        part: `lora`, `projector` or `separators`.
        tensors: Number of tensors.
        parameters: Total number of parameters.
        dtype: Dtype of the trained weights.
        rank: LoRA rank.
        alpha: LoRA alpha.
        dropout: Dropout before LoRA's A.
    """

    name: str
    part: str
    tensors: int
    parameters: int
    dtype: str
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None


class Lora(NamedTuple):
    """LoRA settings of one target."""

    rank: int
    alpha: float
    dropout: float


def lora_of(section: AdapterSection, target: Target) -> Lora:
    """Return the target's own settings, completed by those of the section."""
    common = Lora(section.rank, section.alpha, section.dropout)
    own = section.per_target.get(target)
    return common._replace(**own.model_dump(exclude_none=True)) if own else common


def lora_config(section: AdapterSection) -> LoraConfig:
    """Return PEFT's configuration for an adapter section; PEFT has no dropout per target."""
    modules: list[tuple[Target, tuple[str, ...]]] = [
        (target, (target,) if section.layers is None else tuple(_in_layers(target, section.layers)))
        for target in section.targets
    ]
    if section.projector == "lora":
        modules.append(("projector", _PROJECTOR_LINEARS))
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for target, names in modules:
        own = lora_of(section, target)
        # suffixes of the names are enough as patterns
        names = (target,) if target != "projector" else names
        ranks |= dict.fromkeys(names, own.rank) if own.rank != section.rank else {}
        alphas |= dict.fromkeys(names, own.alpha) if own.alpha != section.alpha else {}
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # annotated int, only ever divided
        lora_dropout=section.dropout,
        # PEFT's value for an adapter without LoRA; it refuses an empty list
        target_modules=[name for _, names in modules for name in names] or DUMMY_TARGET_MODULES,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_rslora=section.variant == "rslora",
        use_dora=section.variant == "dora",
        modules_to_save=_saved_whole(section) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _in_layers(target: str, layers: Sequence[int]) -> Iterator[str]:
    """Yield the name suffixes of a target's modules in some layers; PEFT matches whole name components."""
    part = "attention" if target in ("wqkv", "wo") else "feed_forward"
    return (f"layers.{layer}.{part}.{target}" for layer in layers)


def attach(model: IXC2ForCausalLM, section: AdapterSection) -> PeftModel:
    """Wrap the base with a new adapter (B = 0, so that it changes nothing yet).

    Raises:
        IxtuneError: something outside the adapter is trainable, or a target is missing.
    """
    wrapped = get_peft_model(model, lora_config(section))
    for name, layer in lora_layers(wrapped):
        target = cast(Target, _tensor(f"{name}.lora_A").place)
        dropout = lora_of(section, target).dropout
        layer.lora_dropout[ADAPTER] = nn.Dropout(dropout) if dropout else nn.Identity()
    dora.install(wrapped, fresh=True)
    restore_fp32(wrapped)
    check(wrapped, section)
    return wrapped


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trainable parameters with their names."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def trained(model: nn.Module) -> Iterator[tuple[Tensor, nn.Parameter]]:
    """Yield the trainable parameters with part, place and role."""
    return ((_tensor(name), parameter) for name, parameter in trainable(model))


def restore_fp32(model: nn.Module) -> None:
    """Cast every trained tensor to fp32.

    TRL casts them to bf16 on a 4-bit base; at a learning rate of 2e-5 a projector then never moves (TRAPS.md 10b).
    Call this before the optimizer is created.
    """
    for _, parameter in trainable(model):
        parameter.data = parameter.data.float()


def check(model: PeftModel, section: AdapterSection) -> None:
    """Assert that exactly the adapter is trainable, and in fp32.

    Raises:
        IxtuneError: naming the tensors.
    """
    expected = _expected(model, section)
    found = dict(trainable(model))
    strangers = [name for name in found if name not in expected]
    strangers += [f"{name} ({p.dtype})" for name, p in found.items() if p.dtype != torch.float32]
    missing = sorted(expected - found.keys())
    if strangers or missing:
        raise IxtuneError(
            f"the trainable part is not the adapter: {len(strangers)} other or non-fp32 tensors, "
            f"{len(missing)} of the adapter's {len(expected)} missing",
            where=", ".join((strangers + missing)[:3]),
            hint="this is a bug in ixtune with this version of peft or trl: please report it",
        )


def table(model: PeftModel) -> list[TrainedPart]:
    """Return the table of trained parts, from the model itself."""
    config = cast(LoraConfig, model.peft_config[ADAPTER])
    variant = _VARIANTS["dora" if config.use_dora else "rslora" if config.use_rslora else "lora"]
    layers = {_tensor(f"{name}.lora_A").place: layer for name, layer in lora_layers(model)}
    by_place: dict[str, list[tuple[Tensor, nn.Parameter]]] = {}
    for tensor, parameter in trained(model):
        by_place.setdefault(tensor.place, []).append((tensor, parameter))
    rows = []
    for place, members in by_place.items():
        layer = layers.get(place)
        rows.append(
            TrainedPart(
                name=f"{variant} {place}" if layer else place,
                part=members[0][0].part,
                tensors=len(members),
                parameters=sum(parameter.numel() for _, parameter in members),
                dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for _, p in members})),
                rank=layer.r[ADAPTER] if layer else None,
                alpha=layer.lora_alpha[ADAPTER] if layer else None,
                dropout=_dropout(layer) if layer else None,
            )
        )
    return rows


def _saved_whole(section: AdapterSection) -> list[str]:
    """Return the modules that are trained and saved whole."""
    return [PROJECTOR] * (section.projector == "full") + [SEPARATORS] * section.separators


def lora_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """Yield every module with LoRA and its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _dropout(layer: LoraLayer) -> float:
    """Return the dropout rate of a branch; one of `lean_lora` applies it inside A."""
    in_front = getattr(layer.lora_dropout[ADAPTER], "p", 0.0)
    return float(in_front or getattr(layer.lora_A[ADAPTER], "dropout", 0.0))


def _tensor(name: str) -> Tensor:
    """Return part, place and role of a tensor by its name in the wrapped model."""
    module, _, rest = name.partition(".lora_")
    role = cast(Literal["A", "B", "magnitude"], _ROLES[f"lora_{rest.split('.')[0]}"]) if rest else "whole"
    if f".{PROJECTOR}." in f"{module}.":
        return Tensor("projector", "projector", role)
    if f".{SEPARATORS}." in module:
        return Tensor("separators", "separators", role)
    return Tensor("lora", module.rpartition(".")[2], role)


def _expected(model: PeftModel, section: AdapterSection) -> set[str]:
    """Return the names of all tensors that the section trains."""
    base = cast(IXC2ForCausalLM, model.get_base_model())
    linears = [
        name
        for name, _ in base.named_modules()
        if is_decoder_linear(name)
        and name.rpartition(".")[2] in section.targets
        and (section.layers is None or int(name.split(".")[2]) in section.layers)
    ]
    linears += _PROJECTOR_LINEARS if section.projector == "lora" else ()
    sides = [side for side, role in _ROLES.items() if role != "magnitude" or section.variant == "dora"]
    names = {f"{linear}.{side}.{ADAPTER}.weight" for linear in linears for side in sides}
    for whole in _saved_whole(section):
        module = base.get_submodule(whole)
        original = getattr(module, "original_module", module)
        names |= {f"{whole}.modules_to_save.{ADAPTER}.{leaf}" for leaf, _ in original.named_parameters()}
    return {f"base_model.model.{name}" for name in names}
