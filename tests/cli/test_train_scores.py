"""Test scores during training from the command line: measurements, best checkpoint, early stopping, refusals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from main_job import ixtune, kill_in_a_sync, losses
from records import entry, write_source
from safetensors.torch import load_file
from text_run import RECIPE, lines_of

from ixtune.base import resolve
from ixtune.cli import main
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source

NUMBERS = tuple("17 42 81 38 63 26 95 50 74 09 32 68 41 29".split())
# these answers are learned by heart in some forty steps, and the loss on wrong ones rises before the last is known
SETTINGS = (
    "adapter.rank=8",
    "adapter.alpha=16",
    "adapter.quantize=none",
    "training.max_steps=60",
    "training.pack_tokens=300",
    "training.learning_rate=4.0e-3",
    "training.seed=3",
    "training.schedule=constant",
    "training.evaluate_every=4",
    "training.save_every=4",
    "training.scores=[exact_match, cer]",
    "training.best_by=exact_match",
    "training.early_stopping=2",
)


def _texts(folder: Path, answers: list[tuple[str, str]]) -> Path:
    entries = [entry(f"r{number}", question, answer) for number, (question, answer) in enumerate(answers)]
    options = PrepareOptions(hd_num=1)
    prepare(
        [Source(path=str(write_source(folder, entries)))], folder / "prepared", base=resolve("nano"), options=options
    )
    return folder / "prepared"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a training set, and a validation set of the same questions with three of four answers exchanged.

    The surer the model is of what it learned, the higher is the loss on the wrong answers, while more and more of the
    right ones are given: loss and score are at their best at different steps, as in the field with noisy references.
    """
    folder = tmp_path_factory.mktemp("sets")
    learned = [(f"number {n}?", number) for n, number in enumerate(NUMBERS)]
    held = [(question, NUMBERS[(n + by) % len(NUMBERS)]) for by in range(4) for n, (question, _) in enumerate(learned)]
    return _texts(folder / "train", learned), _texts(folder / "validation", held)


def _recipe(folder: Path, sets: tuple[Path, Path]) -> tuple[str, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(data=sets[0], output=folder / "run"), encoding="utf-8")
    return (str(path), f"data.validation={sets[1]}", *SETTINGS)


@pytest.fixture(scope="module")
def straight(
    sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return an uninterrupted run and its output."""
    folder = tmp_path_factory.mktemp("straight")
    done = ixtune("train", *_recipe(folder, sets), "--no-report")
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def _measured(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(run / "metrics.jsonl") if "validation_loss" in line]


def _best(run: Path) -> dict[str, Any]:
    """Return the measurement with the highest exact match; ties go to the lowest loss."""
    return max(_measured(run), key=lambda line: (line["validation_exact_match"], -line["validation_loss"]))


def _tensors(folder: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "adapter_model.safetensors").items()}


def _info(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "adapter" / "ixtune.json").read_text(encoding="utf-8")))


def test_the_adapter_is_the_best_by_score_not_by_loss(
    straight: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = straight
    best, lowest = _best(run), min(_measured(run), key=lambda line: line["validation_loss"])
    assert best["step"] > lowest["step"]
    assert best["validation_exact_match"] > lowest["validation_exact_match"]
    info = _info(run)
    assert (info["steps"], info["best_by"], info["validation_loss"]) == (
        best["step"], "exact_match", best["validation_loss"]
    )  # fmt: skip
    scores = {name: best[f"validation_{name}"] for name in ("exact_match", "cer")}
    assert info["validation_scores"] == scores
    checkpoint = f"checkpoint-{best['step']}"
    assert json.loads((run / "best.json").read_text(encoding="utf-8")) == {
        "step": best["step"], "best_by": "exact_match", "validation_loss": best["validation_loss"],
        "validation_scores": scores, "checkpoint": checkpoint,
    }  # fmt: skip
    assert _tensors(run / "adapter") == _tensors(run / checkpoint)
    told = f"exact match {scores['exact_match']:.4f}, loss {best['validation_loss']:.4f}, CER {scores['cer']:.4f}"
    assert f"from step {best['step']}, the best on validation: {told}" in done.stdout
    assert f"validation loss {lowest['validation_loss']:.4f}  exact match {lowest['validation_exact_match']:.4f}" in (
        done.stdout
    )
    assert done.stderr == ""


def test_training_stops_early_on_the_score_and_keeps_the_best(
    straight: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = straight
    best, steps = _best(run)["step"], [line["step"] for line in _measured(run)]
    assert steps == list(range(4, best + 9, 4)), "not two measurements behind the best one"
    assert _info(run)["trained_steps"] == best + 8 < 60
    assert f"stopping early: exact match on validation not above that of step {best} in 2 measurements" in done.stdout
    kept = {path.name for path in run.glob("checkpoint-*")}
    assert f"checkpoint-{best}" in kept
    assert len(kept) <= 3


def test_scores_equal_those_of_a_later_evaluation(
    straight: tuple[Path, subprocess.CompletedProcess[str]], sets: tuple[Path, Path], tmp_path: Path
) -> None:
    """Score with `ixtune evaluate`, which forms other batches; the length limit has no effect here."""
    out = tmp_path / "evaluation.json"
    arguments = ["--adapter", str(straight[0]), "--no-controls", "--score", "exact_match", "--score", "cer"]
    assert main(["evaluate", str(sets[1]), *arguments, "--out", str(out)]) == 0
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    adapter = next(one for one in results if one["name"] == "adapter")
    info = _info(straight[0])
    assert {name: found["value"] for name, found in adapter["scores"].items()} == pytest.approx(
        info["validation_scores"]
    )
    assert adapter["loss"] == pytest.approx(info["validation_loss"], rel=1e-4)


def test_a_killed_run_measures_and_stops_like_an_uninterrupted_one(
    straight: tuple[Path, subprocess.CompletedProcess[str]], sets: tuple[Path, Path], tmp_path: Path
) -> None:
    """Send SIGKILL after one of the two worse measurements that patience allows."""
    run, arguments = tmp_path / "run", _recipe(tmp_path, sets)
    best = _best(straight[0])["step"]
    kill_in_a_sync(("train", *arguments, "--no-report"), run, f"checkpoint-{best + 4}")
    assert not (run / "adapter").exists()
    done = ixtune("train", *arguments, "--no-report", "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resume   {run / f'checkpoint-{best + 4}'}" in done.stdout
    assert _measured(run) == _measured(straight[0])
    assert losses(run) == losses(straight[0])
    for name in ("best.json", "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (straight[0] / name).read_bytes()
    assert {path.name for path in run.iterdir()} == {path.name for path in straight[0].iterdir()}


def test_report_card_and_inspect_show_the_scores(
    straight: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, best = straight[0], _best(straight[0])
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<figcaption>Exact match on validation</figcaption>" in html
    assert f"step {best['step']}, the best by exact match on validation" in html
    told = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    curve = [[line["step"], line["validation_cer"]] for line in _measured(run)]
    assert told["runs"][0]["curves"]["validation_cer"] == curve
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"- validation exact match: {best['validation_exact_match']:.6g}" in card
    capfd.readouterr()
    assert main(["inspect", str(run / "adapter")]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "best by exact_match" in shown


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ("training.scores=[exact_match, anl]", 2, "training.scores.1 should be a known name, perhaps anls"),
        ("training.best_by=anls", 2, "training.best_by is anls, which is not in training.scores"),
        ("data.validation=null", 2, "training.scores needs data.validation"),
        ("training.scores=[exact_match, field_f1]", 1, "field_f1 cannot judge answers to 56 of 56 questions"),
    ],
)
def test_an_unusable_score_is_refused_before_anything_is_written(
    change: str, code: int, told: str, sets: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *_recipe(tmp_path, sets), change]) == code
    shown = capfd.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "run").exists()
