"""Test that every platform-specific system call has a fallback."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import other_system
import pytest
from main_job import environment, losses, write_recipe, write_records
from open_files import open_files_below

from ixtune import platforms
from ixtune.errors import IxtuneError, UsageError
from ixtune.files import atomic_folder, atomic_write_json, resumable_folder
from ixtune.training.processes.launch import launch
from ixtune.training.state.lock import only_run_in


def without_modules(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_locks_writes_are_atomic_and_no_file_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_modules(monkeypatch, "fcntl")
    monkeypatch.delattr(os, "O_DIRECTORY")
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
        assert open_files_below(tmp_path) == []
    with resumable_folder(tmp_path / "b") as folder:
        (folder / "x").write_text("2")
    atomic_write_json(tmp_path / "c.json", 3)
    assert [(tmp_path / name).read_text() for name in ("a/x", "b/x", "c.json")] == ["1", "2", "3\n"]
    with only_run_in(tmp_path / "run"), only_run_in(tmp_path / "run"):  # not detected, as the docs say
        pass


def test_a_run_folder_reached_by_a_symlink_is_locked_too(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").symlink_to("large disk")
    with (
        only_run_in(tmp_path / "run"),
        pytest.raises(IxtuneError, match="another process is training"),
        only_run_in(tmp_path / "large disk"),
    ):
        pass


def test_files_are_synced_where_folders_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECTORY")
    opened: list[object] = []
    open_ = os.open
    (tmp_path / "x").touch()
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append((path, flags)) or open_(path, flags))
    platforms.sync(tmp_path)
    platforms.sync(tmp_path / "x")
    assert opened == [(tmp_path / "x", os.O_RDWR)]


def test_free_space_is_checked_where_preallocation_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with open(tmp_path / "x", "wb") as file:
        platforms.reserve(tmp_path / "x", file.fileno(), 1000)
        too_many = shutil.disk_usage(tmp_path).free * 2
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            platforms.reserve(tmp_path / "x", file.fileno(), too_many)
    assert (tmp_path / "x").stat().st_size == 0


def test_cache_advice_is_skipped_where_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    platforms.read_ahead(-1)  # a bad descriptor: an error if it were used
    platforms.drop_cached(-1)


def test_memory_size_falls_back_to_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = platforms.peak_memory_bytes(), platforms.available_bytes(), platforms.resident_bytes()
    for name in ("_STATUS", "_MEMORY"):
        monkeypatch.setattr(platforms, name, tmp_path / "absent")
    assert platforms.available_bytes() == pytest.approx(exact[1], rel=0.5)  # psutil's; other processes go on
    assert platforms.resident_bytes() == pytest.approx(exact[2], rel=0.2)
    assert platforms.peak_memory_bytes() >= 0.9 * exact[2]
    usage = SimpleNamespace(ru_maxrss=5000)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert platforms.peak_memory_bytes() == 5000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert platforms.peak_memory_bytes() == 5000
    without_modules(monkeypatch, "resource")
    assert platforms.peak_memory_bytes() == pytest.approx(exact[2], rel=0.2)
    without_modules(monkeypatch, "psutil")
    assert (platforms.peak_memory_bytes(), platforms.available_bytes(), platforms.resident_bytes()) == (0, None, 0)


def test_cores_kernel_and_file_system_are_known_without_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert platforms.cores() == os.cpu_count()
    monkeypatch.setattr(platforms, "_BOOT_ID", tmp_path / "absent")
    assert platforms.kernel() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: object())
    assert not platforms.sync_file_system(0)
    assert not platforms.sync_file_system(None)


def test_multiple_processes_are_refused_without_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "setpgid")
    with pytest.raises(UsageError, match="not possible on this system"):
        launch(2, ["train", "recipe.yaml"])


JOB = """
import sys
from ixtune import cli
for line in sys.stdin.read().splitlines():
    print("$", line, flush=True)
    if code := cli.main(line.split()):
        sys.exit(f"{line}: {code}")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", ["macos", "windows"])
def test_the_whole_workflow_runs_as_on_another_system(tmp_path: Path, system: str) -> None:
    environment = other_system.environment(system, tmp_path / "site")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "set", tmp_path / "run")
    lines = [
        f"prepare {write_records(tmp_path / 'raw', 8)} --out {tmp_path}/set --hd-num 1 --base nano --workers 2",
        f"train {recipe}",
        f"train {recipe} resume=extend training.epochs=3",
        f"merge {tmp_path}/run --out {tmp_path}/merged",
        f"export {tmp_path}/run --profile transformers --out {tmp_path}/out",
        f"predict --base {tmp_path}/merged --image {tmp_path}/raw/0.png --hd-num 1 Which?",
        f"clean {tmp_path}/run --yes",
        "doctor",
    ]
    command = [sys.executable, "-c", JOB]
    done = subprocess.run(command, input="\n".join(lines), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [step for step, *_ in losses(tmp_path / "run")] == list(range(1, 13))


CHECKS = """
import os, sys
exec('''
import os, signal, ctypes
found = [name for name in ("posix_fadvise", "O_DIRECTORY", "readv") if hasattr(os, name)]
found += [name for name in ("SIGHUP", "SIGINT") if hasattr(signal, name)]
for name in ("fcntl", "resource"):
    try:
        __import__(name, globals())
        found.append(name)
    except ImportError:
        pass
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
found += [name for name, *call in (("/proc", open, "/proc/meminfo"), ("folder", os.open, ".", 0)) if not refused(*call)]
file = open("held", "w")
if not refused(os.replace, "held", "moved"):
    found.append("open file")
from ixtune import platforms
print(*found, *platforms.ENDING_SIGNALS)
''', {"__name__": "ixtune.anything", "__builtins__": __builtins__})
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("system", "left"),
    [
        ("macos", "O_DIRECTORY readv SIGHUP SIGINT fcntl resource folder open file 2 15 10 1"),
        ("windows", "SIGINT 2 15"),
    ],
)
def test_the_simulation_removes_what_it_claims_to_remove(tmp_path: Path, system: str, left: str) -> None:
    environment = other_system.environment(system, tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", CHECKS], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == left


def test_apple_gpus_are_not_used_even_if_torch_supports_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.utils import is_torch_mps_available

    from ixtune.base import resolve
    from ixtune.model.loading import load_base
    from ixtune.recipe.recipe import Recipe
    from ixtune.training.trl_settings import sft_config

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    is_torch_mps_available.cache_clear()
    assert is_torch_mps_available()
    recipe = Recipe.model_validate({"base": "nano", "data": {"train": "set"}, "output": str(tmp_path)})
    assert sft_config(recipe, tmp_path).device.type == "cpu"
    model, _ = load_base(resolve("nano"), quantize=False, dtype=torch.float32)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    is_torch_mps_available.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_the_peak_memory_of_a_process_starts_again_from_what_it_uses() -> None:
    code = """
from ixtune import platforms
block = bytearray(256 << 20)
high = platforms.peak_memory_bytes()
del block
platforms.reset_peak_memory()
low = platforms.peak_memory_bytes()
block = bytearray(128 << 20)
print((high - low) >> 20, (platforms.peak_memory_bytes() - low) >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    fell, rose = map(int, done.stdout.split())
    assert 200 <= fell <= 260
    assert 120 <= rose <= 140
