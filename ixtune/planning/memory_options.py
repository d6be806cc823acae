"""Trade memory for time in a training step. No tensor library is imported until options are applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ixtune.model.model import IXC2ForCausalLM


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """Memory options that a plan chooses.

    Attributes:
        checkpointed_layers: the first n decoder layers recompute their activations in the backward pass.
        vision_chunk: views that the frozen tower processes at a time.
        offload_layer_inputs: offload inputs of checkpointed layers to main memory.
    """

    checkpointed_layers: int
    vision_chunk: int
    offload_layer_inputs: bool


def apply(model: IXC2ForCausalLM, saving: MemoryOptions) -> None:
    """Apply memory options to the bare model; the last call counts.

    The first layers are checkpointed, not the last ones: their activations are kept longest, so less memory is in use
    when the backward pass reaches them.

    Args:
        model: the network itself, without PEFT's wrapper (`PeftModel.get_base_model()`).
        saving: memory options, as chosen by a plan.

    Raises:
        ValueError: The decoder has fewer layers, or a chunk holds no view.
    """
    layers = model.model.layers
    if not 0 <= saving.checkpointed_layers <= len(layers):
        raise ValueError(f"{saving.checkpointed_layers} layers cannot be checkpointed: the decoder has {len(layers)}")
    if saving.vision_chunk < 1:
        raise ValueError(f"a chunk must have at least one view, not {saving.vision_chunk}")
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index < saving.checkpointed_layers
        layer._gradient_checkpointing_func = _again_from_main_memory if saving.offload_layer_inputs else _again
    model.vision_chunk = saving.vision_chunk


def _again(function: Any, *args: Any) -> Any:
    """Call a layer, save only its inputs, and run it again when the backward pass needs it."""
    from torch.utils.checkpoint import checkpoint

    # The second run draws the same dropout as the first.
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=True)


def _again_from_main_memory(function: Any, *args: Any) -> Any:
    """Checkpoint a layer like `_again`, with its inputs offloaded to main memory."""
    from torch.autograd.graph import saved_tensors_hooks

    # These hooks see what the checkpoint saves, its inputs; what the layer saves goes to the checkpoint.
    with saved_tensors_hooks(_to_main_memory, _from_main_memory):
        return _again(function, *args)


def _to_main_memory(tensor: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
    """Copy to main memory in parallel to the device's work. Not yet run on a GPU."""
    import torch

    if not tensor.is_cuda:
        return tensor.device, tensor.clone()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream = _copying(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        copy.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)  # keeps its memory from being reused before the copy is done
    return tensor.device, copy


def _from_main_memory(kept: tuple[torch.device, torch.Tensor]) -> torch.Tensor:
    import torch

    device, copy = kept
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_copying(device))
    return copy.to(device, non_blocking=True)


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _copying(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that copies to main memory."""
    import torch

    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
