"""Test that stored 4-bit weights equal, bit for bit, those quantized at loading, by us and by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from original_base import write_original_base
from transformers import AutoModelForCausalLM

from ixtune.checkpoint.convert import carry
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.processor_files import write_processor_files
from ixtune.exporting import nf4_shards
from ixtune.exporting.profile_check import checks_of
from ixtune.model import nf4
from ixtune.model.loading import load_base, read_config

IDS = torch.tensor([[1, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_original_base(tmp_path_factory.mktemp("merged") / "model")
    for code in folder.glob("*.py"):
        code.unlink()
    config = json.loads((folder / "config.json").read_text())
    dropped = ("auto_map", "attn_implementation", "max_length")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in dropped}))
    return folder


@pytest.fixture(params=[1 << 30, 40_000], ids=["one shard", "many shards"])
def stored(merged: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nf4_shards, "SHARD_BYTES", request.param)
    folder = tmp_path / "stored"
    folder.mkdir()
    sizes = read_config(merged).sizes
    seen: list[int] = []
    nf4_shards.write(open_checkpoint(merged), sizes, folder, seen.append)
    assert sum(seen) == open_checkpoint(merged).nbytes
    carry(merged, folder)
    nf4_shards.add_to_config(folder / "config.json", sizes, torch.float32)
    assert len(list(folder.glob("*.safetensors"))) == 1 or request.param < 1 << 30
    return folder


def test_stored_nf4_equals_quantizing_at_load_bit_for_bit(merged: Path, stored: Path) -> None:
    expected = load_base(merged, quantize=True, dtype=torch.float32)[0]
    ours = load_base(stored, quantize=True, dtype=torch.float32)[0]
    plain = AutoModelForCausalLM.from_pretrained(stored, dtype=torch.float32).eval()
    in_4_bits = {name for name, module in expected.named_modules() if isinstance(module, Linear4bit)}
    for model in (ours, plain):
        assert {name for name, module in model.named_modules() if isinstance(module, Linear4bit)} == in_4_bits
        found = model.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())
    nf4.settle(plain, plain.config)  # plain transformers would compute in bf16 on some CPUs (TRAPS.md 3)
    with torch.no_grad():
        logits = expected(input_ids=IDS).logits
        assert torch.equal(ours(input_ids=IDS).logits, logits)
        assert torch.equal(plain(input_ids=IDS).logits, logits)


def test_exactly_the_linears_outside_the_decoder_stay_in_16_bits(merged: Path) -> None:
    model = load_base(merged, quantize=True, dtype=torch.float32)[0]
    plain = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert sorted(nf4_shards.linears_in_16_bits(read_config(merged).sizes)) == sorted(plain)


def test_the_check_fails_if_another_linear_would_be_quantized(stored: Path) -> None:
    write_processor_files(stored, hd_num=9)
    assert all(check.passed for check in checks_of(stored, "nf4"))
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"]["llm_int8_skip_modules"].remove("output")
    (stored / "config.json").write_text(json.dumps(config))
    failed = [check.what for check in checks_of(stored, "nf4") if not check.passed]
    assert failed == ["quantization_config"]
