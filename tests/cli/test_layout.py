from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from records import write_image
from terminal import on_terminal

from ixtune.layout import plan

ROOT = Path(__file__).resolve().parents[2]


def ixtune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ixtune", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_table_shows_sizes_padding_grid_and_tokens(tmp_path: Path):
    landscape = write_image(tmp_path / "land.png", 64, 43)
    portrait = write_image(tmp_path / "port.png", 30, 81)
    done = ixtune("layout", landscape, portrait, "--hd-num", "25")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (line for line in done.stdout.splitlines() if ".png" in line)
    layout = plan(64, 43, 25)
    assert str(landscape) in first
    assert f"{layout.resized_width}x{layout.resized_height}" in first
    assert f"  height {layout.pad_top}+{layout.pad_bottom}  " in first
    assert f"{layout.rows} x {layout.cols}" in first
    assert f"{layout.tokens:,}" in first
    assert "tokens = 144 * (crops + 1) + 12 * (rows + 1) + 1" in done.stdout
    turned = plan(30, 81, 25)
    assert f"  width {turned.pad_left}+{turned.pad_right}  " in second


def test_a_narrow_terminal_folds_paths_and_no_numbers(tmp_path: Path):
    image = write_image(tmp_path / "thin.png", 2000, 3)
    _, shown = on_terminal([sys.executable, "-m", "ixtune", "layout", str(image)], COLUMNS="80")
    for whole in ("2000x3", "8400x12", "8400x336", "162+162", "1 x 25", "3,769"):
        assert f" {whole} " in shown


def test_without_upscale_a_small_image_is_padded_on_all_four_sides(tmp_path: Path):
    image = write_image(tmp_path / "a.png", 61, 40)
    done = ixtune("layout", image, "--no-upscale")
    assert done.returncode == 0
    cells = re.split(r"  +", done.stdout.splitlines()[-2])
    assert cells[1:6] == ["61x40", "no", "336x336", "width 137+138, height 148+148", "1 x 1"]
    (told,) = json.loads(ixtune("layout", image, "--no-upscale", "--json").stdout)
    assert (told["upscale"], told["pad_right"], told["tokens"]) == (False, 138, 313)


def test_json_is_a_list_with_the_whole_layout(tmp_path: Path):
    image = write_image(tmp_path / "a.png", 60, 40)
    (told,) = json.loads(ixtune("layout", image, "--json").stdout)
    assert told == {"path": str(image), "notes": []} | plan(60, 40, 25).as_dict()
    assert sum(told["token_parts"].values()) == told["tokens"]


def test_ignored_metadata_is_noted_and_can_be_corrected(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = tmp_path / "lies.jpg"
    Image.new("RGB", (60, 40)).save(image, exif=exif)
    done = ixtune("layout", image)
    assert "60x40" in done.stdout
    assert f"note: {image}: the EXIF orientation is ignored" in done.stdout
    done = ixtune("layout", image, "--correct", "alpha,exif")
    assert "40x60" in done.stdout
    assert f"note: {image}: the image is rotated" in done.stdout
    (told,) = json.loads(ixtune("layout", image, "--correct", "exif", "--json").stdout)
    assert (told["notes"], told["width"]) == (["exif_applied"], 40)
    done = ixtune("layout", image, "--correct", "exfi")
    assert done.returncode == 2
    assert "'exfi'" in done.stderr


def test_bad_images_get_one_line_each_and_the_others_are_shown(tmp_path: Path):
    good = write_image(tmp_path / "good.png", 60, 40)
    thin = write_image(tmp_path / "thin.png", 1, 3000)
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    unmatched = (tmp_path / "empty", tmp_path / "zz*.png")
    done = ixtune("layout", *unmatched, tmp_path / "none.png", thin, good, tmp_path / "text.png", "--hd-num", "1")
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines() if ".png" in line] == [str(good)]
    empty, pattern, missing, too_thin, text = done.stderr.splitlines()
    assert empty == f"error: the folder holds no image ({unmatched[0]}); pass a folder with images or PDF files"
    assert pattern == f"error: no file matches this pattern ({unmatched[1]}); check it with `ls`"
    assert missing.startswith(f"error: there is no such image ({tmp_path / 'none.png'}); check")
    assert text.startswith(f"error: not an image in a known format ({tmp_path / 'text.png'}); save")
    assert "too thin" in too_thin
    assert str(thin) in too_thin
    done = ixtune("layout", thin, good, "--hd-num", "1", "--json")
    assert done.returncode == 1
    assert [one["path"] for one in json.loads(done.stdout)] == [str(good)]
