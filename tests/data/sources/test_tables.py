from __future__ import annotations

import contextlib
import csv
import io
import random
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.containers.parquet_table import parquet_columns, parquet_entries, parquet_files, parquet_rows
from ixtune.data.containers.tables import csv_columns, csv_entries
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry, Fault
from ixtune.errors import IxtuneError, UsageError


def written(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_and_reasons(path: Path, delimiter: str | None = None) -> list[tuple[int | str, str | None]]:
    """Return line and reason of each entry; check that no entry has both a value and a fault."""
    found = list(csv_entries(path, delimiter))
    assert [entry.number for entry in found] == list(range(1, len(found) + 1))
    assert all((entry.value is None) == (entry.fault is not None) for entry in found)
    return [(entry.place.at, entry.fault.reason.value if entry.fault else None) for entry in found]


def only(path: Path) -> Entry:
    (entry,) = csv_entries(path)
    return entry


def test_a_row_maps_header_names_to_texts(tmp_path: Path):
    path = written(tmp_path, "image,question,answer\na.png,What?,42.50\nb.png,Who?,\n")
    first, second = csv_entries(path)
    assert first.value == {"image": "a.png", "question": "What?", "answer": "42.50"}
    assert (first.file, first.place, first.number) == (str(path), Place("line", 2), 1)
    assert second.value == {"image": "b.png", "question": "Who?", "answer": ""}
    assert second.position == path.stat().st_size
    assert csv_columns(path) == ["image", "question", "answer"]


def test_rows_have_the_number_of_their_first_line(tmp_path: Path):
    path = written(tmp_path, '\nq,a\n\n"one\ntwo\r\nthree",x\n\ny,z\n')
    first, second = csv_entries(path)
    assert (first.place.at, first.value["q"]) == (4, "one\ntwo\r\nthree")
    assert (second.place.at, second.value) == (8, {"q": "y", "a": "z"})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_ending_is_accepted(tmp_path: Path, end: str):
    path = written(tmp_path, end.join(["q,a", "1,2", '"3","4"', ""]))
    assert [(entry.place.at, entry.value["a"]) for entry in csv_entries(path)] == [(2, "2"), (3, "4")]


def test_a_byte_order_mark_and_spaces_are_stripped_from_column_names(tmp_path: Path):
    assert csv_columns(written(tmp_path, "\ufeffimage, question ,answer\n")) == ["image", "question", "answer"]


def test_a_semicolon_separates_columns_if_the_header_uses_it(tmp_path: Path):
    path = written(tmp_path, 'q;a\n"Wie viel, bitte?";42,50\n')
    assert only(path).value == {"q": "Wie viel, bitte?", "a": "42,50"}
    assert only(written(tmp_path, '"q;q",a\n1,2\n')).value == {"q;q": "1", "a": "2"}


def test_a_tab_separates_columns_if_requested(tmp_path: Path):
    path = written(tmp_path, 'q\ta\nyes, no; maybe\t"x\ty"\n')
    (entry,) = csv_entries(path, "\t")
    assert entry.value == {"q": "yes, no; maybe", "a": "x\ty"}
    assert csv_columns(path, "\t") == ["q", "a"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the table is empty"),
        ("\n\n", "the table is empty"),
        ("a,b;c\n1,2\n", "holds , and ;"),
        ("a\tb\n1\t2\n", "holds tabs"),
        ("a,b,a\n", "two columns have the same name: a"),
        ('"a,b\n1,2\n', "not a header"),
        ('"a"x,b\n1,2\n', "the header is broken"),
        ("\xe9,b\n".encode("latin1"), "not a header"),
    ],
)
def test_a_table_without_a_usable_header_is_refused_with_its_line(tmp_path: Path, content: str | bytes, told: str):
    path = written(tmp_path, content)
    for read in (csv_columns, lambda path: list(csv_entries(path))):
        with pytest.raises(UsageError, match=told) as caught:
            read(path)
        assert caught.value.where.startswith(str(path))
        assert caught.value.hint


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,2,3\n", Reason.WRONG_COLUMNS),
        (b"1\n", Reason.WRONG_COLUMNS),
        (b'"1"x,2\n', Reason.WRONG_COLUMNS),
        (b"1,\xff\n", Reason.NOT_UTF8),
        (b"1,\xed\xa0\x80\n", Reason.NOT_UTF8),  # half a surrogate pair
        (b"1,a\0b\n", Reason.NULL_CHARACTER),
    ],
)
def test_a_bad_row_is_a_fault_and_the_rows_around_it_are_read(tmp_path: Path, row: bytes, reason: Reason):
    path = written(tmp_path, b"q,a\n1,2\n" + row + b"3,4\n")
    assert lines_and_reasons(path) == [(2, None), (3, reason.value), (4, None)]
    fault = list(csv_entries(path))[1].fault
    assert isinstance(fault, Fault)
    assert fault.hint
    assert "\n" not in fault.found


def test_a_fault_names_the_column_and_byte(tmp_path: Path):
    entry = only(written(tmp_path, b"q,a\n1,gr\xfcn\n"))
    assert entry.fault is not None
    assert entry.fault.found == "a holds the byte 0xfc, which is not UTF-8"


def test_a_row_with_broken_quotes_makes_every_line_it_spans_faulty(tmp_path: Path):
    """None of these lines can be trusted, and each must be counted."""
    path = written(tmp_path, 'q,a\n1,2\n3,"open\n5,6\n7,"8"\n9,10\n')
    bad = Reason.WRONG_COLUMNS.value
    assert lines_and_reasons(path) == [(2, None), (3, bad), (4, bad), (5, bad), (6, None)]


def test_an_unclosed_quote_makes_all_remaining_lines_faulty(tmp_path: Path):
    path = written(tmp_path, 'q,a\n1,2\n3,"open\n' + "5,6\n" * 4)
    assert [line for line, reason in lines_and_reasons(path) if reason] == [3, 4, 5, 6, 7]
    assert "line 3 and never closed" in list(csv_entries(path))[-1].fault.found  # type: ignore[union-attr]


def test_rows_without_text_are_skipped(tmp_path: Path):
    assert lines_and_reasons(written(tmp_path, "q,a\n,\n1,2\n , \n\t\n")) == [(3, None)]


def test_columns_without_a_name_are_skipped(tmp_path: Path):
    """pandas writes one in front, spreadsheets write several at the end."""
    path = written(tmp_path, ",q,a,,\n0,1,2,,\n")
    assert csv_columns(path) == ["q", "a"]
    assert only(path).value == {"q": "1", "a": "2"}


@pytest.mark.parametrize("quoted", [True, False])
def test_an_oversized_row_is_skipped_without_being_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quoted: bool
):
    monkeypatch.setattr(limits, "MAX_ENTRY_BYTES", 1 << 18)
    cell = b'"' + b'x ""\n,\n' * 60_000 + b'"' if quoted else b"x" * 21_000_000
    path = written(tmp_path, b"q,a\n1,2\n3," + cell + b"\n5,6\n")
    tracemalloc.start()
    found = lines_and_reasons(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    after = 120_004 if quoted else 4
    assert found == [(2, None), (3, Reason.RECORD_TOO_LARGE.value), (after, None)]
    assert most < 8 << 20


def test_long_cells_are_read_despite_the_limit_of_the_csv_module(tmp_path: Path):
    """The limit of the csv module is 128 KiB per cell, for the whole process."""
    before = csv.field_size_limit()
    path = written(tmp_path, "q,a\n1," + "x" * 3_000_000 + "\n")
    assert len(only(path).value["a"]) == 3_000_000
    assert csv.field_size_limit() == before


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ['"', '""', ",", ";", "\n", "\r\n", "\r", 'a 12"" screen', "\ufeff", "\u2028", " "]
)


@given(rows=st.lists(st.lists(cells, min_size=3, max_size=3), max_size=8), delimiter=st.sampled_from(",;\t"))
def test_tables_written_by_the_csv_module_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str
):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([["a", "b", "c"], *rows])
    path = written(tmp_path_factory.mktemp("csv"), text.getvalue())
    read = [list(entry.value.values()) for entry in csv_entries(path, delimiter)]
    assert read == [row for row in rows if any(cell.strip() for cell in row)]


@given(st.binary(max_size=60) | st.text('a,;\t"\n\r\0é', max_size=60).map(str.encode))
def test_any_content_gives_rows_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = written(tmp_path_factory.mktemp("csv"), b"q,a\n" + content)
    found = lines_and_reasons(path)
    assert [line for line, _ in found] == sorted({line for line, _ in found})
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        lines_and_reasons(path)


@pytest.mark.parametrize("seed", range(20))
def test_block_size_does_not_change_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int):
    content = "q,a\n" + "".join(random.Random(seed).choices('ab,"\n\r ', weights=[9, 9, 3, 3, 2, 1, 3], k=400))
    path = written(tmp_path, content)
    whole = list(csv_entries(path))
    monkeypatch.setattr("ixtune.data.containers.tables._BLOCK", 5)
    in_pieces = list(csv_entries(path))
    assert [(e.place, e.value, e.fault) for e in in_pieces] == [(e.place, e.value, e.fault) for e in whole]


def test_a_missing_or_unreadable_table_is_a_clear_error(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(IxtuneError, match="cannot be read"):
            csv_columns(path)


def parquet(folder: Path, columns: dict[str, Any], name: str = "rows.parquet", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, folder / name, **options)
    return folder / name


def test_parquet_rows_have_plain_python_values(tmp_path: Path):
    single = pyarrow.array([0.1, None], pyarrow.float32())
    columns = {
        "image": [{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": None, "path": "b.png"}],
        "pages": [[b"1", b"2"], []],
        "answers": [["x", "y"], None],
        "n": [7, None],
        "score": single,
        "price": [Decimal("1.50"), None],
        "kind": pyarrow.array(["p", "q"]).dictionary_encode(),
    }
    path = parquet(tmp_path, columns)
    first, second = parquet_entries((path,))
    assert first.value == {
        "image": {"bytes": b"\x89PNG", "path": "a.png"},
        "pages": [b"1", b"2"],
        "answers": ["x", "y"],
        "n": 7,
        "score": 0.1,
        "price": Decimal("1.50"),
        "kind": "p",
    }
    assert second.value["answers"] is second.value["n"] is second.value["score"] is None
    assert (second.number, second.place, second.file, second.position) == (2, Place("row", 2), str(path), 2)
    assert parquet_columns((path,)) == list(columns)


def test_parquet_shards_are_read_by_name_with_row_numbers_per_file(tmp_path: Path):
    second = parquet(tmp_path, {"q": ["c"]}, "train-00001-of-00002.parquet")
    first = parquet(tmp_path, {"q": ["a", "b"]}, "train-00000-of-00002.parquet")
    files = parquet_files(tmp_path)
    assert files == (first, second)
    found = [(entry.number, entry.file, entry.place.at, entry.value["q"]) for entry in parquet_entries(files)]
    assert found == [(1, str(first), 1, "a"), (2, str(first), 2, "b"), (3, str(second), 1, "c")]
    assert parquet_rows(files) == 3


def test_splits_are_never_mixed(tmp_path: Path):
    train = parquet(tmp_path, {"q": ["a"]}, "train-00000-of-00001.parquet")
    test = parquet(tmp_path, {"q": ["a"]}, "test-00000-of-00001-0123456789abcdef.parquet")
    with pytest.raises(UsageError, match="the folder holds test, train"):
        parquet_files(tmp_path)
    with pytest.raises(UsageError, match="no split dev"):
        parquet_files(tmp_path, "dev")
    assert parquet_files(tmp_path, "train") == (train,)
    assert parquet_files(tmp_path, "test") == (test,)
    assert parquet_files(train) == (train,)


def test_a_folder_without_parquet_or_with_unequal_columns_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no \\*.parquet"):
        parquet_files(tmp_path)
    files = [parquet(tmp_path, {"q": ["a"]}, "a.parquet"), parquet(tmp_path, {"r": ["a"]}, "b.parquet")]
    with pytest.raises(UsageError, match="the columns are r; those of a.parquet are q") as caught:
        parquet_columns(files)
    assert caught.value.where == str(files[1])


def test_two_columns_with_one_name_are_refused(tmp_path: Path):
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["q", "q"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="two columns have the same name: q"):
        parquet_columns((tmp_path / "a.parquet",))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "page"])
def test_a_damaged_parquet_file_is_a_clear_error(tmp_path: Path, damage: str):
    path = parquet(tmp_path, {"q": [f"{n} {n * n}" for n in range(1000)]}, compression="snappy", use_dictionary=False)
    content = path.read_bytes()
    broken = {
        "cut": content[:-100],
        "empty": b"",
        "text": b"q,a\n",
        "page": content[:60] + b"\xff" * 400 + content[460:],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(IxtuneError, match="the Parquet file cannot be read") as caught:
        list(parquet_entries((path,)))
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)


def test_only_the_row_with_invalid_utf8_is_faulty(tmp_path: Path):
    texts = pyarrow.array([b"good", b"gr\xfcn", b"fine"])
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, texts.buffers())
    found = list(parquet_entries((parquet(tmp_path, {"q": broken, "a": ["x", "y", "z"]}),)))
    assert [entry.fault.reason if entry.fault else None for entry in found] == [None, Reason.NOT_UTF8, None]
    assert found[2].value == {"q": "fine", "a": "z"}


def test_a_row_with_too_many_image_bytes_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_ENTRY_BYTES", 1000)
    monkeypatch.setattr("ixtune.data.containers.arrow_rows.PICTURES_BYTES", 8000)
    path = parquet(tmp_path, {"image": [b"x" * 5000, b"x" * 9000, b"x"]})
    reasons = [entry.fault.reason if entry.fault else None for entry in parquet_entries((path,))]
    assert reasons == [None, Reason.RECORD_TOO_LARGE, None]


def test_images_of_a_row_group_are_not_all_kept_in_memory(tmp_path: Path):
    noise = random.Random(0)
    # a page is the least that can be read, and by default one is as large as a row group of so few rows
    images = {"image": [noise.randbytes(1 << 20) for _ in range(96)]}
    path = parquet(tmp_path, images, use_dictionary=False, write_batch_size=1, data_page_size=1 << 20)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 1
    before, most = pyarrow.total_allocated_bytes(), 0
    for entry in parquet_entries((path,)):
        assert len(entry.value["image"]) == 1 << 20
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 24 << 20


def test_class_labels_become_names_and_json_columns_are_parsed(tmp_path: Path):
    """Without names, the label numbers would silently be trained as answers."""
    features = Features(
        {"label": ClassLabel(names=["cat", "dog"]), "image": Image(decode=False), "text": Value("string")}
    )
    rows = {"label": [1, 0, -1], "image": [{"bytes": b"x", "path": None}] * 3, "text": ["a", "b", "c"]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    found = [entry.value for entry in parquet_entries((tmp_path / "a.parquet",))]
    assert [value["label"] for value in found] == ["dog", "cat", None]
    assert found[0]["image"] == {"bytes": b"x", "path": None}

    messages = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]]
    Dataset.from_dict({"messages": messages}, on_mixed_types="use_json").to_parquet(tmp_path / "b.parquet")
    (entry,) = parquet_entries((tmp_path / "b.parquet",))
    assert entry.value == {"messages": messages[0]}
