from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import entry, shown, write_source

from ixtune.data import formats
from ixtune.data.record import Record, Turn
from ixtune.data.rejects import Reason, Reject
from ixtune.errors import IxtuneError, UsageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def written(folder: Path, content: str | bytes, name: str = "source.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def only(items: Any) -> Any:
    (item,) = items
    return item


def rejected(folder: Path, value: Any) -> Reject:
    item = only(formats.read(write_source(folder, [value])))
    assert isinstance(item, Reject), item
    assert item.mend
    return item


def test_a_record_keeps_its_paths_turns_and_line(tmp_path: Path):
    source = write_source(tmp_path, [entry("a", "hi", "yo"), entry(7, "<ImageHere>?", "!", image=["x.png"])])
    first, second = formats.read(source)
    assert isinstance(first, Record)
    assert first == Record("a", (), (Turn("user", "hi"), Turn("assistant", "yo")), str(source), 2)
    assert isinstance(second, Record)
    assert (second.id, second.pictures) == ("7", ("x.png",))
    assert source.read_text().splitlines()[second.line - 1].strip() == "{"


def test_one_path_may_stand_without_a_list(tmp_path: Path):
    record = only(formats.read(write_source(tmp_path, [entry("a", "hi", "yo", image="x.png")])))
    assert record.pictures == ("x.png",)


@pytest.mark.parametrize("image", [None, []])
def test_no_image_is_no_picture(tmp_path: Path, image: Any):
    assert only(formats.read(write_source(tmp_path, [entry("a", "hi", "yo", image=image)]))).pictures == ()


def test_role_names_are_known_in_any_letter_case(tmp_path: Path):
    names = ["HUMAN", "gpt", "User", "bot", "human", "Assistant"]
    turns = [{"from": name, "value": "x"} for name in names]
    record = only(formats.read(write_source(tmp_path, [{"id": 1, "conversations": turns}])))
    assert [turn.role for turn in record.turns] == ["user", "assistant"] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, Reason.BAD_ID),
        ({"id": ""}, Reason.BAD_ID),
        ({"id": True}, Reason.BAD_ID),
        ({"id": 1.5}, Reason.BAD_ID),
        ({"image": 5}, Reason.BAD_IMAGE_FIELD),
        ({"image": [5]}, Reason.BAD_IMAGE_FIELD),
        ({"image": ""}, Reason.BAD_IMAGE_FIELD),
        ({"image": [""]}, Reason.BAD_IMAGE_FIELD),
        ({"image": {"path": "x"}}, Reason.BAD_IMAGE_FIELD),
        ({"conversations": None}, Reason.BAD_CONVERSATIONS),
        ({"conversations": []}, Reason.BAD_CONVERSATIONS),
        ({"conversations": "hi"}, Reason.BAD_CONVERSATIONS),
        ({"conversations": ["hi"]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": "user"}]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": "user", "value": 5}]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": None, "value": "hi"}]}, Reason.BAD_CONVERSATIONS),
        ({"conversations": [{"from": "usr", "value": "hi"}]}, Reason.UNKNOWN_ROLE),
        ({"id": "\ud83d"}, Reason.INVALID_UNICODE),
        ({"image": ["\ud83d.png"]}, Reason.INVALID_UNICODE),
        ({"conversations": [{"from": "user", "value": "\ud83d"}]}, Reason.INVALID_UNICODE),
    ],
)
def test_a_wrong_field_is_a_reject_with_its_reason(tmp_path: Path, change: dict[str, Any], reason: Reason):
    assert rejected(tmp_path, shown("a") | change).reason == reason


@pytest.mark.parametrize("value", [5, "text", None, ["a"], True, 1e99])
def test_an_entry_that_is_no_object_is_a_reject(tmp_path: Path, value: Any):
    assert rejected(tmp_path, value).reason == Reason.NOT_A_RECORD


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(entries=st.lists(JSON, max_size=6), block=st.integers(1, 40), indent=st.sampled_from([None, 0, 3]))
def test_any_list_gives_one_item_an_entry_however_the_blocks_fall(
    tmp_path: Path, entries: list[Any], block: int, indent: int | None
):
    source = written(tmp_path, json.dumps(entries, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK_CHARACTERS", block)
        in_blocks = list(formats.read(source))
    assert in_blocks == list(formats.read(source))
    assert len(in_blocks) == len(entries)


def test_lines_are_those_of_the_opening_braces_also_when_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(formats, "_BLOCK_CHARACTERS", 7)
    text = json.dumps([shown(n) for n in range(20)], indent=2)
    lines = [n for n, line in enumerate(text.split("\n"), start=1) if line == "  {"]
    assert [item.line for item in formats.read(written(tmp_path, text))] == lines


def test_json_lines_are_read_with_blank_lines_and_a_byte_order_mark(tmp_path: Path):
    text = "\ufeff\n" + json.dumps(shown("a")) + "\r\n\n" + json.dumps(shown("b"), ensure_ascii=False)
    items = list(formats.read(written(tmp_path, text, "source.jsonl")))
    assert [(item.id, item.line) for item in items] == [("a", 2), ("b", 4)]


def test_a_broken_line_of_json_lines_is_one_reject(tmp_path: Path):
    lines = [json.dumps(shown("a")), '{"id": "b", ', "[" * 100_000, "9" * 5000, json.dumps(shown("c"))]
    items = list(formats.read(written(tmp_path, "\n".join(lines))))
    assert [item.reason if isinstance(item, Reject) else item.id for item in items] == [
        "a",
        *[Reason.NOT_JSON] * 3,
        "c",
    ]
    assert items[1].line == 2
    assert "column" in items[1].found


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "line 1, column 1"),
        ("\n  hello", "line 2, column 3"),
        ('"text"', "line 1, column 1"),
        ("[", "line 1, column 2"),
        ("[1, 2", "line 1, column 6"),
        ("[1 2]", "line 1, column 4"),
        ("[1,\n 2,\n ]", "line 3, column 2"),
        ("[1] x", "line 1, column 5"),
        ('[\n {"id": 1},\n {"id": 2,, }]', "line 3, column 11"),
        ('[\n {"id": 1},\n {"id": "2\n}]', "line 3, column 11"),
        ("[" * 100_000, "line 1, column 2"),
        (f"[{'9' * 5000}]", "line 1, column 2"),
    ],
)
def test_a_broken_list_is_an_error_with_line_and_column(tmp_path: Path, text: str, where: str):
    source = written(tmp_path, text)
    with pytest.raises(IxtuneError) as caught:
        list(formats.read(source))
    assert caught.value.where == f"{source}, {where}"
    assert caught.value.mend


@pytest.mark.parametrize("prefix", ["[\n1,\n", '{"id": 1}\n{"id": 2}\n'])
@pytest.mark.parametrize("bad", [b'"\xff"', b'"\xc3'])
def test_a_file_that_is_not_utf_8_is_an_error_with_its_line(tmp_path: Path, prefix: str, bad: bytes):
    source = written(tmp_path, prefix.encode() + bad)
    with pytest.raises(IxtuneError, match="line 3"):
        list(formats.read(source))


def test_a_missing_source_and_a_folder_are_wrong_usage(tmp_path: Path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            list(formats.read(path))


def test_the_reader_tells_how_far_it_is(tmp_path: Path):
    source = write_source(tmp_path, [shown(n) for n in range(5)])
    told: list[int] = []
    list(formats.read(source, told.append))
    assert told[-1] == source.stat().st_size


def test_a_long_list_is_not_held_in_memory(tmp_path: Path):
    import tracemalloc

    source = tmp_path / "source.json"
    with open(source, "w") as file:
        file.write("[")
        for number in range(20_000):
            file.write((", " if number else "") + json.dumps(entry(number, "x" * 1000, "y")))
        file.write("]")
    assert source.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in formats.read(source)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
