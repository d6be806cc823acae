"""Test the Containerfile: what it copies exists, and it builds where a builder works."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "Containerfile"


def test_every_copied_path_and_installed_extra_exists() -> None:
    text = FILE.read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert len(copied) >= 6
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r"/src\[(.*?)\]", text)
    assert extras
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extras[1].split(","))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_container_builds() -> None:
    builder = next((name for name in ("podman", "docker", "buildah") if works(name)), None)
    if builder is None:
        pytest.skip("no builder of containers works here: podman, docker and buildah were tried")
    subprocess.run([builder, "build", "-t", "ixtune-test", "-f", str(FILE), str(ROOT)], check=True)


def works(name: str) -> bool:
    return shutil.which(name) is not None and not subprocess.run([name, "info"], capture_output=True).returncode
