from pathlib import Path

import pytest

from ixtune import cli

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes in place of the shipped ones."""
    monkeypatch.setattr(cli.recipes, "shipped", lambda kind: tmp_path)
    return tmp_path


def test_ls_shows_name_purpose_gpu_and_status_of_each(shelf: Path, capsys: pytest.CaptureFixture[str]):
    (shelf / "b.yaml").write_text(
        "# ixtune train b.yaml\n# purpose: read [receipts]: totals\n# gpu: any\n"
        "# status: measured, see README\nbase: nano\n# gpu: none of this\n"
    )
    (shelf / "a.yaml").write_text("base: nano\n")
    (shelf / "notes.txt").write_text("# purpose: no recipe\n")
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
def test_show_prints_the_file_as_it_is(path: Path, suffix: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["recipes", "show", path.stem + suffix]) == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["nothing", "../secret", "/etc/passwd", ""])
def test_show_gives_out_nothing_but_recipes(shelf: Path, name: str, capsys: pytest.CaptureFixture[str]):
    (shelf.parent / "secret.yaml").write_text("secret")
    (shelf / "a.yaml").write_text("base: nano\n")
    assert cli.main(["recipes", "show", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "choose one of a" in err
