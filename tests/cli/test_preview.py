from __future__ import annotations

import re
from pathlib import Path

import pytest
from records import entry, shown, write_image, write_source

from ixtune.cli import main


@pytest.fixture
def prepared(image_root: Path, tokenizer_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return a set of three records with images, one of them named [b]old, and one without."""
    write_image(image_root / "[b]old.png", 30, 70)
    source = write_source(image_root, [shown(1), shown(2, "[b]old.png"), shown(3), entry("text", "hi", "yo")])
    out = tmp_path / "set"
    arguments = ["prepare", source, "--out", out, "--base", tokenizer_base, "--hd-num", 4]
    assert main(list(map(str, arguments))) == 0
    capsys.readouterr()
    return out


def test_preview_writes_a_folder_next_to_the_set_and_prints_a_summary(
    prepared: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["preview", str(prepared)]) == 0
    told = capsys.readouterr()
    out = prepared.with_name("set-preview")
    assert f"images     3 in {out / 'pictures'}\n" in told.out
    assert re.search(rf"page       {out / 'index.html'}: 4 records, \d\.\d MB\n", told.out)
    assert told.err == ""
    assert len(list((out / "pictures").glob("*.png"))) == 3


def test_limit_and_output_folder_can_be_chosen(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "deep" / "elsewhere"
    assert main(["preview", str(prepared), "--limit", "1", "--out", str(out)]) == 0
    assert "images     2 " in capsys.readouterr().out  # the first, and the extreme one
    assert (out / "index.html").is_file()


def test_an_image_that_cannot_be_drawn_is_named(prepared: Path, image_root: Path, capsys: pytest.CaptureFixture[str]):
    (image_root / "[b]old.png").unlink()
    assert main(["preview", str(prepared)]) == 0
    told = capsys.readouterr().out
    assert "not drawn  record 2: there is no such image" in told
    assert "[b]old.png" in told


def test_a_missing_set_and_an_existing_folder_are_refused(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["preview", str(tmp_path / "none")]) == 1
    assert "there is no such prepared set" in capsys.readouterr().err
    assert main(["preview", str(prepared), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "exists already" in told
    assert "hint:" in told
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".set")) == []
