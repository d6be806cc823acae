from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.containers.webdataset import entries, shards
from ixtune.data.record import ImageRef, Place, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Schema
from ixtune.errors import IxtuneError, UsageError

QA = {"question": "What?", "answer": "A receipt."}
LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A receipt."}]


def packed(path: Path, members: Sequence[tuple[str, Any]], **options: Any) -> Path:
    """Write a tar with the standard library; objects are packed as JSON, a TarInfo unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
                continue
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> list[Entry]:
    found = list(entries(shards(path)))
    assert [entry.number for entry in found] == list(range(1, len(found) + 1))
    assert all((entry.value is None) == (entry.fault is not None) for entry in found)
    return found


def only(path: Path) -> Any:
    (entry,) = read(path)
    assert entry.fault is None, entry.fault
    return entry.value


def reasons(path: Path) -> list[tuple[Any, Reason | None]]:
    return [(entry.place.at, entry.fault.reason if entry.fault else None) for entry in read(path)]


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def test_consecutive_members_with_the_same_key_are_one_sample(tmp_path: Path):
    path = packed(
        tmp_path / "a.tar",
        [("d/1.jpg", b"J"), ("d/1.json", QA), ("d/1.cls", b"5"), ("d/2.txt", b"two"), ("./d/3.PNG", b"P")],
    )
    first, second, third = read(path)
    assert first.value == QA | {"id": "d/1", "image": [{"bytes": b"J", "path": "d/1.jpg"}]}
    assert second.value == {"id": "d/2", "image": [], "text": "two"}
    assert third.value["image"] == [{"bytes": b"P", "path": "./d/3.PNG"}]
    assert (first.file, first.place, third.place) == (str(path), Place("member", "d/1"), Place("member", "d/3"))
    assert first.position < second.position < third.position == path.stat().st_size


def test_several_images_keep_their_order_in_the_tar(tmp_path: Path):
    path = packed(tmp_path / "a.tar", [("1.front.png", b"F"), ("1.0.jpg", b"0"), ("1.json", QA), ("1.back.webp", b"B")])
    assert [one["path"] for one in only(path)["image"]] == ["1.front.png", "1.0.jpg", "1.back.webp"]


def test_text_members_become_columns(tmp_path: Path):
    path = packed(
        tmp_path / "a.tar", [("1.jpg", b"J"), ("1.question.txt", b"What?"), ("1.answer.txt", "déjà".encode())]
    )
    value = only(path)
    assert (value["question"], value["answer"]) == ("What?", "déjà")
    assert only(packed(tmp_path / "b.tar", [("1.caption", b"\xef\xbb\xbfa dog")]))["text"] == "a dog"


def messages(image: dict[str, Any]) -> dict[str, Any]:
    question = {"role": "user", "content": [image, {"type": "text", "text": "\nWhat?"}]}
    return {"id": "x", "messages": [question, {"role": "assistant", "content": "A receipt."}]}


OURS = [LLAVA[0] | {"value": "<ImageHere>\nWhat?"}, LLAVA[1]]


@pytest.mark.parametrize(
    ("schema", "record"),
    [
        (Schema.LLAVA, {"id": "x", "conversations": LLAVA}),
        (Schema.LLAVA, {"id": "x", "image": "coco/train/1.jpg", "conversations": LLAVA}),
        (Schema.SHAREGPT, {"id": "x", "images": ["1.jpg"], "conversations": LLAVA}),
        (Schema.IXC, {"id": "x", "image": ["1.jpg"], "conversations": OURS}),
        (Schema.OPENAI, messages({"type": "image_url", "image_url": {"url": "pages/1.jpg"}})),
        (Schema.OPENAI, messages({"type": "image", "path": "jpg"})),
        (Schema.OPENAI, messages({"type": "image"})),
    ],
)
def test_a_conversation_gets_its_image_in_both_schemas(tmp_path: Path, schema: Schema, record: dict[str, Any]):
    (entry,) = read(packed(tmp_path / "a.tar", [("1.json", record), ("1.jpg", b"J")]))
    found = record_of(entry, Reading(schema))
    assert found.images == (ImageRef("1.jpg", content=b"J"),)
    assert found.turns == (Turn("user", "<ImageHere>\nWhat?"), Turn("assistant", "A receipt."))
    assert found.id == "x"


def test_images_come_in_the_order_given_in_the_json(tmp_path: Path):
    members = [("1.a.jpg", b"A"), ("1.b.jpg", b"B"), ("1.c.jpg", b"C")]
    for names in (
        ["1.b.jpg", "1.a.jpg"],
        ["b.jpg", "a.jpg"],
        ["pages/1.b.jpg", "x/a.jpg"],
        [{"path": "b.jpg"}, "a.jpg"],
    ):
        path = packed(tmp_path / "a.tar", [*members, ("1.json", QA | {"images": names})])
        assert [one["bytes"] for one in only(path)["image"]] == [b"B", b"A"]
    unnamed = packed(tmp_path / "b.tar", [*members, ("1.json", QA)])
    assert [one["bytes"] for one in only(unnamed)["image"]] == [b"A", b"B", b"C"]


def test_a_sample_with_question_columns_is_a_record(tmp_path: Path):
    (entry,) = read(packed(tmp_path / "a.tar", [("1.jpg", b"J"), ("1.json", QA)]))
    columns = (("image", "image"), ("question", "question"), ("answer", "answer"), ("id", "id"))
    record = record_of(entry, Reading(Schema.COLUMNS, columns))
    assert (record.id, record.images) == ("1", (ImageRef("1.jpg", content=b"J"),))


def test_without_image_members_paths_in_the_json_are_kept(tmp_path: Path):
    value = only(packed(tmp_path / "a.tar", [("1.json", QA | {"image": "pages/1.jpg"})]))
    assert value["image"] == "pages/1.jpg"


def test_shards_are_read_by_name_and_equal_keys_stay_distinct(tmp_path: Path):
    for name in ("b.tar", "a.tar"):
        packed(tmp_path / name, [("000.txt", name.encode()), ("001.txt", b"x")])
    found = read(tmp_path)
    assert [entry.value["id"] for entry in found] == ["a/000", "a/001", "b/000", "b/001"]
    assert found[0].value["text"] == "a.tar"
    assert found[-1].position == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert only(packed(tmp_path / "c" / "one.tar", [("000.txt", b"x")]))["id"] == "000"


def test_a_folder_without_shards_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no \\*.tar"):
        shards(tmp_path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_tar_format(tmp_path: Path, format: int):
    name = "folder/" * 12 + "k" * 90
    path = packed(tmp_path / "a.tar", [(f"{name}.txt", b"x"), (f"{name}.jpg", b"J")], format=format)
    assert only(path)["id"] == name


def test_folders_and_hidden_files_are_ignored(tmp_path: Path):
    folder = tarfile.TarInfo()
    folder.type = tarfile.DIRTYPE
    path = packed(tmp_path / "a.tar", [("d", folder), ("d/._1.jpg", b"mac"), (".DS_Store", b""), ("d/1.jpg", b"J")])
    assert [one["bytes"] for one in only(path)["image"]] == [b"J"]


BAD = {
    "a repeated key": ([("1.txt", b"a"), ("2.txt", b"b"), ("1.jpg", b"J")], "1", Reason.DUPLICATE_ID),
    "two endings": ([("1.jpg", b"a"), ("1.JPG", b"b")], "1", Reason.BAD_FIELD),
    "two texts": ([("1.txt", b"a"), ("1.caption", b"b")], "1", Reason.BAD_FIELD),
    "two jsons": ([("1.json", {"a": 1}), ("1.meta.json", {"a": 2})], "1", Reason.BAD_FIELD),
    "nothing known": ([("1.cls", b"5"), ("1.npy", b"x")], "1", Reason.NOT_A_RECORD),
    "no ending": ([("README", b"x")], "README", Reason.NOT_A_RECORD),
    "broken JSON": ([("1.json", b'{"a":')], "1", Reason.NOT_JSON),
    "a long number": ([("1.json", b"[" + b"9" * 5000 + b"]")], "1", Reason.NOT_JSON),
    "deep JSON": ([("1.json", b"[" * 100_000)], "1", Reason.NOT_JSON),
    "JSON of another kind": ([("1.json", [1])], "1", Reason.NOT_A_RECORD),
    "no UTF-8": ([("1.txt", b"gr\xfcn")], "1", Reason.NOT_UTF8),
    "an empty image": ([("1.jpg", b""), ("1.json", QA)], "1", Reason.PICTURE_EMPTY),
    "other names": (
        [("1.a.jpg", b"A"), ("1.b.jpg", b"B"), ("1.json", QA | {"image": ["c.jpg"]})],
        "1",
        Reason.PICTURE_MISSING,
    ),
    "a symbolic link": ([("1.jpg", link(tarfile.SYMTYPE, "/etc/passwd")), ("1.json", QA)], "1", Reason.BAD_FIELD),
    "a hard link": ([("0.jpg", b"J"), ("1.jpg", link(tarfile.LNKTYPE, "0.jpg"))], "1", Reason.BAD_FIELD),
    "a device": ([("1.jpg", link(tarfile.CHRTYPE, ""))], "1", Reason.BAD_FIELD),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_a_fault_and_the_samples_around_it_are_read(tmp_path: Path, name: str):
    members, key, reason = BAD[name]
    found = reasons(packed(tmp_path / "a.tar", [("first.txt", b"x"), *members, ("last.txt", b"x")]))
    assert (found[0], found[-1]) == (("first", None), ("last", None))
    assert [one for one in found if one[1]] == [(key, reason)]


def test_absolute_and_parent_paths_are_never_extracted(tmp_path: Path):
    path = packed(tmp_path / "a.tar", [("/etc/1.txt", b"a"), ("../../2.txt", b"b")])
    assert [entry.value["text"] for entry in read(path)] == ["a", "b"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar"]


def test_an_oversized_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_ENTRY_BYTES", 1000)
    monkeypatch.setattr("ixtune.data.containers.webdataset.PICTURES_BYTES", 8000)
    path = packed(
        tmp_path / "a.tar",
        [
            ("1.txt", b"x" * 1001),
            ("2.jpg", b"x" * 8001),
            ("3.a.jpg", b"x" * 5000),
            ("3.b.jpg", b"x" * 5000),
            ("4.jpg", b"J"),
        ],
    )
    large = Reason.RECORD_TOO_LARGE
    assert reasons(path) == [("1", large), ("2", large), ("3", large), ("4", None)]


def test_a_member_with_a_huge_size_costs_no_memory(tmp_path: Path):
    """The size in a header is not trusted: this file is sparse, with 1 TB of zeros for the member."""
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("1.jpg")
    info.size = 1 << 40
    end = packed(tmp_path / "end.tar", [("2.txt", b"x")]).read_bytes()
    with open(path, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(1 << 40, io.SEEK_CUR)
        file.write(end)
    tracemalloc.start()
    found = reasons(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [("1", Reason.RECORD_TOO_LARGE), ("2", None)]
    assert most < 8 << 20


def five(folder: Path) -> tuple[Path, list[int]]:
    """Return a shard with five samples of two members each, and the offset of each member."""
    members = [(f"{n}.{ending}", b"x" * 700) for n in range(5) for ending in ("jpg", "txt")]
    path = packed(folder / "a.tar", members)
    with tarfile.open(path) as tar:
        return path, [member.offset for member in tar.getmembers()]


@pytest.mark.parametrize("into", [0, 200, 512, 900, 1024])
@pytest.mark.parametrize("member", range(1, 10))
def test_whole_samples_of_a_truncated_shard_are_read_and_it_is_reported(tmp_path: Path, member: int, into: int):
    """A sample is complete if another follows it; the last one might lack a member."""
    path, offsets = five(tmp_path)
    path.write_bytes(path.read_bytes()[: offsets[member] + into])
    found = reasons(path)
    began = member if into >= 512 else member - 1  # the last member whose header is there
    assert found[:-1] == [(str(n), None) for n in range(began // 2)]
    assert found[-1] == (f"{began // 2}.{('jpg', 'txt')[began % 2]}", Reason.SOURCE_BROKEN)


def test_a_shard_without_an_end_marker_is_reported_as_incomplete(tmp_path: Path):
    path, offsets = five(tmp_path)
    path.write_bytes(path.read_bytes()[: offsets[-1] + 512 + 1024])
    assert reasons(path)[-1] == ("4.txt", Reason.SOURCE_BROKEN)
    assert [reason for _, reason in reasons(path)[:-1]] == [None] * 4


def test_a_broken_header_is_not_taken_for_the_end_marker(tmp_path: Path):
    """The standard library stops there, and the samples behind it would be lost silently."""
    path, offsets = five(tmp_path)
    content = bytearray(path.read_bytes())
    content[offsets[6] : offsets[6] + 100] = b"\xff" * 100
    path.write_bytes(content)
    assert reasons(path) == [("0", None), ("1", None), ("2.txt", Reason.SOURCE_BROKEN)]


def test_shards_concatenated_into_one_file_are_reported(tmp_path: Path):
    path, _ = five(tmp_path)
    path.write_bytes(path.read_bytes() * 2)
    found = read(path)
    assert [entry.place.at for entry in found] == ["0", "1", "2", "3", "4", "4.txt"]
    assert found[-1].fault is not None
    assert "follow its end marker" in found[-1].fault.found


def test_shards_after_a_broken_one_are_read(tmp_path: Path):
    path, offsets = five(tmp_path)
    path.write_bytes(path.read_bytes()[: offsets[2] + 100])
    packed(tmp_path / "b.tar", [("9.txt", b"x")])
    assert [reason for _, reason in reasons(tmp_path)] == [Reason.SOURCE_BROKEN, None]


def test_a_member_of_negative_size_ends_the_shard(tmp_path: Path):
    """tarfile would read them in an endless loop."""
    info = tarfile.TarInfo("2.txt")
    info.size = -1024
    evil = info.tobuf(tarfile.GNU_FORMAT)
    one = packed(tmp_path / "a.tar", [("1.txt", b"x")]).read_bytes()[:1024]
    (tmp_path / "a.tar").write_bytes(one + evil + b"\0" * 10240)
    assert reasons(tmp_path)[-1][1] is Reason.SOURCE_BROKEN
    assert len(reasons(tmp_path)) <= 2


@pytest.mark.parametrize("content", [b"", b"<html>", b"x" * 5000, b"\x1f\x8b\x08" + b"x" * 600])
def test_a_file_that_is_not_a_tar_is_a_clear_error(tmp_path: Path, content: bytes):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(IxtuneError, match="this is not a tar file") as caught:
        read(tmp_path)
    assert caught.value.where == str(tmp_path / "a.tar")


def test_an_empty_tar_has_no_samples(tmp_path: Path):
    assert read(packed(tmp_path / "a.tar", [])) == []


@given(
    at=st.integers(0, 4000),
    junk=st.binary(min_size=1, max_size=30),
    cut=st.none() | st.integers(0, 12_000),
)
def test_any_damage_gives_samples_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes, cut: int | None
):
    path, _ = five(tmp_path_factory.mktemp("tar"))
    content = path.read_bytes()
    path.write_bytes((content[:at] + junk + content[at + len(junk) :])[:cut])
    try:
        found = read(path)
    except IxtuneError:
        return
    assert len(found) <= 6
    for entry in found:
        try:
            record_of(entry, Reading(Schema.COLUMNS, (("answer", "text"), ("image", "image"), ("id", "id")), "What?"))
        except RecordError as error:
            assert error.reason in Reason  # noqa: PT017 - any reason will do
