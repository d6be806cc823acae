from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ixtune.data.record import ImageRef, Place, Record, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Schema, Source
from ixtune.data.sources.source_loader import open_source

FILES = Path(__file__).resolve().parents[2] / "fixtures" / "sources"
ANSWER = {"role": "assistant", "content": "A receipt."}
TEXT = {"type": "text", "text": "What?"}
IMAGE = {"type": "image"}


def read(value: Any, **reading: Any) -> Record:
    return record_of(Entry(3, "source.jsonl", Place("row", 17), value=value), Reading(Schema.OPENAI, **reading))


def asked(*parts: Any, **fields: Any) -> dict[str, Any]:
    """Return a record whose question has these parts."""
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]} | fields


def refused(value: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read(value)
    assert str(caught.value)
    assert caught.value.hint
    return caught.value


def records(name: str) -> list[Record]:
    opened = open_source(Source(path=str(FILES / name)))
    return [record_of(entry, opened.reading) for entry in opened.entries()]


def paths(*names: str) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(name, path=name) for name in names)


def test_openai_messages_are_read_from_a_real_file():
    sign, dot, pair, text = records("openai.jsonl")
    assert sign.id == "line-1"
    assert sign.images == paths("signs/1.png")
    assert sign.turns == (
        Turn("system", "You read uncommon road signs."),
        Turn("user", "What does this sign say?<ImageHere>"),
        Turn("assistant", "Give way."),
    )
    (image,) = dot.images
    assert image.path is None
    assert image.content is not None
    assert image.content.startswith(b"\x89PNG")
    assert dot.turns == (Turn("user", "<ImageHere>Which colour?"), Turn("assistant", "Red."))
    assert pair.images == paths("/data/a b.png", "signs/2.png")
    assert pair.turns[:2] == (Turn("system", "Be brief."), Turn("user", "Compare <ImageHere> and <ImageHere>"))
    assert text.images == ()


def test_parts_that_refer_to_an_images_list_are_read_from_a_real_file():
    first, second = records("trl.jsonl")
    assert (first.images, first.turns[0].text) == (paths("a.png"), "What is in the picture?<ImageHere>")
    assert second.images == paths("b.png", "c.png")
    assert second.turns[0].text == "<ImageHere><ImageHere>Which is larger?"


def test_messages_with_tags_and_an_images_list_are_read_from_a_real_file():
    first, second = records("messages_with_tags.json")
    assert (first.images, first.turns[0].text) == (paths("matches/1.jpg"), "<ImageHere>Who are they?")
    assert (second.images, second.turns[0].text) == ((), "Hello!")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}, "text": None},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "input_image", "image_url": "a.png"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": {"bytes": None, "path": "a.png"}},
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": "a.png"},
    ],
)
def test_an_image_part_is_read_in_all_usual_spellings(part: dict[str, Any]):
    assert read(asked(part, TEXT)).images == paths("a.png")


def test_an_image_part_may_hold_bytes():
    (image,) = read(asked({"type": "image", "image": {"bytes": b"\x89PNG", "path": None}})).images
    assert image == ImageRef("part 1 of turn 1", content=b"\x89PNG")


def test_numbered_parts_show_the_image_with_their_index():
    parts = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "image", "index": 1}]
    assert read(asked(*parts, images=["a.png", "b.png"])).images == paths("b.png", "a.png", "b.png")


def test_images_are_placed_in_the_turns_that_show_them():
    messages = [
        {"role": "user", "content": [TEXT, IMAGE]},
        ANSWER,
        {"role": "user", "content": [IMAGE, TEXT]},
        ANSWER,
    ]
    record = read({"messages": messages, "images": ["a.png", "b.png"]})
    assert [turn.text for turn in record.turns[::2]] == ["What?<ImageHere>", "<ImageHere>What?"]
    assert record.images == paths("a.png", "b.png")


def test_a_single_image_next_to_the_messages_needs_no_list():
    assert read(asked(IMAGE, TEXT, image="a.png")).images == paths("a.png")
    assert read(asked(IMAGE, TEXT, images={"bytes": b"x", "path": "a.png"})).images == (
        ImageRef("a.png", content=b"x"),
    )


def test_a_foreign_tag_is_text_if_the_user_allows_it():
    value = asked({"type": "image", "image": "a.png"}, {"type": "text", "text": "What is <image> in SVG?"})
    assert refused(value).reason is Reason.LOOKS_LIKE_IMAGE
    record = read(value, allow_image_text=True)
    assert record.turns[0].text == "<ImageHere>What is <image> in SVG?"
    assert record.images == paths("a.png")


def test_texts_of_parts_are_joined_unchanged():
    parts = [{"type": "text", "text": " a"}, {"type": "text", "text": ""}, {"type": "text", "text": "\nb "}]
    assert read(asked(*parts)).turns[0].text == " a\nb "


def test_the_system_prompt_comes_from_messages_record_or_default():
    own = {
        "messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *asked(TEXT)["messages"]]
    }
    assert read(own, system="Be kind.").turns[0] == Turn("system", "Be brief.")
    assert read(asked(TEXT, system="Be brief."), system="Be kind.").turns[0] == Turn("system", "Be brief.")
    assert read(asked(TEXT), system="Be kind.").turns[0] == Turn("system", "Be kind.")
    empty = {"messages": [{"role": "system", "content": ""}, *asked(TEXT)["messages"]]}
    assert [turn.role for turn in read(empty).turns] == ["user", "assistant"]


def conversation(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


USER = {"role": "user", "content": "What?"}


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        ({}, Reason.MISSING_FIELD, "there is no `messages`"),
        ({"messages": None}, Reason.MISSING_FIELD, "null"),
        ({"messages": []}, Reason.BAD_CONVERSATIONS, "an empty list"),
        ({"messages": "hi"}, Reason.BAD_CONVERSATIONS, '"hi"'),
        ({"messages": ["hi"]}, Reason.BAD_CONVERSATIONS, "turn 1"),
        (conversation({"content": "hi"}), Reason.MISSING_FIELD, "no `role`"),
        (conversation({"role": "user"}), Reason.MISSING_FIELD, "no `content`"),
        (conversation({"role": "user", "content": None}), Reason.MISSING_FIELD, "null"),
        (conversation({"role": "user", "content": float("nan")}), Reason.MISSING_FIELD, "NaN"),
        (conversation({"role": "user", "content": 5}), Reason.BAD_CONVERSATIONS, "is 5"),
        (conversation({"role": "user", "content": {"text": "hi"}}), Reason.BAD_CONVERSATIONS, "an object"),
        (conversation({"role": ["user"], "content": "hi"}), Reason.BAD_CONVERSATIONS, "a list"),
        (conversation({"role": "human", "content": "hi"}), Reason.UNKNOWN_ROLE, '"human"'),
        (conversation(USER, {"role": "tool", "content": "hi"}), Reason.UNKNOWN_ROLE, '"tool"'),
        (conversation(USER, {"role": "function", "content": "hi"}), Reason.UNKNOWN_ROLE, '"function"'),
        (conversation(USER, {"role": "system", "content": "hi"}), Reason.SYSTEM_NOT_FIRST, "turn 2"),
        (conversation(USER, {"role": "developer", "content": "hi"}), Reason.SYSTEM_NOT_FIRST, "turn 2"),
        (conversation(USER, ANSWER | {"tool_calls": [{"id": "1"}]}), Reason.BAD_FIELD, "tool_calls"),
        (conversation(USER, ANSWER | {"content": None, "tool_calls": [{}]}), Reason.BAD_FIELD, "tool_calls"),
        (conversation(USER, ANSWER | {"weight": 0.5}), Reason.FIELD_NOT_USED, "`weight` of turn 2 is 0.5"),
        (conversation(USER, ANSWER | {"photo": "a.png"}), Reason.IMAGE_NOT_USED, "`messages[1].photo`"),
        (conversation(USER, {"role": "assistant", "content": [IMAGE]}), Reason.PLACEHOLDER_IN_ANSWER, "turn 2"),
        (conversation({"role": "system", "content": [IMAGE]}, USER), Reason.PLACEHOLDER_IN_ANSWER, "system's"),
        (conversation(USER, {"role": "assistant", "content": "see <image>"}), Reason.PLACEHOLDER_IN_ANSWER, "<image>"),
        (asked("hi"), Reason.BAD_CONVERSATIONS, 'part 1 of turn 1 is "hi"'),
        (asked(None), Reason.BAD_CONVERSATIONS, "null"),
        (asked({"words": "hi"}), Reason.BAD_CONVERSATIONS, "no `type`"),
        (asked({"type": "video_url"}), Reason.BAD_CONVERSATIONS, '"video_url"'),
        (asked({"type": ["text"], "text": "hi"}), Reason.BAD_CONVERSATIONS, "a list"),
        (asked({"type": "text"}), Reason.MISSING_FIELD, "no `text`"),
        (asked({"type": "text", "text": 5}), Reason.BAD_CONVERSATIONS, "is 5"),
        (asked({"type": "text", "text": "a\0"}), Reason.NULL_CHARACTER, "part 1 of turn 1"),
        (asked({"type": "text", "text": "\ud83d"}), Reason.INVALID_UNICODE, "part 1 of turn 1"),
        (asked({"type": "text", "text": "<ImageHere>"}), Reason.SPECIAL_TOKEN_IN_TEXT, "<ImageHere>"),
        (asked({"type": "image_url"}), Reason.BAD_IMAGE_FIELD, "names no image"),
        (asked({"type": "image_url", "image_url": {}}), Reason.BAD_IMAGE_FIELD, "null"),
        (asked({"type": "image_url", "image_url": {"url": 5}}), Reason.BAD_IMAGE_FIELD, "is 5"),
        (asked({"type": "input_image", "file_id": "file-1"}), Reason.BAD_IMAGE_FIELD, "file_id"),
        (
            asked({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}),
            Reason.PICTURE_REMOTE,
            "part 1 of turn 1",
        ),
        (asked({"type": "image", "source": {"data": "x"}}), Reason.BAD_IMAGE_FIELD, "base64"),
        (asked({"type": "image"}), Reason.TOO_MANY_PLACEHOLDERS, "image 1 of `images`"),
        (asked(IMAGE, IMAGE, images=["a.png"]), Reason.TOO_MANY_PLACEHOLDERS, "image 2 of `images`"),
        (asked(IMAGE, images=["a.png", "b.png"]), Reason.TOO_FEW_PLACEHOLDERS, "1 of the 2"),
        (asked({"type": "image", "image": "c.png"}, images=["a.png"]), Reason.TOO_FEW_PLACEHOLDERS, "0 of the 1"),
        (asked({"type": "image", "index": -1}, images=["a.png"]), Reason.BAD_IMAGE_FIELD, "-1"),
        (asked({"type": "image", "index": True}, images=["a.png"]), Reason.BAD_IMAGE_FIELD, "true"),
        (asked(TEXT, images=["a.png", "b.png"]), Reason.MISSING_PLACEHOLDER, "no <image>"),
        (asked({"type": "text", "text": "<image>What?"}), Reason.TOO_MANY_PLACEHOLDERS, "for 0 images"),
        (asked(TEXT, images=["a.png"], image="b.png"), Reason.BAD_IMAGE_FIELD, "both `images` and `image`"),
        (asked(TEXT, images=5), Reason.BAD_IMAGE_FIELD, "is 5"),
        (asked(TEXT, id=""), Reason.BAD_ID, "an empty text"),
        (asked(TEXT, hd_num=0), Reason.BAD_FIELD, "hd_num"),
        (asked(TEXT, videos=["a.mp4"]), Reason.BAD_FIELD, "videos"),
        (asked(TEXT, system=["Be brief."]), Reason.BAD_FIELD, "`system` is a list"),
    ],
)
def test_invalid_messages_are_refused_with_their_reason(value: Any, reason: Reason, says: str):
    error = refused(value)
    assert error.reason == reason, error
    assert says in str(error)
