"""Start one command in several processes on this machine, one per GPU; rank and world size of a process.

Nothing here imports torch: the first process only starts the others and waits. They find each other by the variables
that torchrun and `accelerate launch` set too, so that a run started by either looks the same from inside.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from ixtune import platforms
from ixtune.errors import IxtuneError, UsageError

LOST_PEER = 75
"""Exit code of a process that ended only because another one did."""

_PARENT = "IXTUNE_PARENT_PIPE"
BY_OPTION = _PARENT in os.environ
"""Whether `--processes` started this process, and not torchrun, accelerate or srun."""
_POLL_S = 0.05
_GRACE_S = 15.0


class LostPeerError(IxtuneError):
    """Raised if another process of the run failed and reported the reason."""

    exit_code = LOST_PEER

    def __init__(self) -> None:
        super().__init__("another process of this run has failed", hint="see the message of that process")


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the index of this process; process 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def is_worker() -> bool:
    """Return whether `launch`, torchrun or accelerate started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def refuse_sharding() -> None:
    """Refuse FSDP and DeepSpeed, which accelerate's configuration may enable: each process holds the whole base.

    Raises:
        UsageError: FSDP or DeepSpeed is on.
    """
    for name, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise UsageError(
                f"accelerate's configuration enables {name}, but ixtune keeps the whole base on each GPU",
                where=variable,
                hint="run `accelerate launch --multi_gpu -m ixtune train …` or `ixtune train … --processes N`; "
                "`ixtune plan` says whether it fits",
            )


def follow_parent() -> None:
    """End this process as soon as the process that launched it is gone."""
    descriptor = os.environ.pop(_PARENT, None)
    if descriptor is None:
        return

    def wait() -> None:
        os.read(int(descriptor), 1)  # nothing is ever written: it returns when the other end is closed
        os._exit(LOST_PEER)

    threading.Thread(target=wait, name="follow parent", daemon=True).start()


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `ixtune ARGUMENTS` in several processes and wait for them.

    The first one has this process's output. The output of the others is shown only if one of them fails first. Ctrl-C
    reaches each of them once; if one fails, all end.

    Args:
        processes: Number of processes.
        arguments: Arguments of the command line, the command first.

    Returns:
        The exit code: of the process that failed, or 0.

    Raises:
        UsageError: This process is itself one of several, or the system cannot start them.
    """
    if is_worker():
        raise UsageError(
            f"--processes {processes} inside a run of {world_size()} processes",
            hint="pass the number to `ixtune train` or to accelerate, not to both",
        )
    if not platforms.has_process_groups():
        raise UsageError(
            f"--processes {processes} is not possible on this system: it starts no process groups",
            where="--processes",
            hint="leave it out to train in one process, or run on Linux (in WSL on Windows)",
        )
    reading, writing = os.pipe()
    workers: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as said:
        try:
            with _forwarded(workers) as all_are_started:
                port = _free_port()
                workers += (
                    _start(number, processes, port, arguments, reading, said if number else None)
                    for number in range(processes)
                )
                all_are_started()
                code = _wait(workers)
        finally:
            os.close(writing)  # this ends the remaining workers
            os.close(reading)
            for worker in workers:
                worker.wait()
        if code and workers[0].returncode in (0, LOST_PEER):
            said.seek(0)
            sys.stderr.write(said.read().decode("utf-8", "replace"))
    return code


def _start(
    number: int, processes: int, port: int, arguments: Sequence[str], parent: int, said: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        _PARENT: str(parent),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "ixtune", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if said else None,
        stderr=said,
        pass_fds=(parent,),
        # a separate process group: the terminal's Ctrl-C would otherwise reach it twice
        process_group=0,
    )


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all workers; if one fails, give the others some seconds to notice, then kill them."""
    deadline: float | None = None
    while any(worker.poll() is None for worker in workers):
        if deadline is None and any(worker.returncode for worker in workers):
            deadline = time.monotonic() + _GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
        time.sleep(_POLL_S)
    codes = [128 - worker.returncode if worker.returncode < 0 else worker.returncode for worker in workers]
    failed = [code for code in codes if code]
    return next((code for code in failed if code not in (LOST_PEER, platforms.KILLED)), max(failed, default=0))


@contextmanager
def _forwarded(workers: Sequence[subprocess.Popen[bytes]]) -> Iterator[Callable[[], None]]:
    """Forward the signals that end a run to the workers, which end by themselves.

    Yields a function to call once all workers are started. Signals that come before wait for it, so that all get them.
    """
    early: list[int] | None = []

    def forward(number: int, _: Any = None) -> None:
        if early is not None:
            early.append(number)
            return
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    def all_are_started() -> None:
        nonlocal early
        waiting, early = early or [], None
        for number in waiting:
            forward(number)

    ignored = (number for number in (platforms.SIGHUP,) if number and signal.getsignal(number) == signal.SIG_IGN)
    numbers = set(platforms.ENDING_SIGNALS) - set(ignored)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield all_are_started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    """Return a port for the first process to listen on.

    It listens only after its imports, seconds later. Until then the system must not give the port to another program
    that asks for any free one: Linux gives those from 32768 on, so a lower one is taken, unless a hundred are in use.
    """
    with socket.socket() as listening:
        for port in (*random.SystemRandom().sample(range(20_000, 32_000), 100), 0):
            with suppress(OSError):
                listening.bind(("127.0.0.1", port))
                break
        return int(listening.getsockname()[1])
