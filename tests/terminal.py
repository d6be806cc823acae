"""Run a command on a pseudo-terminal, to see its output with colors."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from main_job import environment

ESCAPE = "\x1b["
COLOURS = tuple(f"{ESCAPE}{code}" for code in ("3", "4", "9", "0;3", "1;3"))
"""Start of an escape sequence that sets a color; those for the cursor or bold text differ."""


def on_terminal(
    command: Sequence[str], *, typed: str = "", deadline_s: float = 600.0, cwd: Path | None = None, **variables: str
) -> tuple[int, str]:
    """Return (exit code, output) of a command whose three streams are a terminal.

    Args:
        command: what to run.
        typed: what is typed at the keyboard, ends of lines included.
        deadline_s: then it is killed, and the test fails.
        cwd: its folder.
        variables: of its environment.
    """
    ours, theirs = pty.openpty()
    known = {name: value for name, value in environment().items() if name not in ("NO_COLOR", "COLUMNS")}
    env = {**known, "TERM": "xterm-256color", **variables}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=cwd) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        shown = b""
        began = time.monotonic()
        while time.monotonic() - began < deadline_s:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that nobody holds the other end any more
                break
            if not part:
                break
            shown += part
        else:
            process.kill()
        os.close(ours)
        code = process.wait()
    return code, shown.decode("utf-8", "replace").replace("\r\n", "\n")


def has_colour(shown: str) -> bool:
    """Return whether the text contains a color escape sequence."""
    return any(start in shown for start in COLOURS)
