import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_process import call
from safetensors.torch import load_file, save_file

from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint

TARGET = "model.layers.0.attention.wo.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {TARGET: torch.randn(64, 64).bfloat16(), "model.norm.weight": torch.ones(64).bfloat16()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Path:
    """Return a run folder with a finished adapter."""
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    key = f"base_model.model.{TARGET.removesuffix('.weight')}"
    pair = {f"{key}.lora_A.weight": torch.randn(2, 64), f"{key}.lora_B.weight": torch.randn(64, 2)}
    save_file(pair, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    record = {"base": str(base), "base_identity": base_identity(open_checkpoint(base))}
    (adapter / "ixtune.json").write_text(json.dumps(record))
    return adapter.parent


def ixtune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ixtune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_merging_a_run_uses_its_base_and_prints_a_summary(run: Path, tmp_path: Path) -> None:
    done = ixtune("merge", run, "--out", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert "2: 1 merged, 1 copied" in done.stdout
    told = re.search(r"check +read (\d) rows back from the disk .*: largest difference (\S+), within", done.stdout)
    assert told, done.stdout
    assert str(tmp_path / "merged") in done.stdout
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert found.keys() == {TARGET, "model.norm.weight"}
    written = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert (written["changed"], written["sampled_rows"]) == (1, int(told[1]))
    assert written["max_abs_error"] == pytest.approx(float(told[2]), rel=0.06)


def test_merging_onto_nf4_works_from_the_command_line(run: Path, tmp_path: Path) -> None:
    done = call("merge", run / "adapter", "--out", tmp_path / "merged", "--onto", "nf4")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "merged" / "merge_report.json").read_text())["onto"] == "nf4"


def test_another_base_is_a_one_line_error_with_exit_1_unless_forced(run: Path, base: Path, tmp_path: Path) -> None:
    torch.save({TARGET: torch.zeros(64, 64).bfloat16()}, base / "pytorch_model.bin")
    done = call("merge", run, "--base", base, "--out", tmp_path / "merged")
    assert done.returncode == 1
    assert "trained on another base" in done.stderr
    assert "--force" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "merged").exists()
    forced = call("merge", run, "--base", base, "--out", tmp_path / "merged", "--force")
    assert forced.returncode == 0, forced.stderr
    assert "forced" in forced.stdout


def test_wrong_paths_and_options_give_one_line_and_their_exit_code(run: Path, tmp_path: Path) -> None:
    missing = call("merge", tmp_path / "absent", "--out", tmp_path / "merged")
    assert missing.returncode == 1
    assert "there is no adapter" in missing.stderr
    existing = call("merge", run, "--out", run)
    assert existing.returncode == 1
    assert "exists already" in existing.stderr
    assert call("merge", run, "--out", tmp_path / "merged", "--onto", "int8").returncode == 2
    assert call("merge", run).returncode == 2


def test_an_adapter_that_names_no_base_requires_the_option(run: Path, base: Path, tmp_path: Path) -> None:
    (run / "adapter" / "ixtune.json").unlink()
    asked = call("merge", run, "--out", tmp_path / "merged")
    assert asked.returncode == 1
    assert "--base" in asked.stderr
    given = call("merge", run, "--out", tmp_path / "merged", "--base", base)
    assert given.returncode == 0, given.stderr
    assert "warning" in given.stdout


def test_two_adapters_are_weighted_and_the_formula_is_printed(run: Path, tmp_path: Path) -> None:
    done = call("merge", run, run, "--weights", "0.5,-0.5", "--out", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert (
        "formula  W +0.5 (W1 - W) -0.5 (W2 - W): W a weight of the base, Wi that weight changed by adapter i alone"
        in done.stdout
    )
    for options, words in (
        ((), "but neither --weights nor --in-turn"),
        (("--weights", "0.5,half"), "is not a list of numbers"),
        (("--in-turn", "--weights", "1,1"), "without weights"),
    ):
        wrong = call("merge", run, run, *options, "--out", tmp_path / "wrong")
        assert wrong.returncode == 2
        assert words in wrong.stderr


def test_impossible_answer_checks_are_refused_before_writing(run: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "What?"}\n')
    out = tmp_path / "merged"
    halved = call("merge", run, "--out", out, "--weights", "0.5", "--verify-answers", asked)
    assert halved.returncode == 2
    assert "compares with one adapter" in halved.stderr
    absent = call("merge", run, "--out", out, "--base", "nano", "--verify-answers", tmp_path / "none.jsonl")
    assert absent.returncode == 2
    assert "none.jsonl" in absent.stderr
    assert not out.exists()
