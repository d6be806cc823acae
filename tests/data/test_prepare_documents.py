"""Test preparing records about pages of PDF and TIFF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pdf_files import pdf, write_pdf
from PIL import Image
from records import write_image

from ixtune.data.images.content_hash import hash_of_file
from ixtune.data.images.pixels import open_image
from ixtune.data.prepare import PrepareReport, prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.missing_images import missing_images
from ixtune.data.preview import PAGE, preview
from ixtune.data.sources.source import Source

PAGES = ((595, 842), (960, 540), (595, 842))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pdf(tmp_path / "data" / "Report.pdf", *PAGES)
    write_image(tmp_path / "data" / "a.png")
    scans = [Image.new("L", (60, 40 + at), 80 * at) for at in range(3)]
    scans[0].save(tmp_path / "data" / "scan.tif", save_all=True, append_images=scans[1:])
    (tmp_path / "data" / "locked.pdf").write_bytes(pdf(PAGES[0], encrypted=True))
    return tmp_path / "data"


def run(data: Path, base: Path, entries: list[dict[str, Any]], name: str = "set", **options: Any) -> PrepareReport:
    lines = "".join(json.dumps({"question": "What?", "answer": "That."} | entry) + "\n" for entry in entries)
    (data / f"{name}.jsonl").write_text(lines)
    source = Source(path=str(data / f"{name}.jsonl"))
    return prepare(
        [source], data.parent / name, base=base, options=PrepareOptions(**{"hd_num": 4} | options), max_reject_rate=1
    )


def test_each_selected_page_is_an_image_of_the_record(data: Path, tokenizer_base: Path):
    entries = [
        {"image": "Report.pdf"},
        {"image": "Report.pdf#page=2"},
        {"image": ["a.png", "Report.pdf#page=2-3"], "question": "First <image>, then <image>!"},
        {"image": "scan.tif#page=2"},
        {"image": "report.PDF#page=1"},
    ]
    report = run(data, tokenizer_base, entries)
    assert (report.accepted, report.rejected) == (5, 0)
    prepared = store.load(data.parent / "set")
    rows = list(prepared.dataset)
    assert [[image["name"] for image in row["pictures"]] for row in rows] == [
        ["Report.pdf#page=1", "Report.pdf#page=2", "Report.pdf#page=3"],
        ["Report.pdf#page=2"],
        ["", "Report.pdf#page=2", "Report.pdf#page=3"],
        ["scan.tif#page=2"],
        ["report.PDF#page=1"],
    ]
    assert rows[0]["turns"][0]["text"] == "<ImageHere>" * 3 + "What?"
    assert rows[2]["turns"][0]["text"] == "First <ImageHere>, then <ImageHere><ImageHere>!"
    assert report.sets[""].notes == {"document_page": 8, "path_letter_case": 1}
    # stored once, with the size of the layout, and opened without the document
    (data / "Report.pdf").unlink()
    for row in rows:
        for image in row["pictures"]:
            file = prepared.files.path(image)
            assert image["content"] == hash_of_file(file)
            assert open_image(file).size == prepared.files.open(image).size == (image["width"], image["height"])
    page = rows[1]["pictures"][0]
    assert (page["width"], page["height"]) == (page["resized_width"], page["resized_height"]) == (672, 378)
    assert rows[0]["pictures"][1]["path"] == rows[2]["pictures"][1]["path"] == page["path"]
    assert missing_images([prepared]) == []


def test_the_preview_names_the_page_of_a_document(data: Path, tokenizer_base: Path):
    run(data, tokenizer_base, [{"image": "Report.pdf#page=2"}])
    made = preview(data.parent / "set")
    assert made.problems == []
    assert "Report.pdf#page=2" in (made.out / PAGE).read_text()


def test_copies_of_a_document_in_other_chunks_give_the_same_images(data: Path, tokenizer_base: Path):
    entries = [{"image": f"Report.pdf#page={1 + at % 3}"} for at in range(300)]
    write_pdf(data / "again" / "Report.pdf", *PAGES)
    run(data, tokenizer_base, entries)
    run(data / "again", tokenizer_base, entries[:50])
    first, again = (store.load(folder).dataset["pictures"][:50] for folder in (data.parent / "set", data / "set"))
    assert first == again
    assert len({image["path"] for (image,) in first}) == len(list((data.parent / "set" / "images").rglob("*.png"))) == 3


def test_all_pages_of_a_tiff_are_used_if_requested(data: Path, tokenizer_base: Path):
    assert run(data, tokenizer_base, [{"image": "scan.tif"}, {"image": "a.png"}]).rejected_by_reason == {
        "picture_animated": 1
    }
    report = run(data, tokenizer_base, [{"image": "scan.tif"}, {"image": "a.png"}], "all", pages="all")
    rows = store.load(report.out).dataset
    assert [[image["height"] for image in row["pictures"]] for row in rows] == [[40, 41, 42], [40]]


def test_dpi_and_a_lower_hd_num_set_the_size_of_a_page(data: Path, tokenizer_base: Path):
    run(data, tokenizer_base, [{"image": "Report.pdf#page=2"}], "dpi", dpi=36)
    (image,) = store.load(data.parent / "dpi").dataset[0]["pictures"]
    assert (image["width"], image["height"]) == (480, 270)
    run(data, tokenizer_base, [{"image": "Report.pdf#page=2"}], "low", hd_num=16, max_tokens=1500, over_length="lower")
    (image,) = store.load(data.parent / "low").dataset[0]["pictures"]
    assert (image["width"], image["height"]) == (image["resized_width"], image["resized_height"])
    assert image["rows"] * image["cols"] < 16
    assert open_image(data.parent / "low" / image["path"]).size == (image["width"], image["height"])


def test_a_faulty_document_is_rejected_with_its_own_reason(data: Path, tokenizer_base: Path):
    wrong = {
        "locked.pdf": "document_encrypted",
        "Report.pdf#page=9": "page_out_of_range",
        "Report.pdf#page=0": "page_out_of_range",
        "a.png#page=1": "page_out_of_range",
        "none.pdf#page=1": "picture_missing",
        "../Report.pdf#page=1": "path_outside_root",
    }
    run(data, tokenizer_base, [{"image": name} for name in (*wrong, "a.png")])
    rejects = [json.loads(line) for line in (data.parent / "set" / store.REJECTS).read_text().splitlines()]
    assert [reject["reason"] for reject in rejects] == list(wrong.values())


def test_a_column_can_select_the_page_of_a_document(data: Path, tokenizer_base: Path):
    entries = [
        {"image": "Report.pdf", "page": 2},
        {"image": "Report.pdf", "page": "2-3"},
        {"image": "scan.tif", "page": 3.0},
        {"image": "a.png", "page": 7},
        {"image": "Report.pdf", "page": None},
        {"image": "Report.pdf", "page": "two"},
        {"image": "Report.pdf", "page": 0},
        {"image": "Report.pdf#page=1", "page": 1},
        {"image": ["Report.pdf", "scan.tif"], "page": 1},
    ]
    report = run(data, tokenizer_base, entries)
    assert "page" in report.sources[0].opened.detected
    rows = store.load(report.out).dataset
    assert [[image["name"].rpartition("=")[2] for image in row["pictures"]] for row in rows] == [
        ["2"],
        ["2", "3"],
        ["3"],
        [""],
        ["1", "2", "3"],
    ]
    assert report.rejected_by_reason == {"bad_field": 3, "page_out_of_range": 1}


def test_a_page_column_is_ignored_if_no_image_is_a_document(data: Path, tokenizer_base: Path):
    report = run(data, tokenizer_base, [{"image": "a.png", "page": "III"}])
    assert report.accepted == 1
    assert "not used: page" in report.sources[0].opened.detected
