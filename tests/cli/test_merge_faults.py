"""Test failures of merge and export from the command line: a clear error, and no file changed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from adapters import save_on_nano
from in_process import call
from main_job import command, environment, ixtune, kill_in_a_sync
from safetensors.torch import load_file, save_file

from ixtune.base import shipped
from ixtune.files import sha256_file

WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "ixtune.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter with non-zero updates for the nano base."""
    return save_on_nano(tmp_path_factory.mktemp("trained") / "adapter", ixtune_version="0")


@pytest.fixture
def place(tmp_path: Path, trained: Path) -> Path:
    """Return a folder with `base` and `adapter` that a test may damage."""
    shutil.copytree(shipped("nano"), tmp_path / "base")
    shutil.copytree(trained, tmp_path / "adapter")
    return tmp_path


def contents(place: Path) -> dict[str, str]:
    """Return every file, including hidden ones, with its hash."""
    return {str(path.relative_to(place)): sha256_file(path) for path in sorted(place.rglob("*")) if path.is_file()}


def change_tensor(place: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a value of one adapter tensor, and record the new hash in ixtune.json."""
    tensors = load_file(place / "adapter" / WEIGHTS)
    name = "base_model.model.model.layers.1.attention.wo.lora_A.weight"
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, place / "adapter" / WEIGHTS)
    record = json.loads((place / "adapter" / RECORD).read_text())
    record["adapter_sha256"] = sha256_file(place / "adapter" / WEIGHTS)
    (place / "adapter" / RECORD).write_text(json.dumps(record))


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def another_base(place: Path) -> None:
    shard = place / "base" / "model-00001-of-00002.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated shard": (
        lambda place: shorten(place / "base" / "model-00002-of-00002.safetensors"),
        "model-00002-of-00002.safetensors",
    ),
    "lost shard": (
        lambda place: (place / "base" / "model-00002-of-00002.safetensors").unlink(),
        "missing model-00002-of-00002.safetensors",
    ),
    "truncated adapter": (lambda place: shorten(place / "adapter" / WEIGHTS), "the file is truncated"),
    "corrupt adapter": (
        lambda place: turn_a_bit(place / "adapter" / WEIGHTS),
        "the adapter's weights are not those that ixtune.json was written for",
    ),
    "corrupt configuration": (lambda place: shorten(place / "adapter" / CONFIG), "the file is not JSON"),
    "wrong base": (another_base, "the adapter was trained on another base"),
    "wrong rank": (lambda place: change_tensor(place, lambda a: a[:2]), "but rank 4 in adapter_config.json"),
    "wrong shape": (lambda place: change_tensor(place, lambda a: a[:, :-1]), "in the adapter and"),
    "NaN": (lambda place: change_tensor(place, lambda a: a * float("nan")), "lora_A.weight holds NaN or infinity"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_in_one_line_and_no_file_changes(place: Path, fault: str) -> None:
    spoil, told = FAULTS[fault]
    spoil(place)
    before = contents(place)
    wanted = ("--base", place / "base", "--out", place / "out")
    for verb in (("merge", place / "adapter"), ("export", place / "adapter", "--profile", "original")):
        done = call(*verb, *wanted)
        assert done.returncode == 1, done.stdout
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert contents(place) == before


def test_a_bin_with_code_is_refused_and_never_run(place: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(place / "it ran"),)

    for shard in (place / "base").glob("model*"):
        shard.unlink()
    torch.save({"output.weight": Trap()}, place / "base" / "pytorch_model.bin")
    before = contents(place)
    done = ixtune("merge", place / "adapter", "--base", place / "base", "--out", place / "out")
    assert done.returncode == 1
    assert "more than tensors: it references posix.mkdir; none of it was run" in done.stderr
    assert contents(place) == before
    assert not (place / "it ran").exists()


@pytest.mark.parametrize("verb", ["merge", "export"])
def test_a_disk_that_fills_up_leaves_all_files_unchanged(place: Path, verb: str) -> None:
    """Simulate a full disk by a file size limit: the system refuses the same write."""
    before = contents(place)
    profile = ("--profile", "transformers") if verb == "export" else ()
    done = subprocess.run(
        command(verb, place / "adapter", *profile, "--out", place / "out"),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert done.returncode == 1
    assert "could not be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(place) == before


def test_after_kill_9_no_merge_is_left_and_a_rerun_gives_equal_bytes(place: Path) -> None:
    arguments = ("merge", place / "adapter", "--out")
    straight = ixtune(*arguments, place / "straight")
    assert straight.returncode == 0, straight.stderr
    before = contents(place)
    out, half = place / "out", place / ".out.unfinished"
    kill_in_a_sync((*arguments, out), half, "*")
    assert not out.exists()
    assert half.exists()
    assert {name: one for name, one in contents(place).items() if not name.startswith(".out")} == before
    again = ixtune(*arguments, out)
    assert again.returncode == 0, again.stderr
    report, expected = (json.loads((place / name / "merge_report.json").read_text()) for name in ("out", "straight"))
    assert report["file_sha256"] == expected["file_sha256"]
    assert not half.exists()


def test_after_kill_9_no_export_is_left_and_a_rerun_cleans_up(place: Path) -> None:
    arguments = ("export", place / "adapter", "--profile", "transformers", "--out", place / "out")
    before = contents(place)
    kill_in_a_sync(arguments, place, ".out.partial-*/*")
    assert not (place / "out").exists()
    assert list(place.glob(".out.partial-*"))
    assert {name: one for name, one in contents(place).items() if not name.startswith(".out")} == before
    again = ixtune(*arguments)
    assert again.returncode == 0, again.stderr
    assert call("export", "--check", place / "out").returncode == 0
    assert not list(place.glob(".out*"))


def test_a_4_bit_export_is_refused_if_the_disk_cannot_hold_both_forms(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(place)
    merged = sum(path.stat().st_size for path in (place / "base").glob("*.safetensors"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=merged + (20 << 20)))
    planned = call("merge", place / "adapter", "--out", place / "out", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    monkeypatch.setattr("ixtune.exporting.export.merge", lambda *_, **__: pytest.fail("it merged first"))
    done = call("export", place / "adapter", "--profile", "nf4", "--out", place / "out")
    assert done.returncode == 1
    assert "GiB are needed" in done.stderr
    assert contents(place) == before
