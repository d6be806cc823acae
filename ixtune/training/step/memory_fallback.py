"""Handle running out of memory: try the largest pack before training, and cut a pack in two if it fails."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ixtune.errors import IxtuneError
from ixtune.training.batch import Batch

# Runs forward and backward of a batch, adds to existing gradients, and returns the loss.
Step = Callable[[Batch], torch.Tensor]

_CURE = (
    "checkpoint more layers (training.gradient_checkpointing=true), offload their inputs to main memory "
    "(training.offload_layer_inputs=true), lower training.pack_tokens, or prepare the data with a smaller --hd-num"
)
# Messages of libraries below torch, which raise them instead of torch's own error.
_OTHER_WORDS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory", "can't allocate memory")


def rehearse(model: torch.nn.Module, batch: Batch, step: Step, reserve_bytes: int = 0) -> int | None:
    """Run one step on the largest pack of a run, and restore weights, gradients and random states.

    Args:
        model: model whose gradients are restored.
        batch: the pack.
        step: forward and backward, with no part of the optimizer.
        reserve_bytes: additional memory of later steps, such as the optimizer's state, which its first step creates.

    Returns:
        The peak memory on the GPU in bytes, or None without a GPU.

    Raises:
        IxtuneError: the pack does not fit.
    """
    device = next(model.parameters()).device
    kept = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.requires_grad]
    for parameter, _ in kept:
        parameter.grad = None
    failed = False
    with _random_state_kept(device):
        reserved = torch.empty(reserve_bytes, dtype=torch.uint8, device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            step(dict(batch))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            failed = True
        finally:
            del reserved
            for parameter, gradient in kept:
                parameter.grad = gradient
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    _free(device)
    if failed:
        raise IxtuneError(
            f"the largest pack of the run, {_size(batch)}, does not fit into memory; it was tried before any step",
            hint=_CURE,
        )
    return peak


def step_in_parts(
    step: Step,
    batch: Batch,
    model: torch.nn.Module,
    *,
    make: Callable[[tuple[int, ...]], Batch],
    log: Callable[[str], None],
    named: Callable[[Batch], str] = lambda part: "",
) -> torch.Tensor:
    """Run a step, and if memory runs out, cut its pack in two, and again, down to single records.

    A prefix that records on both sides share is computed in both parts.

    The gradient is that of the whole pack except for rounding (and dropout): the loss is a sum over tokens divided by
    those of the whole optimizer step. A backward pass that fails midway has given some parameters the whole pack's
    gradient and the others nothing, because each parameter gets its gradient at once; the parts are added to the others
    only.

    Args:
        step: forward and backward of a pack or a part of one; weights tokens by those of the whole optimizer step.
        batch: the pack, with `records`.
        model: model with trainable parameters.
        make: returns the batch of some of the records.
        log: receives a message at each cut. From then on a run cannot be reproduced bit for bit.
        named: function that returns the origin of a record that does not fit.

    Returns:
        The loss of the pack, summed over its parts.

    Raises:
        IxtuneError: A single record does not fit.
    """
    have_theirs: set[torch.nn.Parameter] = set()
    handles = [
        parameter.register_post_accumulate_grad_hook(have_theirs.add)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        return step(dict(batch))
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
    finally:
        for handle in handles:
            handle.remove()
    # Outside of `except`, whose traceback would keep the activations of the failed pass alive.
    _free(next(model.parameters()).device)
    parts = split(batch)
    if not parts:
        raise IxtuneError(
            f"a single record, {_size(batch)}, does not fit into memory",
            where=named(batch),
            hint=_CURE,
        )
    log(f"memory ran out on a pack of {_size(batch)}: it is cut in two, so this run cannot be reproduced bit for bit")
    # Switched off, a part's loss could be without any gradient, which is an error.
    handles = [parameter.register_hook(torch.zeros_like) for parameter in have_theirs]
    try:
        losses = [step_in_parts(step, make(part), model, make=make, log=log, named=named) for part in parts]
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(losses).sum()


def split(batch: Batch) -> list[tuple[int, ...]]:
    """Cut the records of a pack in two, about in the middle of its tokens.

    Returns:
        The records of both parts; an empty list if there is one record only.
    """
    bounds, records = batch["cu_seq_lens_q"].tolist(), batch["records"]
    prefixes = set(batch.get("parents", ()))
    ends = [end for number, end in enumerate(bounds[1:]) if number not in prefixes]  # one for each record
    if len(records) < 2:
        return []
    middle = min(range(1, len(records)), key=lambda at: abs(2 * ends[at - 1] - bounds[-1]))
    return [records[:middle], records[middle:]]


def _size(batch: Batch) -> str:
    tokens, records = batch["input_ids"].numel(), len(batch["records"])
    return f"{tokens:,} tokens" + (f" in {records} records" if records > 1 else "")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OTHER_WORDS)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries draw from it
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
