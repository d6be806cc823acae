from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from records import write_image

from ixtune.data.containers.image_folder import entries, metadata_file, metadata_files, unnamed_images
from ixtune.data.containers.json_text import decoded
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.errors import UsageError


def write_metadata(folder: Path, rows: list[dict[str, Any]], name: str = "metadata.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        if name.endswith(".csv"):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder / name


def asked(image: str, **others: Any) -> dict[str, Any]:
    return {"file_name": image, "question": "What?", "answer": image, **others}


def values(folder: Path, *columns: str) -> list[Any]:
    return [decoded(entry)[0] for entry in entries(folder, columns)]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_each_line_of_the_metadata_is_an_entry(tmp_path: Path, name: str):
    write_image(tmp_path / "a.png")
    path = write_metadata(tmp_path, [asked("a.png"), asked("deep/b.png")], name)
    assert metadata_file(tmp_path) == path
    first, second = entries(tmp_path)
    assert (first.number, first.file) == (1, str(path))
    assert first.place == Place("line", 1 if name.endswith("jsonl") else 2)
    assert second.position == path.stat().st_size
    assert values(tmp_path) == [asked("a.png"), asked("deep/b.png")]


def test_datasets_itself_reads_the_same_folder(tmp_path: Path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "photos" / name)
    write_metadata(tmp_path / "photos", [asked("b.png"), asked("a.png")])
    options: dict[str, Any] = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), **options)
    assert sorted(theirs["answer"]) == sorted(value["answer"] for value in values(tmp_path / "photos"))


def test_image_names_in_subfolders_become_relative_to_the_root(tmp_path: Path):
    write_metadata(tmp_path / "b", [asked("x.png", front_file_name="f.png", images=["1.png", {"path": "2.png"}])])
    write_metadata(tmp_path / "a", [asked("x.png")], "metadata.csv")
    assert [file.parent.name for file in metadata_files(tmp_path)] == ["a", "b"]
    first, second = values(tmp_path)
    assert (first["file_name"], first["answer"]) == ("a/x.png", "x.png")
    assert (second["file_name"], second["front_file_name"]) == ("b/x.png", "b/f.png")
    assert second["images"] == ["b/1.png", {"path": "b/2.png"}]
    assert [entry.number for entry in entries(tmp_path)] == [1, 2]
    assert list(entries(tmp_path))[-1].position == sum(file.stat().st_size for file in metadata_files(tmp_path))


def test_columns_named_by_the_user_are_image_columns_too(tmp_path: Path):
    write_metadata(tmp_path / "a", [{"photo": "x.png", "note": "y.png"}])
    assert values(tmp_path, "photo") == [{"photo": "a/x.png", "note": "y.png"}]


@pytest.mark.parametrize(
    "given", ["/etc/x.png", "https://example.org/x.png", "data:image/png;base64,AA==", "", None, 5]
)
def test_other_than_relative_paths_are_kept_unchanged(tmp_path: Path, given: Any):
    write_metadata(tmp_path / "a", [{"file_name": given}])
    assert values(tmp_path) == [{"file_name": given}]


def test_a_path_out_of_the_folder_is_kept_to_be_refused_later(tmp_path: Path):
    write_metadata(tmp_path / "a", [asked("../../x.png")])
    assert values(tmp_path)[0]["file_name"] == "a/../../x.png"


def test_broken_lines_in_subfolders_are_faults_too(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "a"):
        folder.mkdir(exist_ok=True)
        (folder / "metadata.jsonl").write_bytes(b'{"file_name": \n[1]\n{"file_name": "\xff"}\n')
        found = [decoded(entry) for entry in entries(folder)]
        assert [fault.reason if fault else value for value, fault in found] == [Reason.NOT_JSON, [1], Reason.NOT_UTF8]
    (tmp_path / "metadata.jsonl").unlink()
    assert [decoded(entry)[1] is None for entry in entries(tmp_path)] == [False, True, False]


def test_splits_side_by_side_are_not_mixed(tmp_path: Path):
    for name in ("train", "Test"):
        write_metadata(tmp_path / name, [asked("a.png")])
    with pytest.raises(UsageError, match="holds the splits Test, train") as caught:
        list(entries(tmp_path))
    assert str(tmp_path / "Test") in caught.value.hint
    assert len(values(tmp_path / "train")) == 1


def test_two_metadata_files_in_one_folder_are_refused(tmp_path: Path):
    for name in ("metadata.jsonl", "metadata.csv"):
        write_metadata(tmp_path, [asked("a.png")], name)
    with pytest.raises(UsageError, match="both metadata.jsonl and metadata.csv"):
        metadata_file(tmp_path)


def test_a_folder_without_metadata_has_no_metadata_file(tmp_path: Path):
    write_image(tmp_path / "a.png")
    write_metadata(tmp_path / ".hidden", [asked("a.png")])
    assert metadata_file(tmp_path) is None


def test_images_without_a_metadata_entry_are_counted(tmp_path: Path):
    for name in ("a.png", "deep/b.JPG.png", "c.jpg", "./d/e.png", ".hidden/x.png", ".x.png"):
        write_image(tmp_path / name)
    (tmp_path / "note.txt").write_text("x")
    write_metadata(tmp_path, [asked("a.png"), asked("d/../d/e.png"), asked("gone.png"), {"images": ["c.jpg"]}])
    assert unnamed_images(tmp_path) == 1
    write_metadata(tmp_path, [{"photo": "a.png"}])
    assert unnamed_images(tmp_path) == 4
    assert unnamed_images(tmp_path, ["photo"]) == 3
