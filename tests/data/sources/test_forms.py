"""Test reading the formats of other tools: a few records as each tool writes them."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import write_image

from ixtune.data.record import Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.schemas.value_paths import take
from ixtune.data.sources.command_line import sources_given
from ixtune.data.sources.source import Container, Source
from ixtune.data.sources.source_loader import Opened, open_source
from ixtune.errors import UsageError

ASKED, SAID = "What is the total?", "42.50"
SHOWN = f"<ImageHere>{ASKED}"
TURNS = [{"from": "human", "value": f"<image>{ASKED}"}, {"from": "gpt", "value": SAID}]
BARE = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
GT = {"total": "42.50", "menu": [{"nm": "Tea"}]}
GT_TEXT = '{"total": "42.50", "menu": [{"nm": "Tea"}]}'
LOCAL = "/data/local-files/?d=img/a.png"


def annotation(text: Any, kind: str = "textarea", name: str = "answer", **more: Any) -> dict[str, Any]:
    key = {"textarea": "text", "choices": "choices", "rating": "rating"}[kind]
    return {"result": [{"type": kind, "from_name": name, "to_name": "image", "value": {key: text}}], **more}


BOX = {"x": 10.5, "y": 20, "width": 30, "height": 5, "rotation": 0}
BOXED = {"type": "rectanglelabels", "from_name": "label", "value": BOX | {"rectanglelabels": ["Total"]}}
BOXES_TEXT = json.dumps([BOX | {"rectanglelabels": ["Total"]}])


def boxed_task() -> dict[str, Any]:
    """A task of Label Studio with a text and a region."""
    one = annotation([SAID])
    return {"id": 9, "data": {"image": LOCAL, "question": ASKED}, "annotations": [{"result": [*one["result"], BOXED]}]}


def grounded(**objects: Any) -> dict[str, Any]:
    """A record of ms-swift with one box."""
    turns = [{"role": "user", "content": "<image>Find it."}, {"role": "assistant", "content": "<bbox>"}]
    return {"messages": turns, "images": ["img/a.png"], "objects": {"ref": [], "bbox": [[1, 2, 3, 4]], **objects}}


# name -> (record, settings of the source, turns, images, references)
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], list[str], tuple[str, ...]]] = {
    "ms-swift": (
        {"query": f"<image>{ASKED}", "response": SAID, "images": ["img/a.png"]},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "ms-swift history": (
        {"query": "And?", "response": "No.", "history": [[ASKED, SAID]], "images": ["img/a.png"]},
        {},
        [SHOWN, SAID, "And?", "No."],
        ["img/a.png"],
        (),
    ),
    "ms-swift conversation": (
        {"conversation": [{"human": ASKED, "assistant": SAID}], "images": ["img/a.png"]},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "ms-swift grounding": (
        {
            "messages": [
                {"role": "user", "content": "<image>Find the <ref-object>."},
                {"role": "assistant", "content": "<bbox>"},
            ],
            "images": ["img/a.png"],
            "objects": {"ref": ["digit"], "bbox": [[20, 20, 30, 32]]},
        },
        {},
        ["<ImageHere>Find the digit.", "[20, 20, 30, 32]"],
        ["img/a.png"],
        (),
    ),
    "LLaMA-Factory alpaca": (
        {"instruction": "Translate to", "input": "German", "output": "sieben", "images": ["img/a.png"]},
        {},
        ["<ImageHere>Translate to\nGerman", "sieben"],
        ["img/a.png"],
        (),
    ),
    "Qwen-VL": (
        {
            "id": "1",
            "conversations": [
                {"from": "user", "value": f"Picture 1: <img>img/a.png</img>\n{ASKED}"},
                {"from": "assistant", "value": SAID},
            ],
        },
        {},
        [f"Picture 1: <ImageHere>\n{ASKED}", SAID],
        ["img/a.png"],
        (),
    ),
    "Qwen2-VL parts": (
        {
            "messages": [
                {"role": "user", "content": [{"image": "img/a.png"}, {"text": ASKED}]},
                {"role": "assistant", "content": [{"text": SAID}]},
            ]
        },
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "InternVL": (
        {"id": 0, "image": ["img/a.png"], "width_list": [60], "height_list": [40], "conversations": TURNS},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "InternVL without an image": (
        {"id": 0, "image": "", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {},
        ["Hi", "Hello"],
        [],
        (),
    ),
    "MiniCPM-V": (
        {
            "id": "0",
            "image": {"<image_00>": "img/a.png", "<image_01>": "img/b.png"},
            "conversations": [
                {"role": "user", "content": "Is <image_01> like <image_00>?"},
                {"role": "assistant", "content": "No."},
            ],
        },
        {},
        ["Is <ImageHere> like <ImageHere>?", "No."],
        ["img/b.png", "img/a.png"],
        (),
    ),
    "TRL without a placeholder": ({"messages": BARE, "images": "img/a.png"}, {}, [SHOWN, SAID], ["img/a.png"], ()),
    "TRL prompt and completion": (
        {"prompt": BARE[:1], "completion": BARE[1:], "images": ["img/a.png"]},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "Ollama": (
        {"messages": [BARE[0] | {"images": ["img/a.png"]}, BARE[1]]},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "Phi-3 numbers": (
        {
            "images": ["img/a.png", "img/b.png"],
            "messages": [
                {"role": "user", "content": "<|image_2|> or <|image_1|>? I mean <|image_2|>."},
                {"role": "assistant", "content": "No."},
            ],
        },
        {},
        ["<ImageHere> or <ImageHere>? I mean image 2.", "No."],
        ["img/b.png", "img/a.png"],
        (),
    ),
    "Donut": (
        {"file_name": "img/a.png", "ground_truth": json.dumps({"gt_parse": GT, "meta": {"v": 2}, "valid_line": []})},
        {"question": ASKED},
        [SHOWN, GT_TEXT],
        ["img/a.png"],
        (),
    ),
    "Donut with questions": (
        {
            "image": "img/a.png",
            "ground_truth": {"gt_parses": [{"question": ASKED, "answer": SAID}, {"question": ASKED, "answer": "42.5"}]},
        },
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (SAID, "42.5"),
    ),
    "Donut with several questions": (
        {
            "image": "img/a.png",
            "ground_truth": {
                "gt_parses": [
                    {"question": "And?", "answer": "No."},
                    {"question": "And?", "answer": "None."},
                    {"question": ASKED, "answer": SAID},
                ]
            },
        },
        {},
        ["<ImageHere>And?", "No.", ASKED, SAID],
        ["img/a.png"],
        (SAID,),
    ),
    "ms-swift grounding, types of boxes": (
        grounded(bbox_type="norm1", image_id=[0]),
        {},
        ["<ImageHere>Find it.", "[1, 2, 3, 4]"],
        ["img/a.png"],
        (),
    ),
    "Label Studio regions": (
        boxed_task(),
        {"columns": (("answer", "label"),)},
        [SHOWN, BOXES_TEXT],
        ["img/a.png"],
        (),
    ),
    "Label Studio regions left out": (
        boxed_task(),
        {"columns": (("answer", "answer"),)},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "Label Studio, minimal, texts of regions": (
        {
            "annotation_id": 1,
            "annotator": 1,
            "lead_time": 2.5,
            "image": LOCAL,
            "question": ASKED,
            "transcription": [BOX | {"text": ["42"]}, BOX | {"text": [".50"]}],
        },
        {},
        [SHOWN, "42\n.50"],
        ["img/a.png"],
        (),
    ),
    "the_cauldron": (
        {
            "images": ["img/a.png"],
            "texts": [{"user": ASKED, "assistant": SAID, "source": "x"}, {"user": "And?", "assistant": "No."}],
        },
        {},
        [SHOWN, SAID, "And?", "No."],
        ["img/a.png"],
        (),
    ),
    "nested questions": (
        {
            "image": "img/a.png",
            "questions": [{"question": ASKED, "answer": SAID}, {"question": "And?", "answer": "No."}],
        },
        {},
        [SHOWN, SAID, "And?", "No."],
        ["img/a.png"],
        (),
    ),
    "pairs under any name": (
        {"image": "img/a.png", "qa_data": [{"question": ASKED, "answer": SAID}, {"question": "And?", "answer": "No."}]},
        {},
        [SHOWN, SAID, "And?", "No."],
        ["img/a.png"],
        (),
    ),
    "PaliGemma": ({"image": "img/a.png", "prefix": ASKED, "suffix": SAID}, {}, [SHOWN, SAID], ["img/a.png"], ()),
    "M3IT": (
        {"image": "img/a.png", "instruction": "Answer.", "inputs": ASKED, "outputs": SAID},
        {},
        [f"<ImageHere>Answer.\n{ASKED}", SAID],
        ["img/a.png"],
        (),
    ),
    "A-OKVQA": (
        {"image": "img/a.png", "question": "Which?", "choices": ["cat", "dog"], "correct_choice_idx": 1},
        {},
        ["<ImageHere>Which?\nA. cat\nB. dog", "B"],
        ["img/a.png"],
        (),
    ),
    "Prodigy": (
        {
            "image": "img/a.png",
            "options": [{"id": "c", "text": "cat"}, {"id": "d", "text": "dog"}],
            "accept": ["d"],
            "answer": "accept",
            "_task_hash": 1,
        },
        {"question": "Which?"},
        ["<ImageHere>Which?\nA. cat\nB. dog", "dog"],
        ["img/a.png"],
        (),
    ),
    "Prodigy text": (
        {"image": "img/a.png", "user_input": SAID, "answer": "accept", "_input_hash": 1},
        {"question": ASKED},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "a column page with images": (
        {"page": "img/a.png", "question": ASKED, "answer": SAID},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "an image column that pandas wrote as text": (
        {"image": "{'bytes': None, 'path': 'img/a.png'}", "question": ASKED, "answer": SAID},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "AI2 ARC": (
        {
            "image": "img/a.png",
            "question": "Which?",
            "choices": {"text": ["cat", "dog"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        {},
        ["<ImageHere>Which?\nA. cat\nB. dog", "B"],
        ["img/a.png"],
        (),
    ),
    "lists of questions": (
        {"image": "img/a.png", "questions": [ASKED, "And?"], "answers": [SAID, "No."]},
        {},
        [SHOWN, SAID, "And?", "No."],
        ["img/a.png"],
        (),
    ),
    "Label Studio": (
        {
            "id": 9,
            "data": {"image": LOCAL},
            "annotations": [annotation([SAID], was_cancelled=False)],
            "predictions": [],
        },
        {"question": ASKED},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "Label Studio, two annotators": (
        {
            "id": 9,
            "data": {"image": LOCAL, "question": ASKED},
            "annotations": [
                annotation(["no"], was_cancelled=True),
                annotation([SAID], "choices"),
                annotation(["42"], "choices"),
            ],
        },
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (SAID, "42"),
    ),
    "Label Studio rating": (
        {"id": 9, "data": {"image": LOCAL}, "annotations": [annotation(4, "rating", "stars")]},
        {"question": ASKED, "columns": (("answer", "stars"),)},
        [SHOWN, "4"],
        ["img/a.png"],
        (),
    ),
    "Label Studio JSON-MIN": (
        {
            "id": 1,
            "image": "/data/upload/img/a.png",
            "question": ASKED,
            "answer": SAID,
            "annotator": 1,
            "annotation_id": 9,
            "lead_time": 3.2,
        },
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "Label Studio JSON-MIN, one choice": (
        {"id": 1, "image": LOCAL, "sentiment": {"choices": [SAID]}, "annotator": 1, "annotation_id": 9, "lead_time": 3},
        {"question": ASKED},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "objects that no text names": (
        {"image": "img/a.png", "question": ASKED, "answer": SAID, "objects": {"bbox": [[1, 2, 3, 4]], "category": [1]}},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "ScienceQA": (
        {"image": "img/a.png", "question": "Which?", "choices": ["1", "2"], "answer": 1, "hint": "Look."},
        {},
        ["<ImageHere>Look.\nWhich?\nA. 1\nB. 2", "B"],
        ["img/a.png"],
        (),
    ),
    "MMMU": (
        {
            "question": "Which in <image 1>?",
            "options": "['5', '7']",
            "answer": "B",
            "image_1": "img/a.png",
            "image_2": None,
        },
        {},
        ["Which in <ImageHere>?\nA. 5\nB. 7", "B"],
        ["img/a.png"],
        (),
    ),
    "MMBench columns": (
        {"image": "img/a.png", "question": "Which?", "A": "left", "B": "right", "C": None, "answer": "A"},
        {},
        ["<ImageHere>Which?\nA. left\nB. right", "A"],
        ["img/a.png"],
        (),
    ),
    "choices by text": (
        {"image": "img/a.png", "question": "Which?", "choices": ["left", "right"], "answer": "right"},
        {},
        ["<ImageHere>Which?\nA. left\nB. right", "right"],
        ["img/a.png"],
        (),
    ),
    "ChartQA": (
        {"image": "img/a.png", "query": ASKED, "label": [SAID], "human_or_machine": 0},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (SAID,),
    ),
    "ChartQA, official": ({"imgname": "a.png", "query": ASKED, "label": SAID}, {}, [SHOWN, SAID], ["img/a.png"], ()),
    "InfographicVQA, official": (
        {
            "image_local_name": "a.png",
            "question": ASKED,
            "answers": [SAID],
            "image_url": "https://example.org/1.png",
            "ocr_output_file": "1.json",
        },
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (SAID,),
    ),
    "TextVQA, official": (
        {"image_id": "a", "question": ASKED, "answers": [SAID, "42"], "flickr_300k_url": "https://example.org/z.jpg"},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (SAID, "42"),
    ),
    "DocVQA by language": (
        {"image": "img/a.png", "query": {"de": "Summe?", "en": ASKED}, "answers": [SAID]},
        {"columns": (("question", "query.en"),)},
        [SHOWN, SAID],
        ["img/a.png"],
        (SAID,),
    ),
    "a path into a list": (
        {"image": "img/a.png", "question": ASKED, "annotations": [{"text": SAID, "by": 1}, {"text": "42", "by": 2}]},
        {"columns": (("answer", "annotations[].text"),)},
        [SHOWN, SAID],
        ["img/a.png"],
        (SAID, "42"),
    ),
    "an object as the answer": (
        {"image": "img/a.png", "answer": GT},
        {"question": ASKED},
        [SHOWN, GT_TEXT],
        ["img/a.png"],
        (),
    ),
    "conversations as text": (
        {"image": "img/a.png", "conversations": json.dumps(TURNS)},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "a struct of lists": (
        {"image": "img/a.png", "conversations": {"from": ["human", "gpt"], "value": [f"<image>{ASKED}", SAID]}},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "a conversation of another name": ({"image": "img/a.png", "dialog": TURNS}, {}, [SHOWN, SAID], ["img/a.png"], ()),
    "a number beside a conversation": (
        {"scan": "a.png", "conversations": TURNS},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
    "image_path beside a conversation": (
        {"image_path": "img/a.png", "conversations": TURNS},
        {},
        [SHOWN, SAID],
        ["img/a.png"],
        (),
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    write_image(folder / "img" / "a.png")
    write_image(folder / "img" / "b.png", 30, 40)
    return folder


def records_of(opened: Opened) -> list[Record]:
    return [record_of(entry, opened.reading) for entry in opened.entries()]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_detected_by_its_content_and_read(root: Path, form: str):
    record, settings_, turns, images, references = FORMS[form]
    path = root / f"{form.replace(' ', '-')}.json"
    path.write_text(json.dumps([record]))
    (read,) = records_of(open_source(Source(path=str(path), **settings_)))
    assert [turn.text for turn in read.turns] == turns
    assert [image.path for image in read.images] == images
    assert read.references == references
    assert ("earlier_references" in read.notes) == (form == "Donut with several questions")


@pytest.mark.parametrize(
    ("record", "settings_", "reason"),
    [
        (
            {
                "id": 9,
                "data": {"image": LOCAL, "question": ASKED, "answer": SAID},
                "annotations": [{"was_cancelled": True}],
            },
            {},
            Reason.MISSING_FIELD,
        ),
        ({"image": "img/a.png", "question": "Which?", "choices": ["1", "2"], "answer": "D"}, {}, Reason.BAD_FIELD),
        ({"image": "img/a.png", "question": "Which?", "choices": "1;2", "answer": "A"}, {}, Reason.FIELD_NOT_USED),
        ({"image": "img/a.png", "question": "Which?", "choices": ["1", "2"], "answer": "1"}, {}, Reason.BAD_FIELD),
        (
            {"messages": BARE, "images": ["img/a.png"], "objects": {"ref": [], "bbox": [[1, 2, 3, 4]]}},
            {},
            Reason.FIELD_NOT_USED,
        ),
        ({"messages": BARE, "images": ["img/a.png"], "tools": [{"name": "x"}]}, {}, Reason.FIELD_NOT_USED),
        ({"messages": BARE, "images": ["img/a.png"], "label": False}, {}, Reason.FIELD_NOT_USED),
        ({"messages": BARE, "images": ["img/a.png"], "weight": 0.5}, {}, Reason.FIELD_NOT_USED),
        ({"messages": [BARE[0], BARE[1] | {"mask": 1}], "image": "img/a.png"}, {}, Reason.FIELD_NOT_USED),
        ({"messages": [BARE[0], BARE[1] | {"loss_mask": 0}], "image": "img/a.png"}, {}, Reason.FIELD_NOT_USED),
        ({"messages": BARE, "images": ["img/a.png"], "loss_mask": [0, 1]}, {}, Reason.FIELD_NOT_USED),
        ({"messages": BARE, "videos": ["x.mp4"]}, {}, Reason.BAD_FIELD),
        ({"messages": BARE, "boxes": [3, "scan.png"]}, {}, Reason.BAD_IMAGE_FIELD),
        (
            {
                "data": {"image": LOCAL, "question": ASKED, "answer": SAID},
                "meta": {"back": "img/a.png"},
                "annotations": [{"result": []}],
            },
            {},
            Reason.IMAGE_NOT_USED,
        ),
        ({"messages": BARE, "id": "img/a.png"}, {}, Reason.IMAGE_NOT_USED),
        (boxed_task(), {}, Reason.FIELD_NOT_USED),
        (
            {"annotation_id": 1, "lead_time": 2, "image": LOCAL, "question": ASKED, "answer": SAID, "label": [BOX]},
            {},
            Reason.FIELD_NOT_USED,
        ),
        (
            {
                "data": {"image": LOCAL, "question": ASKED},
                "annotations": [
                    {"result": [*annotation([SAID])["result"], {"type": "relation", "from_id": "a", "to_id": "b"}]}
                ],
            },
            {},
            Reason.FIELD_NOT_USED,
        ),
        (grounded(bbox_type="xywh"), {}, Reason.FIELD_NOT_USED),
        ({"image": "img/a.png", "answer": "reject", "_task_hash": 1}, {"question": ASKED}, Reason.FIELD_NOT_USED),
        (
            {"image": "img/a.png", "answer": "accept", "_task_hash": 1, "spans": [{"label": "x", "points": [[1, 2]]}]},
            {"question": ASKED},
            Reason.FIELD_NOT_USED,
        ),
        (
            {"image": "img/a.png", "prompt": ASKED, "completion": SAID, "label": False},
            {"columns": (("answer", "completion"),)},
            Reason.FIELD_NOT_USED,
        ),
        (grounded(image_id=[3]), {}, Reason.FIELD_NOT_USED),
        (grounded(depth=[1.5]), {}, Reason.FIELD_NOT_USED),
        (
            {"file_name": "img/a.png", "ground_truth": json.dumps({"gt_parse": GT, "meta": 1})},
            {"question": ASKED, "columns": (("answer", "ground_truth"),)},
            Reason.FIELD_NOT_USED,
        ),
    ],
)
def test_fields_that_change_training_are_used_or_refused(
    root: Path, record: Any, settings_: dict[str, Any], reason: Reason
):
    path = root / "bad.json"
    path.write_text(json.dumps([record, FORMS["Label Studio, two annotators"][0]] if "data" in record else [record]))
    opened = open_source(Source(path=str(path), **settings_))
    entry = next(opened.entries())
    with pytest.raises(RecordError) as caught:
        record_of(entry, opened.reading)
    assert caught.value.reason is reason
    assert caught.value.hint


def test_unused_keys_of_turns_are_reported(root: Path):
    path = root / "thinking.json"
    path.write_text(json.dumps([{"messages": [BARE[0], BARE[1] | {"reasoning_content": "so"}], "image": "img/a.png"}]))
    assert "not used in turns: reasoning_content" in open_source(Source(path=str(path))).detected


@pytest.mark.parametrize("mark", [{"loss": False}, {"train": False}, {"weight": 0}, {"loss": 0.0}, {"learn": False}])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_a_turn_marked_as_not_trained_is_context_only(root: Path, field: str, mark: dict[str, Any]):
    turns = [*BARE[:1], BARE[1] | mark, *BARE] if field == "messages" else [TURNS[0], TURNS[1] | mark, *BARE]
    if field == "conversations":
        turns = [TURNS[0], TURNS[1] | mark, {"from": "human", "value": "And?"}, TURNS[1]]
    path = root / "masked.json"
    path.write_text(json.dumps([{field: turns, "image": "img/a.png"}]))
    (read,) = records_of(open_source(Source(path=str(path))))
    assert [turn.learn for turn in read.turns] == [True, False, True, True]
    assert "turns_not_learned" in read.notes


def write(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def given_sources(*paths: str, dataset: str | None = None, **settings_: Any) -> list[Opened]:
    return [open_source(one) for one in sources_given(paths, Source(path="", **settings_), True, dataset)]


VQA = {
    "questions": [
        {"image_id": 7, "question": ASKED, "question_id": 70},
        {"image_id": 8, "question": "?", "question_id": 80},
    ]
}
VQA_ANSWERS = {
    "annotations": [
        {"question_id": 70, "multiple_choice_answer": SAID, "answers": [{"answer": SAID}, {"answer": "42"}]},
    ]
}


def test_vqa_v2_is_read_from_two_files_and_a_pattern(tmp_path: Path):
    write_image(tmp_path / "val2014" / "COCO_val2014_000000000007.jpg")
    write_image(tmp_path / "val2014" / "COCO_val2014_000000000008.jpg")
    asked, said = write(tmp_path / "q.json", VQA), write(tmp_path / "a.json", VQA_ANSWERS)
    for paths, settings_ in (
        ((asked, said), {"image_pattern": "val2014/COCO_val2014_{image_id:012d}.jpg"}),
        ((said, asked), {}),
        ((asked,), {}),
    ):
        (opened,) = given_sources(*paths, **settings_)
        assert opened.container is Container.OBJECT
        assert len(opened.files) == 2
        first, second = opened.entries()
        record = record_of(first, opened.reading)
        assert record.images[0].path == "val2014/COCO_val2014_000000000007.jpg"
        assert (record.turns[-1].text, record.references) == (SAID, (SAID, "42"))
        with pytest.raises(RecordError, match="no answer to the question 80"):
            record_of(second, opened.reading)
    (tmp_path / "a.json").unlink()
    with pytest.raises(UsageError, match="questions without answers"):
        given_sources(asked)


def test_coco_captions_are_joined_with_their_images(tmp_path: Path):
    write_image(tmp_path / "train2017" / "1.png")
    content = {
        "info": {},
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"id": 10, "image_id": 1, "caption": "A sheet."}, {"id": 11, "image_id": 2, "caption": "x"}],
    }
    path = write(tmp_path / "captions.json", content)
    (opened,) = given_sources(path, question="Describe.")
    first, second = opened.entries()
    record = record_of(first, opened.reading)
    assert (record.images[0].path, record.turns[-1].text) == ("train2017/1.png", "A sheet.")
    with pytest.raises(RecordError, match="no image with the id 2"):
        record_of(second, opened.reading)
    boxes = content | {"annotations": [{"id": 10, "image_id": 1, "bbox": [1, 2, 3, 4]}]}
    with pytest.raises(UsageError, match="no caption"):
        given_sources(write(tmp_path / "instances.json", boxes), question="Describe.")


def test_an_object_that_wraps_a_list_is_read_as_the_list(tmp_path: Path):
    write_image(tmp_path / "documents" / "a.png")
    rows = [{"questionId": 1, "question": ASKED, "image": "documents/a.png", "answers": [SAID, "42"]}]
    (opened,) = given_sources(write(tmp_path / "d.json", {"dataset_name": "x", "data": rows}))
    (record,) = records_of(opened)
    assert (record.turns[0].text, record.references) == (SHOWN, (SAID, "42"))
    both = write(tmp_path / "e.json", {"train": rows, "test": rows})
    assert len(records_of(given_sources(both, split="test")[0])) == 1


def test_dataset_info_gives_file_columns_and_tags(tmp_path: Path):
    write_image(tmp_path / "a.png")
    chat = [{"who": "me", "what": f"<image>{ASKED}"}, {"who": "it", "what": SAID}]
    write(tmp_path / "d.jsonl", json.dumps({"chat": chat, "pics": ["a.png"]}))
    write(tmp_path / "e.json", [{"instruction": ASKED, "input": "", "output": SAID, "images": ["a.png"]}])
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"}
    columns = {"messages": "chat", "images": "pics"}
    listing = {
        "mine": {"file_name": "d.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags},
        "alpaca": {"file_name": "e.json", "columns": {"images": "images"}},
        "ranked": {"file_name": "e.json", "ranking": True},
    }
    path = write(tmp_path / "dataset_info.json", listing)
    for name in ("mine", "alpaca"):
        (record,) = records_of(given_sources(path, dataset=name)[0])
        assert ([turn.text for turn in record.turns], len(record.images)) == ([SHOWN, SAID], 1)
    for name, says in (("mne", "did you mean mine"), ("ranked", "preference data"), (None, "3 datasets")):
        with pytest.raises(UsageError, match=says):
            given_sources(path, dataset=name)
    with pytest.raises(UsageError, match="no dataset_info"):
        given_sources(write(tmp_path / "f.json", [{"question": "q", "answer": "a"}]), dataset="mine")


def test_internvl_meta_json_lists_datasets_with_folders_and_repeats(tmp_path: Path):
    record = {"id": 0, "image": "a.png", "conversations": TURNS}
    for name in ("one", "two"):
        write_image(tmp_path / "data" / name / "a.png")
        write(tmp_path / f"{name}.jsonl", json.dumps(record) + "\n")
    listing = {
        name: {"root": f"data/{name}/", "annotation": f"{name}.jsonl", "repeat_time": times, "length": 1}
        for name, times in (("one", 1), ("two", 2.5))
    }
    meta = write(tmp_path / "meta.json", listing)
    opened = given_sources(meta)
    assert [one.source.weight for one in opened] == [None, 2.5]
    assert [one.image_root for one in opened] == [tmp_path / "data" / "one", tmp_path / "data" / "two"]
    assert "two of meta.json, not used: length" in opened[1].detected
    assert [record.images[0].path for one in opened for record in records_of(one)] == ["a.png", "a.png"]
    assert [one.source.path for one in given_sources(meta, dataset="two")] == [str(tmp_path / "two.jsonl")]
    with pytest.raises(UsageError, match="did you mean two"):
        given_sources(meta, dataset="tow")
    for wrong in ({"annotation": "none.jsonl"}, {"annotation": "one.jsonl", "repeat_time": 0}):
        with pytest.raises(UsageError):
            given_sources(write(tmp_path / "wrong.json", {"x": wrong}))


def test_questions_about_paragraphs_become_records(tmp_path: Path):
    write_image(tmp_path / "a.png")
    asked = [
        {
            "id": "q1",
            "question": ASKED,
            "answers": [{"text": SAID, "answer_start": 0}, {"text": "42", "answer_start": 0}],
        },
        {"id": "q2", "question": "And?", "answers": [], "is_impossible": True},
    ]
    article = {
        "title": "Tea",
        "image": "a.png",
        "paragraphs": [{"context": "A receipt.", "qas": asked}, {"context": 5}],
    }
    for name, content in (("squad.json", {"version": "1", "data": [article]}), ("list.json", [article])):
        (opened,) = given_sources(write(tmp_path / name, content))
        assert "a record for each question" in opened.detected
        entries = list(opened.entries())
        assert [entry.number for entry in entries] == [1, 2, 3]
        read = record_of(entries[0], opened.reading)
        assert [turn.text for turn in read.turns] == [f"<ImageHere>A receipt.\n{ASKED}", SAID]
        assert (read.id, read.references) == ("q1", (SAID, "42"))
        reasons = []
        for entry in entries[1:]:
            with pytest.raises(RecordError) as caught:
                record_of(entry, opened.reading)
            reasons.append(caught.value.reason)
        assert reasons == [Reason.MISSING_FIELD, Reason.NOT_A_RECORD]


def test_image_folders_take_answers_from_files_or_folder_names(tmp_path: Path):
    for folder, text in (("sroie/img", None), ("both", {"company": "A", "total": "1"}), ("texts", "A sheet.")):
        write_image(tmp_path / folder / "X0.png")
        if text is not None:
            write(tmp_path / folder / f"X0.{'json' if isinstance(text, dict) else 'txt'}", text)
    write(tmp_path / "sroie" / "key" / "X0.txt", {"company": "A", "total": "1"})
    write(tmp_path / "sroie" / "box" / "X0.txt", "1,2,3,4,A")
    for name in ("ok", "crack"):
        write_image(tmp_path / "classes" / name / "0.png")
    expected = {
        "sroie": ["img/X0.png", '{"company": "A", "total": "1"}'],
        "both": ["X0.png", '{"company": "A", "total": "1"}'],
        "texts": ["X0.png", "A sheet."],
        "classes": ["crack/0.png", "crack"],
    }
    for folder, (image, answer) in expected.items():
        record = records_of(given_sources(str(tmp_path / folder), question=ASKED)[0])[0]
        assert (record.images[0].path, record.turns[-1].text) == (image, answer)
    with pytest.raises(UsageError, match="no question") as caught:
        given_sources(str(tmp_path / "sroie"))
    assert "--question" in caught.value.hint
    (tmp_path / "set").mkdir()
    (tmp_path / "classes").rename(tmp_path / "set" / "train")
    with pytest.raises(UsageError, match="the splits train"):
        given_sources(str(tmp_path / "set"), question=ASKED)


def workbook(path: Path, rows: list[list[Any]], sheets: int = 1) -> str:
    """Write a small .xlsx file by hand."""
    cells = "".join(
        "<row>"
        + "".join(
            f'<c t="inlineStr"><is><t>{cell}</t></is></c>' if isinstance(cell, str) else f"<c><v>{cell}</v></c>"
            for cell in row
        )
        + "</row>"
        for row in rows
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    numbers = range(1, sheets + 1)
    names = "".join(f'<sheet name="s{n}" sheetId="{n}" r:id="r{n}"/>' for n in numbers)
    links = "".join(
        f'<Relationship Id="r{n}" Type="{office}/worksheet" Target="worksheets/s{n}.xml"/>' for n in numbers
    )
    with zipfile.ZipFile(path, "w") as archive:
        root = f'<Relationship Id="r" Type="{office}/officeDocument" Target="xl/workbook.xml"/>'
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{package}">{root}</Relationships>')
        archive.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{names}</sheets></workbook>'
        )
        archive.writestr("xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{package}">{links}</Relationships>')
        for n in numbers:
            sheet = f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData></worksheet>'
            archive.writestr(f"xl/worksheets/s{n}.xml", sheet)
    return str(path)


def open_document(path: Path, rows: list[list[Any]]) -> str:
    """An OpenDocument workbook with one sheet, as LibreOffice stores it: texts and numbers have types of their own."""
    office = "urn:oasis:names:tc:opendocument:xmlns:"

    def written(cell: Any) -> str:
        kind = f'float" office:value="{cell}' if isinstance(cell, float) else "string"
        return f'<table:table-cell office:value-type="{kind}"><text:p>{cell}</text:p></table:table-cell>'

    cells = "".join(f"<table:table-row>{''.join(map(written, row))}</table:table-row>" for row in rows)
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", kind)
        archive.writestr(
            "META-INF/manifest.xml",
            f'<manifest:manifest xmlns:manifest="{office}manifest:1.0" manifest:version="1.2">'
            f'<manifest:file-entry manifest:full-path="/" manifest:media-type="{kind}"/>'
            '<manifest:file-entry manifest:full-path="content.xml" manifest:media-type="text/xml"/>'
            "</manifest:manifest>",
        )
        archive.writestr(
            "content.xml",
            f'<office:document-content xmlns:office="{office}office:1.0" xmlns:table="{office}table:1.0" '
            f'xmlns:text="{office}text:1.0" office:version="1.2"><office:body><office:spreadsheet>'
            f'<table:table table:name="Receipts">{cells}</table:table>'
            "</office:spreadsheet></office:body></office:document-content>",
        )
    return str(path)


def test_a_libreoffice_sheet_is_read_as_a_table(tmp_path: Path):
    pytest.importorskip("python_calamine")
    write_image(tmp_path / "a.png")
    rows: list[list[Any]] = [["image", "question", "answer"], ["a.png", ASKED, 42.5], ["a.png", "How many?", 3.0]]
    (opened,) = given_sources(open_document(tmp_path / "t.ods", rows))
    assert "the sheet Receipts" in opened.detected
    records = records_of(opened)
    assert [record.turns[-1].text for record in records] == ["42.5", "3"]
    assert [image.path for record in records for image in record.images] == ["a.png", "a.png"]


def test_a_worksheet_is_read_as_a_table(tmp_path: Path):
    pytest.importorskip("python_calamine")
    write_image(tmp_path / "a.png")
    rows: list[list[Any]] = [["image", "question", "answer"], ["a.png", ASKED, 42.5], ["a.png", "How many?", 3.0]]
    (opened,) = given_sources(workbook(tmp_path / "t.xlsx", rows))
    records = records_of(opened)
    assert [record.turns[-1].text for record in records] == [SAID.rstrip("0"), "3"]
    assert [str(record.place) for record in records] == ["row 2", "row 3"]
    pictures = workbook(tmp_path / "p.xlsx", [row[1:] for row in rows])
    with zipfile.ZipFile(pictures, "a") as archive:
        archive.writestr("xl/media/image1.png", b"x")
    with pytest.raises(UsageError, match="holds 1 picture itself"):
        given_sources(pictures)
    assert len(records_of(given_sources(pictures, columns=(("image", ""),))[0])) == 2
    several = workbook(tmp_path / "u.xlsx", rows, sheets=2)
    with pytest.raises(UsageError, match="several sheets: s1, s2"):
        given_sources(several)
    assert len(records_of(given_sources(several, split="s2")[0])) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sep.csv", "sep=;\r\nimage;question;answer\r\na.png;Prix?;0,50 €\r\n".encode()),
        ("wide.txt", "image\tquestion\tanswer\r\na.png\tPrix?\t0,50 €\r\n".encode("utf-16")),
        ("bom.csv", "\ufeffimage;question;answer\na.png;Prix?;0,50 €\n".encode()),
        ("cp1252.csv", "image;question;answer\na.png;Prix?;0,50 €\n".encode("cp1252")),
    ],
)
def test_csv_files_from_excel_are_read(tmp_path: Path, name: str, content: bytes):
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    if name.startswith("cp"):
        with pytest.raises(UsageError, match="not in UTF-8") as caught:
            given_sources(str(tmp_path / name))
        assert "--encoding cp1252" in caught.value.hint
    (record,) = records_of(given_sources(str(tmp_path / name), encoding="cp1252" if name.startswith("cp") else None)[0])
    assert record.turns[-1].text == "0,50 €"


def test_take_removes_the_value_at_a_path_and_keeps_the_rest():
    fields: dict[str, Any] = {"a": {"b": [{"c": 1, "d": 2}, {"c": 3}]}, "e.f": 4, "g": '{"h": {"i": 5}}'}
    assert take(fields, "a.b[].c") == [1, 3]
    assert take(fields, "e.f") == 4
    assert take(fields, "g.h.i") == 5
    assert take(fields, "a.b[0].d") == 2
    assert take(fields, "nothing.here") is None
    assert fields == {"a": {"b": [{}, {}]}, "g": {"h": {}}}


# "ChartQA, official" and its like are guessed from the first record of a file of their own
MIXED = [one for one in FORMS.values() if not one[1]]


@given(
    chosen=st.lists(st.sampled_from(MIXED), min_size=1, max_size=6), junk=st.lists(st.sampled_from([None, 5, {}, []]))
)
@settings(max_examples=60, deadline=None)
def test_each_record_in_a_mix_of_forms_is_accepted_or_refused(root: Path, chosen: list[Any], junk: list[Any]):
    path = root / "mixed.json"
    path.write_text(json.dumps([*(record for record, *_ in chosen), *junk]))
    try:
        opened = open_source(Source(path=str(path)))
    except UsageError:
        return
    read = accepted = rejected = 0
    for entry, (_, _, _, images, _) in zip(opened.entries(), [*chosen, *[MIXED[0]] * len(junk)], strict=True):
        read += 1
        try:
            record = record_of(entry, opened.reading)
        except RecordError:
            rejected += 1
        else:
            accepted += 1
            assert len(record.images) == len(images)
    assert read == len(chosen) + len(junk) == accepted + rejected


def test_a_table_with_conversations_in_a_cell_is_not_question_columns(root: Path):
    with open(root / "c.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "conversations"], ["img/a.png", json.dumps(TURNS)]])
    (record,) = records_of(open_source(Source(path=str(root / "c.csv"))))
    assert [turn.text for turn in record.turns] == [SHOWN, SAID]
