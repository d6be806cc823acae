"""`ixtune train`, by the real command line on the embedded base."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from main_job import command, environment, ixtune, losses, prepare, write_recipe
from safetensors.torch import load_file

pytestmark = pytest.mark.xdist_group("train")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run never interrupted, and what it said: 6 packs of 2 records, 2 epochs, 12 steps."""
    folder = tmp_path_factory.mktemp("straight")
    done = ixtune("train", write_recipe(folder / "recipe.yaml", data, folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_a_run_says_what_it_quantised_trains_and_packs(straight: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, done = straight
    assert "20 of 20 decoder linears in NF4" in done.stdout
    assert "LoRA wqkv: " in done.stdout
    assert "projector: " in done.stdout
    assert "12 records" in done.stdout
    assert "tokens/s" in done.stdout
    assert "left" in done.stdout
    assert done.stderr == ""
    assert {"adapter", "metrics.jsonl", "recipe.yaml", "inputs.json", "checkpoint-10", "checkpoint-12"} == {
        p.name for p in run.iterdir()
    }


def test_a_run_learns_and_logs_every_step(straight: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    lines = [json.loads(line) for line in (straight[0] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"learning_rate", "grad_norm", "tokens_per_s", "supervised_tokens"} <= set(lines[0])
    assert lines[-1]["supervised_tokens"] == 2 * 12 * 6  # three digits, end of turn, newline, end of text


def test_the_adapter_folder_names_base_data_and_versions(
    straight: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    info = json.loads((straight[0] / "adapter" / "ixtune.json").read_text(encoding="utf-8"))
    assert (info["base"], info["quantize"], info["steps"], info["hd_num"]) == ("nano", "nf4", 12, 1)
    assert info["data"]["records"] == 12
    assert info["recipe"]["adapter"]["rank"] == 4
    assert {"torch", "transformers", "peft", "trl", "bitsandbytes"} <= set(info["versions"])
    assert not list(straight[0].rglob("training_args.bin")), "a pickle was written"


def _tensors(run: Path) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in load_file(run / "adapter" / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("checkpoint", [2, 8])
def test_a_killed_run_resumes_bit_for_bit(
    straight: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path, checkpoint: int
) -> None:
    """Killed in the first epoch and in the second: losses and weights equal those of the run never interrupted."""
    run, recipe = tmp_path / "run", write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    started = subprocess.Popen(command("train", recipe), stdout=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 120
    while not (run / f"checkpoint-{checkpoint}").exists():
        assert started.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.kill()
    started.wait()
    assert not (run / "adapter").exists()
    done = ixtune("train", recipe, "--resume")
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(straight[0])
    assert _tensors(run) == _tensors(straight[0])


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    started = subprocess.Popen(
        command("train", recipe, "training.epochs=500", "training.save_every=10000"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("step"):
            break
    started.send_signal(signal.SIGINT)
    out, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "--resume" in out
    assert len(list(run.glob("checkpoint-*"))) == 1
    assert not (run / "adapter").exists()


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(
    straight: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    import shutil

    run, recipe = tmp_path / "run", write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    assert ixtune("train", recipe, "training.save_every=2").returncode == 0
    shutil.rmtree(run / "adapter")
    with (run / "checkpoint-12" / "optimizer.pt").open("r+b") as file:
        file.write(b"damage")
    shutil.rmtree(run / ".checkpoint-12.deleted", ignore_errors=True)
    done = ixtune("train", recipe, "--resume")
    assert done.returncode == 0, done.stderr
    assert "checkpoint-12: optimizer.pt does not match its checksum" in done.stdout
    assert "checkpoint-10" in done.stdout
    assert (run / "checkpoint-12").is_dir(), "the damaged one was not replaced"
    assert _tensors(run) == _tensors(straight[0])


def test_the_projector_moves_at_a_learning_rate_of_2e_5(data: Path, tmp_path: Path) -> None:
    """In bf16, as TRL casts it on a 4-bit base, it would not move at all (TRAPS.md 10b)."""
    from ixtune.base import resolve
    from ixtune.model.shards import open_checkpoint

    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    done = ixtune("train", recipe, "training.learning_rate=2e-5", "training.compute_dtype=bf16", "training.max_steps=3")
    assert done.returncode == 0, done.stderr
    trained = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")[
        "base_model.model.vision_proj.0.weight"
    ]
    moved = (trained - open_checkpoint(resolve("nano")).read("vision_proj.0.weight").float()).abs()
    assert str(trained.dtype) == "torch.float32"
    assert float((moved > 1e-6).float().mean()) > 0.9


def _fails(code: int, *said: str, arguments: tuple[str | Path, ...]) -> None:
    done = ixtune("train", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr


def test_a_finished_run_is_not_written_over(
    straight: tuple[Path, subprocess.CompletedProcess[str]], data: Path
) -> None:
    recipe = straight[0].parent / "recipe.yaml"
    _fails(1, "there is a run in this folder already", "--resume", arguments=(recipe,))
    _fails(1, "the run is finished already", arguments=(recipe, "--resume"))


def test_resuming_with_another_recipe_names_the_difference(
    straight: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    recipe = straight[0].parent / "recipe.yaml"
    _fails(1, "adapter.rank: 4 in the run, 8 now", arguments=(recipe, "adapter.rank=8", "--resume"))


def test_mistakes_before_training_are_told_with_their_cure(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    _fails(2, "training.learning_rat", "learning_rate", arguments=(recipe, "training.learning_rat=1"))
    _fails(1, "no such base folder", arguments=(recipe, f"base={tmp_path}/nowhere/at all"))
    _fails(1, str(tmp_path / "none"), arguments=(recipe, f"data.train={tmp_path}/none"))
    _fails(
        1,
        "record 0 has 341 tokens, a pack holds 100",
        "raise training.pack_tokens to 341",
        arguments=(recipe, "training.pack_tokens=100"),
    )
    assert not (tmp_path / "run").exists()


def test_a_run_that_died_before_its_adapter_was_written_only_writes_it(
    straight: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(straight[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    saved = (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    (tmp_path / "run" / "recipe.yaml").write_text(
        saved.replace(str(straight[0]), str(tmp_path / "run")), encoding="utf-8"
    )
    done = ixtune("train", recipe, "--resume")
    assert done.returncode == 0, done.stderr
    assert _tensors(tmp_path / "run") == _tensors(straight[0])
    info = json.loads((tmp_path / "run" / "adapter" / "ixtune.json").read_text(encoding="utf-8"))
    assert info["steps"] == 12


def test_resuming_on_other_data_is_refused_by_name(
    straight: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(straight[0], tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "inputs.json").write_text(
        json.dumps({**inputs, "train_manifest_sha256": "00"}), encoding="utf-8"
    )
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    write_recipe(tmp_path / "run" / "recipe.yaml", data, tmp_path / "run")
    _fails(1, "the base or the data have changed", "train_manifest_sha256", arguments=(recipe, "--resume"))


def test_a_run_that_diverges_fails_at_the_step_and_keeps_its_checkpoints(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    _fails(1, "training diverged", "lower training.learning_rate", arguments=(recipe, "training.learning_rate=1e30"))
    assert not (tmp_path / "run" / "adapter").exists()
