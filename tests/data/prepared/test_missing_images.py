"""Test sets whose images were moved, deleted or changed after prepare."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from prepared_sets import as_format_2
from records import shown, write_image, write_source

from ixtune.data.images.content_hash import hash_of_file
from ixtune.data.images.image_file import ImageError
from ixtune.data.prepare import prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.missing_images import missing_images, require_images
from ixtune.data.prepared.store import PreparedSet
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError

NAMES = ("a.png", "deep/b.png", "c.png")


@pytest.fixture
def project(tmp_path: Path, tokenizer_base: Path) -> Path:
    """Return a folder with a prepared set and its images; two records show the last one."""
    folder = tmp_path / "project"
    for number, name in enumerate(NAMES):
        write_image(folder / "photos" / name, 60 + number, 40)
    entries = [shown(number, name) for number, name in enumerate((*NAMES, NAMES[-1]))]
    source = Source(path=str(write_source(folder, entries)), image_root=folder / "photos")
    prepare([source], folder / "set", base=tokenizer_base, options=PrepareOptions(hd_num=1))
    return folder


def faults(prepared: PreparedSet) -> dict[str, str]:
    return {fault.path.name: fault.found for fault in missing_images([prepared])}


def test_unchanged_images_are_not_reported(project: Path) -> None:
    assert faults(store.load(project / "set")) == {}


def test_every_image_is_stored_with_the_hash_and_size_of_its_file(project: Path) -> None:
    prepared = store.load(project / "set")
    for row in prepared.dataset:
        (image,) = row["pictures"]
        file = prepared.files.path(image)
        assert (image["content"], image["bytes"]) == (hash_of_file(file), file.stat().st_size)


def change_size(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def change_one_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, (2e9, 2e9))  # later than the set, however coarse the clock


def touch(file: Path) -> None:
    os.utime(file, (2e9, 2e9))


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (Path.unlink, "there is no such file"),
        (change_size, "bytes, prepared with"),
        (change_one_byte, "content has changed"),
        (touch, None),
        (make_folder, "bytes, prepared with"),
    ],
)
def test_each_kind_of_change_is_reported_once_per_file(project: Path, damage, found: str | None) -> None:
    damage(project / "photos" / NAMES[-1])
    known = faults(store.load(project / "set"))
    assert list(known) == ([] if found is None else ["c.png"])
    assert found is None or found in known["c.png"]


def test_all_missing_images_are_counted_and_the_hint_names_image_root(project: Path) -> None:
    shutil.rmtree(project / "photos")
    sets = TrainingSet.load([project / "set"]).sets
    with pytest.raises(IxtuneError, match="3 images of the data are missing or changed") as caught:
        require_images(sets, hint="set data.image_root=FOLDER")
    assert "data.image_root=FOLDER" in caught.value.hint
    assert len(caught.value.notes) == 3


def moved_together(project: Path) -> Path:
    return project.rename(project.parent / "elsewhere") / "set"


def set_alone(project: Path) -> Path:
    (project.parent / "a" / "b").mkdir(parents=True)
    return (project / "set").rename(project.parent / "a" / "b" / "set")


def copied_and_original_emptied(project: Path) -> Path:
    """Reproduce issue 14: the old folder still exists, its images do not."""
    shutil.copytree(project, project.parent / "there")
    (project / "photos").rename(project / "gone")
    return project.parent / "there" / "set"


@pytest.mark.parametrize("move", [moved_together, set_alone, copied_and_original_emptied])
def test_a_set_finds_its_images_after_a_move(project: Path, move) -> None:
    prepared = store.load(move(project))
    assert faults(prepared) == {}
    assert all(prepared.image_path(row, 0).is_file() for row in range(4))


def test_a_moved_set_ignores_another_folder_with_the_same_file_names(project: Path) -> None:
    there = project.parent / "there"
    for name in NAMES:  # other images of the same names
        write_image(there / "photos" / name, 80, 50)
    (project / "set").rename(there / "set")
    prepared = store.load(there / "set")
    assert prepared.files.roots[1] == project / "photos"
    assert faults(prepared) == {}
    # of these, only the image by which the folder is recognized is the same
    shutil.copy(project / "photos" / NAMES[0], there / "photos" / NAMES[0])
    assert sorted(faults(store.load(there / "set"))) == ["b.png", "c.png"]


def test_an_image_of_the_same_size_and_an_old_date_in_a_moved_folder_is_found(project: Path) -> None:
    moved = project.rename(project.parent / "elsewhere")
    file = moved / "photos" / NAMES[-1]
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, (1e9, 1e9))
    assert faults(store.load(moved / "set")) == {"c.png": "its content has changed since it was prepared"}


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "deep/../../secret.png"])
def test_a_stored_path_outside_its_root_is_refused(project: Path, path: str) -> None:
    write_image(project / "secret.png")
    prepared = store.load(project / "set")
    stored = prepared.dataset[0]["pictures"][0] | {"path": path}
    with pytest.raises(ImageError, match="is outside the image root") as caught:
        prepared.files.open(stored)
    assert "prepare the data again" in caught.value.hint
    with pytest.raises(ImageError, match="no image root 7"):
        prepared.files.path(stored | {"root": 7})


def test_images_in_another_folder_are_found_by_image_root(project: Path) -> None:
    (project / "photos").rename(project.parent / "pictures")
    assert len(faults(store.load(project / "set"))) == 3
    assert faults(store.load(project / "set", project.parent / "pictures")) == {}
    assert missing_images(TrainingSet.load([project / "set"], image_root=project.parent / "pictures").sets) == []


def test_image_root_replaces_the_common_parent_of_several_roots(tmp_path: Path, tokenizer_base: Path) -> None:
    sources = []
    for name in ("left", "right"):
        write_image(tmp_path / "data" / name / "a.png")
        sources.append(Source(path=str(write_source(tmp_path / "data" / name, [shown(name)]))))
    prepare(sources, tmp_path / "set", base=tokenizer_base, options=PrepareOptions(hd_num=1))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert faults(store.load(tmp_path / "set", tmp_path / "moved")) == {}


def test_a_format_2_set_loads_and_compares_images_by_pixel_size(project: Path) -> None:
    as_format_2(project / "set")
    prepared = store.load(project / "set")
    assert faults(prepared) == {}
    assert store.layout_of(prepared.dataset[0]["pictures"][0]).width == 60
    write_image(project / "photos" / "a.png", 61, 40)
    (project / "photos" / "c.png").unlink()
    assert faults(prepared) == {
        "a.png": "61x40 pixels, prepared with 60x40",
        "c.png": "there is no such file",
    }
