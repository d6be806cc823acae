from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from records import write_picture

from ixtune.layout import plan

ROOT = Path(__file__).resolve().parents[2]


def ixtune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ixtune", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_table_shows_sizes_padding_grid_and_tokens(tmp_path: Path):
    landscape = write_picture(tmp_path / "land.png", 64, 43)
    portrait = write_picture(tmp_path / "port.png", 30, 81)
    done = ixtune("layout", landscape, portrait, "--hd-num", "25")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (line for line in done.stdout.splitlines() if ".png" in line)
    layout = plan(64, 43, 25)
    assert str(landscape) in first
    assert f"{layout.resized_width}x{layout.resized_height}" in first
    assert f"{layout.pad_before} top, {layout.pad_after} bottom" in first
    assert f"{layout.rows} x {layout.cols}" in first
    assert f"{layout.tokens:,}" in first
    assert "144 global view" in first
    assert "left" in second


def test_json_is_a_list_with_the_whole_layout(tmp_path: Path):
    picture = write_picture(tmp_path / "a.png", 60, 40)
    (told,) = json.loads(ixtune("layout", picture, "--json").stdout)
    assert told == {"path": str(picture)} | plan(60, 40, 25).as_dict()
    assert sum(told["token_parts"].values()) == told["tokens"]


def test_a_missing_picture_and_one_too_thin_are_one_clear_line(tmp_path: Path):
    done = ixtune("layout", tmp_path / "none.png")
    assert done.returncode == 1
    assert str(tmp_path / "none.png") in done.stderr
    thin = write_picture(tmp_path / "thin.png", 1, 3000)
    done = ixtune("layout", thin, "--hd-num", "1")
    assert done.returncode == 2
    assert "too thin" in done.stderr
    assert len(done.stderr.splitlines()) == 2
