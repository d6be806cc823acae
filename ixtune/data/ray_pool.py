"""Process chunks on a Ray cluster, in order and with a bounded number in flight (`prepare --engine ray`, extra `ray`).

Every node needs the same ixtune and sees the same paths: sources are read by the driver, but the base, the image roots
and the output folder are opened by the actors. Image roots in object stores need no shared disk.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ixtune.data.sources.entry import Entry
from ixtune.data.worker import Chunk, Job, Work
from ixtune.errors import IxtuneError, UsageError

_UNDER_WAY_PER_ACTOR = 2
_SECONDS = 10.0


def cluster_cpus() -> int:
    """Return the number of processors of the cluster in RAY_ADDRESS, or of this machine; connects or starts Ray.

    Raises:
        UsageError: Ray is not installed.
        IxtuneError: The cluster does not answer.
    """
    return max(1, int(_connected().cluster_resources().get("CPU", 1)))


def results(tasks: Iterable[tuple[Job, list[Entry]]], tokenizer: Path, workers: int) -> Iterator[tuple[Job, Chunk]]:
    """Yield the result of every task, in the order of the tasks, as `worker_pool.results` does.

    Args:
        tasks: Iterated no further ahead than the actors need.
        tokenizer: The tokenizer.model of the base.
        workers: Number of actors, each with one processor.

    Raises:
        UsageError: Ray is not installed.
        IxtuneError: The cluster does not answer, an actor died, a node cannot see a path, or a task raised it.
    """
    ray = _connected()
    actor = ray.remote(num_cpus=1)(_Actor)
    actors: list[Any] = []
    under_way: deque[tuple[Job, Any]] = deque()
    try:
        for number, (job, entries) in enumerate(tasks):
            if len(actors) < workers:
                actors.append(actor.remote(tokenizer))
            under_way.append((job, actors[number % workers].do.remote(job, entries)))
            if len(under_way) > workers * _UNDER_WAY_PER_ACTOR:
                done, reference = under_way.popleft()
                yield done, _got(ray, reference)
        while under_way:
            done, reference = under_way.popleft()
            yield done, _got(ray, reference)
    finally:
        for one in actors:
            ray.kill(one)
        ray.shutdown()


class _Actor:
    """Prepares chunks on a node of the cluster."""

    def __init__(self, tokenizer: Path) -> None:
        _require_visible(tokenizer)
        self.work = Work(tokenizer)

    def do(self, job: Job, entries: Sequence[Entry]) -> Chunk:
        """Prepare some entries of one source."""
        _require_visible(job.images.parent)
        if job.image_root is not None:
            _require_visible(job.image_root)
        return self.work(job, entries)


def _require_visible(path: Path) -> None:
    if not path.exists():
        raise IxtuneError(
            f"the node {os.uname().nodename} of the Ray cluster cannot see this path",
            where=str(path),
            hint="put the base, the images and --out on a file system shared by all nodes",
        )


def _connected() -> Any:
    """Return the module, connected to the cluster that RAY_ADDRESS names, or to one started on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # disables Ray's usage reports
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--engine ray needs Ray, which is not installed", hint='pip install "ixtune[ray]", or leave --engine out'
        ) from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            if address:
                _require_answer(address)
                ray.init(**options)
            else:
                ray.init(address="local", include_dashboard=False, **options)
        except Exception as error:  # which one depends on the part that does not start
            first = str(error).splitlines()[0] if str(error) else ""
            raise IxtuneError(
                f"Ray does not start: {type(error).__name__}: {first}",
                where=address,
                hint="check RAY_ADDRESS and `ray status`, or leave --engine out",
            ) from error
    return ray


def _require_answer(address: str) -> None:
    """Raise unless something listens at HOST:PORT: Ray itself tries for minutes and then ends the process."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()


def _got(ray: Any, reference: Any) -> Chunk:
    try:
        chunk: Chunk = ray.get(reference)
        return chunk
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except ray.exceptions.RayActorError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, IxtuneError):
            raise cause from error
        raise IxtuneError(
            f"an actor of the Ray cluster died: {str(error).splitlines()[0]}",
            hint="`ray logs` shows the reason (usually memory); try fewer --workers",
        ) from error
