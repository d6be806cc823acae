"""Test the data sets in examples/data: the README's command prepares them, and the script reproduces the files."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from main_job import environment
from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data"
RECORDS = {"photos-csv": 20, "charts-messages": 16, "handwriting-webdataset": 40}
MOST_BYTES = 600_000
BLOCK = re.compile(r"^```\n(ixtune prepare .*?)\n```$", re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    inside = environment() | {"PYTHONPATH": str(ROOT)}  # `python -m ixtune` is not in its repository here
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=inside, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two images (0 to 255): FreeType versions draw letter edges slightly differently."""
    assert (one.size, one.mode) == (other.size, other.mode)
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_example_set_is_tested_and_small():
    folders = [folder for folder in DATA.iterdir() if folder.is_dir()]
    assert {folder.name for folder in folders} == set(RECORDS)
    for folder in folders:
        total = sum(path.stat().st_size for path in folder.rglob("*") if "__pycache__" not in path.parts)
        assert total < MOST_BYTES, folder.name


@pytest.mark.parametrize("name", RECORDS)
def test_each_set_is_prepared_by_its_readme_command_without_rejects(tmp_path: Path, name: str):
    shutil.copytree(DATA / name, tmp_path / "examples" / "data" / name)
    (block,) = BLOCK.findall((DATA / name / "README.md").read_text(encoding="utf-8"))
    program, *arguments = shlex.split(block)
    assert program == "ixtune"
    run([sys.executable, "-m", "ixtune", *arguments], tmp_path)
    out = tmp_path / arguments[arguments.index("--out") + 1]
    counts = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["records"]
    assert (counts["read"], counts["accepted"], counts["rejected"]) == (RECORDS[name], RECORDS[name], 0)


def test_every_photo_has_questions_and_a_license():
    folder = DATA / "photos-csv"
    with open(folder / "questions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    photos = {path.name for path in (folder / "photos").iterdir()}
    assert {row["image"] for row in rows} == photos
    assert len({(row["image"], row["question"]) for row in rows}) == len(rows)
    licences = re.findall(
        r"^\| `(.+?)` .*\| (?:CC0|public domain) \|$", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert set(licences) == photos


def test_the_charts_set_is_reproduced_by_its_script(tmp_path: Path):
    if importlib.util.find_spec("vega_datasets") is None:
        pytest.skip("the tables are in the package vega_datasets (the extra `demo`)")
    folder = DATA / "charts-messages"
    run([sys.executable, str(folder / "draw.py"), str(tmp_path)], tmp_path)
    assert (tmp_path / "messages.jsonl").read_bytes() == (folder / "messages.jsonl").read_bytes()
    assert files(tmp_path / "charts") == files(folder / "charts")
    for path in (folder / "charts").iterdir():
        with Image.open(path) as committed, Image.open(tmp_path / "charts" / path.name) as drawn:
            assert difference(committed, drawn) < 1, path.name


def test_the_shards_are_reproduced_by_their_script(tmp_path: Path):
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("the digits are in the package scikit-learn, which nothing else here needs")
    folder = DATA / "handwriting-webdataset"
    run([sys.executable, str(folder / "make.py"), str(tmp_path)], tmp_path)
    for made in sorted(tmp_path.glob("*.tar")):
        for (info, content), (other, other_content) in zip(members(made), members(folder / made.name), strict=True):
            of_content = {"size": 0, "chksum": 0}  # another zlib may compress the same pixels otherwise
            assert info.get_info() | of_content == other.get_info() | of_content
            if info.name.endswith(".json"):
                assert content == other_content
            else:
                images = [Image.open(io.BytesIO(one)) for one in (content, other_content)]
                assert difference(*images) == 0, info.name
    assert {path.name for path in tmp_path.glob("*.tar")} == {path.name for path in folder.glob("*.tar")}


def members(shard: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(shard) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]
