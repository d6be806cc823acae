from __future__ import annotations

import gzip
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import entry, shown, write_image, write_source

from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.source import Container, Schema, Source
from ixtune.data.sources.source_loader import Opened, open_source
from ixtune.errors import IxtuneError, UsageError

FILES = Path(__file__).resolve().parents[2] / "fixtures" / "sources"


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def opened(path: Path | str, **source: Any) -> Opened:
    return open_source(Source(path=str(path), **source))


def turns(*values: str, names: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": names[n % 2], "value": value} for n, value in enumerate(values)]


def messages(text: str = "hi") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    ("name", "container", "schema", "detected"),
    [
        (
            "ixc.json",
            Container.JSON,
            Schema.IXC,
            "JSON list of InternLM-XComposer conversations: records have `conversations` with <ImageHere>",
        ),
        (
            "llava.json",
            Container.JSON,
            Schema.LLAVA,
            "JSON list of LLaVA conversations: records have `conversations` with <image>; not used: model",
        ),
        (
            "sharegpt.json",
            Container.JSON,
            Schema.SHAREGPT,
            "JSON list of ShareGPT conversations: records have `conversations` with <image> and `images`",
        ),
        (
            "role_content.json",
            Container.JSON,
            Schema.LLAVA,
            "JSON list of LLaVA conversations: records have `conversations` with <image>",
        ),
        ("openai.jsonl", Container.JSONL, Schema.OPENAI, "JSON Lines of OpenAI messages: records have `messages`"),
        (
            "trl.jsonl",
            Container.JSONL,
            Schema.OPENAI,
            "JSON Lines of OpenAI messages: records have `messages` and images next to them",
        ),
        (
            "messages_with_tags.json",
            Container.JSON,
            Schema.OPENAI,
            "JSON list of OpenAI messages: records have `messages` and images next to them",
        ),
    ],
)
def test_real_files_are_detected_by_their_content(name: str, container: Container, schema: Schema, detected: str):
    found = opened(FILES / name)
    assert (found.container, found.schema, found.detected) == (container, schema, detected)
    assert found.files == (FILES / name,)
    assert found.image_root == FILES
    assert found.total == (FILES / name).stat().st_size
    assert [record_of(one, found.reading) for one in found.entries()]
    assert list(found.entries()) == list(found.entries())


TEXT_ONLY = {"id": 1, "conversations": turns("hi", "yo")}
OFFICIAL_TEXT = {"id": 1, "conversations": turns("hi", "yo", names=("user", "assistant"))}


@pytest.mark.parametrize(
    ("records", "schema"),
    [
        ([shown("a")], Schema.IXC),
        ([OFFICIAL_TEXT], Schema.IXC),
        ([OFFICIAL_TEXT, shown("b")], Schema.IXC),
        ([TEXT_ONLY], Schema.SHAREGPT),
        ([TEXT_ONLY | {"system": "Be terse."}], Schema.SHAREGPT),
        ([OFFICIAL_TEXT | {"images": []}], Schema.SHAREGPT),
        ([{"conversations": turns("hi", "yo", names=("user", "assistant"))}], Schema.SHAREGPT),
        ([TEXT_ONLY, {"image": "a.png", "conversations": turns("<image>?", "yo")}], Schema.LLAVA),
        ([{"image": "a.png", "conversations": turns("?", "yo")}], Schema.LLAVA),
        ([{"images": ["a.png"], "conversations": turns("<image>?", "yo")}], Schema.SHAREGPT),
        ([{"image": "a.png", "system": "s", "conversations": turns("<image>?", "yo")}], Schema.SHAREGPT),
        ([{"conversations": messages()}], Schema.SHAREGPT),
        ([{"id": 1, "conversations": messages()}], Schema.SHAREGPT),
        ([{"image": "a.png", "conversations": messages("<image>?")}], Schema.LLAVA),
        ([{"messages": messages()}], Schema.OPENAI),
        ([{"messages": messages("What is <ImageHere>?")}], Schema.OPENAI),
        ([{"question": "q", "answer": "a"}], Schema.COLUMNS),
        ([{"image": "a.png", "question": "q", "answer": "a"}], Schema.COLUMNS),
        ([{"image": [{"bytes": "x"}], "question": "q", "answer": "a"}], Schema.COLUMNS),
        ([{"messages": messages()}, 5, None, {}], Schema.OPENAI),
        ([{"conversations": "broken"}, {"conversations": [5, {"from": "user"}, *turns("<image>")]}], Schema.LLAVA),
    ],
)
@pytest.mark.parametrize("container", [Container.JSON, Container.JSONL])
def test_the_schema_is_detected_from_the_records(
    tmp_path: Path, records: list[Any], schema: Schema, container: Container
):
    text = json.dumps(records) if container is Container.JSON else lines(*records)
    # no name decides anything
    found = opened(written(tmp_path / "source.txt", text))
    assert (found.container, found.schema) == (container, schema)
    assert found.detected


@pytest.mark.parametrize(
    ("records", "says", "candidates"),
    [
        (
            [shown("a"), {"image": "a.png", "conversations": turns("<image>?", "yo")}],
            "<ImageHere> occurs in 1 record, <image> in 1 record",
            ["--format ixc", "--format llava"],
        ),
        (
            [shown("a"), {"images": ["a.png"], "conversations": turns("<image>?", "yo")}],
            "<ImageHere> occurs in 1 record",
            ["--format ixc", "--format sharegpt"],
        ),
        ([{"images": ["a"], "conversations": turns("<ImageHere>?", "yo")}], "`images`", ["--format ixc"]),
        (
            [{"messages": messages()}, TEXT_ONLY],
            "both `conversations` and `messages`",
            ["--format sharegpt", "--format openai"],
        ),
        ([shown("a") | {"messages": messages()}], "both", ["--format ixc", "--format openai"]),
    ],
)
def test_contradicting_records_are_refused_with_the_candidates(
    tmp_path: Path, records: list[Any], says: str, candidates: list[str]
):
    path = written(tmp_path / "source.json", json.dumps(records))
    with pytest.raises(UsageError) as caught:
        opened(path)
    assert says in str(caught.value)
    assert all(candidate in caught.value.hint for candidate in candidates)
    found = opened(path, schema=Schema.IXC)
    assert found.schema is Schema.IXC
    assert found.detected.startswith("JSON list of InternLM-XComposer conversations, as --format says")


def test_explicit_settings_override_detection(tmp_path: Path):
    path = written(tmp_path / "source.json", json.dumps([shown("a")]))
    found = opened(path, schema=Schema.LLAVA, system="Be terse.", image_root=tmp_path.parent)
    assert found.schema is Schema.LLAVA
    assert found.reading.system == "Be terse."
    assert found.image_root == tmp_path.parent.resolve()
    table = written(tmp_path / "a.csv", "question\tanswer\tthat, too\nq\ta\tx\n")
    assert opened(table, container=Container.TSV).container is Container.TSV


def test_images_of_a_linked_source_are_relative_to_the_real_file(tmp_path: Path):
    path = written(tmp_path / "there" / "source.json", json.dumps([shown("a")]))
    link = tmp_path / "link.json"
    link.symlink_to(path)
    assert opened(link).image_root == path.parent.resolve()


def test_fields_of_json_records_can_be_columns(tmp_path: Path):
    path = written(tmp_path / "a.jsonl", lines({"photo": "a.png", "q": "What?", "a": "A cat."}))
    found = opened(path, columns=(("image", "photo"), ("question", "q"), ("answer", "a")))
    assert found.schema is Schema.COLUMNS
    assert found.reading.columns == found.columns == (("image", "photo"), ("question", "q"), ("answer", "a"))
    assert "image from photo" in found.detected
    (one,) = found.entries()
    assert record_of(one, found.reading).turns[0].text == "<ImageHere>What?"
    with pytest.raises(UsageError) as caught:
        opened(path)
    assert "'photo', 'q', 'a'" in " ".join(caught.value.notes)


@pytest.mark.parametrize(
    ("text", "container", "question"),
    [
        ("image,question,answer\na.png,What?,A cat.\n", Container.CSV, "<ImageHere>What?"),
        ('\ufeffimage;question;answer\r\na.png;"What; this?";A cat.\r\n', Container.CSV, "<ImageHere>What; this?"),
        ("image\tquestion\tanswer\na.png\tWhat, this?\tA cat.\n", Container.TSV, "<ImageHere>What, this?"),
        ('"image","question","answer"\na.png,What?,A cat.\n', Container.CSV, "<ImageHere>What?"),
    ],
)
def test_text_tables_are_detected_by_their_separator(tmp_path: Path, text: str, container: Container, question: str):
    path = written(tmp_path / "table", text)
    found = opened(path)
    assert (found.container, found.schema, found.files) == (container, Schema.COLUMNS, (path,))
    (one,) = found.entries()
    assert record_of(one, found.reading).turns[0].text == question
    assert found.total == one.position == path.stat().st_size


def write_parquet(path: Path, values: list[dict[str, Any]], rows: int | None = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values).slice(0, rows), path)
    return path


def test_parquet_can_hold_columns_conversations_or_messages(tmp_path: Path):
    image = {"bytes": write_image(tmp_path / "a.png").read_bytes(), "path": "a.png"}
    rows: dict[Schema, dict[str, Any]] = {
        Schema.COLUMNS: {"image": image, "question": "What?", "answer": "A cat."},
        Schema.LLAVA: {"image": image, "conversations": turns("<image>What?", "A cat.")},
        Schema.OPENAI: {"images": [image], "messages": messages("<image>What?")},
    }
    for schema, row in rows.items():
        path = write_parquet(tmp_path / schema / "train.bin", [row, row])
        found = opened(path)
        assert (found.container, found.schema, found.total) == (Container.PARQUET, schema, 2)
        records = [record_of(one, found.reading) for one in found.entries()]
        assert [record.turns[0].text for record in records] == ["<ImageHere>What?"] * 2
        assert records[0].images[0].content == image["bytes"]
        assert len({record.id for record in records}) == 2


def test_a_folder_of_parquet_files_is_a_single_source(tmp_path: Path):
    folder = tmp_path / "data"
    for part in range(2):
        write_parquet(folder / f"train-0000{part}-of-00002.parquet", [{"question": "q", "answer": f"{part}"}])
    found = opened(folder)
    assert (found.container, len(found.files), found.image_root) == (Container.PARQUET, 2, folder)
    records = [record_of(one, found.reading) for one in found.entries()]
    assert [record.turns[1].text for record in records] == ["0", "1"]
    assert len({record.id for record in records}) == 2
    write_parquet(folder / "test-00000-of-00001.parquet", [{"question": "q", "answer": "2"}])
    with pytest.raises(UsageError, match="train"):
        opened(folder)
    assert len(opened(folder, split="test").files) == 1


def test_a_saved_dataset_is_detected_by_its_state_file(tmp_path: Path):
    import datasets

    datasets.Dataset.from_list([{"id": 1, "conversations": turns("hi", "yo")}]).save_to_disk(tmp_path / "saved")
    found = opened(tmp_path / "saved")
    assert (found.container, found.schema, found.total) == (Container.ARROW, Schema.SHAREGPT, 1)
    assert found.fingerprint
    assert found.files
    (one,) = found.entries()
    assert record_of(one, found.reading).id == "1"


def test_an_image_folder_is_detected_by_its_metadata(tmp_path: Path):
    write_image(tmp_path / "photos" / "a.png")
    metadata = written(tmp_path / "photos" / "metadata.csv", "file_name,question,answer\na.png,What?,A cat.\n")
    found = opened(tmp_path / "photos")
    assert (found.container, found.schema) == (Container.IMAGEFOLDER, Schema.COLUMNS)
    assert (found.files, found.image_root) == ((metadata,), tmp_path / "photos")
    (one,) = found.entries()
    assert record_of(one, found.reading).images[0].path == "a.png"


def test_images_missing_from_the_metadata_are_counted(tmp_path: Path):
    for name in ("a.png", "b.png", "deep/c.png"):
        write_image(tmp_path / "photos" / name)
    written(tmp_path / "photos" / "metadata.csv", "file_name,question,answer\na.png,What?,A cat.\n")
    assert opened(tmp_path / "photos").detected.endswith("; 2 more images are in it without a line")


def test_tar_shards_are_detected_by_magic_bytes(tmp_path: Path):
    image = write_image(tmp_path / "a.png")
    fields = written(tmp_path / "a.json", json.dumps({"conversations": turns("<image>What?", "A cat.")}))
    for shard in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / shard, "w") as tar:
            tar.add(image, "0001.png")
            tar.add(fields, "0001.json")
    for path, shards in ((tmp_path / "0.tar", 1), (tmp_path / "shards", 2)):
        if shards == 2:
            path.mkdir()
            for shard in ("0.tar", "1.tar"):
                (tmp_path / shard).rename(path / shard)
        found = opened(path)
        assert (found.container, found.schema, len(found.files)) == (Container.WEBDATASET, Schema.LLAVA, shards)
        records = [record_of(one, found.reading) for one in found.entries()]
        assert len({record.id for record in records}) == shards
        assert all(record.images[0].content for record in records)


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "<xml/>")
    return path


GOOD = lines(shown("a")).encode()


@pytest.mark.parametrize(
    ("make", "says", "hint"),
    [
        (lambda folder: written(folder / "a.jsonl.gz", gzip.compress(GOOD)), "gzip", "gunzip"),
        (lambda folder: written(folder / "a.jsonl", b"BZh91AY&SY" + bytes(20)), "bzip2", "bunzip2"),
        (lambda folder: written(folder / "a.json", b"\x28\xb5\x2f\xfd" + bytes(20)), "zstd", "unzstd"),
        (lambda folder: zipped(folder / "a.zip", "a.json"), "ZIP", "unpack"),
        (lambda folder: zipped(folder / "a.xlsx", "xl/workbook.xml"), "workbook", "CSV"),
        (lambda folder: zipped(folder / "a.ods", "mimetype", "content.xml"), "workbook", "CSV"),
        (lambda folder: written(folder / "a.zip", b"PK\x03\x04cut short"), "ZIP", "unpack"),
        (lambda folder: written(folder / "a.pdf", b"%PDF-1.7\n"), "PDF", "save its pages as images"),
        (lambda folder: write_image(folder / "a.png"), "this is an image", "a CSV"),
        (lambda folder: write_image(folder / "a.webp"), "this is an image", "a CSV"),
        (lambda folder: written(folder / "a.pkl", b"\x80\x04\x95" + bytes(20)), "pickle", "any program"),
        (lambda folder: written(folder / "a.arrow", b"ARROW1\0\0" + bytes(20)), "Arrow", "save_to_disk"),
        (lambda folder: written(folder / "a.json", "\ufeff[]".encode("utf-16")), "UTF-16", "UTF-8"),
        (lambda folder: written(folder / "a.bin", bytes(range(256))), "neither text", "JSON"),
        (lambda folder: written(folder / "a.json", "<!DOCTYPE html><html>"), "web page", "download"),
        (
            lambda folder: written(folder / "a.json", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
            "Git LFS pointer",
            "git lfs pull",
        ),
        (lambda folder: written(folder / "a.json", "   \n "), "nothing but spaces", "a JSON list"),
        (lambda folder: written(folder / "a.txt", "hello\nworld\n"), "hello", "a JSON list"),
        (lambda folder: written(folder / "a.txt", '"text"'), "text", "a JSON list"),
        (lambda folder: written(folder / "a.csv", "a,b\tc\n1,2\t3\n"), "both tabs and commas", "--format tsv"),
        (
            lambda folder: written(folder / "a.json", json.dumps({"train": [shown("a")], "test": [shown("b")]})),
            "the lists train, test",
            "--split train",
        ),
        (
            lambda folder: written(folder / "a.json", json.dumps({"images": [], "annotations": []}, indent=1)),
            "one JSON object with the fields images, annotations",
            "the list of the records",
        ),
        (
            lambda folder: written(folder / "a.json", json.dumps({"a": 1}, indent=1)),
            "one JSON object",
            "one record {...} per line",
        ),
        (
            lambda folder: written(folder / "a.jsonl", "{'id': 1}\n{'id': 2}\n"),
            "none of the first lines is JSON",
            "JSON",
        ),
        (lambda folder: written(folder / "a.json", "[]"), "holds no record", "records"),
        (lambda folder: written(folder / "a.json", "[5]"), "the first entry is not a record: 5", "objects"),
        (lambda folder: written(folder / "a.json", "[null, 5]"), "none of the first 2 entries is a record", "objects"),
        (lambda folder: written(folder / "a.json", "["), "Expecting value", "fix the file"),
        (lambda folder: write_parquet(folder / "a.parquet", [{"x": 1}], rows=0), "holds no record", "records"),
    ],
)
def test_unusable_sources_are_refused_with_a_hint(tmp_path: Path, make: Callable[[Path], Path], says: str, hint: str):
    path = make(tmp_path)
    with pytest.raises(IxtuneError) as caught:
        opened(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert hint in caught.value.hint


def test_an_empty_file_is_an_error(tmp_path: Path):
    with pytest.raises(IxtuneError, match="the file is empty"):
        opened(written(tmp_path / "a.json", ""))


def test_json_lines_are_detected_despite_a_broken_first_line(tmp_path: Path):
    found = opened(written(tmp_path / "a.jsonl", '{"id": \n' + lines(shown("a"))))
    assert (found.container, found.schema) == (Container.JSONL, Schema.IXC)


def test_an_image_folder_without_metadata_gets_a_metadata_example(tmp_path: Path):
    write_image(tmp_path / "photos" / "IMG 1.JPG".lower())
    write_image(tmp_path / "photos" / "receipt.png")
    with pytest.raises(UsageError) as caught:
        opened(tmp_path / "photos")
    assert "no file with questions and answers" in str(caught.value)
    assert str(tmp_path / "photos" / "metadata.csv") in caught.value.hint
    assert caught.value.hint.endswith("pass the folder again")  # the example is printed above the hint
    written(tmp_path / "photos" / "metadata.csv", "\n".join(caught.value.notes))
    found = opened(tmp_path / "photos")
    (one,) = found.entries()
    assert record_of(one, found.reading).images[0].path == "img 1.jpg"


@pytest.mark.parametrize(
    ("names", "says", "hint"),
    [
        ([], "the folder is empty", "metadata.csv"),
        (["README.md"], "README.md", "metadata.csv"),
        (["a.json", "b.json"], "a.json and 1 more", "a.json"),
        (["a.csv", "list.yaml"], "a.csv and list.yaml", "a.csv"),
        (["a.csv", "data.txt"], "a.csv and data.txt", "a.csv"),
        (["data/a.json"], "data", "data"),
        (["a.tar", "a.parquet"], "a.parquet and a.tar", "--format parquet or --format webdataset"),
        (["metadata.csv", "a.tar"], "metadata.csv and a.tar", "--format imagefolder or --format webdataset"),
        (["manifest.json", "state.json"], "a prepared set", "made from"),
        (["manifest.json", "dataset_dict.json"], "a prepared set", "made from"),
    ],
)
def test_an_unclear_folder_is_refused_with_its_contents(tmp_path: Path, names: list[str], says: str, hint: str):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        written(folder / name, "x")
    with pytest.raises(UsageError) as caught:
        opened(folder)
    assert says in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("path", ["none.json", "none", "owner/name.json", "owner/name/more", "tests/none", "./a/b"])
def test_a_missing_path_is_not_taken_for_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    with pytest.raises(UsageError, match="no such file or folder"):
        opened(path)


def test_owner_slash_name_that_is_not_a_path_is_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IxtuneError) as caught:
        opened("nobody-here/no-such-set")
    assert "hub" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"container": Container.ARROW}, "this is a file"),
        ({"container": Container.IMAGEFOLDER}, "this is a file"),
        ({"split": "train"}, "no splits"),
        ({"config": "small"}, "no configurations"),
        ({"schema": Schema.LLAVA, "question": "What?"}, "neither columns nor one question"),
        ({"schema": Schema.OPENAI, "columns": (("answer", "a"),)}, "neither columns nor one question"),
        ({"encoding": "cp1252"}, "no encoding"),
        ({"image_root": Path("nowhere")}, "not a folder"),
    ],
)
def test_contradictory_settings_are_refused_before_reading(tmp_path: Path, source: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        opened(write_source(tmp_path, [shown("a")]), **source)


def test_a_folder_is_refused_as_json(tmp_path: Path):
    with pytest.raises(UsageError, match="this is a folder"):
        opened(tmp_path, container=Container.JSON)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_without_read_permission_is_an_error(tmp_path: Path):
    path = write_source(tmp_path, [entry("a", "hi", "yo")])
    path.chmod(0)
    with pytest.raises(IxtuneError, match="cannot be read"):
        opened(path)


def test_detection_does_not_read_the_whole_source(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    with open(path, "w") as file:
        for number in range(300):
            file.write(lines(entry(number, "<ImageHere>hi", "yo", image=["a.png"])))
        # no more than the first 200 are looked at
        file.write(lines({"messages": messages()}))
    assert opened(path).schema is Schema.IXC
