"""Load a checkpoint whose decoder linears are stored in NF4.

The format is that of bitsandbytes and transformers: next to `X.weight`, the packed codes, there are `X.weight.absmax`
and so on, and config.json holds a `quantization_config`. Nothing is quantized at loading, and the 16-bit weights are
not needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ixtune.checkpoint.shards import Checkpoint
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.tensor_shapes import linear_name, tensor_shapes
from ixtune.errors import IxtuneError
from ixtune.model.configuration import DECODER_LINEARS, IXC2Config
from ixtune.model.nf4 import quantized
from ixtune.model.notices import without_kernels_notice

# stored by bitsandbytes in addition to the codes: block scales in bytes, their scales in floats, two tables
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")


def is_stored(folder: Path) -> bool:
    """Return whether a checkpoint folder declares its decoder linears as 4-bit."""
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def quantization_config(skipped: list[str], compute_dtype: torch.dtype) -> dict[str, Any]:
    """Return the `quantization_config` entry of config.json, in transformers' format.

    Args:
        skipped: Path of every linear that stays in 16 bits. transformers quantizes any other plain linear, and
            matches no substrings: each is listed (TRAPS.md 1).
        compute_dtype: Dtype of the products.
    """
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": str(compute_dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": skipped,
    }


def linears(sizes: Sizes) -> list[str]:
    """Return the original names of the 4-bit weights, `.weight` included."""
    return [f"{linear_name(layer, linear)}.weight" for layer in range(sizes.layers) for linear in DECODER_LINEARS]


def stored_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of such a checkpoint by name; (-1,) for the text of a quantization state."""
    shapes = tensor_shapes(sizes)
    for name in linears(sizes):
        count = shapes[name][0] * shapes[name][1]
        blocks = -(-count // 64)
        own = ((blocks,), (16,), (-(-blocks // 256),), (256,), (-1,))
        shapes[name] = (-(-count // 2), 1)
        shapes |= {f"{name}.{part}": shape for part, shape in zip(PARTS, own, strict=True)}
    return shapes


def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors that are stored for a weight [out, in], quantized as at loading."""
    with without_kernels_notice():
        parameter = cast(Any, quantized(weight, "cpu"))
    state = parameter.quant_state.as_dict(packed=True)
    return {name: parameter.data} | {f"{name}.{part}": tensor for part, tensor in state.items()}


def check(checkpoint: Checkpoint, sizes: Sizes) -> list[str]:
    """List missing, unexpected and misshapen tensors, one line each."""
    expected = stored_shapes(sizes)
    found = {info.name: tuple(info.shape) for info in checkpoint.tensors}
    notes = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    notes += [f"not part of the model: {name}" for name in found if name not in expected]
    notes += [
        f"wrong shape: {name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and shape != (-1,) and found[name] != shape
    ]
    return notes


def fill(model: nn.Module, checkpoint: Checkpoint, config: IXC2Config, dtype: torch.dtype, device: str) -> None:
    """Load every tensor, 4-bit ones unchanged.

    Args:
        model: Network on the meta device, with 4-bit layers in place.
        checkpoint: Checkpoint in this format.
        config: Configuration of the model.
        dtype: Dtype of everything that is not in 4 bits.
        device: Target device.

    Raises:
        IxtuneError: Tensors are missing, too many, or of another shape.
    """
    from ixtune.checkpoint.name_mapping import to_original_name

    if notes := check(checkpoint, config.sizes):
        raise IxtuneError(
            f"the 4-bit checkpoint does not fit its config.json: {len(notes)} tensors differ",
            where=str(checkpoint.folder),
            hint="copy the whole folder again, or export it again; the first differences are listed",
            notes=notes[:8],
        )
    in_4_bits = set(linears(config.sizes))
    for module_name, _ in list(model.named_parameters()):
        name = to_original_name(module_name)
        path, _, leaf = module_name.rpartition(".")
        if name in in_4_bits:
            parameter = _parameter(name, checkpoint, device)
        else:
            parameter = nn.Parameter(checkpoint.read(name).to(device, dtype), requires_grad=False)
        setattr(model.get_submodule(path), leaf, parameter)


def _parameter(name: str, checkpoint: Checkpoint, device: str) -> nn.Parameter:
    from bitsandbytes.nn import Params4bit

    stats = {f"{name}.{part}": checkpoint.read(f"{name}.{part}") for part in PARTS}
    made = Params4bit.from_prequantized(checkpoint.read(name), stats, requires_grad=False, device=device)
    return cast(nn.Parameter, made)
