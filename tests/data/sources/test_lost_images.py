"""Test that no record with an image is accepted without it, wherever and however the image is given."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import write_image

from ixtune.data.record import Place, Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.image_values import image_at
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Container, Source
from ixtune.data.sources.source_reading import understand
from ixtune.errors import UsageError

NAMES = """image images img imgs image_path img_path image_file image_name imgname imagePath picture pictures photo
photos pic scan page pages file file_name filename path filepath url media media_path document doc screenshot frame
before after front thumbnail attachment attachments asset input_image source_image visual figure x data""".split()
assert len(NAMES) >= 40


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


PNG = png()
BASE64 = base64.b64encode(PNG).decode()
# how an image is written; the path is one that exists and one that does not
VALUES: dict[str, Any] = {
    "path": "a.png",
    "missing path": "nowhere/b.JPG",
    "windows path": "img\\a.png",
    "address": "https://example.org/photos/1.jpeg?size=9",
    "file address": "file:///data/a.webp",
    "data address": f"data:image/png;base64,{BASE64}",
    "base64": BASE64 + "A" * 64,
    "list": ["a.png", "c.png"],
    "bytes": PNG,
    "struct": {"bytes": PNG, "path": None},
    "struct of a path": {"bytes": None, "path": "a.png"},
    "list of structs": [{"bytes": PNG, "path": "x"}],
    "json list": '["a.png", "c.png"]',
    "python list": "['a.png']",
    "json object": '{"path": "a.png"}',
    "nested": {"meta": [{"file": "a.tiff"}]},
    "page": "doc.pdf#page=2",
    "no suffix": "plain",  # a file of this name is an image
}
TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
MARKS = """<img>a.png</img> <img>gone.png</img> <img> <IMG> <image> <image_1> <image1> <|image_1|> <|image|>
<|image_pad|> <|vision_start|><|image_pad|><|vision_end|> [IMG] [image] ![](a.png) ![page](a.png) <video> <audio>
<image_00> <IMG_CONTEXT> <start_of_image> <im_patch> <image_soft_token> <|video_pad|> <bbox> <vision>""".split()
MARKS += ["<|media_1|>", "<photo_2>", "[img: a.png]", "<image:a.png>", "![[a.png]]", "<bbox0>", "<picture>", "</img>"]
MARKS += ["<image 1>", '<img src="a.png">', "<image>\n<image>"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for name in ("a.png", "c.png", "img/a.png"):
        write_image(folder / name)
    (folder / "plain").write_bytes(PNG)
    return folder


def read(value: Any, root: Path, **source: Any) -> Record:
    """Return the record of the only entry of a source, read as `prepare` reads it."""
    entry = Entry(1, "source", Place("row", 1), value=value)
    options = Source(path="source", image_root=root, **source)
    understood = understand(options, Container.PARQUET, lambda: iter([entry]), None, root)
    return record_of(entry, understood.reading)


def placed(where: str, name: str, value: Any) -> dict[str, Any]:
    """Return a record with an image in one of the usual places."""
    if where == "conversation":
        return {"id": "1", "conversations": TURNS, name: value}
    if where == "messages":
        return {"messages": MESSAGES, name: value}
    if where == "row":
        return {"question": "What?", "answer": "A cat.", name: value}
    if where == "pairs":
        return {"texts": [{"user": "What?", "assistant": "A cat."}], name: value}
    if where == "turn":
        return {"conversations": [TURNS[0] | {name: value}, TURNS[1]]}
    if where == "message":
        return {"messages": [MESSAGES[0] | {name: value}, MESSAGES[1]]}
    if where == "part":
        content = [{"type": "text", "text": "What?", name: value}]
        return {"messages": [{"role": "user", "content": content}, MESSAGES[1]]}
    assert where == "struct"
    return {"question": "What?", "answer": "A cat.", "meta": {"id": 5, name: value}}


PLACES = ["conversation", "messages", "row", "pairs", "turn", "message", "part", "struct"]


@given(where=st.sampled_from(PLACES), name=st.sampled_from(NAMES), kind=st.sampled_from(sorted(VALUES)))
@settings(max_examples=400, deadline=None)
def test_a_record_with_an_image_anywhere_is_never_read_without_it(root: Path, where: str, name: str, kind: str):
    try:
        record = read(placed(where, name, VALUES[kind]), root)
    except (RecordError, UsageError):
        return
    assert record.images, f"{where}, {name}: {kind}"


@given(where=st.sampled_from(PLACES[:4]), name=st.sampled_from(NAMES), other=st.sampled_from(NAMES))
@settings(max_examples=100, deadline=None)
def test_two_images_are_both_used_or_the_record_is_refused(root: Path, where: str, name: str, other: str):
    if name == other:
        return
    try:
        record = read(placed(where, name, "a.png") | {other: {"bytes": PNG, "path": "z.png"}}, root)
    except (RecordError, UsageError):
        return
    assert len(record.images) == 2


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("where", ["conversation", "messages", "row"])
def test_an_image_tag_in_a_question_is_an_image_or_refused(root: Path, where: str, mark: str):
    value = {
        "conversation": {"conversations": [{"from": "human", "value": f"{mark} What?"}, TURNS[1]]},
        "messages": {"messages": [{"role": "user", "content": f"{mark} What?"}, MESSAGES[1]]},
        "row": {"question": f"{mark} What?", "answer": "A cat."},
    }[where]
    try:
        record = read(value, root)
    except RecordError as error:
        reason = error.reason
    else:
        reason = None
        assert record.images
        assert mark not in record.turns[0].text
    assert reason in (None, Reason.LOOKS_LIKE_IMAGE, Reason.TOO_MANY_PLACEHOLDERS)
    if "<img>" not in mark or "</img>" not in mark:
        assert mark in read(value, root, allow_image_text=True).turns[0].text


@pytest.mark.parametrize(
    "text",
    [
        "See [1] and <b>bold</b>.",
        "a < b > c",
        "The imagery [sic] is <good>.",
        "x[image_count]",
        "use <i>mage</i>",
        "an <imagery> of nowhere.png",
    ],
)
def test_texts_without_an_image_tag_are_unchanged(root: Path, text: str):
    assert read({"question": text, "answer": text}, root).turns[0].text == text


@pytest.mark.parametrize(
    "answer",
    ['<p><img src="logo.png"></p> ![x](y.png)', "[image] Total: 5", "<picture><source></picture>", "<video></video>"],
)
def test_an_answer_about_an_image_may_contain_html_or_markdown(root: Path, answer: str):
    value = {"image": "a.png", "question": "As HTML?", "answer": answer}
    assert read(value, root).images
    with pytest.raises(RecordError):
        read(value | {"image": None}, root)


@pytest.mark.parametrize("answer", ["<|image_pad|>", "<image_1>", "<img>c.png</img>", "<|media_1|>"])
def test_a_token_of_another_model_in_an_answer_is_refused(root: Path, answer: str):
    with pytest.raises(RecordError):
        read({"image": "a.png", "question": "What?", "answer": answer}, root)


def test_a_question_without_image_that_names_an_existing_image_is_refused(root: Path):
    with pytest.raises(RecordError) as caught:
        read({"question": "What is in img/a.png?", "answer": "A cat."}, root)
    assert caught.value.reason is Reason.LOOKS_LIKE_IMAGE


@pytest.mark.parametrize(
    "text",
    ['<p><img src="a.png"></p>', "![x](a.png)", "a.png (front)", "photos/9.jpg, in front", "\\includegraphics{x}"],
)
def test_an_unused_text_that_shows_or_names_an_image_refuses_the_record(root: Path, text: str):
    with pytest.raises(RecordError) as caught:
        read({"question": "q", "answer": "a", "note": text}, root)
    assert caught.value.reason is Reason.IMAGE_NOT_USED
    assert read({"question": "q", "answer": "a", "note": text}, root, columns=(("image", ""),)).images == ()
    with_image = {"image": "c.png", "question": "q", "answer": "a", "note": text}
    if "a.png" in text:  # an existing image beside the one that is shown
        with pytest.raises(RecordError):
            read(with_image, root)
    else:
        assert read(with_image, root).images


@pytest.mark.parametrize(
    ("value", "columns", "shown"),
    [
        # followed to the letter, the cure that is printed gives the right record
        ({"conversations": TURNS, "meta": {"shot": "a.png"}}, "meta.shot", ["a.png"]),
        ({"conversations": TURNS, "before": "a.png", "after": "c.png"}, "before", ["a.png"]),
        ({"messages": MESSAGES, "shots": ["a.png"]}, "shots", ["a.png"]),
        ({"question": "q", "answer": "a", "pages": [{"scan": "a.png"}]}, "pages[].scan", ["a.png"]),
        ({"question": "q", "answer": "a", "image_id": 17}, "", []),
        ({"question": "q", "answer": "a", "note": "see.pdf"}, "", []),
    ],
)
def test_the_user_can_name_the_image_fields(root: Path, value: Any, columns: str, shown: list[str]):
    record = read(value, root, columns=(("image", columns),))
    assert [image.path for image in record.images] == shown


def test_the_same_file_name_in_another_folder_is_another_image(root: Path):
    value = {"image": "a.png", "question": "q", "answer": "a", "after": "img/a.png"}
    with pytest.raises(RecordError) as caught:
        read(value, root)
    assert caught.value.reason is Reason.IMAGE_NOT_USED
    assert "--columns image=image,after" in caught.value.hint
    assert len(read(value, root, columns=(("image", "image,after"),)).images) == 2


@pytest.mark.parametrize(
    "extra",
    [
        {"original": "scans/a.tiff"},  # the same image under its old name
        {"meta": {"file_name": "a.png", "size": [8, 8]}},
        {"meta": '{"file_name": "old/a.jpg"}'},
        {"windows": ".\\a.png"},
        {"source": "report.pdf"},  # a crop of a report that is not there
        {"meta": {"document": "reports/2020.pdf"}},
        {"html": '<img src="logo.png"> and more'},
        {"coco_url": "http://images.example.org/z.jpg"},
        {"image_id": 17, "image_width": 640},
        {"boxes": [[1, 2, 3, 4]], "embedding": [0.5] * 8},
    ],
)
def test_a_description_of_the_image_is_not_a_second_image(root: Path, extra: dict[str, Any]):
    assert len(read({"image": "a.png", "question": "q", "answer": "a"} | extra, root).images) == 1


def test_the_same_image_in_another_spelling_is_no_second_one(root: Path):
    value = {"image": "img/a.png", "question": "q", "answer": "a"}
    for other in (str(root / "img" / "a.png"), "img\\a.png", "img//a.png"):
        assert read(value | {"local": other}, root).images
    with pytest.raises(RecordError):
        read(value | {"local": str(root / "a.png")}, root)


def test_the_document_of_a_page_is_no_second_image(root: Path):
    (root / "doc.pdf").write_bytes(b"%PDF-1.4")
    value = {"image": "doc.pdf#page=3", "question": "q", "answer": "a"}
    assert read(value | {"document": "doc.pdf"}, root).images
    assert read(value | {"document": "doc.pdf#page=3"}, root).images
    with pytest.raises(RecordError):
        read(value | {"document": "doc.pdf#page=4"}, root)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": {"b": ["x", "y.png"]}}, "f.a.b[1]"),
        ([{"type": "image"}], "f[0]"),
        (json.dumps({"p": "q.jpg"}), "f"),
        ([0.1, 0.2], None),
        ("a sentence that ends with a dot.", None),
        ("v1.2", None),
        (None, None),
        (False, None),
    ],
)
def test_the_location_of_an_image_is_reported(value: Any, found: str | None):
    assert image_at(value, "f", None) == found
