from __future__ import annotations

import json
from pathlib import Path

import pytest
from main_job import ixtune

from ixtune import cli
from ixtune.recipe import shipped_recipes

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the shipped recipes with a folder of test recipes."""
    monkeypatch.setattr(shipped_recipes, "shipped", lambda kind: tmp_path)
    return tmp_path


def test_ls_shows_name_purpose_gpu_and_status(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "b.yaml").write_text(
        "# ixtune train b.yaml\n# purpose: read [receipts]: totals\n# gpu: any\n"
        "# status: measured, see README\nbase: nano\n# gpu: none of this\n"
    )
    (folder / "a.yaml").write_text("base: nano\n")
    (folder / "notes.txt").write_text("# purpose: no recipe\n")
    assert cli.main(["recipes", "ls"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["name", "purpose", "gpu", "status"]
    assert [line.split()[0] for line in lines[2:]] == ["a", "b"]
    assert [cell.strip() for cell in lines[3].split("  ") if cell] == [
        "b",
        "read [receipts]: totals",
        "any",
        "measured, see README",
    ]


def test_ls_lists_every_shipped_recipe(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["recipes", "ls"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert listed == [path.stem for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_show_prints_the_file_unchanged(path: Path, suffix: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["recipes", "show", path.stem + suffix]) == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["nothing", "../secret", "/etc/passwd", ""])
def test_show_reads_only_recipe_files(folder: Path, name: str, capsys: pytest.CaptureFixture[str]):
    (folder.parent / "secret.yaml").write_text("secret")
    (folder / "a.yaml").write_text("base: nano\n")
    assert cli.main(["recipes", "show", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "choose one of a" in err


def test_ls_json_has_the_same_columns(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["recipes", "ls", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [path.stem for path in RECIPES]
    assert all(set(row) == {"name", "purpose", "gpu", "status"} and all(row.values()) for row in rows)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_copy_equals_the_recipe_and_its_commands_name_the_copy(path: Path, tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    assert cli.main(["recipes", "cp", path.stem, str(mine)]) == 0
    text = mine.read_text(encoding="utf-8")
    assert text.startswith(f"# ixtune train {mine} ")
    assert text.replace(str(mine), f"recipes/{path.name}") == path.read_text(encoding="utf-8")
    assert cli.main(["recipes", "check", str(mine)]) == 0


def test_a_copy_into_a_folder_keeps_its_name_and_never_overwrites(tmp_path: Path):
    done = ixtune("recipes", "cp", "charts", tmp_path)
    assert done.returncode == 0, done.stderr
    copied = tmp_path / "charts.yaml"
    assert f"written  {copied}" in done.stdout
    copied.write_text("precious")
    again = ixtune("recipes", "cp", "charts.yaml", copied)
    assert again.returncode == 2
    assert "the file exists already" in again.stderr
    assert copied.read_text() == "precious"
    nowhere = ixtune("recipes", "cp", "charts", tmp_path / "none" / "x.yaml")
    assert nowhere.returncode == 2
    assert "the folder of the file does not exist" in nowhere.stderr
    below = ixtune("recipes", "cp", "charts", copied / "x.yaml")
    assert below.returncode == 2
    assert f"{copied} is a file, not a folder" in below.stderr
    assert "choose another folder" in below.stderr


@pytest.mark.parametrize("given", ["reciepts", "Receipts", "reciepts.yaml"])
def test_a_misspelled_name_gets_a_suggestion(given: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["recipes", "cp", given]) == 2
    assert "did you mean receipts?" in capsys.readouterr().err


def test_check_reports_every_mistake_with_its_line_and_override(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("base: nano\ndata:\n  train: x\noutput: y\nadapter:\n  rnak: 8\ntraining:\n  early_stopping: 3\n")
    done = ixtune("recipes", "check", recipe, "training.seed=-1", "--set", "adapter.alpha=0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: 4 mistakes in the recipe ({recipe})"
    assert f"{recipe}:6: unknown key adapter.rnak; did you mean adapter.rank?" in done.stderr
    assert f"{recipe}:8: training.early_stopping needs data.validation" in done.stderr
    assert "override training.seed=-1: " in done.stderr
    assert "override adapter.alpha=0: " in done.stderr
    assert done.stdout == ""
    recipe.write_text(recipe.read_text().replace("rnak", "rank"))
    mended = ixtune("recipes", "check", recipe, "--set", "data.validation=z")
    assert (mended.returncode, mended.stdout) == (0, f"ok       {recipe}: no mistakes found\n")


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["recipes", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == "ixtune recipe"
    assert schema["required"] == ["base", "data", "output"]
