import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from ixtune.errors import IxtuneError
from ixtune.files import atomic_folder, atomic_write_bytes, atomic_write_json, atomic_write_text, sha256_file


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data reaches the disk at fsync at the latest, so that is where a full one shows."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_write_replaces_the_old_content_and_leaves_nothing_else(tmp_path: Path):
    atomic_write_text(tmp_path / "a.txt", "old")
    atomic_write_text(tmp_path / "a.txt", "grün")
    assert (tmp_path / "a.txt").read_bytes() == "grün".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_creates_missing_parent_folders(tmp_path: Path):
    atomic_write_bytes(tmp_path / "runs" / "one" / "a", b"x")
    assert (tmp_path / "runs" / "one" / "a").read_bytes() == b"x"


def test_a_written_file_has_the_permissions_of_any_other_new_file(tmp_path: Path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write_bytes(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_json_comes_back_equal(tmp_path: Path):
    content = {"name": "grün", "sizes": [1, 2.5, None]}
    atomic_write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_json_refuses_nan_before_it_touches_the_file(tmp_path: Path):
    atomic_write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_text() == "1\n"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file_and_no_remains(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No space") as caught:
        atomic_write_bytes(tmp_path / "a", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_no_folder(tmp_path: Path):
    with pytest.raises(OSError, match="No space"), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"new")
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole_under_its_name(tmp_path: Path):
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"x")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "sub" / "a").read_bytes() == b"x"
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_every_file_and_folder_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_rename(*names: Path) -> None:
        events.append("rename")
        rename(*names)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"x")
    before = events[: events.index("rename")]
    assert {"a", "sub", folder.name} <= set(before)
    assert events[-1] == tmp_path.name


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interrupted_folder_does_not_exist(tmp_path: Path, interruption: type[BaseException]):
    def interrupted() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_bytes(b"x")
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [[], ["precious"]])
def test_an_existing_folder_is_refused_before_any_work(tmp_path: Path, content: list[str]):
    (tmp_path / "out").mkdir()
    for name in content:
        (tmp_path / "out" / name).touch()
    with pytest.raises(IxtuneError, match="exists already"), atomic_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path / "out") == content


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path: Path):
    with pytest.raises(IxtuneError, match="exists already"), atomic_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert os.listdir(tmp_path) == ["out"]


def test_the_hash_is_that_of_the_whole_content(tmp_path: Path):
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
