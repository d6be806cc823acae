"""Measure the seconds that the help of each command and `import ixtune` take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import typer

from ixtune import cli

COMMAND: Any = typer.main.get_command(cli.app)
PAGES: list[list[str]] = [[], *([verb] for verb in COMMAND.commands)]
PAGES += [[verb, below] for verb, group in COMMAND.commands.items() for below in getattr(group, "commands", ())]
TO_REACH_S = 0.3
IMPORT_S = 0.05


@pytest.mark.bench
def test_help_of_every_command_is_fast():
    print(f"\nload {os.getloadavg()[0]:.1f}; wall seconds, least of 7")
    slow = []
    for page in PAGES:
        command = [sys.executable, "-m", "ixtune", *page, "--help"]
        walls_s = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            walls_s.append(time.perf_counter() - began)
        print(f"{min(walls_s):6.3f}  ixtune {' '.join([*page, '--help'])}")
        if min(walls_s) >= TO_REACH_S:
            slow.append(page)
    assert not slow


@pytest.mark.bench
def test_importing_the_package_is_fast():
    code = "import time; began = time.perf_counter(); import ixtune; print(time.perf_counter() - began)"
    walls_s = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(7)
    ]
    print(f"\n{min(walls_s) * 1000:6.1f} ms  import ixtune")
    assert min(walls_s) < IMPORT_S
