from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import entry, shown, write_image, write_source

from ixtune.data.images.pixels import Corrections, open_image, place
from ixtune.data.prepare import prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import MANIFEST, PrepareOptions
from ixtune.data.preview import preview
from ixtune.data.preview.choice import choose
from ixtune.data.preview.drawing import (
    GRID_COLOUR,
    HATCH_COLOUR,
    MAX_SHEET_WIDTH,
    draw_grid,
    draw_sheet,
    global_view,
    padding_share,
    steps_of,
    token_counts,
)
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD
from ixtune.layout import LayoutError, PatchLayout, plan
from ixtune.pages.kit import cut, line

CROP = FOUR_KHD.crop
NOISE = np.random.default_rng(7)
SHEET_TOP = 106  # where the drawing begins below a heading of three lines
SHEET_LEFT = 20


def placed(layout: PatchLayout) -> np.ndarray:
    """Return a noise image placed by `layout`, without white and without the colors drawn over it."""
    pixels = NOISE.integers(0, 100, (layout.height, layout.width, 3), dtype=np.uint8)
    return place(Image.fromarray(pixels), layout)


def padding(layout: PatchLayout) -> np.ndarray:
    """Return which pixels of the placed image are padding: bool [final_height, final_width]."""
    inside = np.zeros((layout.final_height, layout.final_width), dtype=bool)
    rows = slice(layout.pad_top, layout.pad_top + layout.resized_height)
    inside[rows, layout.pad_left : layout.pad_left + layout.resized_width] = True
    return ~inside


class Page(HTMLParser):
    """Collect tags, attributes and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def make(root: Path, tokenizer_base: Path, tmp_path: Path):
    """Return a function that prepares entries as the set tmp_path/set."""

    def make(entries: list[Any], **options: Any) -> Path:
        source = Source(path=str(write_source(root, entries)))
        chosen = PrepareOptions(**{"hd_num": 4} | options)
        prepare([source], tmp_path / "set", base=tokenizer_base, options=chosen, max_reject_rate=1)
        return tmp_path / "set"

    return make


# the drawing


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 1), (3, 5), (1, 7)])
def test_the_global_view_matches_that_of_the_model(rows: int, cols: int):
    from torch import from_numpy
    from torch.nn.functional import interpolate

    image = NOISE.integers(0, 256, (rows * CROP, cols * CROP, 3), dtype=np.uint8)
    planes = from_numpy(image).permute(2, 0, 1)[None].float()
    theirs = interpolate(planes, size=(CROP, CROP), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    ours = global_view(image)
    assert ours.shape == (CROP, CROP, 3)
    assert np.abs(ours - theirs.clamp(0, 255).numpy()).max() <= 0.51  # rounding alone


@pytest.mark.parametrize(
    "layout",
    [
        plan(640, 500, 4),
        plan(300, 700, 4),
        plan(500, 400, 4, upscale=False),
        plan(672, 672, 4),
    ],
    ids=["landscape", "portrait", "own size", "no padding"],
)
def test_the_full_size_drawing_differs_only_in_grid_numbers_and_hatching(layout: PatchLayout):
    image = placed(layout)
    drawn = np.array(draw_grid(image, layout, 10_000, 10_000))
    assert drawn.shape == image.shape
    for x in range(0, layout.final_width, CROP):
        assert (drawn[:, x] == GRID_COLOUR).mean() > 0.9  # the lines across cross it
    for y in range(0, layout.final_height, CROP):
        assert (drawn[y] == GRID_COLOUR).mean() > 0.9
    free = np.ones(image.shape[:2], dtype=bool)
    for y in range(0, layout.final_height + 1, CROP):
        free[max(0, y - 1) : y + 2] = False
        free[y : y + 40, np.arange(layout.final_width) % CROP < 60] = False  # the numbers
    for x in range(0, layout.final_width + 1, CROP):
        free[:, max(0, x - 1) : x + 2] = False
    changed = (drawn != image).any(axis=2)
    assert not (changed & free & ~padding(layout)).any()
    hatched = (drawn == HATCH_COLOUR).all(axis=2)
    assert not (hatched & ~padding(layout)).any()
    if layout.final_width * layout.final_height > layout.resized_width * layout.resized_height:
        share = hatched[free & padding(layout)].mean()
        assert 0.1 < share < 0.25
        assert (drawn[free & padding(layout) & ~hatched] == 255).all()
    else:
        assert not hatched.any()


@settings(deadline=None, max_examples=50)  # an image of 55 crops is 18 MB
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 55), st.booleans())
def test_every_drawing_fits_and_is_never_upscaled(width: int, height: int, hd_num: int, upscale: bool):
    try:
        layout = plan(width, height, hd_num, upscale=upscale)
    except LayoutError:
        return
    blank = np.full((layout.final_height, layout.final_width, 3), 255, dtype=np.uint8)
    drawn = draw_grid(blank, layout, 500, 400)
    assert drawn.width <= 500
    assert drawn.height <= 400
    if layout.final_width <= 500 and layout.final_height <= 400:
        assert drawn.size == (layout.final_width, layout.final_height)  # never enlarged


def test_a_long_strip_is_wrapped_so_that_its_crops_are_visible():
    wide, tall = plan(4000, 100, 40), plan(100, 4000, 40)
    assert (wide.rows, wide.cols) == (1, 40)
    blank = np.full((wide.final_height, wide.final_width, 3), 255, dtype=np.uint8)
    across = draw_grid(blank, wide, 1000, 1200)
    down = draw_grid(blank.transpose(1, 0, 2), tall, 1000, 1200)
    for drawn in (across, down):
        assert drawn.width <= 1000
        assert drawn.height <= 1200
        assert min(drawn.size) > 500


def test_a_sheet_is_at_most_1400_pixels_wide():
    for layout in (plan(4000, 100, 55), plan(336, 336, 1), plan(3840, 1600, 55), plan(90, 4000, 40)):
        blank = np.full((layout.final_height, layout.final_width, 3), 255, dtype=np.uint8)
        sheet = draw_sheet(blank, layout, ["\u4e2d\0\n" + "id " * 500, "p/" * 900, steps_of(layout)], [("text", 5)])
        assert sheet.width <= MAX_SHEET_WIDTH
        assert sheet.height < 1500


def test_token_counts_of_an_image_add_up():
    layout = plan(1240, 1754, 25)
    assert sum(count for _, count in token_counts(layout)) == layout.tokens
    assert dict(token_counts(layout))["20 crops"] == 20 * 144
    assert padding_share(layout) == pytest.approx(1 - 1187 / 1344)
    assert steps_of(layout) == (
        "1240 x 1754 -> resized 1187 x 1680 -> padded to 1344 x 1680 (78 left, 79 right) -> 5 x 4 crops, hd_num 25"
    )


# the choice


def test_the_preview_samples_images_evenly_and_includes_the_extremes(make, root: Path):
    write_image(root / "thin.png", 300, 20)
    entries = [shown(number, "portrait.png" if number == 17 else "a.png") for number in range(40)]
    entries[33] = shown(33, "thin.png")
    entries[21] = entry(21, "<ImageHere><ImageHere>Which?", "One.", image=["a.png", "a.png"])
    dataset = store.load(make(entries)).dataset
    choice = choose(dataset, 4)
    most, padded, thin = choice.extremes
    assert (most.title, most.row) == ("most tokens", 21)
    assert (padded.title, padded.row) == ("most padding", 33)
    assert (thin.title, thin.row, thin.value) == ("most extreme aspect", 33, "15 to 1")
    assert choice.drawn[21] == (0, 1)
    assert {0, 33} < set(choice.drawn)
    assert choice.images <= 4 + 2 + 1
    assert max(choice.drawn) > 25
    assert choice.listed == tuple(range(40))
    assert choice == choose(dataset, 4)
    assert choose(dataset, 1000).images == 41


def test_a_set_without_images_has_a_page(make):
    report = preview(make([entry(1, "hi", "yo"), entry(2, "how much?", "42.50")]))
    assert (report.records, report.images) == (2, 0)
    page = Page(report.out / "index.html")
    assert "how much?" in page.words
    assert not [tag for tag, _ in page.tags if tag == "img"]


# the files


def test_each_image_gets_a_sheet_of_what_the_model_sees(make, root: Path, tmp_path: Path):
    turned = Image.open(root / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(root / "turned.png", exif=exif)
    folder = make([shown("a b/c", "turned.png"), entry("text", "hi", "yo")], corrections=("exif",))
    report = preview(folder)
    assert report.out == tmp_path / "set-preview"
    assert (report.records, report.images, report.problems) == (2, 1, [])
    assert sorted(path.relative_to(report.out).as_posix() for path in report.out.rglob("*.*")) == [
        "index.html",
        "pictures/record-1-picture-1.png",
    ]
    sheet = np.array(Image.open(report.out / "pictures" / "record-1-picture-1.png"))
    layout = store.layout_of(store.load(folder).dataset[0]["pictures"][0])
    assert (layout.width, layout.height) == (40, 60)
    image = place(open_image(root / "turned.png", Corrections(exif=True)), layout)
    grid = np.array(draw_grid(image, layout, 1000, 1200))
    rows, cols = slice(SHEET_TOP, SHEET_TOP + grid.shape[0]), slice(SHEET_LEFT, SHEET_LEFT + grid.shape[1])
    assert (sheet[rows, cols] == grid).all()
    left = SHEET_LEFT + grid.shape[1] + 24
    assert (sheet[SHEET_TOP : SHEET_TOP + CROP, left : left + CROP] == global_view(image)).all()


def test_the_same_set_gives_the_same_preview_bytes(make, tmp_path: Path):
    folder = make([shown(1), shown(2, "portrait.png"), shown(3, "none.png")])
    one, two = preview(folder, tmp_path / "one").out, preview(folder, tmp_path / "two").out
    files = [path.relative_to(one) for path in one.rglob("*.*")]
    assert len(files) == 3
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_an_existing_preview_folder_is_refused_and_kept(make, tmp_path: Path):
    folder = make([shown(1)])
    (tmp_path / "set-preview").mkdir()
    with pytest.raises(IxtuneError, match="exists already"):
        preview(folder)
    assert not list((tmp_path / "set-preview").iterdir())


def test_a_missing_or_changed_image_is_reported_and_others_are_drawn(make, root: Path):
    folder = make([shown(1), shown(2, "portrait.png"), shown(3, "deep/square.png")])
    (root / "a.png").unlink()
    write_image(root / "portrait.png", 31, 70)
    report = preview(folder)
    assert report.images == 1
    gone, changed = report.problems
    assert "record 1: there is no such image" in gone
    assert "now 31 x 70 pixels; the set was prepared with 30 x 70" in changed
    words = Page(report.out / "index.html").words
    assert words.count("cannot be drawn") == 2


def test_if_all_images_are_missing_nothing_is_written(make, root: Path, tmp_path: Path):
    folder = make([shown(1), shown(2)])
    shutil.rmtree(root)
    with pytest.raises(IxtuneError, match="none of the images can be drawn") as caught:
        preview(folder)
    assert len(caught.value.notes) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_both_sides_of_a_split_are_on_one_page(make, root: Path):
    for number in range(4):
        write_image(root / f"{number}.png", 50 + number, 40)
    folder = make([*(shown(n, f"{n}.png") for n in range(4)), shown("bad", "none.png")], val_fraction=0.25)
    report = preview(folder)
    assert (report.records, report.images) == (4, 4)
    names = {path.name for path in (report.out / "pictures").iterdir()}
    assert {"train-record-1-picture-1.png", "validation-record-1-picture-1.png"} < names
    page = Page(report.out / "index.html")
    assert "Statistics: train" in page.words
    assert "Statistics: validation" in page.words
    sides = [attributes["data-split"] for tag, attributes in page.tags if tag == "tr" and "data-split" in attributes]
    assert sorted(sides) == ["train"] * 3 + ["validation"]
    half = preview(folder / "train", folder.parent / "half")
    assert half.records == 3
    assert "picture_missing" in Page(half.out / "index.html").words


def test_a_set_without_statistics_has_a_shorter_page(make):
    folder = make([shown(1)])
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["statistics"], manifest["grids"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"grids": {}}))
    assert "<svg" not in (preview(folder).out / "index.html").read_text()


def test_long_texts_are_truncated_with_a_note():
    assert cut("a" * 2005) == "a" * 2000 + "… (5 more characters)"
    assert line("one\n two\tthree four", 9) == "one two …"
