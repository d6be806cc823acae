"""Test that nothing that changes what is learned is dropped: other images in texts, options, masks, repeated names."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from records import write_image

from ixtune.data.containers.json_object import open_object
from ixtune.data.containers.json_text import decoded, line_entries, list_entries
from ixtune.data.record import Place, Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Container, Source
from ixtune.data.sources.source_reading import understand
from ixtune.errors import UsageError

ASKED = {"role": "user", "content": "<image>Which?"}
SAID = {"role": "assistant", "content": "7"}
AGAIN = {"role": "user", "content": "And now?"}
LLAVA = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "B"}]
ROW = {"image": "a.png", "question": "Which?", "answer": "A"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for name in ("a.png", "b.png", "c.png"):
        write_image(folder / name)
    return folder


def read(value: dict[str, Any], root: Path, **source: Any) -> Record:
    """Return the record of the only entry of a source, read as `prepare` reads it."""
    entry = Entry(1, "source", Place("row", 1), value=value)
    options = Source(path="source", image_root=root, **source)
    understood = understand(options, Container.JSONL, lambda: iter([entry]), None, root)
    return record_of(entry, understood.reading)


def texts(record: Record) -> list[str]:
    return [turn.text.replace("<ImageHere>", "") for turn in record.turns]


def refused(value: dict[str, Any], root: Path, **source: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read(value, root, **source)
    assert caught.value.hint
    return caught.value


# images in texts


OTHER_IMAGES: dict[str, dict[str, Any]] = {
    "another image in a question": ROW | {"question": "Compare with b.png, please"},
    "another image as the answer": ROW | {"answer": "b.png"},
    "an image as the answer": {"question": "Which?", "answer": "b.png"},
    "another image in the system prompt": ROW | {"system": "As in b.png"},
    "an image as the system prompt": {"question": "Which?", "answer": "7", "system": "b.png"},
    "a mark in the system prompt": ROW | {"system": "<image_2>"},
    "an address": {"question": "https://example.org/b.png What is it?", "answer": "7"},
    "a data: URL": ROW | {"question": "data:image/png;base64,BASE64 What is it?"},
    "base64": {"question": "What is it? BASE64", "answer": "7"},
    "a data: URL in a message": {"messages": [{"role": "user", "content": "data:image/png;base64,BASE64"}, SAID]},
}


@pytest.mark.parametrize("case", OTHER_IMAGES)
def test_an_image_that_a_text_names_is_never_learned_as_letters(case: str, root: Path) -> None:
    in_base64 = base64.b64encode((root / "b.png").read_bytes()).decode()
    value = json.loads(json.dumps(OTHER_IMAGES[case]).replace("BASE64", in_base64))
    assert refused(value, root).reason is Reason.LOOKS_LIKE_IMAGE
    assert read(value, root, allow_image_text=True)


@pytest.mark.parametrize(
    "value",
    [
        ROW | {"question": "This is a.png. What is it?"},
        ROW | {"question": "What is the name of the file?", "answer": "a.png"},
        ROW | {"question": "See https://example.org/b.png"},  # an address beside an image: where it comes from
        {"question": "See https://example.org/report.pdf", "answer": "Yes"},
        {"question": "Which file holds the logo?", "answer": "nowhere.png"},
    ],
)
def test_a_text_may_name_the_image_that_is_shown_and_files_that_are_not_there(
    value: dict[str, Any], root: Path
) -> None:
    assert len(read(value, root).images) == int("image" in value)


@pytest.mark.parametrize(
    "given",
    [{"A": "b.png", "B": "c.png"}, {"choices": ["b.png", "c.png"]}, {"choices": ["gone/1.jpg", "gone/2.jpg"]}],
)
def test_options_that_are_images_are_not_written_into_the_question(given: dict[str, Any], root: Path) -> None:
    error = refused(ROW | given, root)
    assert error.reason is Reason.IMAGE_NOT_USED
    assert f"--columns image=image,{','.join(given)},choices=" in str(error.hint)
    if "gone/1.jpg" not in str(given):
        columns = (("image", f"image,{','.join(given)}"), ("choices", ""))
        assert len(read(ROW | given, root, columns=columns).images) == 3


@pytest.mark.parametrize(
    "image",
    [
        {"path": "a.png", "mask": "b.png"},
        {"path": "a.png", "layers": [{"path": "b.png"}]},
        {"url": "a.png", "thumbnail": {"bytes": b"\x89PNG", "path": None}},
        {"bytes": None, "path": "a.png", "overlay": b"\x89PNG"},
    ],
)
def test_a_second_image_in_the_object_of_an_image_is_not_dropped(image: dict[str, Any], root: Path) -> None:
    error = refused(ROW | {"image": image}, root)
    assert error.reason is Reason.BAD_IMAGE_FIELD
    assert "another image" in str(error)


@pytest.mark.parametrize(
    "more",
    [{"bytes": None}, {"original_name": "scan.tif"}, {"url": "https://a.org/b.png"}, {"width": 5}, {"mask": None}],
)
def test_the_object_of_an_image_may_name_it_again(more: dict[str, Any], root: Path) -> None:
    assert len(read(ROW | {"image": {"path": "a.png", **more}}, root).images) == 1


def test_an_object_whose_keys_are_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps({"a.png": [{"question": "Which?", "answer": "7"}]}))
    for split in (None, "a.png"):
        with pytest.raises(UsageError, match="names of images as keys"):
            open_object(Source(path=str(tmp_path / "d.json"), split=split))


# options


@pytest.mark.parametrize(
    "given",
    [
        {"a": "five", "b": "six", "answer": "b"},
        {"candidates": ["five", "six"], "answer": 1},
        {"alternatives": {"A": "five", "B": "six"}, "answer": "(B)"},
        {"options": ["five", "six"], "answer": "B. six"},
    ],
)
def test_options_are_found_under_other_names(given: dict[str, Any], root: Path) -> None:
    assert texts(read(ROW | given, root)) == ["Which?\nA. five\nB. six", "B"]


@pytest.mark.parametrize("written", ["AC", "A, C", "A;C", "A C"])
def test_several_right_options_are_one_answer(written: str, root: Path) -> None:
    row = ROW | {"choices": ["five", "six", "seven"]}
    assert texts(read(row | {"answer": written}, root))[1] == "A, C"
    assert "list of 2 options" in str(refused(row | {"answer": ["A", "C"]}, root))
    assert texts(read(row | {"answer": ["A", "A"]}, root))[1] == "A"
    for wrong in ("CA", "AA", "AD", "A and C"):
        assert refused(row | {"answer": wrong}, root).reason is Reason.BAD_FIELD


@pytest.mark.parametrize("name", ["options", "choices", "candidates"])
@pytest.mark.parametrize("value", [["five", "six"], {"A": "five", "B": "six"}, '["five", "six"]'])
def test_a_conversation_shows_the_options_beside_it_or_is_rejected(name: str, value: Any, root: Path) -> None:
    for fields in ({"conversations": LLAVA}, {"messages": [ASKED, SAID]}):
        error = refused({"image": "a.png", **fields, name: value}, root)
        assert error.reason is Reason.FIELD_NOT_USED
        assert f"`{name}`" in str(error)
    shown = [LLAVA[0] | {"value": "<image>Which?\n(A) five\n(B) six"}, LLAVA[1]]
    assert read({"image": "a.png", "conversations": shown, name: value}, root)
    # settings of a tool, not options
    assert read({"image": "a.png", "conversations": LLAVA, name: {"temperature": 0.1}}, root)


# what is learned


@pytest.mark.parametrize("key", ["training", "supervise", "is_trainable", "doTrain", "learned"])
def test_a_turn_that_is_not_to_be_learned_is_not_learned(key: str, root: Path) -> None:
    def record(value: Any) -> dict[str, Any]:
        return {"images": ["a.png"], "messages": [ASKED, SAID | {key: value}, AGAIN, SAID]}

    for value in (False, 0):
        assert refused(record(value), root).reason is Reason.FIELD_NOT_USED
    for value in (True, None):
        assert all(turn.learn for turn in read(record(value), root).turns)


@pytest.mark.parametrize("of_record", [{"messages": [ASKED, SAID], "images": ["a.png"]}, ROW])
def test_a_weight_of_a_record_is_refused(of_record: dict[str, Any], root: Path) -> None:
    for name in ("sample_weight", "loss_weight"):
        assert refused(of_record | {name: 0.2}, root).reason is Reason.FIELD_NOT_USED
        assert read(of_record | {name: 1.0}, root)
    for name in ("loss", "train"):
        assert refused(of_record | {name: False}, root).reason is Reason.FIELD_NOT_USED
    assert read(ROW | {"weight": 12}, root)  # of a parcel


@pytest.mark.parametrize("name", ["system_prompt", "system_message", "system_instruction"])
def test_a_system_prompt_is_found_under_other_names(name: str, root: Path) -> None:
    for fields in ({"conversations": LLAVA}, {"messages": [ASKED, SAID]}, {"question": "Which?", "answer": "7"}):
        record = read({"image": "a.png", **fields, name: "Be brief."}, root)
        assert (record.turns[0].role, record.turns[0].text) == ("system", "Be brief.")


def test_roles_may_have_the_marks_of_deepseek(root: Path) -> None:
    turns = [{"role": "<|User|>", "content": "<image>Which?"}, {"role": "<|Assistant|>", "content": "7"}]
    assert [turn.role for turn in read({"image": "a.png", "conversations": turns}, root).turns] == ["user", "assistant"]


def test_flags_of_turns_that_are_false_are_printed_too(root: Path) -> None:
    entry = Entry(1, "s", Place("row", 1), value={"messages": [ASKED, SAID | {"edited": False, "note": ""}]})
    found = understand(Source(path="s", image_root=root), Container.JSONL, lambda: iter([entry]), None, root)
    assert "not used in turns: edited" in found.notes


# repeated names


@pytest.mark.parametrize("inside", ['"answer": "7", "answer": "8"', '"answer": "7", "meta": [{"x": 1, "x": 2}]'])
def test_a_name_that_occurs_twice_in_an_object_is_a_fault(inside: str, tmp_path: Path) -> None:
    whole = '{"image": "a.png", "question": "Which?", ' + inside + "}"
    fine = json.dumps(ROW)
    (tmp_path / "d.jsonl").write_text(f"{whole}\n{fine}\n")
    (tmp_path / "d.json").write_text(f"[{whole},\n{fine}]")
    for entries in (line_entries(tmp_path / "d.jsonl"), list_entries(tmp_path / "d.json")):
        (_, fault), (value, none) = map(decoded, entries)
        assert fault is not None
        assert fault.reason is Reason.NOT_JSON
        assert "twice" in fault.found
        assert none is None
        assert value == ROW
