from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import entry as record
from records import shown

from ixtune.data.containers import json_text
from ixtune.data.containers.json_text import decoded, field_entries, line_entries, list_entries
from ixtune.data.rejects import Reason
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry
from ixtune.errors import IxtuneError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def written(folder: Path, content: str | bytes, name: str = "source.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def outcome(entry: Entry) -> Any:
    """Return the value of an entry, or the reason of its fault."""
    value, fault = decoded(entry)
    return fault.reason if fault else value


def in_blocks(path: Path, block: int, most: int | None = None) -> list[Entry]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_BLOCK", block)
        if most is not None:
            patch.setattr(limits, "MAX_ENTRY_BYTES", most)
        return list((line_entries if path.suffix == ".jsonl" else list_entries)(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    values=st.lists(JSON, max_size=6),
    block=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
)
def test_list_elements_match_json_load_for_any_block_size(
    tmp_path: Path, values: list[Any], block: int, indent: int | None, ascii_only: bool
):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    source = written(tmp_path, text)
    if b"\xed" in text and not ascii_only:
        text.decode("utf-8", "ignore")  # half of a surrogate pair is no UTF-8: tested below
        return
    assert [outcome(one) for one in in_blocks(source, block)] == json.loads(text)
    assert [outcome(one) for one in list_entries(source)] == json.loads(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    before=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    values=st.lists(JSON, max_size=4),
    after=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    block=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
)
def test_field_elements_match_json_load_whatever_surrounds_the_field(
    tmp_path: Path, before: dict[str, Any], values: list[Any], after: dict[str, Any], block: int, indent: int | None
):
    whole = {**before, "the data": values, **{name: value for name, value in after.items() if name not in before}}
    source = written(tmp_path, json.dumps(whole, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_BLOCK", block)
        assert [outcome(one) for one in field_entries(source, "the data")] == values


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", "expected the opening brace of an object with the field `data`, found '['"),
        ('{"other": [1]}', "the object has no field `data`"),
        ('{"data": {"a": 1}}', "expected the opening bracket of a list, found '{'"),
        ('{"data": [1}', "expected a comma or the closing bracket, found '}'"),
        ('{"data": [1]', "expected a comma or the closing brace, found the end of the file"),
        ("{data: [1]}", "expected the name of a field"),
        ('{"da', "broken JSON: Unterminated string starting at"),
        ('{"data" [1]}', "expected a colon, found '['"),
        ("", "found the end of the file"),
    ],
)
def test_a_file_without_the_field_is_refused_with_line_and_column(tmp_path: Path, text: str, found: str):
    with pytest.raises(IxtuneError) as caught:
        list(field_entries(written(tmp_path, text), "data"))
    assert found in caught.value.what
    assert "line 1, column" in (caught.value.where or "")


def test_elements_of_a_field_have_line_numbers(tmp_path: Path):
    source = written(tmp_path, '{"name": "x",\n "data": [\n  {"a": 1},\n  {"a": 2}],\n "n": 2}')
    assert [entry.place.at for entry in field_entries(source, "data")] == [3, 4]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(values=st.lists(JSON, min_size=1, max_size=5), block=st.integers(1, 40), most=st.integers(1, 40))
def test_only_oversized_elements_are_skipped(tmp_path: Path, values: list[Any], block: int, most: int):
    source = written(tmp_path, json.dumps(values, separators=(",", ":")))
    sizes = [len(json.dumps(value, separators=(",", ":"))) for value in values]
    wanted = [Reason.RECORD_TOO_LARGE if size > most else value for value, size in zip(values, sizes, strict=True)]
    assert [outcome(one) for one in in_blocks(source, block, most)] == wanted


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")), max_size=6),
    end=st.sampled_from([b"\n", b"\r\n", b""]),
    block=st.integers(1, 40),
    most=st.integers(5, 40),
)
def test_lines_match_splitting_for_any_block_size(
    tmp_path: Path, lines: list[bytes], end: bytes, block: int, most: int
):
    content = b"\n".join(lines) + end
    source = written(tmp_path, content, "source.jsonl")
    found = in_blocks(source, block, most)
    wanted = []
    for at, line in enumerate(content.split(b"\n"), start=1):
        whole = len(line) + (at <= content.count(b"\n"))
        if whole > most:
            wanted.append((at, None))
        elif (line.removeprefix(b"\xef\xbb\xbf") if at == 1 else line).strip():
            wanted.append((at, (line.removeprefix(b"\xef\xbb\xbf") if at == 1 else line).strip()))
    assert [(one.place.at, one.line.strip() if one.line is not None else None) for one in found] == wanted
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    if found and wanted[-1][0] == content.count(b"\n") + 1:
        assert found[-1].position == len(content)


def test_line_numbers_are_those_of_the_opening_braces(tmp_path: Path):
    text = json.dumps([shown(n) for n in range(20)], indent=2)
    lines = [n for n, line in enumerate(text.split("\n"), start=1) if line == "  {"]
    found = in_blocks(written(tmp_path, text), 7)
    assert [str(one.place) for one in found] == [f"line {n}" for n in lines]
    assert [one.number for one in found] == list(range(1, 21))
    assert {one.file for one in found} == {str(tmp_path / "source.json")}


def test_json_lines_allow_blank_lines_and_a_byte_order_mark(tmp_path: Path):
    text = "\ufeff\n" + json.dumps(shown("a")) + "\r\n \n" + json.dumps(shown("b"), ensure_ascii=False)
    source = written(tmp_path, text, "source.jsonl")
    assert [(outcome(one)["id"], one.place.at) for one in line_entries(source)] == [("a", 2), ("b", 4)]
    first = written(tmp_path, "\ufeff{}", "first.jsonl")
    assert [outcome(one) for one in line_entries(first)] == [{}]


def test_a_list_may_start_with_a_byte_order_mark(tmp_path: Path):
    assert [outcome(one) for one in list_entries(written(tmp_path, "\ufeff [1, {}]\n"))] == [1, {}]


@pytest.mark.parametrize(
    ("line", "reason", "found"),
    [
        (b'{"id": "b", ', Reason.NOT_JSON, "at column 1"),
        (b"{'id': 'b'}", Reason.NOT_JSON, "column 2"),
        (b"[" * 100_000, Reason.NOT_JSON, "too deep"),
        (b"9" * 5000, Reason.NOT_JSON, "4300 digits"),
        (b'{"id": "\xff"}', Reason.NOT_UTF8, "0xFF at byte 9"),
        (b'{"id": "\xed\xa0\xbd"}', Reason.NOT_UTF8, "0xED"),
        (b'{"id": "caf\xe9"}', Reason.NOT_UTF8, "0xE9"),
        (b'{"id": "a\x00b"}', Reason.NULL_CHARACTER, "null bytes"),
        (b"\x00" * 20, Reason.NULL_CHARACTER, "null bytes"),
    ],
)
def test_a_broken_json_line_is_one_fault(tmp_path: Path, line: bytes, reason: Reason, found: str):
    good = json.dumps(shown("a")).encode()
    first, bad, last = line_entries(written(tmp_path, b"\n".join([good, line, good]), "source.jsonl"))
    assert outcome(first)["id"] == outcome(last)["id"] == "a"
    _, fault = decoded(bad)
    assert fault is not None
    assert (fault.reason, str(bad.place)) == (reason, "line 2")
    assert found in fault.found
    assert fault.hint


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\xbd", b"caf\xe9"])
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_only_the_element_that_is_not_utf_8_is_faulty(tmp_path: Path, bad: bytes, block: int):
    source = written(tmp_path, b'[{"id": "\xc3\xa9"}, {"id": "' + bad + b'"}, {"id": "\xc3\xa9"}]')
    found = in_blocks(source, block)
    assert [outcome(one) for one in found] == [{"id": "é"}, Reason.NOT_UTF8, {"id": "é"}]
    assert found[1].fault is not None
    assert f"0x{bad.lstrip(b'caf')[0]:02X}" in found[1].fault.found


@pytest.mark.parametrize("block", [50, 1 << 20])
def test_only_elements_too_deep_or_with_too_long_numbers_are_faulty(tmp_path: Path, block: int):
    deep, long = "[" * 50_000 + "]" * 50_000, "9" * 5000
    found = in_blocks(written(tmp_path, f"[1, {deep}, 2, {long}, 3]"), block)
    assert [outcome(one) for one in found] == [1, Reason.NOT_JSON, 2, Reason.NOT_JSON, 3]


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
        ("[1, NaNa]", "line 1, column 8"),
        ("[" * 100_000, "line 1, column 2"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_broken_list_is_an_error_with_line_and_column(tmp_path: Path, text: str, where: str, block: int):
    source = written(tmp_path, text)
    with pytest.raises(IxtuneError) as caught:
        in_blocks(source, max(block, len(text) // 100))
    assert caught.value.where == f"{source}, {where}"
    assert caught.value.hint


def test_a_missing_quote_is_an_error_at_the_unfinished_record(tmp_path: Path):
    source = written(tmp_path, '[1,\n {"a: ' + "x" * 100 + "},\n 2]")
    with pytest.raises(IxtuneError) as caught:
        in_blocks(source, 7, 50)
    assert caught.value.where == f"{source}, line 2, column 2"


def test_elements_before_a_broken_one_are_read(tmp_path: Path):
    reader = list_entries(written(tmp_path, "[1, 2, 3 4]"))
    assert [next(reader).value for _ in range(3)] == [1, 2, 3]
    with pytest.raises(IxtuneError, match="expected a comma"):
        next(reader)


@pytest.mark.parametrize("name", ["source.json", "source.jsonl"])
def test_the_reader_reports_its_position(tmp_path: Path, name: str):
    values = [shown(n) for n in range(5)]
    text = json.dumps(values) if name == "source.json" else "".join(json.dumps(value) + "\n" for value in values)
    source = written(tmp_path, text, name)
    positions = [one.position for one in (list_entries if name == "source.json" else line_entries)(source)]
    assert positions == sorted(positions)
    assert positions[-1] == source.stat().st_size


def test_a_long_list_is_not_held_in_memory(tmp_path: Path):
    source = tmp_path / "source.json"
    with open(source, "w") as file:
        file.write("[")
        for number in range(20_000):
            file.write((", " if number else "") + json.dumps(record(number, "x" * 1000, "y")))
        file.write("]")
    assert source.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in list_entries(source)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


PEAK = """
import sys
from pathlib import Path
from ixtune.data.containers.json_text import line_entries, list_entries

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

before = peak()
for entry in (list_entries if sys.argv[1].endswith(".json") else line_entries)(Path(sys.argv[1])):
    print(entry.place.at, entry.fault.reason.value if entry.fault else "good")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "filling",
    ['"x"', r'"\"\\"', '[1,2,"three, four, five, six, seven, eight, nine"],{}'],
    ids=["text", "escapes", "brackets"],
)
@pytest.mark.parametrize("name", ["source.json", "source.jsonl"])
def test_a_record_of_50_megabytes_is_skipped_in_little_memory(tmp_path: Path, name: str, filling: str):
    good, comma = json.dumps(shown("a")), ",\n" if name == "source.json" else "\n"
    times = 51_000_000 // len(filling.strip(chr(34)))
    many = f'"{filling[1:-1] * times}"' if filling[0] == '"' else f"[{filling},{f'{filling},' * times}0]"
    text = comma.join([good, many, good])
    source = written(tmp_path, f"[{text}]" if name == "source.json" else text, name)
    assert source.stat().st_size > 50_000_000
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source)], capture_output=True, text=True, check=True, timeout=600
    )
    *found, grown_kib = done.stdout.split("\n")[:-1]
    assert found == ["1 good", "2 record_too_large", "3 good"]
    # a record of 32 MiB may be held, and a block
    assert int(grown_kib) < 120_000
