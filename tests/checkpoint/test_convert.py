from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_base import write_small_base

from ixtune.checkpoint.convert import REPORT_FILE, convert
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import Checkpoint, open_checkpoint
from ixtune.errors import IxtuneError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("small") / "base")


@pytest.fixture
def in_bins(small: Path, tmp_path: Path) -> Path:
    """Return the small base as two torch files and an index, with code and a license, as on the hub."""
    folder = tmp_path / "bins"
    folder.mkdir()
    tensors = load_file(small / "model.safetensors")
    tensors["output.weight"] = tensors["output.weight"].t().contiguous().t()  # rows that are no runs of bytes
    weight_map = {}
    for k, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        shard = f"pytorch_model-0000{k}-of-00002.bin"
        torch.save({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_bytes((small / "config.json").read_bytes())
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "modeling_internlm_xcomposer2.py").write_text("raise SystemExit('this must never run')\n")
    (folder / ".cache").mkdir()
    return folder


def test_every_tensor_keeps_its_name_value_and_shard_number(in_bins: Path, small: Path, tmp_path: Path) -> None:
    report = convert(in_bins, tmp_path / "out")
    expected = load_file(small / "model.safetensors")
    found: dict[str, torch.Tensor] = {}
    for k in (1, 2):
        shard = load_file(tmp_path / "out" / f"model-0000{k}-of-00002.safetensors")
        assert set(shard) == set(sorted(expected)[k - 1 :: 2])
        found |= shard
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert report.tensors == len(expected) == len(found)
    assert base_identity(open_checkpoint(tmp_path / "out")) == report.identity == base_identity(open_checkpoint(small))


def test_other_files_are_copied_and_the_old_weights_are_not(in_bins: Path, tmp_path: Path) -> None:
    convert(in_bins, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        REPORT_FILE,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling_internlm_xcomposer2.py",
        "tokenizer.model",
    ]
    name = "modeling_internlm_xcomposer2.py"
    assert (tmp_path / "out" / name).read_bytes() == (in_bins / name).read_bytes()


def test_a_file_that_contains_code_is_refused_and_never_run(in_bins: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"output.weight": Trap()}, in_bins / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(IxtuneError, match="more than tensors: it references posix.mkdir; none of it was run"):
        convert(in_bins, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bins"]


def test_a_truncated_or_missing_shard_is_named(in_bins: Path, tmp_path: Path) -> None:
    shard = in_bins / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(IxtuneError, match=f"truncated.*{shard.name}"):
        convert(in_bins, tmp_path / "out")
    shard.unlink()
    with pytest.raises(IxtuneError, match=f"the shard {shard.name} is missing"):
        convert(in_bins, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_safetensors_checkpoint_is_left_alone(small: Path, tmp_path: Path) -> None:
    with pytest.raises(IxtuneError, match="already in safetensors"):
        convert(small, tmp_path / "out")


def test_a_full_disk_is_refused_before_the_first_byte_is_written(
    in_bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(IxtuneError, match="are needed"):
        convert(in_bins, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bins"]


def test_a_flipped_byte_on_disk_is_detected(in_bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Checkpoint.read_rows

    def one_bit_off(self: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
        rows = honest(self, name, start, stop)
        if self.folder != in_bins and name == "model.norm.weight":
            rows.view(torch.uint8)[0] ^= 1
        return rows

    monkeypatch.setattr(Checkpoint, "read_rows", one_bit_off)
    with pytest.raises(IxtuneError, match="model.norm.weight differs on the disk from what was written"):
        convert(in_bins, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bins"]
