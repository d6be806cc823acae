"""Test `ixtune merge --dry-run` on a base with the released 7B's 942 names and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from full_size import NBYTES, write_full_size_base
from in_process import call
from safetensors.torch import save_file

from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.tensor_shapes import tensor_shapes

RANK = 2
TARGETS = ("wqkv.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_size_base(tmp_path_factory.mktemp("7B") / "base")


def write_adapter(folder: Path, base: Path, **wrong: torch.Tensor) -> Path:
    """Write LoRA weights for the 160 decoder linears and both projector linears."""
    tensors = {}
    for name, shape in tensor_shapes(Sizes()).items():
        if name.endswith(TARGETS) or (name.startswith("vision_proj.") and len(shape) == 2):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_A.weight"] = torch.full((RANK, shape[1]), 0.01)
            tensors[f"{key}.lora_B.weight"] = torch.full((shape[0], RANK), 0.01)
    folder.mkdir()
    save_file(tensors | wrong, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    record = {"base": str(base), "base_identity": base_identity(open_checkpoint(base)), "quantize": "nf4"}
    (folder / "ixtune.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "adapter", base)


def test_the_merge_of_a_full_7b_adapter_is_planned_without_writing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=20 << 30))  # the tests' disk may have less
    verified = call("base", "verify", base, "--headers-only")
    assert verified.returncode == 0, verified.stdout
    done = call("merge", adapter, "--out", tmp_path / "merged", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "tensors  942: 162 to merge, 780 to copy" in done.stdout
    assert "formula  W1 replaces W: each weight of the base" in done.stdout
    sizes = [float(line.split()[-2]) for line in done.stdout.splitlines() if line.startswith("file     model-0000")]
    assert len(sizes) == 2
    assert sum(sizes) == pytest.approx(NBYTES / 2**30, abs=0.02)
    assert "file     config.json, a copy" in done.stdout
    assert "disk     16.02 GiB needed" in done.stdout
    assert "warning  the adapter was trained on NF4" in done.stdout
    assert "merged: nothing was written" in done.stdout
    assert list(tmp_path.iterdir()) == []
    onto_nf4 = call("merge", adapter, "--out", tmp_path / "merged", "--dry-run", "--onto", "nf4")
    assert onto_nf4.returncode == 0, onto_nf4.stderr
    assert "the dequantized NF4 weights of the decoder linears" in onto_nf4.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_plan_refuses_whatever_the_merge_would_refuse(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "base_model.model.model.layers.31.attention.wqkv.lora_B.weight"
    misshapen = write_adapter(tmp_path / "misshapen", base, **{key: torch.ones(4096, RANK)})
    out = tmp_path / "merged"
    for arguments, code, told in (
        ((adapter, "--out", adapter), 1, "exists already"),
        ((misshapen, "--out", out), 1, "has the shape [4096, 4096] in the adapter and [6144, 4096] in the base"),
        ((adapter, "--base", "nano", "--out", out), 1, "[4096, 4096] in the adapter and [192, 192] in the base"),
        ((adapter, adapter, "--out", out), 2, "but neither --weights nor --in-turn"),
    ):
        ended = call("merge", *arguments, "--dry-run")
        assert ended.returncode == code, ended.stderr
        assert told in ended.stderr
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10 << 30))
    small = call("merge", adapter, "--out", out, "--dry-run")
    assert small.returncode == 1
    assert "the disk has 10.00 GiB free, the merged model needs 16.02 GiB" in small.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["misshapen"]
