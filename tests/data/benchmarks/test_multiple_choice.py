"""Test reading MMBench tables and questions in our own format."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import write_image

from ixtune.data.benchmarks import BENCHMARKS, Items, read
from ixtune.data.benchmarks.item import ItemDraft
from ixtune.data.sources import entry as limits
from ixtune.errors import DataError, UsageError
from ixtune.scores import SCORES
from ixtune.scores.case import Case
from ixtune.scores.circular import all_right

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    return write_image(tmp_path / "drawn.png").read_bytes()


def row(index: int | str, image: bytes | str, **changes: str) -> dict[str, Any]:
    cell = image if isinstance(image, str) else base64.b64encode(image).decode()
    plain = {"index": index, "question": "Where is it?", "A": "left", "B": "right", "answer": "B", "image": cell}
    return plain | {"category": "spatial_relationship", "l2-category": "relation", "split": "dev"} | changes


def table(folder: Path, *rows: dict[str, Any], columns: list[str] = COLUMNS) -> Path:
    """Write a TSV as pandas does."""
    path = folder / "MMBench_DEV_EN.tsv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def lines(folder: Path, *entries: Any) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def reasons(items: Items) -> list[tuple[int, str]]:
    return [(reject.record, reject.reason.value) for reject in items.rejects]


def test_mmbench_images_are_written_once_under_their_hash(tmp_path: Path, image: bytes):
    path = table(
        tmp_path,
        row(241, image, hint='One\tline,\n"quoted"', C="nan"),
        row(252, image, C="behind", D="none of them", answer="D"),
    )
    found = read("mmbench", path, images=tmp_path / "kept")
    assert not found.rejects
    first, second = found.items
    assert first.question == 'One\tline,\n"quoted"\nWhere is it?\nA. left\nB. right'
    assert second.question == "Where is it?\nA. left\nB. right\nC. behind\nD. none of them"
    assert (first.id, first.references, first.options) == ("241", ("B",), {"A": "left", "B": "right"})
    assert first.kind == "spatial_relationship"
    assert first.images == second.images
    kept = [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]
    assert [str(file) for file in kept] == list(first.images)
    assert kept[0].suffix == ".png"
    assert kept[0].read_bytes() == image
    assert first.question.endswith("B. right")
    assert BENCHMARKS["mmbench"].prompt.endswith("{question}\nPlease select the correct answer from the options above.")


def test_a_circular_pass_asks_each_question_in_every_order(tmp_path: Path, image: bytes):
    """The released tables contain every order; the image is in the first row."""
    path = table(
        tmp_path,
        row(241, image),
        row(1000241, "241", A="right", B="left", answer="A"),
        row(5, image, C="above", answer="A"),
    )
    plain = read("mmbench", path, images=tmp_path / "kept")
    assert [item.id for item in plain.items] == ["241", "5"]
    assert (len(plain.items) + len(plain.rejects) + plain.skipped, plain.skipped) == (3, 1)
    circular = read("mmbench", path, images=tmp_path / "kept", circular=True)
    assert circular.skipped == 0
    # the file brings both orders of 241; those of 5 are made
    assert [(item.id, item.group, item.references) for item in circular.items] == [
        ("241", "241", ("B",)),
        ("1000241", "241", ("A",)),
        ("5", "5", ("A",)),
        ("5+1", "5", ("B",)),
        ("5+2", "5", ("C",)),
    ]
    assert [item.options["A"] for item in circular.items] == ["left", "right", "left", "above", "right"]
    assert len({item.images for item in circular.items}) == 1
    always_a = [SCORES["choice_accuracy"].part(Case("A", item.references, item.options)) for item in circular.items]
    assert all_right(always_a, [item.group for item in circular.items]) == [(0.0, 1.0), (0.0, 1.0)]


@given(st.lists(st.text("abc", min_size=1), min_size=2, max_size=6, unique=True), st.data())
def test_rotations_move_the_answer_to_every_letter(texts: list[str], data: st.DataObject):
    options = dict(zip("ABCDEF", texts, strict=False))
    right = data.draw(st.sampled_from(sorted(options)))
    drafts = ItemDraft("7", "?", (right,), options=options).rotated()
    assert [draft.options[draft.references[0]] for draft in drafts] == [options[right]] * len(texts)
    assert sorted(draft.references[0] for draft in drafts) == sorted(options)
    assert len({draft.id for draft in drafts}) == len(texts)
    assert all(sorted(draft.options.values()) == sorted(texts) for draft in drafts)


def test_a_table_without_published_answers_is_refused(tmp_path: Path, image: bytes):
    path = table(tmp_path, row(241, image), columns=[name for name in COLUMNS if name != "answer"])
    with pytest.raises(DataError, match="none of 1 questions has an answer"):
        read("mmbench", path, images=tmp_path / "kept")


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"index": "x"}, "bad_id", '`index` is "x"'),
        ({"index": "²"}, "bad_id", "`index` is"),
        ({"index": "1"}, "duplicate_id", "occurs twice"),
        ({"image": ""}, "missing_field", "no `image`"),
        ({"image": "999"}, "picture_missing", 'that of question "999"'),
        ({"image": "2"}, "picture_missing", 'that of question "2"'),
        ({"image": "!" * 100}, "bad_image_field", "base64 of `image` is broken"),
        ({"image": "QUJD" * 40}, "picture_unreadable", "not an image"),
        ({"question": "nan"}, "missing_field", "no `question`"),
        ({"B": "nan"}, "bad_field", "the options are"),
        ({"answer": "C"}, "bad_field", 'the answer "C" is none of the options A, B'),
    ],
)
def test_a_hostile_row_is_rejected_and_writes_nothing(
    tmp_path: Path, image: bytes, changes: dict[str, str], reason: str, words: str
):
    found = read("mmbench", table(tmp_path, row(1, image), row(2, image) | changes), images=tmp_path / "kept")
    assert [item.id for item in found.items] == ["1"]
    assert reasons(found) == [(2, reason)]
    assert words in found.rejects[0].found
    assert len([file for file in (tmp_path / "kept").rglob("*") if file.is_file()]) == 1


def test_an_oversized_base64_image_is_never_decoded(tmp_path: Path, image: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_ENTRY_BYTES", 4000)
    small = base64.b64encode(image).decode()
    assert len(small) < 3500
    decoded: list[int] = []
    real = base64.b64decode
    monkeypatch.setattr(
        "base64.b64decode", lambda text, validate: decoded.append(len(text)) or real(text, validate=validate)
    )
    path = table(tmp_path, row(1, image), row(2, "QUJD" * 2000), row(3, "1"))
    found = read("mmbench", path, images=tmp_path / "kept")
    assert [item.id for item in found.items] == ["1", "3"]
    assert reasons(found) == [(2, "record_too_large")]
    assert decoded == [len(small)]


def test_an_image_of_too_many_pixels_is_rejected(tmp_path: Path, image: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ixtune.data.images.image_file.MAX_PIXELS", 100)
    found = read("mmbench", table(tmp_path, row(1, image)), images=tmp_path / "kept")
    assert reasons(found) == [(1, "picture_too_large")]
    assert not (tmp_path / "kept").exists()


def test_our_form_takes_paths_data_urls_and_several_answers(tmp_path: Path, image: bytes):
    address = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    path = lines(
        tmp_path,
        {"question": " Total? ", "image": "drawn.png", "answers": ["12.50", 12.5], "kind": "amount", "id": 9},
        {"question": "Which?", "images": ["drawn.png", address], "answer": "left"},
        {"question": "Text alone?", "references": [{"total": "3", "name": "é"}]},
        {"question": "Where?", "image": None, "answer": "right", "options": ["left", "right"]},
    )
    found = read("questions", path, images=tmp_path / "kept")
    assert not found.rejects
    total, which, text, where = found.items
    assert (total.id, total.question, total.references, total.kind) == ("9", "Total?", ("12.50", "12.5"), "amount")
    assert which.id == "line-2"
    assert which.images[0] == str(tmp_path / "drawn.png")
    assert Path(which.images[1]).read_bytes() == image
    assert Path(which.images[1]).is_relative_to(tmp_path / "kept")
    assert text.images == ()
    assert json.loads(text.references[0]) == {"total": "3", "name": "é"}
    assert (where.question, where.references) == ("Where?\nA. left\nB. right", ("B",))
    assert (BENCHMARKS["questions"].prompt, total.question) == ("{question}", "Total?")
    assert len(read("questions", path, images=tmp_path / "kept", circular=True).items) == 5


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"image": "../drawn.png"}, "path_outside_root", "is outside"),
        ({"image": "https://example.org/a.png"}, "picture_remote", "is a URL"),
        ({"image": "data:text/plain;base64,QUJD"}, "bad_image_field", "not of an image"),
        ({"image": "data:image/png;base64,QUJD"}, "picture_unreadable", "not an image"),
        ({"image": "a.png", "images": ["a.png"]}, "bad_image_field", "both `image` and `images`"),
        ({"options": {"A": "left"}}, "bad_field", "the options are"),
        ({"options": {"A": "left", "b": "right"}}, "bad_field", 'the option "b" is "right"'),
        ({"options": {"A": "left", "AB": "right"}}, "bad_field", 'the option "AB"'),
        ({"options": {"A": "left", "B": " "}}, "bad_field", "the option"),
        ({"options": {"A": "x", "B": "x"}}, "bad_field", "none of the options"),
        ({"answer": None}, "missing_field", "no answer in `answers`"),
        ({"kind": 3}, "bad_field", "`kind` is 3"),
        ({"id": 1.5}, "bad_id", "`id` is 1.5"),
    ],
)
def test_a_faulty_line_is_rejected_with_its_reason(
    tmp_path: Path, image: bytes, change: dict[str, Any], reason: str, words: str
):
    root = tmp_path / "root"
    (root / "x").mkdir(parents=True)
    (root / "a.png").write_bytes(image)
    good = {"question": "Which?", "image": "a.png", "answer": "x"}
    found = read("questions", lines(root, good, good | change), images=tmp_path / "kept")
    assert len(found.items) == 1
    assert reasons(found) == [(2, reason)]
    assert words in found.rejects[0].found


def test_lines_that_are_not_json_are_counted(tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "b"}\n\nnot JSON\n{"question": "\xff", "answer": "b"}\n[1]\n')
    found = read("questions", path, images=tmp_path / "kept")
    assert reasons(found) == [(2, "not_json"), (3, "not_utf8"), (4, "not_a_record")]
    assert len(found.items) + len(found.rejects) == 4


def test_a_table_without_a_header_is_a_usage_error(tmp_path: Path):
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(UsageError):
        read("mmbench", tmp_path / "empty.tsv", images=tmp_path / "kept")
