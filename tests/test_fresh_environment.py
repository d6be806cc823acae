"""Test in fresh environments: an exported model without ixtune, and ixtune from its wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import call
from main_job import write_recipe, write_records
from PIL import Image
from test_packaging import build

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-test.lock"
BARE = ("torch", "transformers", "pillow", "sentencepiece")
PAGE = ROOT / "docs" / "transformers.md"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def make(folder: Path, *requirements: str | Path, options: tuple[str, ...] = ()) -> Path:
    """Make an environment with the versions of the lock file; return its Python, or skip where none can be had."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", LOCK, *options, *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no packages to be had: {done.stderr.strip().splitlines()[-1]}")
    return python


def run(python: Path, *arguments: str | Path, folder: Path) -> str:
    """Run Python there, with nothing of this environment in sight; return its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("bare") / "environment", *BARE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run, the exported model where the docs have it, and their images."""
    folder = tmp_path_factory.mktemp("job")
    recipe = write_recipe(folder / "recipe.yaml", folder / "set", folder / "mine" / "run")
    data = write_records(folder / "raw", 8)
    export = ("export", folder / "mine" / "run", "--profile", "transformers", "--out", folder / "mine" / "export")
    for arguments in (
        ("prepare", data, "--out", folder / "set", "--hd-num", "2", "--base", "nano"),
        ("train", recipe),
        export,
    ):
        ended = call(*arguments)
        assert ended.returncode == 0, ended.stderr
    shutil.copy(folder / "raw" / "0.png", folder / "receipt.png")
    Image.new("RGB", (400, 200), "white").save(folder / "page.png")
    return folder


def script_of_the_page() -> str:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


PRINTED = """
one = processor(images="receipt.png", text="Which number?", return_tensors="pt")
print("same", repr(answer))
print("same", processor.batch_decode(model.generate(**one, max_new_tokens=8, do_sample=False), one))
print("class", type(model).__module__.split(".")[0], type(processor).__module__.split(".")[0])
import sys
print("there", [name for name in ("ixtune", "trl", "peft", "bitsandbytes", "datasets") if name in sys.modules])
"""


def test_the_script_in_the_docs_matches_ixtunes_answers_without_ixtune(bare: Path, job: Path) -> None:
    installed = run(bare, "-m", "pip", "list", "--format=freeze", folder=job)
    assert not re.search(r"^(ixtune|trl|peft|bitsandbytes|datasets|accelerate)=", installed, re.MULTILINE)
    (job / "script.py").write_text(script_of_the_page() + PRINTED, encoding="utf-8")
    found = run(bare, "script.py", folder=job).splitlines()
    assert {"class transformers_modules transformers_modules", "there []"} <= set(found)
    ours = "import ixtune\n" + script_of_the_page().replace('{"trust_remote_code": True}', "{}") + PRINTED
    (job / "ours.py").write_text(ours, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "ours.py"], cwd=job, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "class ixtune ixtune" in done.stdout.splitlines()
    same = [line for line in found if line.startswith("same")]
    assert len(same) == 2
    assert same == [line for line in done.stdout.splitlines() if line.startswith("same")]
    predicted = call("predict", "--base", job / "mine" / "export", "--image", job / "receipt.png", "Which number?")
    assert predicted.returncode == 0, predicted.stderr
    assert f"same {[predicted.stdout.strip()]}" == same[1]


def test_merge_and_export_do_not_need_the_training_libraries(bare: Path, job: Path, wheel: Path) -> None:
    site = job / "site"
    options = ("--no-deps", "--target", str(site), "-c", str(LOCK))
    command = [bare, "-m", "pip", "install", "--quiet", "--no-compile", *options, wheel, "xxhash"]
    subprocess.run(command, check=True)
    start = f"import sys; sys.path.insert(0, {str(site)!r}); from ixtune.cli import main; sys.exit(main(sys.argv[1:]))"
    run(bare, "-c", start, "merge", "mine/run", "--out", "merged", folder=job)
    run(bare, "-c", start, "export", "mine/run", "--profile", "transformers", "--out", "again", folder=job)
    for file in (job / "mine" / "export").glob("ixc2*.py"):
        assert (job / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_installed_wheel_runs_the_whole_workflow(tmp_path: Path, wheel: Path) -> None:
    python = make(tmp_path / "environment", wheel)
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "set", tmp_path / "run")
    data = write_records(tmp_path / "raw", 8)
    for arguments in (
        ("prepare", data, "--out", "set", "--hd-num", "1", "--base", "nano"),
        ("plan", recipe),
        ("train", recipe),
        ("merge", "run", "--out", "merged"),
        ("predict", "--base", "merged", "--image", "raw/0.png", "Which number?"),
        ("doctor",),
    ):
        ixtune = subprocess.run(
            [python.with_name("ixtune"), *map(str, arguments)],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ixtune.returncode == 0, f"{arguments}: {ixtune.stdout[-1000:]} {ixtune.stderr[-3000:]}"
    where = run(python, "-c", "import ixtune; print(ixtune.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "environment")
