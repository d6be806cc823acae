"""A base checkpoint -> a model, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from ixtune.errors import IxtuneError
from ixtune.model import nf4
from ixtune.model.attention import NAME as SEGMENTS
from ixtune.model.checkpoint import to_original_name
from ixtune.model.configuration import MODEL_TYPE, IXC2Config
from ixtune.model.model import IXC2ForCausalLM
from ixtune.model.notices import without_kernels_notice
from ixtune.model.shards import Checkpoint, open_checkpoint


def read_config(folder: Path) -> IXC2Config:
    """The configuration of a base folder.

    Raises:
        IxtuneError: config.json is not one of this architecture.
    """
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise IxtuneError(
            f"config.json cannot be read: {error}", where=str(path), mend="copy it again from where it came"
        ) from error
    if kind not in (MODEL_TYPE, "internlm2"):
        raise IxtuneError(
            f"this is a {kind!r} checkpoint, not InternLM-XComposer2-4KHD",
            where=str(path),
            mend="give the folder of an IXC2-4KHD checkpoint (model_type internlmxcomposer2), or `nano`",
        )
    return IXC2Config.from_pretrained(folder)


def expected_shapes(config: IXC2Config) -> dict[str, tuple[int, ...]]:
    """Original name -> shape of every tensor of this configuration."""
    with torch.device("meta"):
        model = IXC2ForCausalLM(config)
    return {to_original_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_tensors(checkpoint: Checkpoint, config: IXC2Config, folder: Path) -> None:
    """Compare names and shapes before anything is loaded.

    Raises:
        IxtuneError: tensors are missing, too many, or of another shape; each is named.
    """
    expected = expected_shapes(config)
    found = {info.name: tuple(info.shape) for info in checkpoint.tensors}
    notes = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    notes += [f"not part of the model: {name} {list(shape)}" for name, shape in found.items() if name not in expected]
    notes += [
        f"wrong shape: {name} is {list(found[name])}, config.json asks for {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if notes:
        raise IxtuneError(
            f"the checkpoint does not fit its config.json: {len(notes)} tensors differ",
            where=str(folder),
            mend="use the complete original checkpoint; the first differences are listed",
            notes=notes[:8] + ([f"and {len(notes) - 8} more"] if len(notes) > 8 else []),
        )


def load_base(
    folder: Path, *, quantize: bool, dtype: torch.dtype, device: str | None = None
) -> tuple[IXC2ForCausalLM, nf4.Quantized | None]:
    """Load a base in evaluation mode, frozen.

    Args:
        folder: a base in the original form.
        quantize: decoder linears in NF4, quantised as they stream in.
        dtype: of everything else, and of the quantised layers' products.
        device: where to; None is the GPU if there is one.

    Returns:
        (the model, what was quantised or None)

    Raises:
        IxtuneError: the checkpoint does not fit, or not exactly the decoder linears were quantised.
    """
    config = read_config(folder)
    check_tensors(open_checkpoint(folder), config, folder)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = None
    if quantize:
        with without_kernels_notice():
            import bitsandbytes  # noqa: F401 - transformers does, with the notice
        with torch.device("meta"):
            settings = nf4.quantization_config(IXC2ForCausalLM(config), dtype)
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model = IXC2ForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": target},
            quantization_config=settings,
            attn_implementation=SEGMENTS,
            local_files_only=True,
        )
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    # Generation settings are chosen by the caller; the original's would sample and cap the length at 4,480.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.eval()
    model.requires_grad_(False)
    return model, nf4.settle(model, config) if quantize else None
