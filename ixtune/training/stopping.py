"""Handle the signals that end a run: stop at a point where no step is lost.

Schedulers send SIGTERM (Kubernetes, spot machines, `scancel`) or a signal of the user's choice (SLURM's `--signal`)
some seconds before they kill. The handler only notes the request while training. The run looks at it between
micro-batches, between packs of a validation, and between generated tokens, and leaves at the first of these places
that all processes share. While the run loads or writes its adapter there is no step to lose, and the handler raises.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from ixtune import platforms
from ixtune.training.processes import parallel
from ixtune.training.processes.launch import LostPeerError


class StopRequested(BaseException):
    """Raised after a signal asked the run to end, at a point where no step is lost.

    It is not an `Exception`, so that no handler mistakes it for a failure.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit code: 128 plus the number of the signal, as shells report it."""
        return 128 + self.number


class StopRequest:
    """Catch the signals that end a run. A context manager; outside the main thread it catches nothing."""

    def __init__(self, warn: Callable[[str], None] = lambda text: None, grace_s: float | None = None) -> None:
        """Catch nothing yet.

        Args:
            warn: Shows a line to the reader; called inside the signal handler.
            grace_s: Seconds after the request in which the current step may finish. None for no limit.
        """
        self.warn, self.grace_s = warn, grace_s
        self.number = 0
        self._since = 0.0
        self._deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in platforms.ENDING_SIGNALS:
                # with nohup and `setsid` a run outlives its terminal
                if number != platforms.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous = {}

    @property
    def asked(self) -> bool:
        """Return whether this process got a signal."""
        return bool(self.number)

    @property
    def overdue(self) -> bool:
        """Return whether the grace period is over, so that the current step has to be abandoned."""
        return self.asked and self.grace_s is not None and time.monotonic() - self._since >= self.grace_s

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a signal inside the block, instead of raising `StopRequested` wherever the program is."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def agree(self) -> bool:
        """Return whether any process got a signal. All processes have to call this at the same place."""
        found = parallel.largest(self.number)
        if found:  # never written back as 0: a signal may have arrived while this process waited for the others
            self.number = found
        return bool(found)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == platforms.SIGHUP:
            _leave_terminal()
        if self.asked:  # schedulers send signals repeatedly; a Ctrl-C is a person who cannot wait
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.number, self._since = number, time.monotonic()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._deferred:
            raise StopRequested(number)
        again = " (Ctrl-C again: stop at once, without a checkpoint)" if number == signal.SIGINT else ""
        with suppress(OSError):
            self.warn(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint{again}")


def raise_together(error: BaseException | None) -> None:
    """Raise an exception of one process in all processes. All processes have to call this at the same place.

    A process that failed while the others wait in a collective would leave them waiting. It therefore keeps its error
    until they meet, and all leave together, with a checkpoint.

    Args:
        error: Exception of this process, or None.

    Raises:
        BaseException: `error`, unless another process failed and this one was only asked to stop.
        StopRequested: Another process was asked to stop.
        LostPeerError: Another process failed.
    """
    stopped = error.number if isinstance(error, StopRequested) else 0
    failed = error is not None and not stopped
    highest = parallel.largest(_FAILED if failed else stopped)
    if not highest:
        return
    if failed or (stopped and highest != _FAILED):
        assert error is not None
        raise error
    raise LostPeerError if highest == _FAILED else StopRequested(highest)


@contextmanager
def together() -> Iterator[None]:
    """Run a block in all processes; an exception of one is raised in all, at the end of the block.

    The block must not wait for the other processes.
    """
    trouble: BaseException | None = None
    try:
        yield
    except (Exception, StopRequested) as error:
        trouble = error
    raise_together(trouble)


_FAILED = 1000  # more than the number of any signal


def _leave_terminal() -> None:
    """Redirect terminal output to the null device after a hangup, since every write to it would fail."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        try:
            hung_up = os.isatty(descriptor)
            os.write(descriptor, b"")
        except OSError:
            hung_up = True
        if hung_up:
            os.dup2(nothing, descriptor)
    os.close(nothing)
