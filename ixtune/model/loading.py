"""Load a base checkpoint into a model, completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import GenerationConfig

from ixtune.checkpoint.name_mapping import to_original_name
from ixtune.checkpoint.shards import Checkpoint, open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.family import ANY_TITLE
from ixtune.model import nf4, stored_nf4
from ixtune.model.attention import NAME as SEGMENTS
from ixtune.model.configuration import MODEL_TYPE, IXC2Config
from ixtune.model.model import IXC2ForCausalLM


def read_config(folder: Path) -> IXC2Config:
    """Read the configuration of a base folder.

    Raises:
        IxtuneError: config.json is not one of this architecture.
    """
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise IxtuneError(
            f"config.json cannot be read: {error}",
            where=str(path),
            hint="the file is damaged; download or copy it again",
        ) from error
    if kind not in (MODEL_TYPE, "internlm2"):
        raise IxtuneError(
            f"this is a {kind!r} checkpoint, not {ANY_TITLE}",
            where=str(path),
            hint="pass the folder of such a checkpoint (model_type internlmxcomposer2), or `nano`",
        )
    return IXC2Config.from_pretrained(folder, name_or_path=str(folder))


def expected_shapes(config: IXC2Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a configuration by original name."""
    with torch.device("meta"):
        model = IXC2ForCausalLM(config)
    return {to_original_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_tensors(checkpoint: Checkpoint, config: IXC2Config, folder: Path) -> None:
    """Compare tensor names and shapes before loading anything.

    Raises:
        IxtuneError: tensors are missing, too many, or of another shape; each is named.
    """
    expected = expected_shapes(config)
    found = {info.name: tuple(info.shape) for info in checkpoint.tensors}
    notes = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    notes += [f"not part of the model: {name} {list(shape)}" for name, shape in found.items() if name not in expected]
    notes += [
        f"wrong shape: {name} is {list(found[name])}, config.json requires {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if notes:
        raise IxtuneError(
            f"the checkpoint does not fit its config.json: {len(notes)} tensors differ",
            where=str(folder),
            hint="use the complete original checkpoint; the first differences are listed",
            notes=notes[:8] + ([f"and {len(notes) - 8} more"] if len(notes) > 8 else []),
        )


def load_base(
    folder: Path, *, quantize: bool, dtype: torch.dtype, device: str | None = None
) -> tuple[IXC2ForCausalLM, nf4.Quantized | None]:
    """Load a base in evaluation mode, frozen.

    Args:
        folder: a base in the original form.
        quantize: load decoder linears in NF4, quantizing them as they stream in; linears stored in NF4 are loaded
            unchanged in any case.
        dtype: dtype of everything else, and of the quantized layers' products.
        device: target device; None for the GPU if there is one.

    Returns:
        (the model, the counts of the quantization or None)

    Raises:
        IxtuneError: the checkpoint does not fit, or other layers than the decoder linears were quantized.
    """
    config = read_config(folder)
    checkpoint = open_checkpoint(folder)
    stored = stored_nf4.is_stored(folder)
    if not stored:
        check_tensors(checkpoint, config, folder)
    config.name_or_path = str(folder)  # PEFT records it with the adapter
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if stored:
        del config.quantization_config  # transformers' own loader reads it; here the layers are replaced by name
    model = empty(config, quantize=quantize or stored, dtype=dtype)
    if stored:
        stored_nf4.fill(model, checkpoint, config, dtype, place)
    else:
        fill(model, checkpoint, dtype, place)
    return model, nf4.settle(model, config) if quantize or stored else None


def empty(config: IXC2Config, *, quantize: bool, dtype: torch.dtype) -> IXC2ForCausalLM:
    """Create the frozen network on the meta device, in evaluation mode."""
    with torch.device("meta"):
        model = cast(
            IXC2ForCausalLM,
            IXC2ForCausalLM._from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, attn_implementation=SEGMENTS
            ),
        )
    if quantize:
        nf4.put_in_place(model, dtype)
    # Generation settings are chosen by the caller; the original's would sample and cap the length at 4,480.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    return model


def fill(model: IXC2ForCausalLM, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
    """Load the weights tensor by tensor, quantizing decoder linears if the model has them in NF4.

    One tensor at a time is in memory in the precision of the checkpoint. transformers' own loader maps every shard
    as a whole and keeps it: on a CPU, loading in NF4 took more memory than the 16-bit checkpoint has (TRAPS.md 16c).
    """
    places = {to_original_name(name): name for name, _ in model.named_parameters()}
    for info in checkpoint.tensors:
        module_name, _, leaf = places[info.name].rpartition(".")
        module = model.get_submodule(module_name)
        value = checkpoint.read(info.name).to(dtype)
        if leaf == "weight" and nf4.is_quantized(module):
            parameter = nf4.quantized(value, device)
        else:
            parameter = nn.Parameter(value.to(device), requires_grad=False)
        setattr(module, leaf, parameter)
    unfilled = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if unfilled:
        raise IxtuneError(
            f"{len(unfilled)} tensors of the network have no value",
            where=", ".join(unfilled[:3]),
            hint="this is a bug in ixtune with this version of transformers: please report it",
        )
