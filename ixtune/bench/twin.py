"""Build a network of the 7B's proportions that takes a step in seconds on a CPU, with random weights in NF4.

Eight times narrower, half as deep, records an eighth as long: attention, head, PLoRA, LoRA, projector and vision tower
then have the shares of a training step that they have in the 7B, within one point (a test checks that).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ixtune.bench import mix
from ixtune.checkpoint.sizes import Sizes, Trained
from ixtune.planning.flops import flops

if TYPE_CHECKING:
    import torch

    from ixtune.model.model import IXC2ForCausalLM

CONFIG: dict[str, Any] = {
    "vocab_size": 5792,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "plora": {"wqkv": {"rank": 1, "alpha": 2}, "others": {"rank": 32, "alpha": 32}},
    # Deeper than wide: a view always has 577 positions, so that attention scores of a wide tower would weigh too much.
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 7,
        "num_attention_heads": 2,
        "projection_dim": 64,
    },
}
RANK = 8
FULL_RANK = 64
_LINEARS = ("wqkv", "wo", "w1", "w2", "w3")


def trained(rank: int) -> Trained:
    """Return the trained parts: LoRA on all five linears, and the whole projector."""
    return Trained(ranks=dict.fromkeys(_LINEARS, rank), projector="full")


def shares(sizes: Sizes, rank: int, scale: int, count: int = 32) -> dict[str, float]:
    """Return the share of each part in a plain training step on the mix, with the head on every position."""
    records = mix.records(count, scale=scale)
    whole = mix.shape(records)
    plain = flops(sizes, trained(rank), whole)
    head = 4 * whole.tokens * sizes.vocabulary * sizes.hidden
    parts = {name: getattr(plain, name) for name in ("linears", "lora", "plora", "attention", "vit", "projector")}
    parts["head"] = head
    return {name: operations / sum(parts.values()) for name, operations in parts.items()}


def build(config: dict[str, Any], *, nf4: bool, device: str = "cpu", seed: int = 0) -> IXC2ForCausalLM:
    """Build the frozen network with random bf16 weights, quantizing the decoder linears to NF4 one by one.

    Args:
        config: overrides in the form of config.json; empty for the 7B.
        nf4: whether the decoder linears are quantized.
        device: device on which the weights are drawn and stay.
        seed: random seed of the weights.
    """
    import torch
    from torch import nn

    from ixtune.model import nf4 as quantization
    from ixtune.model.configuration import IXC2Config
    from ixtune.model.loading import empty

    full = IXC2Config.from_dict(config)
    model = empty(full, quantize=nf4, dtype=torch.bfloat16)
    source = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        shape = _shape(module, parameter) if leaf == "weight" else parameter.shape
        value = torch.empty(shape, dtype=torch.bfloat16, device=device)
        if leaf == "weight" and len(shape) == 1:
            value.fill_(1)  # norms
        else:
            value.normal_(0, 0.02, generator=source)
        if leaf == "weight" and quantization.is_quantized(module):
            setattr(module, leaf, quantization.quantized(value, device))
        else:
            setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    if nf4:
        quantization.settle(model, full)
    return model


def _shape(module: Any, parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a weight before quantization."""
    from ixtune.model.nf4 import is_quantized

    return (module.out_features, module.in_features) if is_quantized(module) else tuple(parameter.shape)
