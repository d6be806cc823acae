"""Test comparing the images of two sets, and excluding records that share images with another set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_process import call
from pdf_files import write_pdf
from PIL import Image
from prepared_sets import as_format_2
from records import draw_page, write_image

from ixtune.data.prepare import PrepareReport, prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.shared_images import Overlap, compare
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError


def write(folder: Path, images: list[str], question: str = "What?") -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"image": image, "question": question, "answer": "That."} for image in images]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Source(path=str(folder / "data.jsonl"), image_root=folder)


def run(sources: list[Source], out: Path, base: Path, **options: Any) -> PrepareReport:
    return prepare(sources, out, base=base, options=PrepareOptions(**{"hd_num": 1} | options))


@pytest.fixture
def two(tmp_path: Path, tokenizer_base: Path) -> tuple[Path, Path]:
    """Return two sets that share one image under different names; two records of the first show it."""
    for name, size in (("one/a.png", 60), ("one/b.png", 61), ("other/z.png", 60), ("other/y.png", 62)):
        write_image(tmp_path / name, size, 40)
    run([write(tmp_path / "one", ["a.png", "a.png", "b.png"])], tmp_path / "A", tokenizer_base)
    run([write(tmp_path / "other", ["z.png", "y.png"])], tmp_path / "B", tokenizer_base)
    return tmp_path / "A", tmp_path / "B"


def test_sets_are_compared_by_the_content_of_their_images(two: tuple[Path, Path]):
    assert compare(*two) == Overlap(records=(3, 2), images=(2, 2), shared_images=1, showing=(2, 1), equal_records=1)
    assert compare(two[0], two[0]).equal_records == 3


def test_inspect_counts_what_two_sets_share(two: tuple[Path, Path]):
    told = call("inspect", *two)
    assert told.returncode == 0
    assert "1 in both" in told.stdout
    assert f"2 of 3 in {two[0]}" in told.stdout
    assert f"--exclude {two[1]}" in told.stdout
    assert json.loads(call("inspect", *two, "--json").stdout)["showing"] == [2, 1]
    with pytest.raises(IxtuneError, match="no such prepared set"):
        compare(two[0], two[1] / "none")


def test_a_set_of_format_2_is_compared_by_hashing_its_images(two: tuple[Path, Path]):
    as_format_2(two[0])
    assert compare(*two).shared_images == 1


def test_records_that_show_an_excluded_image_are_left_out_not_faulty(
    two: tuple[Path, Path], tmp_path: Path, tokenizer_base: Path
):
    sources = [Source(path=str(tmp_path / name / "data.jsonl")) for name in ("one", "other")]
    report = run(sources, tmp_path / "C", tokenizer_base, exclude=(str(two[1]),))
    assert (report.accepted, report.rejected_by_reason) == (1, {"in_excluded_set": 4})
    assert compare(tmp_path / "C", two[1]).shared_images == 0
    rejects = [json.loads(line) for line in (tmp_path / "C" / store.REJECTS).read_text().splitlines()]
    assert all(str(two[1]) in reject["found"] for reject in rejects)


def test_a_page_of_a_document_is_excluded_and_counted_at_any_size(tmp_path: Path, tokenizer_base: Path):
    for folder, name in (("one", "report.pdf"), ("other", "copy.pdf")):
        write_pdf(tmp_path / folder / name, (300, 400), (300, 401))
    run([write(tmp_path / "one", ["report.pdf#page=1"])], tmp_path / "small", tokenizer_base, hd_num=1)
    source = write(tmp_path / "other", ["copy.pdf#page=1", "copy.pdf#page=2"])
    run([source], tmp_path / "large", tokenizer_base, hd_num=4)
    assert compare(tmp_path / "small", tmp_path / "large").shared_images == 1
    report = run([source], tmp_path / "rest", tokenizer_base, hd_num=4, exclude=(str(tmp_path / "small"),))
    assert (report.accepted, report.rejected_by_reason) == (1, {"in_excluded_set": 1})


def test_near_duplicates_are_excluded_and_stay_on_one_side_if_requested(tmp_path: Path, tokenizer_base: Path):
    names = []
    for seed in range(6):
        (tmp_path / "pages").mkdir(exist_ok=True)
        draw_page(seed).save(tmp_path / "pages" / f"{seed}.png")
        draw_page(seed).resize((250, 350)).save(tmp_path / "pages" / f"{seed}.jpg", quality=60)
        names += [f"{seed}.png", f"{seed}.jpg"]
    source = write(tmp_path / "pages", names)
    run([source], tmp_path / "split", tokenizer_base, val_fraction=0.34, near_duplicates=True)
    sides = [
        {Path(row["pictures"][0]["path"]).stem for row in store.load(tmp_path / "split" / side).dataset}
        for side in ("train", "validation")
    ]
    assert (len(sides[0]), len(sides[1])) == (4, 2)
    run([write(tmp_path / "pages", ["0.png"])], tmp_path / "held-out", tokenizer_base)
    source = write(tmp_path / "pages", names)
    found = {}
    for near in (False, True):
        options = {"exclude": (str(tmp_path / "held-out"),), "near_duplicates": near}
        found[near] = run([source], tmp_path / f"rest-{near}", tokenizer_base, **options).rejected
    assert found == {False: 1, True: 2}


def test_equal_bytes_and_rendered_pages_stay_on_one_side(tmp_path: Path, tokenizer_base: Path):
    for folder in ("left", "right"):
        write_pdf(tmp_path / folder / "report.pdf", *[(300, 400 + number) for number in range(10)])
        for number in range(10):
            Image.new("L", (40 + number, 30)).save(tmp_path / folder / f"{folder}-{number}.png")
    names = {
        folder: [*(f"report.pdf#page={n}" for n in range(1, 11)), *(f"{folder}-{n}.png" for n in range(10))]
        for folder in ("left", "right")
    }
    sources = [write(tmp_path / folder, names[folder], question=folder) for folder in names]
    sources[1] = replace(sources[1], hd_num=4)
    run(sources, tmp_path / "set", tokenizer_base, val_fraction=0.3)
    train, validation = (store.load(tmp_path / "set" / side).dataset for side in ("train", "validation"))
    assert len(train) + len(validation) == 40
    shown = [
        {(image["name"], image["width"] if not image["name"] else 0) for row in side for image in row["pictures"]}
        for side in (train, validation)
    ]
    assert not shown[0] & shown[1]
    assert len(validation) == 12
