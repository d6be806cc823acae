"""Run the command line in forked processes: real signals and exit codes, without importing libraries each time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOADED = ("ixtune.training.run", "ixtune.cli")


def start(
    arguments: Sequence[str | Path],
    log: Path,
    variables: Mapping[str, str] | None = None,
    before: Callable[..., None] | None = None,
    given: Sequence[Any] = (),
) -> BaseProcess:
    """Run `ixtune ARGUMENTS` in a fork of a process that has imported everything.

    Args:
        arguments: Of the command line.
        log: Receives what the process prints.
        variables: Added to its environment.
        before: A function of a module, called in the process before the command.
        given: The arguments of `before`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    process = context.Process(target=_run, args=([*map(str, arguments)], log, dict(variables or {}), before, given))
    process.start()
    return process


def one_of(processes: int, rank: int, port: int) -> dict[str, str]:
    """Return the variables of one of several processes on this machine; torch.distributed meets at `port`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _run(
    arguments: list[str], log: Path, variables: dict[str, str], before: Callable[..., None] | None, given: Sequence[Any]
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run under nohup
    from ixtune import cli

    if before is not None:
        before(*given)
    code = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
