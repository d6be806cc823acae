from __future__ import annotations

import json
from multiprocessing import Pipe
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import shown

from ixtune.data.record import Place, Record
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.record_reader import name_of, record_of
from ixtune.data.sources.entry import Entry, Fault
from ixtune.data.sources.source import Reading, Schema

READINGS = [
    Reading(Schema.IXC),
    Reading(Schema.LLAVA, system="Be terse."),
    Reading(Schema.SHAREGPT),
    Reading(Schema.OPENAI),
    Reading(Schema.COLUMNS, columns=(("image", "image"), ("question", "value"), ("answer", "content"), ("id", "id"))),
]

# junk that looks like a record now and then
NAMES = """conversations messages image images id hd_num system from value role content type text image_url url index
user assistant human gpt tool bytes path weight video a.png <image> <ImageHere> data:image/png;base64,AAAA file:///a
""".split()
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(NAMES),
    st.sampled_from(["\0", "\ud83d", "9" * 50]),
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)
TURN = st.one_of(
    JUNK,
    st.fixed_dictionaries({"from": st.sampled_from(NAMES) | JUNK, "value": JUNK}),
    st.fixed_dictionaries({"role": st.sampled_from(NAMES) | JUNK, "content": JUNK}),
    st.fixed_dictionaries(
        {"role": st.sampled_from(NAMES)},
        optional={
            "content": st.lists(st.fixed_dictionaries({"type": st.sampled_from(NAMES)}, optional={"text": JUNK}))
        },
    ),
)
RECORDS = st.one_of(
    JUNK,
    st.fixed_dictionaries(
        {},
        optional={
            "id": JUNK,
            "image": JUNK,
            "images": JUNK,
            "hd_num": JUNK,
            "system": JUNK,
            "conversations": st.lists(TURN, max_size=4) | JUNK,
            "messages": st.lists(TURN, max_size=4) | JUNK,
        },
    ),
)


def at(value: Any) -> Entry:
    return Entry(1, "source", Place("row", 1), value=value)


def outcome(value: Any, reading: Reading) -> Record | RecordError:
    try:
        return record_of(at(value), reading)
    except RecordError as error:
        return error


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.schema.value)
@given(value=RECORDS)
def test_any_json_value_is_a_record_or_is_refused_with_a_reason(reading: Reading, value: Any):
    found = outcome(value, reading)
    if isinstance(found, RecordError):
        assert isinstance(found.reason, Reason)
        assert "\n" not in str(found)
        assert found.hint
    else:
        assert found.id
        for text in [found.id, *(turn.text for turn in found.turns), *(one.path or one.name for one in found.images)]:
            assert "\0" not in text
            text.encode()
    assert name_of(at(value), Reading(Schema.IXC)) is None or isinstance(name_of(at(value), Reading(Schema.IXC)), str)


@pytest.mark.parametrize("value", [5, "text", None, ["a"], True, 1e99, float("nan"), b"bytes"])
@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.schema.value)
def test_an_entry_that_is_not_an_object_is_refused(reading: Reading, value: Any):
    with pytest.raises(RecordError) as caught:
        record_of(at(value), reading)
    assert caught.value.reason == Reason.NOT_A_RECORD
    assert caught.value.hint.startswith("write {")


def test_a_faulty_entry_is_refused_with_the_reason_of_its_fault():
    fault = Fault(Reason.RECORD_TOO_LARGE, "too large", "split it")
    entry = Entry(1, "source.jsonl", Place("line", 1), fault=fault)
    with pytest.raises(RecordError) as caught:
        record_of(entry, Reading(Schema.IXC))
    assert (caught.value.reason, str(caught.value), caught.value.hint) == (fault.reason, fault.found, fault.hint)
    assert name_of(entry, Reading(Schema.IXC)) is None


def test_a_raw_line_is_decoded_on_demand():
    entry = Entry(1, "source.jsonl", Place("line", 1), line=json.dumps(shown("a")).encode())
    assert record_of(entry, Reading(Schema.IXC)).id == name_of(entry, Reading(Schema.IXC)) == "a"
    broken = Entry(2, "source.jsonl", Place("line", 2), line=b'{"id": ')
    with pytest.raises(RecordError) as caught:
        record_of(broken, Reading(Schema.IXC))
    assert caught.value.reason == Reason.NOT_JSON
    assert name_of(broken, Reading(Schema.IXC)) is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null"])
@pytest.mark.parametrize("field", ["from", "value"])
def test_nan_and_infinity_in_json_never_become_text(field: str, value: str):
    fields = {"from": '"user"', "value": '"hi"', field: value}
    line = f'{{"id": 1, "conversations": [{{"from": {fields["from"]}, "value": {fields["value"]}}}]}}'
    with pytest.raises(RecordError) as caught:
        record_of(Entry(1, "source.jsonl", Place("line", 1), line=line.encode()), Reading(Schema.IXC))
    assert caught.value.reason == (Reason.BAD_CONVERSATIONS if "Inf" in value else Reason.MISSING_FIELD)


@pytest.mark.parametrize(("value", "name"), [({"id": 7}, "7"), ({"id": "a"}, "a"), ({"id": 1.5}, None), ({}, None)])
def test_a_refused_record_is_named_by_its_id_if_it_has_one(value: Any, name: str | None):
    assert name_of(at(value), Reading(Schema.IXC)) == name


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.schema.value)
def test_a_reading_can_be_sent_to_workers(reading: Reading):
    here, there = Pipe()
    here.send(reading)
    assert there.recv() == reading
