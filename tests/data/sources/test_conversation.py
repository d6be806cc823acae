from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import entry as ixc_entry
from records import shown

from ixtune.data.record import ImageRef, Place, Record, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Schema, Source
from ixtune.data.sources.source_loader import open_source

FILES = Path(__file__).resolve().parents[2] / "fixtures" / "sources"
LLAVA = {
    "id": "7",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A receipt."}],
}
SHAREGPT = {
    "images": ["a.png"],
    "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A receipt."}],
}
GOOD = {Schema.IXC: shown("a"), Schema.LLAVA: LLAVA, Schema.SHAREGPT: SHAREGPT}


def read(value: Any, schema: Schema, **reading: Any) -> Record:
    return record_of(Entry(3, "source.json", Place("line", 17), value=value), Reading(schema, **reading))


def refused(value: Any, schema: Schema, **reading: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read(value, schema, **reading)
    assert str(caught.value)
    assert caught.value.hint
    return caught.value


def records(name: str) -> list[Record]:
    opened = open_source(Source(path=str(FILES / name)))
    return [record_of(entry, opened.reading) for entry in opened.entries()]


def paths(*names: str) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(name, path=name) for name in names)


def said(*texts: str, system: str | None = None) -> tuple[Turn, ...]:
    turns = tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts))
    return turns if system is None else (Turn("system", system), *turns)


def test_the_official_format_is_read_from_a_real_file():
    first, second, third = records("ixc.json")
    turns = said(
        "<ImageHere>What is the total on this receipt?",
        "The total is 42.50 euros.",
        "And the tax?",
        "6.79 euros.",
    )
    assert first == Record("receipt-1", paths("receipts/1.png"), turns, str(FILES / "ixc.json"), Place("line", 2))
    assert (second.id, second.images, second.hd_num) == ("2", paths("charts/2019.png", "charts/2020.png"), 9)
    assert (third.id, third.images, third.hd_num) == ("text-3", (), None)


def test_llava_is_read_from_a_real_file():
    first, second, third = records("llava.json")
    assert (first.id, first.images) == ("000000033471", paths("coco/train2017/000000033471.jpg"))
    assert first.turns[:2] == said(
        "<ImageHere>\nWhat are the colors of the bus in the image?", "The bus in the image is white and red."
    )
    assert (second.id, second.images, len(second.turns)) == ("wgByO4Y_0", (), 2)
    assert third.images == paths("left.jpg", "right.jpg")
    assert third.turns[0].text == "<ImageHere> <ImageHere>\nWhich one is brighter?\nAnswer with one word."


def test_sharegpt_is_read_from_a_real_file():
    first, second = records("sharegpt.json")
    assert first.id == "record-1"
    assert first.images == paths("matches/1.jpg", "matches/2.jpg")
    assert first.turns == said(
        "<ImageHere>Who are they?",
        "Two players of the home team.",
        "<ImageHere>And here?",
        "The referee.",
        system="You look at photos of football matches.",
    )
    assert second.id == "QWJhYvA_0"
    assert [turn.role for turn in second.turns] == ["user", "assistant"]


def test_role_content_turns_are_read_from_a_real_file():
    (record,) = records("role_content.json")
    assert record.turns == said("<ImageHere>\nWhich scale does this drawing have?", "1:50")


@pytest.mark.parametrize("image", [None, []])
@pytest.mark.parametrize("schema", GOOD)
def test_empty_image_values_mean_no_image(schema: Schema, image: Any):
    keys = ("from", "value")
    turns = [dict(zip(keys, pair, strict=True)) for pair in (("user", "hi"), ("assistant", "yo"))]
    assert read({"id": 1, "image": image, "conversations": turns}, schema).images == ()


@pytest.mark.parametrize("schema", GOOD)
def test_role_names_are_case_insensitive(schema: Schema):
    names = ["HUMAN", "gpt", "User", "bot", "human", "Assistant", "user", "model"]
    turns = [{"from": name, "value": "x"} for name in names]
    assert [turn.role for turn in read({"id": 1, "conversations": turns}, schema).turns] == ["user", "assistant"] * 4


def test_a_record_without_an_id_is_named_by_its_position():
    fields = {"conversations": ixc_entry("", "hi", "yo")["conversations"]}
    reading = Reading(Schema.LLAVA)
    of_list = Entry(3, "a.json", Place("line", 1), value=fields)
    of_row = Entry(3, "a.parquet", Place("row", 2), value=fields)
    of_member = Entry(3, "a.tar", Place("member", "0003"), value=fields)
    of_line = Entry(
        3,
        "a.jsonl",
        Place("line", 4),
        line=b'{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}',
    )
    found = [record_of(entry, reading).id for entry in (of_list, of_row, of_member, of_line)]
    assert found == ["record-3", "row-3", "0003", "line-4"]


def test_texts_are_kept_exactly_as_written():
    text = "  spaced\r\n\tand <b>tagged</b> &amp; {braced}  "
    value = LLAVA | {"image": None, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}]}
    assert [turn.text for turn in read(value, Schema.LLAVA).turns] == [text, text]


def test_a_foreign_placeholder_is_text_if_the_user_allows_it():
    entry = ixc_entry("a", "What does <image> mean in SVG?", "It shows one.")
    assert refused(entry, Schema.IXC).reason is Reason.LOOKS_LIKE_IMAGE
    record = read(entry, Schema.IXC, allow_image_text=True)
    assert record.turns[0].text == "What does <image> mean in SVG?"


@pytest.mark.parametrize("schema", [Schema.LLAVA, Schema.SHAREGPT])
def test_a_system_turn_may_come_first(schema: Schema):
    turns = [{"from": "system", "value": "Be terse."}, *SHAREGPT["conversations"]]
    assert read(GOOD[schema] | {"conversations": turns}, schema).turns[0] == Turn("system", "Be terse.")


@pytest.mark.parametrize("schema", GOOD)
def test_the_default_system_prompt_applies_to_records_without_one(schema: Schema):
    fields = GOOD[schema]
    assert read(fields, schema, system="Be kind.").turns[0] == Turn("system", "Be kind.")
    own = [{"from": "system", "value": "Be terse."}, *fields["conversations"]]
    own_turns = read(fields | {"conversations": own}, schema, system="Be kind.").turns
    assert [turn.text for turn in own_turns if turn.role == "system"] == ["Be terse."]
    empty = [{"from": "system", "value": " "}, *fields["conversations"]]
    assert read(fields | {"conversations": empty}, schema, system="Be kind.").turns[0].text == "Be kind."
    assert read(fields | {"conversations": empty}, schema).turns == read(fields, schema).turns


def test_the_system_field_overrides_the_default_and_may_be_repeated():
    assert read(SHAREGPT | {"system": "Be terse."}, Schema.SHAREGPT, system="Be kind.").turns[0].text == "Be terse."
    assert read(SHAREGPT | {"system": " \n"}, Schema.SHAREGPT, system="Be kind.").turns[0].text == "Be kind."
    twice = [{"from": "system", "value": "Be terse."}, *SHAREGPT["conversations"]]
    fields = SHAREGPT | {"conversations": twice}
    assert len(read(fields | {"system": "Be terse. "}, Schema.SHAREGPT).turns) == 3
    assert refused(fields | {"system": "Be kind."}, Schema.SHAREGPT).reason == Reason.BAD_CONVERSATIONS


@pytest.mark.parametrize("schema", GOOD)
def test_hd_num_is_read_as_a_whole_number(schema: Schema):
    assert read(GOOD[schema], schema).hd_num is None
    assert read(GOOD[schema] | {"hd_num": None}, schema).hd_num is None
    assert read(GOOD[schema] | {"hd_num": 25}, schema).hd_num == 25


def with_question(text: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "user", "value": text}, {"from": "gpt", "value": "yo"}]}


# for all three forms
@pytest.mark.parametrize("schema", GOOD)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": ""}, Reason.BAD_ID),
        ({"id": True}, Reason.BAD_ID),
        ({"id": 1.5}, Reason.BAD_ID),
        ({"id": float("nan")}, Reason.BAD_ID),
        ({"id": ["a"]}, Reason.BAD_ID),
        ({"id": 10**100}, Reason.BAD_ID),
        ({"id": "a\0"}, Reason.NULL_CHARACTER),
        ({"id": "\ud83d"}, Reason.INVALID_UNICODE),
        ({"image": 5}, Reason.BAD_IMAGE_FIELD),
        ({"image": [5]}, Reason.BAD_IMAGE_FIELD),
        ({"image": [""]}, Reason.BAD_IMAGE_FIELD),
        ({"image": {"file": "x"}}, Reason.BAD_IMAGE_FIELD),
        ({"image": float("nan")}, Reason.MISSING_FIELD),
        ({"image": ["\ud83d.png"]}, Reason.INVALID_UNICODE),
        ({"image": ["a\0.png"]}, Reason.NULL_CHARACTER),
        ({"image": ["https://example.org/a.png"]}, Reason.PICTURE_REMOTE),
        ({"hd_num": 0}, Reason.BAD_FIELD),
        ({"hd_num": "9"}, Reason.BAD_FIELD),
        ({"hd_num": 9.0}, Reason.BAD_FIELD),
        ({"hd_num": True}, Reason.BAD_FIELD),
        ({"video": "a.mp4"}, Reason.BAD_FIELD),
        ({"audios": ["a.wav"]}, Reason.BAD_FIELD),
        ({"conversations": None}, Reason.MISSING_FIELD),
        ({"conversations": float("nan")}, Reason.MISSING_FIELD),
        ({"conversations": []}, Reason.BAD_CONVERSATIONS),
        ({"conversations": "hi"}, Reason.BAD_CONVERSATIONS),
        ({"conversations": {"from": "user", "value": "hi"}}, Reason.BAD_CONVERSATIONS),
        ({"conversations": ["hi"]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": "user"}]}, Reason.MISSING_FIELD),
        ({"conversations": [{"value": "hi"}]}, Reason.MISSING_FIELD),
        ({"conversations": [{"from": "user", "value": None}]}, Reason.MISSING_FIELD),
        ({"conversations": [{"from": "user", "value": float("nan")}]}, Reason.MISSING_FIELD),
        ({"conversations": [{"from": None, "value": "hi"}]}, Reason.MISSING_FIELD),
        ({"conversations": [{"from": 5, "value": "hi"}]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": "user", "value": 5}]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": "user", "value": ["hi"]}]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": "usr", "value": "hi"}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [{"from": "function_call", "value": "hi"}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [{"from": "observation", "value": "hi"}]}, Reason.UNKNOWN_ROLE),
        (with_question("\ud83d"), Reason.INVALID_UNICODE),
        (with_question("a\0b"), Reason.NULL_CHARACTER),
        (
            {"conversations": [{"from": "user", "value": "a"}, {"from": "system", "value": "b"}]},
            Reason.SYSTEM_NOT_FIRST,
        ),
    ],
)
def test_a_wrong_field_is_refused_with_its_reason(schema: Schema, change: dict[str, Any], reason: Reason):
    fields = {name: value for name, value in GOOD[schema].items() if not ("image" in change and name == "images")}
    assert refused(fields | change, schema).reason == reason


@pytest.mark.parametrize(
    ("change", "schema", "reason", "says"),
    [
        ({"id": None}, Schema.IXC, Reason.BAD_ID, "no `id`"),
        ({"image": "a.png"}, Schema.SHAREGPT, Reason.BAD_IMAGE_FIELD, "both `images` and `image`"),
        ({"system": 5}, Schema.SHAREGPT, Reason.BAD_FIELD, "`system` is 5"),
        (
            {"conversations": [{"from": "user", "value": "hi"}, {"from": "gpt", "value": True}]},
            Schema.LLAVA,
            Reason.BAD_CONVERSATIONS,
            "the `value` of turn 2 is true; write the `value` as text, in quotes",
        ),
        ({"system": "see <image>"}, Schema.SHAREGPT, Reason.PLACEHOLDER_IN_ANSWER, "contains <image>"),
        (
            with_question("What?") | {"image": ["a.png", "b.png"]},
            Schema.LLAVA,
            Reason.MISSING_PLACEHOLDER,
            "no <image>",
        ),
        (with_question("<image><image>What?"), Schema.LLAVA, Reason.TOO_MANY_PLACEHOLDERS, "2 placeholders"),
        ({"images": ["a.png", "b.png"]}, Schema.SHAREGPT, Reason.TOO_FEW_PLACEHOLDERS, "1 placeholder for 2"),
        ({"images": []}, Schema.SHAREGPT, Reason.TOO_MANY_PLACEHOLDERS, "1 placeholder for 0"),
        (with_question("<ImageHere>What?"), Schema.LLAVA, Reason.SPECIAL_TOKEN_IN_TEXT, "<ImageHere>"),
        (with_question("<ImageHere>What?"), Schema.SHAREGPT, Reason.SPECIAL_TOKEN_IN_TEXT, "<ImageHere>"),
        (
            {"conversations": [{"from": "user", "value": "What?"}, {"from": "gpt", "value": "see <image>"}]},
            Schema.LLAVA,
            Reason.PLACEHOLDER_IN_ANSWER,
            "turn 2, an answer, contains <image>",
        ),
        ({"conversations": [{"role": "user", "content": "What?"}]}, Schema.IXC, Reason.MISSING_FIELD, "no `from`"),
        ({"conversations": [{"role": "user", "value": "What?"}]}, Schema.LLAVA, Reason.MISSING_FIELD, "no `content`"),
    ],
)
def test_errors_of_one_schema_have_their_own_messages(
    change: dict[str, Any], schema: Schema, reason: Reason, says: str
):
    error = refused(GOOD[schema] | change, schema)
    assert error.reason == reason
    assert says in f"{error}; {error.hint}"


def test_missing_placeholder_uses_the_placeholder_of_the_source():
    two = LLAVA | with_question("What?") | {"image": ["a.png", "b.png"]}
    assert "put <image> where" in refused(two, Schema.LLAVA).hint
    assert read(two, Schema.LLAVA, missing_placeholder="front").turns[0].text == "<ImageHere><ImageHere>What?"
    one = LLAVA | with_question("What?")
    assert refused(one, Schema.LLAVA, missing_placeholder="reject").reason is Reason.MISSING_PLACEHOLDER
    record = read(one, Schema.LLAVA)
    assert (record.turns[0].text, record.notes) == ("<ImageHere>What?", ("image_in_front",))


def test_tool_turns_are_refused_as_untrainable():
    fields = {"conversations": [{"from": "observation", "value": "hi"}]}
    assert "tools cannot be trained" in refused(fields, Schema.SHAREGPT).hint
    fields = {"conversations": [{"from": "usr", "value": "hi"}]}
    assert "user, human, assistant" in refused(fields, Schema.SHAREGPT).hint
