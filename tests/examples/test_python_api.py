"""Test that the Python API example writes the same bytes as the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import call
from main_job import environment

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "python-api"
PHOTOS = ROOT / "examples" / "data" / "photos-csv"
SHORT = ("training.max_steps=2",)
# half a minute alone, minutes on a machine with other work: it trains twice
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def by_python(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the files and the output of the script."""
    out = tmp_path_factory.mktemp("python") / "out"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), "--out", str(out), *SHORT],
        cwd=ROOT, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def by_commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the commands of the example's README in another folder."""
    out = tmp_path_factory.mktemp("commands") / "out"
    commands = [
        line.removeprefix("ixtune ").replace("runs/python-api", str(out)).replace("examples/", f"{ROOT}/examples/")
        for line in (EXAMPLE / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("ixtune ")
    ]
    assert [command.split()[0] for command in commands] == [
        "prepare", "plan", "train", "evaluate", "report", "merge", "predict"
    ]  # fmt: skip
    printed = ""
    for command in commands:
        more = SHORT if command.split()[0] in ("plan", "train") else ()
        done = call(*shlex.split(command), *more)
        assert done.returncode == 0, (command, done.stderr)
        printed = done.stdout
    return out, printed


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_the_prepared_sets_are_equal(by_python: tuple[Path, str], by_commands: tuple[Path, str]) -> None:
    for side in ("train", "validation"):
        (one,), (other,) = ((out / "prepared" / side).glob("*.arrow") for out in (by_python[0], by_commands[0]))
        assert one.read_bytes() == other.read_bytes()


def test_adapter_and_merged_model_are_equal_byte_for_byte(
    by_python: tuple[Path, str], by_commands: tuple[Path, str]
) -> None:
    for folder in ("run/adapter", "merged"):
        one, other = weights(by_python[0] / folder), weights(by_commands[0] / folder)
        assert one
        assert one == other
    base = weights(ROOT / "examples" / "nano-base" / "base")
    assert weights(by_python[0] / "merged") != base


def test_scores_and_answers_are_equal(by_python: tuple[Path, str], by_commands: tuple[Path, str]) -> None:
    found = [json.loads((out / "evaluation.json").read_text(encoding="utf-8")) for out, _ in (by_python, by_commands)]
    assert found[0]["results"] == found[1]["results"]
    assert found[0]["results"][0]["scores"]["anls"]
    assert by_python[1].splitlines()[-1] == f"answer: {by_commands[1].strip()}"


def test_the_example_reports_a_wrong_override(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), "--out", str(tmp_path / "out"), "training.max_step=2"],
        cwd=ROOT, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "unknown key training.max_step; did you mean training.max_steps?" in done.stderr
