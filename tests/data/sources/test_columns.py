from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.record import ImageRef, Place, Record, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.column_roles import check_columns, describe_columns
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Schema, Source
from ixtune.errors import UsageError

PLAIN = {"image": "image", "question": "question", "answer": "answer"}
ALL = {name: name for name in ("id", "image", "question", "answer", "system", "hd_num")}


def source(*columns: tuple[str, str], question: str | None = None, answers: bool = True) -> Source:
    return Source(path="table.csv", columns=columns, question=question, answers=answers)


def row(value: dict[str, Any], columns: dict[str, str] = ALL, **options: Any) -> Record:
    reading = Reading(Schema.COLUMNS, tuple(columns.items()), **options)
    return record_of(Entry(7, "table.csv", Place("line", 9), value=value), reading)


def refused(value: dict[str, Any], columns: dict[str, str] = ALL, **options: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        row(value, columns, **options)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


# which column is which


@pytest.mark.parametrize(
    ("available", "columns"),
    [
        (["image", "question", "answer"], PLAIN),
        (["question", "answer"], {"question": "question", "answer": "answer"}),
        (["file_name", "question", "answers", "id"], PLAIN | {"image": "file_name", "answer": "answers", "id": "id"}),
        (["images", "question", "answer", "hd_num"], PLAIN | {"image": "images", "hd_num": "hd_num"}),
        (["id", "image", "question", "answer", "system", "hd_num", "score"], ALL),
    ],
)
def test_columns_with_our_names_are_recognized(available: list[str], columns: dict[str, str]):
    assert check_columns(available, source()) == columns


def test_other_column_names_are_used_only_if_the_user_maps_them():
    available = ["photo", "q", "a", "note"]
    assert check_columns(available, source(("image", "photo"), ("question", "q"), ("answer", "a"))) == {
        "image": "photo",
        "question": "q",
        "answer": "a",
    }
    one_question = source(("image", "photo"), ("answer", "a"), question="What is it?")
    assert check_columns(available, one_question) == {"image": "photo", "answer": "a"}


def test_several_image_columns_are_joined_by_commas():
    columns = source(("image", "front,back"))
    assert check_columns(["front", "back", "question", "answer"], columns)["image"] == "front,back"
    assert check_columns(["front,back", "question", "answer"], columns)["image"] == "front,back"


@pytest.mark.parametrize(
    ("available", "given", "told"),
    [
        (["image", "question", "anwser"], source(), "no column answer: --columns answer=anwser?"),
        (["image", "question", "label", "caption"], source(), "answer may be any of label, caption"),
        (["image", "q", "answer"], source(), "neither a column question nor a question for all rows"),
        (["image", "questoin", "answer"], source(), "--columns question=questoin?"),
        (["image", "prompt", "query", "answer"], source(), "question may be any of query, prompt"),
        (["image", "file_name", "question", "answer"], source(), "image may be any of image, file_name"),
        (["image", "question", "answer"], source(question="What?"), "the column question and a question for all"),
        (["image", "question", "chosen", "rejected"], source(), "--columns answer=chosen"),
        (["image", "q", "answer"], source(("question", "q"), question="What?"), "the column q and a question for all"),
        (["image", "question", "answer"], source(("answer", "anser")), "no column 'anser'; did you mean 'answer'?"),
        (["image", "question", "answer"], source(("image", "image,bak")), "there is no column 'bak'"),
        (["image", "question", "answer"], source(("anwser", "answer")), "known names are image, question"),
        (["image", "question", "answer"], source(("anwser", "answer")), "did you mean 'answer'?"),
        (["a", "b", "question"], source(("answer", "a"), ("answer", "b")), "names answer twice"),
        (["image", "question", "answer"], source(("answer", "")), "there is no column answer"),
        ([], source(), "columns found: none"),
        (["image", "q"], source(), "--columns image=photo,question=q,answer=a; or ask one question about all rows, e"),
        (["image", "q"], source(answers=False), "one question about all rows, as the argument of `ixtune predict`"),
        (["image", "question", "answer"], source(question="What?"), "ignore the column with --columns question="),
    ],
)
def test_unclear_columns_are_refused_with_the_columns_found(available: list[str], given: Source, told: str):
    with pytest.raises(UsageError) as caught:
        check_columns(available, given)
    lines = [caught.value.what, *caught.value.notes]
    assert any(told in line for line in (*lines, caught.value.hint)), lines
    assert lines[-1].startswith("columns found: ")
    assert all(repr(name) in lines[-1] for name in available)
    assert "--columns " in caught.value.hint
    assert caught.value.where == "table.csv"


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(UsageError) as caught:
        check_columns(["front", "back", "q", "a"], source(), ["front", "back"])
    assert len([caught.value.what, *caught.value.notes]) == 4
    assert "--columns image=front,back" in caught.value.what


@pytest.mark.parametrize(
    ("available", "images", "columns"),
    [
        (["image", "query", "label"], [], {"image": "image", "question": "query", "answer": "label"}),
        (["Image", "Question", "Answer"], [], {"image": "Image", "question": "Question", "answer": "Answer"}),
        (["imgname", "query", "label"], ["imgname"], {"question": "query", "answer": "label", "image": "imgname"}),
        (
            ["instruction", "input", "output"],
            [],
            {"question": "instruction", "answer": "output", "input": "input"},
        ),
        (["question", "A", "B", "answer"], [], {"question": "question", "answer": "answer", "choices": "A,B"}),
        (
            ["question", "options", "answer", "image_2", "image_1", "image_3"],
            ["image_1"],
            {"question": "question", "answer": "answer", "choices": "options", "image": "image_1,image_2,image_3"},
        ),
    ],
)
def test_usual_synonyms_are_used_if_exactly_one_fits(available: list[str], images: list[str], columns: dict[str, str]):
    assert check_columns(available, source(), images) == columns


def test_a_question_for_all_rows_can_replace_the_column():
    columns = source(("question", ""), question="What is it?")
    assert check_columns(["question", "answer"], columns) == {"question": "", "answer": "answer"}


def test_a_column_can_be_turned_off():
    """Without this, a table of texts with a column `file` could not be used."""
    available = ["file", "question", "answer"]
    columns = check_columns(available, source(("image", "")))
    assert columns == {"image": "", "question": "question", "answer": "answer"}
    assert row({"file": "a.txt", "question": "q", "answer": "a"}, columns).images == ()


def test_the_column_mapping_is_described_in_one_line():
    columns = {"image": "front,back", "question": "q", "answer": "answer"}
    told = describe_columns(columns, ["front", "back", "q", "answer", "note"], source())
    assert told == (
        "image from front,back, question from q, answer, images in front of the question unless it contains <image>, "
        "not used: note"
    )
    assert "the same question for all" in describe_columns({"answer": "answer"}, ["answer"], source(question="What?"))


# rows


def test_a_row_is_one_question_and_one_answer():
    value = {"id": "r1", "image": "a.png", "question": "What?", "answer": "42.50", "system": "Be brief.", "hd_num": "9"}
    assert row(value) == Record(
        id="r1",
        images=(ImageRef("a.png", path="a.png"),),
        turns=(Turn("system", "Be brief."), Turn("user", "<ImageHere>What?"), Turn("assistant", "42.50")),
        source="table.csv",
        place=Place("line", 9),
        hd_num=9,
    )


def test_a_row_without_an_image_is_text_only():
    for empty in ("", "  ", None, math.nan, []):
        record = row({"image": empty, "question": "q", "answer": "a"})
        assert (record.images, record.turns[0].text) == ((), "q")
    assert row({"question": "q", "answer": "a"}, {"question": "question", "answer": "answer"}).images == ()


@pytest.mark.parametrize(
    ("cell", "image"),
    [
        ("a.png", ImageRef("a.png", path="a.png")),
        (b"\x89PNG", ImageRef("`image`", content=b"\x89PNG")),
        ({"bytes": b"x", "path": "a.png"}, ImageRef("a.png", content=b"x")),
        ({"bytes": None, "path": "a.png"}, ImageRef("a.png", path="a.png")),
        ("file:///data/a.png", ImageRef("/data/a.png", path="/data/a.png")),
    ],
)
def test_an_image_cell_may_be_a_path_or_bytes(cell: Any, image: ImageRef):
    assert row({"image": cell, "question": "q", "answer": "a"}).images == (image,)


def test_several_images_come_before_the_question_in_order():
    columns = ALL | {"image": "front,back"}
    record = row({"front": "a.png", "back": ["b.png", "c.png"], "question": "q", "answer": "a"}, columns)
    assert [image.path for image in record.images] == ["a.png", "b.png", "c.png"]
    assert record.turns[0].text == "<ImageHere><ImageHere><ImageHere>q"
    only_back = row({"front": "", "back": "b.png", "question": "q", "answer": "a"}, columns)
    assert [image.path for image in only_back.images] == ["b.png"]


@pytest.mark.parametrize("written", ["<image>", "<ImageHere>"])
def test_a_placeholder_in_the_question_places_the_image(written: str):
    record = row({"image": "a.png", "question": f"Look: {written} What?", "answer": "a"})
    assert record.turns[0].text == "Look: <ImageHere> What?"
    columns = {"image": "image", "answer": "answer"}
    same = row({"image": ["a.png", "b.png"], "answer": "a"}, columns, question=f"{written} and {written}")
    assert same.turns[0].text == "<ImageHere> and <ImageHere>"


def test_the_first_of_several_answers_is_trained_and_all_are_references():
    record = row({"question": "q", "answer": ["42.50", 42.5, "42,50"]})
    assert record.turns[-1].text == "42.50"
    assert record.references == ("42.50", "42.5", "42,50")
    assert row({"question": "q", "answer": "a"}).references == ()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (7, "7"),
        (-3, "-3"),
        (42.5, "42.5"),
        (42.0, "42"),
        (1e300, "1e+300"),
        (Decimal("1.50"), "1.50"),
        (2**70, str(2**70)),
    ],
)
def test_a_number_is_answered_as_written(number: Any, text: str):
    assert row({"question": "q", "answer": number}).turns[-1].text == text


def test_a_row_without_an_id_is_named_by_its_number():
    for empty in (None, "", math.nan):
        assert row({"id": empty, "question": "q", "answer": "a"}).id == "record-7"
    assert row({"id": 12.0, "question": "q", "answer": "a"}).id == "12"


def test_the_source_system_prompt_applies_to_rows_without_one():
    value = {"question": "q", "answer": "a", "system": ""}
    assert row(value, system="Be brief.").turns[0] == Turn("system", "Be brief.")
    assert row(value | {"system": "Be long."}, system="Be brief.").turns[0] == Turn("system", "Be long.")


GOOD = {"image": "a.png", "question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": None}, Reason.MISSING_FIELD),
        ({"answer": math.nan}, Reason.MISSING_FIELD),
        ({"answer": []}, Reason.MISSING_FIELD),
        ({"answer": ["a", None]}, Reason.MISSING_FIELD),
        ({"answer": True}, Reason.BAD_FIELD),
        ({"answer": {"text": b"a"}}, Reason.BAD_FIELD),
        ({"answer": math.inf}, Reason.BAD_FIELD),
        ({"answer": 10**500}, Reason.BAD_FIELD),
        ({"answer": Decimal("1E+999999")}, Reason.BAD_FIELD),
        ({"answer": Decimal("NaN")}, Reason.BAD_FIELD),
        ({"answer": b"a"}, Reason.BAD_FIELD),
        ({"answer": datetime.date(2026, 1, 1)}, Reason.BAD_FIELD),
        ({"answer": [["a"]]}, Reason.BAD_FIELD),
        ({"answer": "a\0"}, Reason.NULL_CHARACTER),
        ({"answer": "\ud83d"}, Reason.INVALID_UNICODE),
        ({"answer": "<image>"}, Reason.PLACEHOLDER_IN_ANSWER),
        ({"answer": "see <ImageHere>"}, Reason.PLACEHOLDER_IN_ANSWER),
        ({"question": None}, Reason.MISSING_FIELD),
        ({"question": " "}, Reason.MISSING_FIELD),
        ({"question": ["q", "r"]}, Reason.BAD_CONVERSATIONS),
        ({"question": {"en": "q", "de": "f"}}, Reason.BAD_FIELD),
        ({"question": "q\0"}, Reason.NULL_CHARACTER),
        ({"question": "<image><image>"}, Reason.TOO_MANY_PLACEHOLDERS),
        ({"question": "<image>", "image": None}, Reason.TOO_MANY_PLACEHOLDERS),
        ({"question": "<image>", "image": ["a.png", "b.png"]}, Reason.TOO_FEW_PLACEHOLDERS),
        ({"image": 5}, Reason.BAD_IMAGE_FIELD),
        ({"image": b""}, Reason.BAD_IMAGE_FIELD),
        ({"image": {"bytes": None, "path": None}}, Reason.BAD_IMAGE_FIELD),
        ({"image": ["a.png", None]}, Reason.BAD_IMAGE_FIELD),
        ({"image": "https://example.org/a.png"}, Reason.PICTURE_REMOTE),
        ({"id": True}, Reason.BAD_ID),
        ({"id": 1.5}, Reason.BAD_ID),
        ({"id": ["x"]}, Reason.BAD_ID),
        ({"hd_num": 0}, Reason.BAD_FIELD),
        ({"hd_num": "many"}, Reason.BAD_FIELD),
        ({"hd_num": "²"}, Reason.BAD_FIELD),
        ({"hd_num": 9.5}, Reason.BAD_FIELD),
        ({"hd_num": True}, Reason.BAD_FIELD),
        ({"system": 1.5, "answer": None}, Reason.MISSING_FIELD),
        ({"system": ["x"]}, Reason.BAD_FIELD),
        ({"system": "<image>"}, Reason.PLACEHOLDER_IN_ANSWER),
    ],
)
def test_a_bad_cell_is_refused_with_its_reason(change: dict[str, Any], reason: Reason):
    assert refused(GOOD | change).reason is reason


def test_error_messages_name_the_tables_own_column():
    error = refused({"img": "a.png", "q": "q", "label": None}, {"image": "img", "question": "q", "answer": "label"})
    assert "`label`" in str(error)


@pytest.mark.parametrize("name", ["image", "images", "file_name", "system", "hd_num", "id"])
def test_a_known_column_that_appears_later_is_refused(name: str):
    """Columns are detected from the first records, and later JSON records may have others."""
    columns = {"question": "question", "answer": "answer"}
    error = refused({"question": "q", "answer": "a", name: "x"}, columns)
    assert (error.reason, f"`{name}`" in str(error)) == (Reason.BAD_FIELD, True)
    assert row({"question": "q", "answer": "a", name: None}, columns)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.dates()
    | st.binary(max_size=5)
    | st.text(max_size=8)
    | st.sampled_from(["<image>", "<ImageHere>", "a.png", "data:image/png;base64,!", "9", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", ""]), inner),
    max_leaves=5,
)
names = st.sampled_from([*ALL, "images", "file_name", "answers", "x", ""])


@given(
    value=st.dictionaries(names, junk),
    columns=st.dictionaries(st.sampled_from([*ALL]), names | st.just("image,x")),
    question=st.none() | st.text(),
)
def test_any_row_gives_a_record_or_a_record_error(value: dict[str, Any], columns: dict[str, str], question: str | None):
    reading = Reading(Schema.COLUMNS, tuple((columns | {"answer": "answer"}).items()), question)
    try:
        record = record_of(Entry(1, "t", Place("row", 1), value=value), reading)
    except RecordError as error:
        reason = error.reason
    else:
        reason = None
        assert record.turns[-1].role == "assistant"
        assert "".join(turn.text for turn in record.turns).count("<ImageHere>") == len(record.images)
    assert reason in {None, *Reason}
