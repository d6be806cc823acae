"""Test `ixtune inspect` on every kind of folder and every kind of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from in_process import call
from main_job import ixtune, prepare, write_recipe


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `prepared`, `run` and `merged`, all made by the command line."""
    root = tmp_path_factory.mktemp("job")
    data = prepare(root, 4)
    recipe = write_recipe(root / "recipe.yaml", data, root / "run")
    for done in (
        ixtune("train", recipe, "training.max_steps=2", "training.save_every=1"),
        call("merge", root / "run", "--out", root / "merged"),
    ):
        assert done.returncode == 0, done.stderr
    return root


def _bend(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("prepared", ("prepared set", "4 (4 read, 0 rejected)", "hd_num", "SHA-256 begins with")),
        ("run", ("run ", "checkpoints", "checkpoint-2: checksums match", "LoRA, rank 4, alpha 8", "changed most: ")),
        ("run/adapter", ("adapter ", "w1 w2 w3 wo wqkv", "projector", "full", "SHA-256 as in ixtune.json", "█" * 24)),
        ("run/checkpoint-2", ("checkpoint ", "2 of 2", "bit for bit", "checksums match")),
        ("merged", ("merged model", "nano", "162 tensors", "SHA-256 as in merge_report.json")),
    ],
)
def test_every_folder_kind_is_described_and_verified(job: Path, folder: str, said: tuple[str, ...]) -> None:
    told = ixtune("inspect", job / folder)
    assert told.returncode == 0, told.stderr
    for words in said:
        assert words in told.stdout
    assert "DAMAGED" not in told.stdout
    machine = json.loads(call("inspect", job / folder, "--json").stdout)
    assert machine["whole"] is True
    assert machine["damage"] == []
    assert machine["kind"] in told.stdout


def test_with_a_base_the_change_of_each_part_is_shown(job: Path) -> None:
    told = call("inspect", job / "run", "--base", "nano")
    assert told.returncode == 0, told.stderr
    assert "of the base" in told.stdout
    machine = json.loads(call("inspect", job / "run", "--base", "nano", "--json").stdout)
    updates = machine["adapter"]["updates"]
    assert len(updates) == 20
    assert all(0 < one["change"]["ratio"] < 1 for one in updates)
    assert [one["name"] for one in machine["adapter"]["whole"]][0].startswith("vision_proj")
    assert call("inspect", job / "prepared", "--base", "nano").returncode == 1


@pytest.mark.parametrize(
    ("folder", "file", "said"),
    [
        ("prepared", "data-00000-of-00001.arrow", "has changed since it was prepared"),
        ("run", "checkpoint-1/optimizer.pt", "checkpoint-1: optimizer.pt does not match its checksum"),
        ("run/checkpoint-2", "trainer_state.json", "trainer_state.json does not match its checksum"),
        ("merged", "model-00002-of-00002.safetensors", "has changed since the merge"),
    ],
)
def test_damage_is_named_and_exits_with_1(job: Path, tmp_path: Path, folder: str, file: str, said: str) -> None:
    copy = tmp_path / Path(folder).name
    shutil.copytree(job / folder, copy)
    _bend(copy / file)
    told = call("inspect", copy)
    assert told.returncode == 1
    assert said in told.stdout + told.stderr


def test_a_corrupted_or_truncated_adapter_is_refused(job: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(job / "run/adapter", copy)
    _bend(copy / "adapter_model.safetensors")
    assert "not those that ixtune.json was written for" in call("inspect", copy).stderr
    content = (copy / "adapter_model.safetensors").read_bytes()
    (copy / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])
    cut = call("inspect", copy)
    assert cut.returncode == 1
    assert "adapter_model.safetensors" in cut.stderr


def test_an_unknown_folder_is_refused_with_the_command_to_use(job: Path, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "not an adapter, run, checkpoint, merged model or prepared set"),
        (tmp_path / "absent", "there is no such folder"),
        (Path(__file__), "this is a file, not a folder"),
    ):
        told = call("inspect", path)
        assert told.returncode == 1
        assert words in told.stderr
    (tmp_path / "config.json").write_text("{}")
    assert "ixtune base info" in call("inspect", tmp_path).stderr
