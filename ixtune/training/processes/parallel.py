"""Collectives of a run in several processes: each takes its share of the packs of every optimizer step.

The network is not wrapped in DistributedDataParallel. The processes train alone until the step, and then take the mean
of their gradients, once: so a pack without images does not change the projector, a pack that is split because memory
ran out does not affect the others, and a process with one pack less simply adds nothing.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from torch import distributed
from torch.distributed import ReduceOp

from ixtune.answering.batches import Size, shares
from ixtune.errors import UsageError
from ixtune.training.processes import launch

# the others wait while the first one generates samples or writes a checkpoint
_TIMEOUT = timedelta(minutes=30)
_Result = TypeVar("_Result")
_Key = TypeVar("_Key")


def join() -> None:
    """Join the other processes of the run, if there are any, and select this process's GPU.

    Raises:
        UsageError: More processes than GPUs, or accelerate's configuration enables sharding.
    """
    launch.refuse_sharding()
    launch.follow_parent()
    if not launch.is_worker():
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", launch.world_size()))
    if torch.cuda.is_available() and here > torch.cuda.device_count():
        raise UsageError(
            f"{here} processes, but {torch.cuda.device_count()} GPUs",
            hint="start as many processes as there are GPUs",
        )
    PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)


def is_first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return launch.rank() == 0


def share(packs: Sequence[_Result]) -> Sequence[_Result]:
    """Return this process's share of some work, such as validation packs; all of it once the other processes ended."""
    if not _several():
        return packs
    return packs[launch.rank() :: launch.world_size()]


def my_batches(made: Sequence[list[int]], sizes: Sequence[Size]) -> Sequence[list[int]]:
    """Return this process's share of batches of prompts; all of them once the other processes ended."""
    return shares(made, sizes, launch.world_size())[launch.rank()] if _several() else made


def total(*values: float) -> tuple[float, ...]:
    """Return the sums of values over all processes."""
    if not _several():
        return values
    summed = torch.tensor(values, dtype=torch.float64, device=_device())
    distributed.all_reduce(summed)
    return tuple(summed.tolist())


def any_of(value: bool) -> bool:
    """Return whether the value is true in any process."""
    return bool(total(float(value))[0])


def largest(value: int) -> int:
    """Return the largest value of all processes."""
    if not _several():
        return value
    found = torch.tensor(value, dtype=torch.int64, device=_device())
    distributed.all_reduce(found, ReduceOp.MAX)
    return int(found)


def from_first(ask: Callable[[], _Result]) -> _Result:
    """Call a function in the first process and return its result in all processes.

    Raises:
        LostPeerError: The first process failed; raised in the others, while it raises its own error.
    """
    if not _several():
        return ask()
    answer: list[Any] = [None]
    if is_first():
        try:
            answer = [(ask(),)]
        finally:  # also after a failure: the others wait for the broadcast
            distributed.broadcast_object_list(answer, src=0)
    else:
        distributed.broadcast_object_list(answer, src=0)
        if answer[0] is None:
            raise launch.LostPeerError
    return cast(_Result, answer[0][0])


def barrier() -> None:
    """Wait for all processes."""
    if _several():
        distributed.barrier()


def start_equal(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Copy the first process's values of the parameters to all processes."""
    if _several():
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; parameters that none used keep no gradient."""
    if not _several():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32, device=_device())
    distributed.all_reduce(used, ReduceOp.MAX)
    waiting = []
    for parameter, anywhere in zip(trained, used.tolist(), strict=True):
        if not anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        waiting.append((parameter.grad, distributed.all_reduce(parameter.grad, async_op=True)))
    for gradient, work in waiting:
        cast(distributed.Work, work).wait()
        gradient /= distributed.get_world_size()


def gather(mine: _Result) -> list[_Result]:
    """Return, in the first process, the value of each process by rank; in the others an empty list."""
    if not _several():
        return [mine]
    parts: list[Any] | None = [None] * launch.world_size() if is_first() else None
    distributed.gather_object(mine, parts, dst=0)
    return parts or []


def merged(mine: Mapping[_Key, _Result]) -> dict[_Key, _Result]:
    """Return the entries of all processes, in all processes."""
    if not _several():
        return dict(mine)
    parts: list[Any] = [None] * launch.world_size()
    distributed.all_gather_object(parts, dict(mine))
    return {key: value for part in parts for key, value in part.items()}


@contextmanager
def lost_peers() -> Iterator[None]:
    """Turn errors of lost connections into a `LostPeerError`; leave the process group at the end of the block."""
    try:
        yield
        if _several():
            distributed.barrier()
    except BaseException as error:
        reraised = launch.LostPeerError() if is_lost_peer(error) else error
        if _several():
            # an incomplete communicator may abort the interpreter during its shutdown
            atexit.register(
                os._exit, 130 if isinstance(reraised, KeyboardInterrupt) else getattr(reraised, "exit_code", 1)
            )
        if reraised is error:
            raise
        raise reraised from error
    else:
        if _several():
            distributed.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error only says that another process is gone."""
    return _several() and isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_LOSS)


_SIGNS_OF_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "Connection was likely closed",
    "NCCL communicator was aborted",
    "Timed out waiting",
)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )
