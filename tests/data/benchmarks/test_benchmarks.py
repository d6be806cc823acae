"""Test reading small files in the published benchmark formats, with real images."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import write_image

from ixtune.data.benchmarks import BENCHMARKS, Items, read
from ixtune.errors import DataError, IxtuneError, UsageError
from ixtune.scores import SCORES
from ixtune.scores.case import Case
from ixtune.scores.ocrbench import FORMULAS

DOCVQA = {
    "questionId": 49153,
    "question": "What is the 'actual' value per 1000, during the year 1975?",
    "question_types": ["figure/diagram", "form"],
    "image": "documents/pybv0228_81.png",
    "docId": 14465,
    "ucsf_document_id": "pybv0228",
    "ucsf_document_page_no": "81",
    "answers": ["0.28", "0.28 "],
    "data_split": "val",
}
INFOGRAPHICVQA = {
    "questionId": 98313,
    "question": "What percent?",
    "image_local_name": "37313.jpeg",
    "image_url": "https://example.org/37313.jpeg",
    "ocr_output_file": "37313.json",
    "answers": ["92%", "92"],
    "answer_type": ["single span"],
    "evidence": ["text"],
    "operation/reasoning": [],
    "data_split": "val",
}
TEXTVQA = {
    "question": "what is the brand of this camera?",
    "image_id": "003a8ae2ef43b901",
    "image_classes": ["Cassette deck"],
    "flickr_original_url": "https://example.org/o.jpg",
    "image_width": 60,
    "image_height": 40,
    "answers": ["nous les gosses", "dakota", "dakota", "dakota digital", "dakota", "", "dakota", "clos", "dakota", "x"],
    "question_tokens": ["what"],
    "question_id": 34602,
    "set_name": "val",
}
OCRBENCH = {
    "dataset_name": "IIIT5K",
    "id": 2843,
    "image_path": "IIIT5K/test/918_1.png",
    "question": "what is written in the image?",
    "answers": "CENTRE",
    "type": "Regular Text Recognition",
}
CHARTQA = {"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?", "label": "14"}


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def family(folder: Path, *entries: Any) -> Path:
    """Write a file in the DocVQA or TextVQA format."""
    return written(folder / "val.json", {"dataset_name": "x", "dataset_split": "val", "data": list(entries)})


def reasons(items: Items) -> list[tuple[int, str]]:
    return [(reject.record, reject.reason.value) for reject in items.rejects]


def test_every_benchmark_has_existing_scores_and_prompts_the_question():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert set(benchmark.scores) <= set(SCORES)
        assert "{question}" in benchmark.prompt
        assert benchmark.source


@pytest.mark.parametrize("where", ["documents/pybv0228_81.png", "spdocvqa_images/pybv0228_81.png", "pybv0228_81.png"])
def test_docvqa_images_are_found_in_every_place_of_its_releases(tmp_path: Path, where: str):
    image = write_image(tmp_path / where)
    found = read("docvqa", family(tmp_path, DOCVQA), images=tmp_path / "kept")
    (item,) = found.items
    assert not found.rejects
    assert not (tmp_path / "kept").exists()
    assert (item.id, item.group) == ("49153", "49153")
    assert item.question == DOCVQA["question"]
    assert item.references == ("0.28", "0.28 ")
    assert item.kind == "figure/diagram, form"
    assert item.images == (str(image),)
    assert (item.source, item.place.unit, item.place.at, item.record) == (str(tmp_path / "val.json"), "line", 1, 1)
    assert BENCHMARKS["docvqa"].prompt.endswith("single word or phrase. {question}")


@pytest.mark.parametrize("where", ["37313.jpeg", "images/37313.jpeg", "infographicsvqa_images/37313.jpeg"])
def test_infographicvqa_is_read_with_its_answer_types(tmp_path: Path, where: str):
    image = write_image(tmp_path / "root" / where)
    plain = {key: value for key, value in INFOGRAPHICVQA.items() if key != "answer_type"} | {"questionId": 2}
    found = read("infographicvqa", family(tmp_path, INFOGRAPHICVQA, plain), tmp_path / "root", images=tmp_path / "kept")
    assert [(item.id, item.kind, item.images) for item in found.items] == [
        ("98313", "single span", (str(image),)),
        ("2", "", (str(image),)),
    ]


def test_textvqa_keeps_all_ten_answers_for_annotator_agreement(tmp_path: Path):
    image = write_image(tmp_path / "train_images" / "003a8ae2ef43b901.jpg")
    (item,) = read("textvqa", family(tmp_path, TEXTVQA), images=tmp_path / "kept").items
    assert item.id == "34602"
    assert item.images == (str(image),)
    assert len(item.references) == 10
    top, bottom = SCORES["vqa_accuracy"].part(Case("Dakota", item.references))
    assert top / bottom == 1


def test_chartqa_is_read_as_one_file_or_as_a_folder_of_both(tmp_path: Path):
    image = write_image(tmp_path / "png" / "41699051005347.png")
    people = written(tmp_path / "test_human.json", [CHARTQA, CHARTQA])
    written(tmp_path / "test_augmented.json", [CHARTQA | {"label": 14.5}])
    written(tmp_path / "other.json", ["not of ChartQA"])
    assert [item.id for item in read("chartqa", people, images=tmp_path / "kept").items] == ["human-1", "human-2"]
    both = read("chartqa", tmp_path, images=tmp_path / "kept")
    assert [(item.id, item.kind, item.references) for item in both.items] == [
        ("human-1", "human", ("14",)),
        ("human-2", "human", ("14",)),
        ("augmented-3", "augmented", ("14.5",)),
    ]
    assert both.items[2].images == (str(image),)
    assert both.items[2].source == str(tmp_path / "test_augmented.json")
    with pytest.raises(UsageError, match=r"no \*_human\.json"):
        read("chartqa", tmp_path / "png", images=tmp_path / "kept")


def test_ocrbench_is_scored_by_its_question_type(tmp_path: Path):
    write_image(tmp_path / OCRBENCH["image_path"])
    formula = OCRBENCH | {
        "dataset_name": "HME100k",
        "type": FORMULAS,
        "answers": ["y _ { 2 } = - 1\n", "y_2 = - 1\n"],
    }
    found = read("ocrbench", written(tmp_path / "OCRBench.json", [OCRBENCH, formula]), images=tmp_path / "kept")
    assert [item.id for item in found.items] == ["IIIT5K-2843", "HME100k-2843"]
    for item, answer in zip(found.items, ("it says centre", "$y_{2}=-1$"), strict=True):
        assert SCORES["ocrbench"].part(Case(answer, item.references, item.options, item.kind)) == (1.0, 1.0)


def test_a_set_without_answers_is_refused_and_single_questions_rejected(tmp_path: Path):
    write_image(tmp_path / DOCVQA["image"])
    secret = {key: value for key, value in DOCVQA.items() if key != "answers"}
    with pytest.raises(DataError, match="none of 2 questions has an answer") as caught:
        read("docvqa", family(tmp_path, secret, secret | {"answers": []}), images=tmp_path / "kept")
    assert "pass the validation file" in caught.value.hint
    some = [secret, DOCVQA, DOCVQA | {"questionId": 2, "answers": [" ", ""]}]
    found = read("docvqa", family(tmp_path, *some), images=tmp_path / "kept")
    assert len(found.items) == 1
    assert reasons(found) == [(1, "missing_field"), (3, "missing_field")]


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"image": "../outside.png"}, "path_outside_root", "is outside the image root"),
        ({"image": "/etc/passwd"}, "path_outside_root", "is outside the image root"),
        ({"image": "link/outside.png"}, "path_outside_root", "is outside the image root"),
        ({"image": "documents/none.png"}, "picture_missing", "no such image below"),
        ({"image": "documents"}, "picture_missing", "no such image below"),
        ({"image": "a" * 3000}, "picture_unreadable", "file name too long"),
        ({"image": "a\0b.png"}, "null_character", "null character"),
        ({"image": ["a.png"]}, "bad_field", "`image` is a list of 1"),
        ({"image": None}, "missing_field", "there is no `image`"),
        ({"question": " "}, "bad_field", "`question` is"),
        ({"question": 5}, "bad_field", "`question` is 5"),
        ({"question": "half \ud83d"}, "invalid_unicode", "half of a surrogate pair"),
        ({"questionId": True}, "bad_id", "`questionId` is true"),
        ({"questionId": None}, "bad_id", "there is no `questionId`"),
        ({"questionId": 1}, "duplicate_id", 'the id "1" occurs twice'),
        ({"answers": [True]}, "bad_field", "`answers` holds true"),
        ({"answers": [["0.28"]]}, "bad_field", "`answers` holds a list of 1"),
        ({"question_types": {"a": 1}}, "bad_field", "`question_types` is an object"),
    ],
)
def test_a_faulty_question_is_rejected_with_its_reason(tmp_path: Path, change: dict[str, Any], reason: str, words: str):
    root = tmp_path / "root"
    write_image(root / DOCVQA["image"])
    outside = write_image(tmp_path / "outside.png").parent
    (root / "link").symlink_to(outside, target_is_directory=True)
    good = DOCVQA | {"questionId": 1}
    found = read("docvqa", family(root, good, DOCVQA | change), images=tmp_path / "kept")
    assert [item.id for item in found.items] == ["1"]
    (reject,) = found.rejects
    assert (reject.record, reject.reason.value) == (2, reason)
    assert words in reject.found
    assert reject.hint
    json.loads(reject.row())


def test_non_questions_are_rejected_and_broken_files_are_errors(tmp_path: Path):
    write_image(tmp_path / DOCVQA["image"])
    found = read("docvqa", family(tmp_path, 7, DOCVQA, ["x"]), images=tmp_path / "kept")
    assert reasons(found) == [(1, "not_a_record"), (3, "not_a_record")]
    (tmp_path / "cut.json").write_text(json.dumps({"data": [DOCVQA]})[:-20])
    with pytest.raises(IxtuneError, match="line 1, column"):
        read("docvqa", tmp_path / "cut.json", images=tmp_path / "kept")
    with pytest.raises(IxtuneError, match="holds no question"):
        read("docvqa", family(tmp_path), images=tmp_path / "kept")
    with pytest.raises(IxtuneError, match="expected the opening bracket of a list"):
        read("ocrbench", family(tmp_path, DOCVQA), images=tmp_path / "kept")
    with pytest.raises(IxtuneError, match="cannot be read: No such file"):
        read("docvqa", tmp_path / "none.json", images=tmp_path / "kept")
    with pytest.raises(IxtuneError, match="cannot be read: Is a directory"):
        read("docvqa", tmp_path, images=tmp_path / "kept")


FORMS = {
    "docvqa": DOCVQA,
    "infographicvqa": INFOGRAPHICVQA,
    "chartqa": CHARTQA,
    "textvqa": TEXTVQA,
    "ocrbench": OCRBENCH,
    "questions": {"question": "?", "image": "a.png", "answers": "x", "options": None, "id": 1, "kind": "k"},
}
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["..", "/", "a.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["A", "B", "x"]), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(name=st.sampled_from(sorted(FORMS)), data=st.data())
def test_with_any_field_values_each_entry_is_a_question_or_a_reject(tmp_path: Path, name: str, data: st.DataObject):
    write_image(tmp_path / "a.png")
    changes = st.dictionaries(st.sampled_from(sorted(FORMS[name])), ANYTHING, max_size=4)
    entries = [{**FORMS[name], **data.draw(changes)} for _ in range(3)]
    if name in ("chartqa", "ocrbench"):
        path = written(tmp_path / "file.json", entries)
    elif name == "questions":
        path = tmp_path / "file.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        path = family(tmp_path, *entries)
    try:
        found = read(name, path, images=tmp_path / "kept")
    except DataError as error:
        found, refusal = None, error.what
    if found is None:
        assert refusal == "none of 3 questions has an answer to compare with"
        return
    assert len(found.items) + len(found.rejects) == 3
    assert all(Path(image).is_relative_to(tmp_path) for item in found.items for image in item.images)
    assert all(json.loads(reject.row())["mend"] for reject in found.rejects)


def test_an_unwritable_image_folder_is_reported_as_such(tmp_path: Path):
    image = base64.b64encode(write_image(tmp_path / "a.png").read_bytes()).decode()
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "?", "image": f"data:image/png;base64,{image}", "answer": "x"}))
    (tmp_path / "kept").write_text("a file, not a folder")
    with pytest.raises(IxtuneError, match="an image of the file cannot be written") as caught:
        read("questions", path, images=tmp_path / "kept")
    assert caught.value.where == str(tmp_path / "kept")


def test_a_misspelled_benchmark_gets_a_suggestion(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        read("docvaq", tmp_path / "x.json", images=tmp_path)
    assert caught.value.hint == "did you mean docvqa?"
    with pytest.raises(UsageError) as caught:
        read("zzz", tmp_path / "x.json", images=tmp_path)
    assert "docvqa, infographicvqa, chartqa" in caught.value.hint
    with pytest.raises(UsageError, match="no such folder"):
        read("docvqa", tmp_path / "x.json", tmp_path / "none", images=tmp_path)
