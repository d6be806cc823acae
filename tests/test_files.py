import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ixtune import files, platforms
from ixtune.errors import IxtuneError
from ixtune.files import atomic_folder, atomic_write_bytes, atomic_write_json, atomic_write_text, sha256_file


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail in fsync: data reach the disk there at the latest, so a full disk is noticed there."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_write_replaces_the_content_and_leaves_no_other_file(tmp_path: Path):
    atomic_write_text(tmp_path / "a.txt", "old")
    atomic_write_text(tmp_path / "a.txt", "grün")
    assert (tmp_path / "a.txt").read_bytes() == "grün".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_creates_missing_parent_folders(tmp_path: Path):
    atomic_write_bytes(tmp_path / "runs" / "one" / "a", b"x")
    assert (tmp_path / "runs" / "one" / "a").read_bytes() == b"x"


def test_a_written_file_has_the_permissions_of_a_normal_new_file(tmp_path: Path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write_bytes(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_a_path_is_shortened_only_if_it_names_the_same_place(tmp_path: Path):
    for folder in ("mine", "photos", "far/target", "far/photos"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "target")
    assert files.without_detours(tmp_path / "mine" / ".." / "photos") == tmp_path / "photos"
    around = tmp_path / "link" / ".." / "photos"  # is far/photos
    assert files.without_detours(around) == around
    nowhere = tmp_path / "mine" / ".." / "nowhere"
    assert files.without_detours(nowhere) == nowhere


def test_json_is_read_back_equal(tmp_path: Path):
    content = {"name": "grün", "sizes": [1, 2.5, None]}
    atomic_write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_json_refuses_nan_without_changing_the_file(tmp_path: Path):
    atomic_write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_text() == "1\n"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_the_old_file_and_leaves_no_partial_one(tmp_path: Path):
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


def test_a_folder_appears_complete_under_its_name(tmp_path: Path):
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
def test_an_interrupted_write_leaves_no_folder(tmp_path: Path, interruption: type[BaseException]):
    def interrupted() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_bytes(b"x")
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [[], ["precious"]])
def test_an_existing_folder_is_refused_before_the_work_starts(tmp_path: Path, content: list[str]):
    (tmp_path / "out").mkdir()
    for name in content:
        (tmp_path / "out" / name).touch()
    with pytest.raises(IxtuneError, match="exists already"), atomic_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path / "out") == content


def test_a_folder_created_meanwhile_is_not_replaced(tmp_path: Path):
    with pytest.raises(IxtuneError, match="exists already"), atomic_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_created_at_the_last_moment_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        (target / "precious").mkdir(parents=True)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(IxtuneError, match="exists already"), atomic_folder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["precious"]


def test_the_hash_covers_the_whole_content(tmp_path: Path):
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_many_files_are_synced_in_one_call_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []

    def note(descriptor: int) -> bool:
        assert not (tmp_path / "out").exists()
        synced.extend(os.listdir(descriptor))
        return True

    monkeypatch.setattr(files, "_SYNCED_ONE_BY_ONE", 2)
    monkeypatch.setattr(platforms, "sync_file_system", note)
    with atomic_folder(tmp_path / "out") as folder:
        for name in "abc":
            (folder / name).touch()
    assert sorted(synced) == ["a", "b", "c"]
    assert (tmp_path / "out" / "a").exists()


def test_a_sync_error_on_many_files_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "_SYNCED_ONE_BY_ONE", 0)
    monkeypatch.setattr(platforms, "sync_file_system", refuse)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_files_are_synced_individually_without_syncfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[Path] = []
    monkeypatch.setattr(files, "_SYNCED_ONE_BY_ONE", 0)
    monkeypatch.setattr(platforms, "sync_file_system", lambda descriptor: False)
    monkeypatch.setattr(platforms, "sync", synced.append)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [path.name for path in synced] == ["a", folder.name, tmp_path.name]


def test_syncfs_syncs_one_file_system_and_reports_errors(tmp_path: Path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    answer = platforms.sync_file_system(descriptor)
    os.close(descriptor)
    if not answer:
        pytest.skip("this system has no syncfs")
    with pytest.raises(OSError, match="Bad file descriptor"):
        platforms.sync_file_system(descriptor)


# what another process runs: it says so when it is in the middle, and then waits to be killed
OWNERS = {
    "folder": """
        with files.atomic_folder(path) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "half").write_bytes(b"x")
            wait()
    """,
    "file": """
        os.fsync = wait
        files.atomic_write_bytes(path, b"half")
    """,
}
PREAMBLE = """
import os, sys, time
from pathlib import Path
from ixtune import files
path = Path(sys.argv[1])
def wait(descriptor=None):
    print("in the middle", flush=True)
    time.sleep(600)
if True:
"""


@pytest.fixture(params=OWNERS)
def owner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that is writing `out` in an otherwise empty folder."""
    script = PREAMBLE + OWNERS[request.param]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    ) as it:
        assert it.stdout
        assert it.stdout.readline() == "in the middle\n"
        yield it
        it.kill()


def write_both_ways(path: Path) -> None:
    atomic_write_bytes(path, b"whole")
    path.unlink()
    with atomic_folder(path):
        pass


def partials(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if ".partial-" in name]


def test_leftovers_of_a_killed_process_are_removed_by_the_next_write(tmp_path: Path, owner: subprocess.Popen[str]):
    owner.kill()
    owner.wait()
    assert len(partials(tmp_path)) == 1
    write_both_ways(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_partial_files_of_a_live_process_are_kept(tmp_path: Path, owner: subprocess.Popen[str]):
    (left,) = partials(tmp_path)
    write_both_ways(tmp_path / "out")
    assert owner.poll() is None
    assert sorted(os.listdir(tmp_path)) == sorted([left, "out"])


def dead(folder: Path, name: str = "out") -> Path:
    """Create the partial folder that a killed process leaves, without a lock."""
    with atomic_folder(folder / name) as partial:
        left = partial.with_name(partial.name[:-8] + "0" * 8)
    (folder / name).rmdir()
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "half").touch()
    return left


def test_the_name_of_a_partial_file_has_the_boot_id_and_is_hidden(tmp_path: Path):
    assert re.fullmatch(r"\.out\.partial-[0-9a-f]{8}-0{8}", dead(tmp_path).name)


def test_partial_files_of_other_names_are_kept(tmp_path: Path):
    left = {dead(tmp_path, name) for name in ("out.txt", "ou", "partial")}
    left.add(dead(tmp_path).rename(tmp_path / ".out.partial-mine"))
    write_both_ways(tmp_path / "out")
    assert set(tmp_path.iterdir()) == left | {tmp_path / "out"}


def test_partial_files_from_another_boot_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = dead(tmp_path)
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(platforms, "_BOOT_ID", tmp_path / "boot_id")
    write_both_ways(tmp_path / "out")
    assert (left / "sub" / "half").exists()


def test_nothing_is_removed_without_a_boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platforms, "_BOOT_ID", tmp_path / "absent")
    left = dead(tmp_path)
    write_both_ways(tmp_path / "out")
    assert (left / "sub" / "half").exists()


def test_nothing_is_removed_without_file_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    left = dead(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_both_ways(tmp_path / "out")
    assert (left / "sub" / "half").exists()


def test_a_symlink_with_a_partial_name_is_not_followed(tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").touch()
    left = dead(tmp_path)
    link = left.with_name(left.name[:-8] + "1" * 8)
    link.symlink_to("precious")
    write_both_ways(tmp_path / "out")
    assert os.listdir(tmp_path / "precious") == ["a"]
    assert not left.exists()


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked", "before it is looked at"])
def test_a_partial_folder_removed_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    thieves = [moment]
    mkdir, flock = Path.mkdir, fcntl.flock

    def make(path: Path, *arguments: object, **options: object) -> None:
        mkdir(path, *arguments, **options)
        if ".partial-" in path.name and thieves == ["before it is opened"]:
            thieves.clear()
            path.rmdir()

    def lock(descriptor: int, operation: int) -> None:
        if thieves == ["before it is locked"]:
            thieves.clear()
            raise BlockingIOError
        flock(descriptor, operation)
        if thieves == ["before it is looked at"]:
            thieves.clear()
            tmp_path.joinpath(*partials(tmp_path)).rmdir()

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(fcntl, "flock", lock)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert not thieves
    assert os.listdir(tmp_path / "out") == ["a"]
