"""Process chunks in order, in this process or in several, with a bounded number in flight."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ixtune.data.sources.entry import Entry
from ixtune.data.worker import Chunk, Job, Work
from ixtune.errors import IxtuneError

_UNDER_WAY_PER_WORKER = 2

_work: Work  # in a worker process only, set by _begin


def results(tasks: Iterable[tuple[Job, list[Entry]]], tokenizer: Path, workers: int) -> Iterator[tuple[Job, Chunk]]:
    """Yield the result of every task, in the order of the tasks.

    Processes are started only for the second task: a small source is finished before they would be running.

    Args:
        tasks: Iterated no further ahead than the workers need, so that memory use stays constant.
        tokenizer: The tokenizer.model of the base.
        workers: Number of processes; 1 means this process.

    Raises:
        IxtuneError: A worker process died, or a task raised it.
    """
    waiting = iter(tasks)
    first = next(waiting, None)
    if first is None:
        return
    work = Work(tokenizer)
    yield first[0], work(*first)
    second = next(waiting, None)
    if second is None:
        return
    remaining = _with(second, waiting)
    if workers == 1:
        for job, entries in remaining:
            yield job, work(job, entries)
        return
    # spawned, not forked: this process has threads (of the progress bar, of Arrow) that a fork would freeze
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(tokenizer,)) as pool:
        under_way: deque[tuple[Job, Future[Chunk]]] = deque()
        try:
            for job, entries in remaining:
                under_way.append((job, pool.submit(_do, job, entries)))
                if len(under_way) > workers * _UNDER_WAY_PER_WORKER:
                    done, future = under_way.popleft()
                    yield done, future.result()
            while under_way:
                done, future = under_way.popleft()
                yield done, future.result()
        except BrokenProcessPool as error:
            raise IxtuneError(
                "a worker process died",
                hint="see the system's log for the reason (usually memory), or try fewer --workers",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(tokenizer: Path) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
    # if the driver were killed, its workers would wait forever: each holds the other end of its own queue
    threading.Thread(target=_leave_with_the_driver, daemon=True).start()
    _work = Work(tokenizer)


def _leave_with_the_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)


def _do(job: Job, entries: list[Entry]) -> Chunk:
    return _work(job, entries)


def _with(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others
