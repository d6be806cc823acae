"""Run the command line in this process, where torch is already loaded."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

from ixtune import cli


class Ended(NamedTuple):
    """Result like that of `subprocess.run`."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str | Path) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([*map(str, arguments)])
    return Ended(code, out.getvalue(), err.getvalue())
