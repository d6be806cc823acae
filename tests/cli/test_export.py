"""Test `ixtune export` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from adapters import save_on_nano, section
from full_size import write_full_size_base
from in_process import call
from main_job import ixtune
from original_base import write_original_base
from safetensors.torch import save_file

from ixtune.adapter import attach, bundle
from ixtune.adapter.profiles import PROFILES
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.model.loading import load_base


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with an adapter of the nano base."""
    folder = tmp_path_factory.mktemp("run") / "run"
    save_on_nano(folder / "adapter", hd_num=9, steps=3, ixtune_version="0", data={"records": 7})
    return folder


def test_list_shows_who_loads_each_profile_and_why_others_are_missing() -> None:
    told = call("export", "--list").stdout
    for profile in PROFILES.values():
        assert profile.name in told
        assert profile.consumer in told
        assert all(limit in told for limit in profile.limits)
    assert "gguf: none. We know of no code in llama.cpp for PLoRA" in told
    assert "vllm: none." in told
    one = call("export", "--list", "--profile", "lmdeploy-0.13").stdout
    assert "hd_num is fixed at 25" in one
    assert "peft" not in one


def test_export_prints_its_checks_and_how_to_load_the_result(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("export", run, "--profile", "peft-original", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "ok        keys and shapes: 20 pairs and 4 whole tensors fit the base" in done.stdout
    assert "run here  not run" in done.stdout
    assert f'load      model = peft.PeftModel.from_pretrained(original_model, "{out}")' in done.stdout
    assert json.loads((out / "export_report.json").read_text())["consumer_run"] == "not run"
    assert call("export", "--check", out).returncode == 0
    weights = out / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    code, told, _ = call("export", "--check", out)
    assert code == 1
    assert "FAILS     hashes: adapter_model.safetensors has changed" in told


@pytest.mark.parametrize("profile", ["transformers", "nf4"])
def test_an_export_for_our_classes_answers_from_the_command_line(run: Path, tmp_path: Path, profile: str) -> None:
    out = tmp_path / "out"
    done = call("export", run / "adapter", "--profile", profile, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "AutoProcessor: resolves to" in done.stdout
    answer = ixtune("predict", "1", "--base", out, "--max-new-tokens", "2")
    assert answer.returncode == 0, answer.stderr


def test_impossible_exports_give_one_line_and_the_right_exit_code(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, code, told in (
        ((run, "--profile", "gguf", "--out", out), 2, "we know of no code in llama.cpp for PLoRA"),
        ((run, "--profile", "onnx", "--out", out), 2, "choose one of peft-original"),
        ((run, "--profile", "orginal", "--out", out), 2, "did you mean original?"),
        ((run, "--profile", "original"), 2, "pass --out with a folder"),
        ((), 2, "missing an adapter and a --profile"),
        ((run, "--profile", "lmdeploy-0.13", "--out", out), 1, "ixc_utils.py must define HD_transform"),
        ((tmp_path, "--profile", "original", "--out", out), 1, "there is no adapter"),
        ((run, "--profile", "original", "--out", run), 1, "exists already"),
        ((run, "--profile", "original", "--out", out, "--push-to-hub", "x"), 2, "pass OWNER/NAME"),
    ):
        ended, _, error = call("export", *arguments)
        assert ended == code, error
        assert told in error
    assert not out.exists()


def test_offline_nothing_is_uploaded_and_the_folder_is_kept(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, error = call("export", run, "--profile", "peft-original", "--out", out, "--push-to-hub", "me/mine")
    assert code == 1
    assert "nothing was uploaded: HF_HUB_OFFLINE is set (me/mine)" in error
    assert f"hf upload me/mine {out}" in error
    assert call("export", "--check", out).returncode == 0


def test_code_of_the_base_is_copied_and_never_run(tmp_path: Path) -> None:
    base = write_original_base(tmp_path / "base")
    adapter = tmp_path / "adapter"
    model = attach.attach(load_base(base, quantize=False, dtype=torch.float32)[0], section("plain"))
    bundle.save(model, adapter, {"base": str(base), "base_identity": base_identity(open_checkpoint(base))})
    code, told, error = call("export", adapter, "--profile", "lmdeploy-0.13", "--out", tmp_path / "out")
    assert code == 0, error
    assert "ixc_utils.py, modeling_internlm_xcomposer2.py; copied as bytes, never run here" in told
    assert "warning   lmdeploy 0.13 shows every image at hd_num 25, as trained" in told


def test_a_7b_adapter_is_exported_and_its_merge_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is a sparse file without real values; the adapter is real, on one linear of the last layer."""
    base = write_full_size_base(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    key = "base_model.model.model.layers.31.attention.wqkv"
    pair = {f"{key}.lora_A.weight": torch.ones(8, 4096), f"{key}.lora_B.weight": torch.ones(6144, 8)}
    save_file(pair, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 8}')
    code, told, error = call("export", adapter, "--base", base, "--profile", "peft-original", "--out", tmp_path / "out")
    assert code == 0, error
    assert "1 pairs and 0 whole tensors fit the base" in told
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.31.attention.wqkv"]
    plan = ("merge", adapter, "--base", base, "--out", tmp_path / "merged")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10 << 30))
    code, _, error = call(*plan)
    assert code == 1
    assert "the disk has 10.00 GiB free, the merged model needs 16.02 GiB" in error
    wrong = {f"{key}.lora_A.weight": torch.ones(8, 4096), f"{key}.lora_B.weight": torch.ones(4096, 8)}
    save_file(wrong, adapter / "adapter_model.safetensors")
    code, _, error = call("export", adapter, "--base", base, "--profile", "peft-original", "--out", tmp_path / "other")
    assert code == 1
    assert "has the shape [4096, 4096] in the adapter and [6144, 4096] in the base" in error
