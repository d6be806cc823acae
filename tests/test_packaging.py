"""Test the content of wheel and source archive, and that the wheel works without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ixtune import __version__

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "examples" / "nano-base" / "base"


pytestmark = pytest.mark.skipif(not BASE.is_dir(), reason="the embedded base is not trained yet")


def build(target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, unpacked as by an installer."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, *arguments: str) -> str:
    """Run Python outside the repository, with the unpacked wheel first on its path."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_exactly_package_recipes_and_base(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ixtune").rglob("*.py")}
    modules |= {str(path.relative_to(ROOT)) for path in (ROOT / "ixtune").rglob("templates/*")}
    modules |= {str(path.relative_to(ROOT)) for path in (ROOT / "ixtune" / "serving" / "page").iterdir()}
    recipes = {f"ixtune/_shipped/recipes/{path.name}" for path in (ROOT / "recipes").iterdir()}
    base = {f"ixtune/_shipped/nano/{path.name}" for path in BASE.iterdir()}
    metadata = {f"ixtune-{__version__}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    metadata |= {f"ixtune-{__version__}.dist-info/{name}" for name in ("entry_points.txt", "licenses/LICENSE")}
    assert names == modules | {"ixtune/py.typed"} | recipes | base | metadata


def test_the_installed_command_finds_recipes_and_base(installed: Path):
    where = python(installed, "-c", "import ixtune; print(ixtune.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    assert python(installed, "-m", "ixtune", "--version") == f"ixtune {__version__}\n"
    assert "qlora-24gb" in python(installed, "-m", "ixtune", "recipes", "ls")
    found = python(installed, "-c", "from ixtune.base import resolve; print(resolve('nano'))")
    assert Path(found.strip()) == installed / "ixtune" / "_shipped" / "nano"


def test_the_source_archive_contains_the_tests(tmp_path: Path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for file in ("pyproject.toml", "Makefile", "LICENSE", "tests/conftest.py", "recipes/qlora-24gb.yaml"):
        assert file in names
    assert not any("__pycache__" in name for name in names)


def test_the_lock_pins_exact_versions_without_a_build_tag():
    """The lock has no hashes and no local versions: torch 2.13.0 may be any build that the index offers."""
    lines = (ROOT / "requirements-test.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert all(version[0].isdigit() and "+" not in version for version in pins.values())


def test_the_lock_satisfies_the_version_ranges_of_the_package():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "requirements-test.lock").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pairs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["demo"], *extras["dev"], *extras["docs"]]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text
