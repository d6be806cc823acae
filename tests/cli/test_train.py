"""Test `ixtune train` from the command line on the embedded base."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from main_job import command, counters, environment, ixtune, kill_in_a_sync, losses, prepare, write_recipe
from safetensors.torch import load_file

from ixtune.cli import main
from ixtune.training.state import disk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return an uninterrupted run and its output: 6 packs of 2 records, 2 epochs, 12 steps."""
    folder = tmp_path_factory.mktemp("straight")
    done = ixtune("train", write_recipe(folder / "recipe.yaml", data, folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_train_prints_what_it_quantizes_trains_and_packs(
    straight: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = straight
    assert "20 of 20 decoder linears in NF4" in done.stdout
    assert re.search(r"LoRA wqkv +8 +9,216  float32 +4 +8 +0.05  0.001", done.stdout)
    assert re.search(r"projector +4 +135,552  float32 +0.001", done.stdout)
    assert "12 records" in done.stdout
    assert "12 optimizer steps" in done.stdout
    assert "verdict  fits" in done.stdout
    assert "warm-up  ran the largest pack first (682 tokens)" in done.stdout
    assert "tokens/s" in done.stdout
    assert "left" in done.stdout
    assert done.stderr == ""
    predicted = float(re.search(r"3 checkpoints of (\S+) MiB and the adapter", done.stdout)[1]) * 2**20
    assert disk.size_of(run / "checkpoint-12") <= predicted <= 1.3 * disk.size_of(run / "checkpoint-12")
    assert {
        "adapter",
        "metrics.jsonl",
        "recipe.yaml",
        "inputs.json",
        "plan.json",
        "checkpoint-10",
        "checkpoint-12",
    } == {p.name for p in run.iterdir()}


def test_a_run_reduces_the_loss_and_logs_every_step(straight: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    lines = [json.loads(line) for line in (straight[0] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"learning_rate", "grad_norm", "tokens_per_s", "supervised_tokens"} <= set(lines[0])
    assert lines[-1]["supervised_tokens"] == 2 * 12 * 6  # three digits, end of turn, newline, end of text


def test_the_adapter_folder_records_base_data_and_versions(
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


def test_a_run_killed_three_times_equals_an_uninterrupted_one(
    straight: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    """Send SIGKILL in the first epoch, during a save, and in the second epoch."""
    run, recipe = tmp_path / "run", write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    kill_in_a_sync(("train", recipe, "resume=auto"), run, "checkpoint-2")
    kill_in_a_sync(("train", recipe, "resume=auto"), run, ".checkpoint-4.partial-*/*")
    assert not (run / "checkpoint-4").exists()
    kill_in_a_sync(("train", recipe, "--resume"), run, "checkpoint-8")
    assert not (run / "adapter").exists()
    done = ixtune("train", recipe, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resume   " in done.stdout
    assert losses(run) == losses(straight[0])
    assert _tensors(run) == _tensors(straight[0])
    assert counters(run) == counters(straight[0])
    assert {path.name for path in run.iterdir()} == {path.name for path in straight[0].iterdir()}


def test_sigterm_saves_a_checkpoint_and_prints_the_resume_command(data: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    started = subprocess.Popen(
        command("train", recipe, "training.epochs=500", "training.save_every=10000"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("step"):
            break
    started.send_signal(signal.SIGTERM)
    out, _ = started.communicate(timeout=600)
    assert started.returncode == 128 + signal.SIGTERM
    assert f"resume   ixtune train {recipe} training.epochs=500 training.save_every=10000 --resume" in out
    assert len(list(run.glob("checkpoint-*"))) == 1
    assert not (run / "adapter").exists()


def test_a_damaged_newest_checkpoint_is_named_and_skipped(
    straight: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, recipe = _unfinished(straight[0], tmp_path)
    with (run / "checkpoint-12" / "optimizer.pt").open("r+b") as file:
        file.write(b"damage")
    assert main(["train", *recipe, "--resume"]) == 0
    said = capfd.readouterr().out
    assert "checkpoint-12: optimizer.pt does not match its checksum" in said
    assert "checkpoint-10" in said
    assert (run / "checkpoint-12").is_dir(), "the damaged one was not replaced"
    assert _tensors(run) == _tensors(straight[0])


def test_the_projector_changes_at_a_learning_rate_of_2e_5(data: Path, tmp_path: Path) -> None:
    """In bf16, to which TRL casts it on a 4-bit base, it would not change at all (TRAPS.md 10b)."""
    from ixtune.base import resolve
    from ixtune.checkpoint.shards import open_checkpoint

    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    changes = ["training.learning_rate=2e-5", "training.compute_dtype=bf16", "training.max_steps=3"]
    assert main(["train", str(recipe), *changes]) == 0
    trained = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")[
        "base_model.model.vision_proj.0.weight"
    ]
    moved = (trained - open_checkpoint(resolve("nano")).read("vision_proj.0.weight").float()).abs()
    assert str(trained.dtype) == "torch.float32"
    assert float((moved > 1e-6).float().mean()) > 0.9


Fails = Callable[..., None]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs the command line and checks exit code and stderr."""

    def fails(code: int, *said: str, arguments: tuple[str | Path, ...]) -> None:
        assert main(["train", *map(str, arguments)]) == code
        shown = capfd.readouterr().err
        assert "Traceback" not in shown
        for text in said:
            assert text in shown

    return fails


def _unfinished(straight: Path, folder: Path) -> tuple[Path, tuple[str, str]]:
    """Return a copy of a run that lacks only its adapter, and the arguments to resume it."""
    shutil.copytree(straight, folder / "run", ignore=shutil.ignore_patterns("adapter"))
    return folder / "run", (str(straight.parent / "recipe.yaml"), f"output={folder / 'run'}")


def test_a_finished_run_is_not_overwritten(
    straight: tuple[Path, subprocess.CompletedProcess[str]], fails: Fails, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = straight[0].parent / "recipe.yaml"
    fails(1, "there is a run in this folder already", "--resume or resume=auto", arguments=(recipe,))
    fails(1, "the run is finished already", arguments=(recipe, "--resume"))
    assert main(["train", str(recipe), "resume=auto"]) == 0
    assert f"finished already: the adapter is in {straight[0]}/adapter" in capfd.readouterr().out
    assert main(["--quiet", "train", str(recipe), "resume=auto"]) == 0
    assert capfd.readouterr().out == f"{straight[0]}/adapter\n"
    fails(1, "the recipe differs", "training.seed", arguments=(recipe, "resume=auto", "training.seed=99"))


def test_resuming_with_another_recipe_names_the_difference(
    straight: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, fails: Fails
) -> None:
    _, recipe = _unfinished(straight[0], tmp_path)
    fails(1, "adapter.rank: 4 in the run, 8 now", arguments=(*recipe, "adapter.rank=8", "--resume"))


def test_mistakes_before_training_come_with_a_hint(data: Path, tmp_path: Path, fails: Fails) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    fails(2, "training.learning_rat", "learning_rate", arguments=(recipe, "training.learning_rat=1"))
    fails(1, "no such base folder", arguments=(recipe, f"base={tmp_path}/nowhere/at all"))
    fails(1, str(tmp_path / "none"), arguments=(recipe, f"data.train={tmp_path}/none"))
    fails(
        1,
        "record 0 has 341 tokens, a pack holds 100",
        "raise training.pack_tokens to 341",
        arguments=(recipe, "training.pack_tokens=100"),
    )
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_adapter_was_written_only_writes_it(
    straight: tuple[Path, subprocess.CompletedProcess[str]],
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its prepared set has moved since."""
    run, recipe = _unfinished(straight[0], tmp_path)
    shutil.copytree(data, tmp_path / "moved")
    assert main(["train", *recipe, f"data.train={tmp_path}/moved", "resume=auto"]) == 0
    assert "step " not in capfd.readouterr().out
    assert _tensors(run) == _tensors(straight[0])
    info = json.loads((run / "adapter" / "ixtune.json").read_text(encoding="utf-8"))
    assert (info["steps"], info["trained_steps"]) == (12, 12)


def test_resuming_with_other_data_or_packs_is_refused_naming_the_change(
    straight: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, fails: Fails
) -> None:
    run, recipe = _unfinished(straight[0], tmp_path)
    inputs = json.loads((run / "inputs.json").read_text(encoding="utf-8"))
    (name,) = inputs["train_manifest_sha256"]
    altered = {**inputs, "train_manifest_sha256": {name: "00"}}
    (run / "inputs.json").write_text(json.dumps(altered), encoding="utf-8")
    fails(1, "the base or the data have changed", f"train_manifest_sha256.{name}", arguments=(*recipe, "--resume"))
    del inputs["packs_sha256"]  # as a version wrote it that did not share prefixes
    (run / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    fails(
        1,
        "the run began with records in other packs",
        "packs_sha256: null in the run",
        "resume with the version that it began with",
        arguments=(*recipe, "--resume"),
    )


def test_a_diverging_run_fails_at_that_step_and_keeps_its_checkpoints(data: Path, tmp_path: Path, fails: Fails) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    fails(
        1,
        "training diverged: the loss is nan in step 2, which was not applied",
        f"{data}: record r",
        "the weights are the likely cause",
        "lower training.learning_rate",
        arguments=(recipe, "training.learning_rate=1e30", "training.save_every=1"),
    )
    assert not (tmp_path / "run" / "adapter").exists()
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


def test_a_terminal_shows_a_live_progress_bar_and_a_pipe_does_not(
    straight: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    reading, writing = pty.openpty()
    terminal = {**environment(), "TERM": "xterm", "COLUMNS": "120"}
    arguments = command("train", recipe, "training.max_steps=3", f"data.validation={data}", "--no-report")
    with subprocess.Popen(arguments, stdin=writing, stdout=writing, stderr=writing, env=terminal):
        os.close(writing)
        shown = b""
        try:
            while chunk := os.read(reading, 65536):
                shown += chunk
        except OSError:  # the other end was closed: how Linux says that a terminal has gone
            pass
    os.close(reading)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"step 0/3 .* 0%  \d:\d\d elapsed, \? left", text)
    assert re.search(r"step [23]/3 .*━", text)
    assert re.search(r"loss \d+\.\d{4} [▁▂▃▄▅▆▇█]{2,}", text)
    assert "measuring the validation loss" in text
    assert re.search(r"validation \d+\.\d{4} \(best \d+\.\d{4}\)", text)
    assert len(re.findall(r"^step +\d+/3  loss", text.replace("\r", "\n"), re.MULTILINE)) == 1, "plain lines too"
    assert "done     3 steps" in text
    assert b"\x1b[?25h" in shown, "the cursor was not given back"
    assert "\x1b" not in straight[1].stdout
    assert "━" not in straight[1].stdout
