"""Run the command line in forked processes: real signals and exit codes, without importing libraries each time."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOADED = ("ixtune.training.run", "ixtune.cli")
_STACKS = signal.SIGUSR2  # a process that receives it writes the stacks of its threads into its log


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


def wait(started: Sequence[BaseProcess], log: Path, idle_s: float = 120.0) -> list[int]:
    """Wait for processes that work together, and return their exit codes.

    They hang if together they use less than a hundredth of a CPU for `idle_s`: a loaded machine slows them down, but
    leaves them more. They are then killed.

    Raises:
        AssertionError: They hang. It shows the stacks of all threads.
    """
    used: dict[int, float] = {}  # CPU seconds by process
    counted, since = 0.0, time.monotonic()
    while running := [process for process in started if process.exitcode is None]:
        running[0].join(0.5)
        used |= {process.pid: _cpu_s(process.pid) or used.get(process.pid, 0.0) for process in running}
        if sum(used.values()) - counted > idle_s / 100:
            counted, since = sum(used.values()), time.monotonic()
        if time.monotonic() - since > idle_s:
            for process in running:
                os.kill(process.pid, _STACKS)
            time.sleep(5)
            for process in running:
                process.kill()
                process.join()
            raise AssertionError(f"the processes hang: {log.read_text()[-20_000:]}")
    return [int(process.exitcode) for process in started]


def _cpu_s(process: int) -> float | None:
    """Return the CPU time of a process, in user and in kernel mode; None if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    faulthandler.register(_STACKS, file=descriptor)
    os.environ.update(variables)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run under nohup
    from ixtune import cli

    if before is not None:
        before(*given)
    code = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
