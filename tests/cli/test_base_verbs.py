"""Test `ixtune base` on the nano base and on one with the names and shapes of the released 7B."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from full_size import NBYTES, write_full_size_base
from in_process import call
from main_job import ixtune
from safetensors.torch import load_file, save_file

from ixtune.base import shipped


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_size_base(tmp_path_factory.mktemp("7B") / "base")


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """Return a copy of the nano base that a test may damage."""
    folder = tmp_path / "nano"
    folder.mkdir()
    for file in shipped("nano").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def in_bins(nano: Path) -> Iterator[Path]:
    """Return the nano base as on the hub: torch files, and code that must not run."""
    weight_map = {}
    for k in (1, 2):
        old, new = nano / f"model-0000{k}-of-00002.safetensors", f"pytorch_model-0000{k}-of-00002.bin"
        tensors = load_file(old)
        torch.save(tensors, nano / new)
        weight_map |= dict.fromkeys(tensors, new)
        old.unlink()
    (nano / "model.safetensors.index.json").unlink()
    (nano / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (nano / "modeling_internlm_xcomposer2.py").write_text("raise SystemExit('ran')")
    return nano


def test_the_942_tensors_of_the_7b_verify_as_complete(full_size: Path) -> None:
    """The weights are sparse files without hashes; only the tokenizer, which is not the released one, differs."""
    done = ixtune("base", "verify", full_size, "--headers-only")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model     the released 7B" in done.stdout
    assert "942 found, 942 expected, bfloat16, 16.01 GiB" in done.stdout
    assert done.stdout.rstrip().endswith("complete")
    assert os.stat(full_size / "model-00001-of-00002.safetensors").st_blocks * 512 < 1 << 20, "not sparse"


def test_the_7b_is_described_with_its_parameters_and_terms(full_size: Path) -> None:
    told = json.loads(call("base", "info", full_size, "--json").stdout)
    assert (told["tensors"], told["bytes"], told["layers"]) == (942, NBYTES, 32)
    assert sum(told["parameters"].values()) == 8_597_499_904
    assert told["plora_ranks"] == {"wqkv": 8, "others": 256}
    assert "academic research" in told["terms"]
    assert 5.5 < told["nf4_bytes"] / 2**30 < 6.5
    shown = call("base", "info", full_size)
    assert "8,597,499,904" in shown.stdout
    assert "never run" not in shown.stdout


def test_missing_extra_and_misshapen_tensors_are_each_named(nano: Path) -> None:
    shard = nano / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    gone = sorted(tensors)[3]
    del tensors[gone]
    tensors["model.layers.9.attention.wo.weight"] = torch.zeros(4, 4).bfloat16()
    tensors["model.layers.0.attention_norm.weight"] = torch.zeros(7)
    save_file(tensors, shard)
    index = json.loads((nano / "model.safetensors.index.json").read_text())
    index["weight_map"] |= {"model.layers.9.attention.wo.weight": shard.name}
    del index["weight_map"][gone]
    (nano / "model.safetensors.index.json").write_text(json.dumps(index))
    done = call("base", "verify", nano)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert f"missing {gone} [" in said
    assert "not part of the model model.layers.9.attention.wo.weight [4, 4]" in said
    assert "model.layers.0.attention_norm.weight is [7], config.json requires [192]" in done.stdout
    assert "model.layers.0.attention_norm.weight is float32, config.json says bfloat16" in done.stdout
    assert "INCOMPLETE or damaged: 1 missing, 1 not part of the model, 1 wrong shape, 1 another dtype" in done.stdout


def test_a_missing_and_a_truncated_shard_are_reported_with_tensors(nano: Path) -> None:
    (nano / "model-00002-of-00002.safetensors").unlink()
    shard = nano / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    (nano / "tokenizer.model").unlink()
    done = call("base", "verify", nano, "--json")
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    assert len(findings["missing"]) == 162 + 1
    assert findings["missing"][-1] == "the file tokenizer.model"
    assert any(line.endswith("] of model-00002-of-00002.safetensors") for line in findings["missing"])
    assert "output.weight [354, 192]" in " ".join(findings["missing"])
    assert "the file is truncated" in findings["damaged"][0]
    assert findings["damaged"][1].startswith("model-00002-of-00002.safetensors is missing")


def test_converted_torch_files_verify_and_keep_their_identity(in_bins: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    done = call("base", "convert", in_bins, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "pytorch_model-00002-of-00002.bin -> model-00002-of-00002.safetensors" in done.stdout
    assert json.loads((out / "convert_report.json").read_text())["identity"] in done.stdout
    kept = load_file(shipped("nano") / "model-00001-of-00002.safetensors")
    assert all(
        torch.equal(tensor, kept[n]) for n, tensor in load_file(out / "model-00001-of-00002.safetensors").items()
    )
    whole = call("base", "verify", out)
    assert whole.returncode == 0, whole.stdout
    assert whole.stdout.count("known from convert_report.json") >= 4
    shard = out / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    turned = call("base", "verify", out)
    assert turned.returncode == 1
    assert f"altered {shard.name} has the SHA-256" in " ".join(turned.stdout.split())
    again = call("base", "convert", out, "--out", tmp_path / "again")
    assert again.returncode == 1
    assert "already in safetensors" in again.stderr


def test_a_bin_with_code_is_refused_in_one_line_and_never_run(in_bins: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"output.weight": Trap()}, in_bins / "pytorch_model-00002-of-00002.bin")
    for verb in (("convert", in_bins, "--out", tmp_path / "out"), ("verify", in_bins), ("info", in_bins)):
        done = call("base", *verb)
        assert done.returncode == 1
        assert "more than tensors: it references posix.mkdir; none of it was run" in done.stdout + done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["nano"]
