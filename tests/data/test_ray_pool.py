"""Test that the Ray engine writes the same bytes as one process, and reports problems of a node or cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import call
from records import write_image

from ixtune.data import ray_pool
from ixtune.errors import IxtuneError


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_local_ray_cluster_writes_the_same_bytes_as_one_process(tmp_path: Path, tokenizer_base: Path):
    ray_module = pytest.importorskip("ray", reason="the extra ray")
    data = tmp_path / "data"
    for number in range(4):
        write_image(data / f"{number}.png", 60 + number, 40)
    lines = [
        {"image": f"{number % 5}.png", "question": f"Which, {number}?", "answer": str(number)} for number in range(900)
    ]  # every fifth image is missing
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ("prepare", data / "train.jsonl", "--base", tokenizer_base, "--hd-num", 1, "--max-reject-rate", 1)
    more = ("--embed-images", "--val-fraction", "0.3")
    one = call(*common, *more, "--out", tmp_path / "one", "-j", 1)
    assert one.returncode == 0, one.stderr
    ray = call(*common, *more, "--out", tmp_path / "ray", "-j", 2, "--engine", "ray")
    assert ray.returncode == 0, ray.stderr
    assert content(tmp_path / "ray") == content(tmp_path / "one")
    assert json.loads((tmp_path / "ray" / "manifest.json").read_text())["records"]["rejected"] == 180
    assert not ray_module.is_initialized()


@pytest.mark.slow
def test_an_unreachable_cluster_is_reported(tmp_path: Path, tokenizer_base: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray", reason="the extra ray")
    (tmp_path / "t.csv").write_text("question,answer\nWhat?,That.\n")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    common = ("prepare", tmp_path / "t.csv", "--base", tokenizer_base, "--hd-num", 1, "--out", tmp_path / "none")
    done = call(*common, "--engine", "ray")
    assert done.returncode == 1
    assert "Ray does not start" in done.stderr
    assert "RAY_ADDRESS" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_path_missing_on_a_node_is_reported(tmp_path: Path):
    with pytest.raises(IxtuneError, match="cannot see this path") as caught:
        ray_pool._require_visible(tmp_path / "gone")
    assert "shared by all nodes" in caught.value.hint
