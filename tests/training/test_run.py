"""Test whole runs in this process: validation, samples, the best adapter, trackers, refusals."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from text_run import lines_of, losses, prepare_texts, run, text_recipe

from ixtune.errors import IxtuneError, UsageError
from ixtune.planning.gpus import Machine
from ixtune.training.assembly import build
from ixtune.training.monitoring import metrics, trackers
from ixtune.training.monitoring.validation import mean_loss


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("texts") / "train")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a validation set of sums that are not in the training set."""
    return prepare_texts(tmp_path_factory.mktemp("texts") / "validation", count=4, first=50)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run without validation, samples or trackers."""
    folder = tmp_path_factory.mktemp("plain")
    run(text_recipe(folder, data))
    return folder / "run"


def _adapter(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def test_validation_scores_samples_and_trackers_do_not_change_training(
    data: Path, others: Path, plain: Path, tmp_path: Path
) -> None:
    """Compare losses and weights bit for bit, with dropout; check the files that are written."""
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = text_recipe(
        tmp_path, data, f"data.validation={others}", "training.evaluate_every=3", "training.sample_every=2",
        "training.sample_records=2", "training.scores=[exact_match, cer]", "training.report_to=[tensorboard]",
    )  # fmt: skip
    outcome, said = run(recipe)
    folder = tmp_path / "run"
    assert losses(folder) == losses(plain)
    assert _adapter(folder / "checkpoint-6") == _adapter(plain / "checkpoint-6")
    assert outcome.adapter_step in (3, 6)

    lines = [line for line in lines_of(folder / "metrics.jsonl") if "validation_loss" in line]
    assert [set(line) for line in lines] == 2 * [
        {"step", "epoch", "validation_loss", "validation_exact_match", "validation_cer"}
    ]
    measured = {line["step"]: line["validation_loss"] for line in lines}
    assert list(measured) == [3, 6]
    told = [f"validation loss {line['validation_loss']:.4f}" for line in lines]
    assert all(
        f"{text}  exact match 0.0000  CER {lines[at]['validation_cer']:.4f}" in said for at, text in enumerate(told)
    )

    samples = lines_of(folder / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [2, 2, 4, 4, 6, 6]
    assert len({sample["id"] for sample in samples}) == 2
    first = samples[0]
    number = int(first["id"][1:])
    assert (first["question"], first["reference"]) == (f"{number} and {number + 2}?", f"{2 * number + 2}")
    assert f"'{first['question']}' -> '{first['answer']}'" in said

    (events,) = (folder / "runs").iterdir()
    accumulated = tensorboard.EventAccumulator(str(events)).Reload()
    tags = {"train/loss", "train/tokens_per_s", "train/memory_gib", "eval/loss", "eval/exact_match", "eval/cer"}
    assert tags <= set(accumulated.Tags()["scalars"])
    for name in ("loss", "cer"):
        shown = [event.value for event in accumulated.Scalars(f"eval/{name}")]
        assert shown == pytest.approx([line[f"validation_{name}"] for line in lines])


def test_a_log_line_has_all_documented_keys(plain: Path) -> None:
    lines = lines_of(plain / "metrics.jsonl")
    assert set(lines[0]) == {"step", "epoch", "loss", "grad_norm", "learning_rate", *metrics.MEASURED}
    assert lines[0]["mfu"] is None, "nobody knows the limit of a CPU"
    assert lines[-1]["tokens"] > lines[0]["tokens"] > 0
    assert lines[-1]["seconds"] > lines[0]["seconds"] > 0
    assert 0.1 < lines[0]["memory_gib"] < 100


def test_a_part_with_its_own_learning_rate_logs_it_in_every_line(data: Path, tmp_path: Path) -> None:
    """Both follow the schedule: their ratio is constant, and a line has the learning rate of its own step."""
    run(text_recipe(tmp_path, data, "training.projector_learning_rate=1.0e-4", "training.warmup_ratio=0"))
    lines = lines_of(tmp_path / "run" / "metrics.jsonl")
    assert lines[0]["learning_rate"] == 1e-3
    assert lines[-1]["learning_rate"] < 1e-3
    for line in lines:
        assert line["projector_learning_rate"] == pytest.approx(line["learning_rate"] / 10)


def test_the_adapter_is_the_best_on_validation_and_training_stops_early(
    data: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are fixed: better, best, worse, worse; best again once the run is extended."""
    given = iter([3.0, 1.0, 2.0, 1.5, 0.5, 0.6])
    monkeypatch.setattr("ixtune.training.measurements.mean_loss", lambda *_: next(given))
    changes = (
        f"data.validation={others}", "training.evaluate_every=1", "training.save_every=100",
        "training.keep_checkpoints=1",
    )  # fmt: skip
    recipe = text_recipe(tmp_path, data, *changes, "training.max_steps=5", "training.early_stopping=2")
    outcome, said = run(recipe)
    folder = tmp_path / "run"
    assert "stopping early: validation loss not below that of step 2 in 2 measurements" in said
    assert (outcome.steps, outcome.adapter_step, outcome.validation_loss) == (4, 2, 1.0)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert json.loads((folder / "best.json").read_text()) == {
        "step": 2, "best_by": "loss", "validation_loss": 1.0, "validation_scores": {}, "checkpoint": "checkpoint-2"
    }  # fmt: skip
    assert _adapter(folder / "adapter") == _adapter(folder / "checkpoint-2")
    assert _adapter(folder / "adapter") != _adapter(folder / "checkpoint-4")
    info = json.loads((folder / "adapter" / "ixtune.json").read_text())
    assert (info["steps"], info["trained_steps"], info["validation_loss"]) == (2, 4, 1.0)
    assert (info["best_by"], info["validation_scores"]) == ("loss", {})

    # had it died before the adapter was written, a resumed run would only write it
    shutil.rmtree(folder / "adapter")
    again, _ = run(recipe, must_resume=True)
    assert dataclasses.replace(again) == outcome
    assert _adapter(folder / "adapter") == _adapter(folder / "checkpoint-2")

    longer = (*changes, "training.max_steps=6", "resume=extend")
    with pytest.raises(IxtuneError, match="the run stopped early: 2 measurements were no better than that of step 2"):
        run(text_recipe(tmp_path, data, *longer, "training.early_stopping=2"))
    extended, _ = run(text_recipe(tmp_path, data, *longer))
    assert (extended.steps, extended.adapter_step, extended.validation_loss) == (6, 5, 0.5)


def test_the_last_step_is_logged_for_any_log_every(data: Path, tmp_path: Path) -> None:
    run(text_recipe(tmp_path, data, "training.max_steps=3", "training.log_every=2"))
    assert [line["step"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_a_nan_validation_loss_ends_the_run_and_is_never_the_best(
    data: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([1.0, float("nan")])
    monkeypatch.setattr("ixtune.training.measurements.mean_loss", lambda *_: next(given))
    recipe = text_recipe(tmp_path, data, f"data.validation={others}", "training.max_steps=4", "training.save_every=2")
    with pytest.raises(IxtuneError, match="the validation loss is nan at step 4"):
        run(recipe)
    assert json.loads((tmp_path / "run" / "best.json").read_text())["step"] == 2


def test_a_damaged_best_checkpoint_is_skipped(
    data: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([1.0, 2.0])
    monkeypatch.setattr("ixtune.training.measurements.mean_loss", lambda *_: next(given))
    recipe = text_recipe(tmp_path, data, f"data.validation={others}", "training.max_steps=4")
    run(recipe)
    folder = tmp_path / "run"
    shutil.rmtree(folder / "adapter")
    (folder / "checkpoint-2" / "adapter_model.safetensors").unlink()
    outcome, said = run(recipe, must_resume=True)
    assert "the best checkpoint cannot be used" in said
    assert (outcome.adapter_step, outcome.validation_loss, outcome.best) == (4, None, None)
    assert _adapter(folder / "adapter") == _adapter(folder / "checkpoint-4")


def test_resume_auto_starts_continues_or_detects_a_finished_run(data: Path, plain: Path, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, data, "resume=auto")
    outcome, _ = run(recipe)
    folder = tmp_path / "run"
    assert outcome.adapter == folder / "adapter"
    assert losses(folder) == losses(plain)
    nothing, said = run(recipe)
    assert nothing is None
    assert "finished already" in said

    # as if it had been killed after step 4: the counters and the losses go on where they were
    before = lines_of(folder / "metrics.jsonl")
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoint-6")
    outcome, said = run(recipe)
    assert f"resume   {folder / 'checkpoint-4'}" in said
    assert losses(folder) == losses(plain)
    after = lines_of(folder / "metrics.jsonl")
    assert [line["event"] for line in after if "event" in line] == ["resumed"]
    counted = ("step", "epoch", "tokens", "supervised_tokens", "learning_rate")
    assert [[line[key] for key in counted] for line in after if "loss" in line] == [
        [line[key] for key in counted] for line in before
    ]
    assert after[-1]["seconds"] > before[3]["seconds"]
    assert _adapter(folder / "adapter") == _adapter(plain / "adapter")


def test_shared_prefixes_keep_the_losses_and_resume_bit_for_bit(tmp_path: Path) -> None:
    """Use twelve records with one system prompt of more than 64 tokens, all of them in every step."""
    data = prepare_texts(tmp_path / "data", system="Add both numbers. " * 16)
    whole = ("training.pack_tokens=4096", "adapter.dropout=0")
    run(text_recipe(tmp_path / "apart", data, *whole, "training.share_prefixes=false"))
    _, said = run(text_recipe(tmp_path / "shared", data, *whole))
    assert "of the tokens are computed" in said
    one, other = losses(tmp_path / "apart" / "run"), losses(tmp_path / "shared" / "run")
    assert [step for step, _, _ in one] == [step for step, _, _ in other] == [1, 2, 3, 4, 5, 6]
    for (_, loss, norm), (_, its_loss, its_norm) in zip(one, other, strict=True):
        assert its_loss == pytest.approx(loss, rel=1e-4)
        assert its_norm == pytest.approx(norm, rel=1e-3)
    (line, its_line) = (lines_of(tmp_path / name / "run" / "metrics.jsonl")[-1] for name in ("apart", "shared"))
    assert line["tokens"] == its_line["tokens"] == line["computed_tokens"] > 2 * its_line["computed_tokens"] > 0
    assert line["supervised_tokens"] == its_line["supervised_tokens"]
    assert its_line["computed_tokens_per_s"] < its_line["tokens_per_s"]

    folder = tmp_path / "resumed" / "run"
    ignored = shutil.ignore_patterns("adapter", "checkpoint-6")
    shutil.copytree(tmp_path / "shared" / "run", folder, ignore=ignored)
    run(text_recipe(tmp_path / "resumed", data, *whole), must_resume=True)
    assert losses(folder) == other
    assert _adapter(folder / "adapter") == _adapter(tmp_path / "shared" / "run" / "adapter")


def test_a_run_folder_can_be_moved_and_resumed_with_resume_auto(data: Path, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "run", ignore=shutil.ignore_patterns("adapter", "checkpoint-6"))
    outcome, _ = run(text_recipe(tmp_path, data, "resume=auto"))
    assert outcome.steps == 6
    assert losses(tmp_path / "run") == losses(plain)


def test_a_second_run_in_one_folder_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, data)
    (tmp_path / "run").mkdir()
    descriptor = os.open(tmp_path / "run", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(IxtuneError, match="another process is training in this folder") as refused:
            run(recipe)
        assert "choose another folder: output=NAME" in refused.value.hint
    finally:
        os.close(descriptor)


def test_a_refused_run_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(IxtuneError, match="there is no run to resume"):
        run(text_recipe(tmp_path, data), must_resume=True)
    with pytest.raises(IxtuneError, match="a pack holds 10"):
        run(text_recipe(tmp_path, data, "training.pack_tokens=10", "resume=auto"))
    assert not (tmp_path / "run").exists()


def test_a_missing_tracker_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also refuse it if W&B has left its folder, which Python would import as an empty package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trackers.importlib.metadata, "version", missing)
    with pytest.raises(UsageError, match="training.report_to lists wandb, which is not installed") as refused:
        run(text_recipe(tmp_path, tmp_path / "no data", "training.report_to=[wandb]"))
    assert 'pip install "ixtune[wandb]"' in refused.value.hint


def test_records_without_supervised_tokens_are_refused_by_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ixtune.data.prepared.training_set import TrainingSet

    load = TrainingSet.load

    def without(*given: object, **options: object) -> TrainingSet:
        opened = load(*given, **options)  # type: ignore[arg-type]
        return dataclasses.replace(opened, supervised=[0, *opened.supervised[1:]])

    monkeypatch.setattr(TrainingSet, "load", without)
    with pytest.raises(IxtuneError, match="1 records have no supervised token") as refused:
        run(text_recipe(tmp_path, data))
    assert "record t0" in refused.value.notes[0]


def test_a_dry_run_takes_one_step_on_the_largest_pack_writing_nothing(data: Path, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, data, "resume=auto")
    before = set(tmp_path.rglob("*"))
    outcome, said = run(recipe, only_try=True)
    assert outcome is None
    assert "one step on the largest pack" in said
    assert re.search(r"peak \d+\.\d\d GiB, planned \d+\.\d\d GiB; nothing was written", said)
    assert set(tmp_path.rglob("*")) == before


def test_a_gpu_too_small_for_the_largest_pack_is_refused_before_loading(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ixtune.training.run_plan.detect", lambda _: Machine("cuda", 2**20, "a small one"))
    monkeypatch.setattr("ixtune.training.run.build", None)
    with pytest.raises(IxtuneError, match="the run does not fit this GPU") as refused:
        run(text_recipe(tmp_path, data))
    assert "training.gpu_gib" in refused.value.hint
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_memory_options(
    data: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If chosen again by the memory that is free now, they could differ."""
    shutil.copytree(plain, tmp_path / "run", ignore=shutil.ignore_patterns("adapter", "checkpoint-6"))
    stored = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert stored["levers"]["checkpointed_layers"] == 0
    stored["levers"]["checkpointed_layers"] = 3
    (tmp_path / "run" / "plan.json").write_text(json.dumps(stored))
    used = []
    monkeypatch.setattr("ixtune.training.run.build", lambda *given: used.append(given[2]) or build(*given))
    run(text_recipe(tmp_path, data), must_resume=True)
    assert used[0].checkpointed_layers == 3
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == stored


def test_the_mean_loss_depends_on_no_packing_and_keeps_the_mode(data: Path) -> None:
    from ixtune.base import resolve
    from ixtune.data.prepared.training_set import TrainingSet
    from ixtune.model.loading import load_base
    from ixtune.training.batch import ImageSource

    model, _ = load_base(resolve("nano"), quantize=False, dtype=torch.float32)
    records = TrainingSet.load([data])
    model.train()
    losses_found = {
        tokens: mean_loss(model, records, ImageSource(records.files), tokens, torch.float32) for tokens in (1, 80, 400)
    }
    assert model.training
    assert losses_found[1] == pytest.approx(losses_found[400], rel=1e-5)
    assert losses_found[80] == pytest.approx(losses_found[400], rel=1e-5)


def test_a_pack_cut_for_memory_marks_the_run_as_not_reproducible(
    data: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out on every pack with several records, from the second step on."""
    from ixtune.training.trainer import AdapterTrainer

    step = AdapterTrainer.forward_backward

    def short_of_memory(trainer: AdapterTrainer, model: object, batch: dict, *others: object) -> torch.Tensor:
        if trainer.state.global_step and len(batch["cu_seq_lens_q"]) > 2:
            raise torch.OutOfMemoryError("injected")
        return step(trainer, model, batch, *others)

    monkeypatch.setattr(AdapterTrainer, "forward_backward", short_of_memory)
    recipe = text_recipe(tmp_path, data, "adapter.dropout=0", "training.max_steps=2")
    _, said = run(recipe)
    folder = tmp_path / "run"
    cuts = [line for line in lines_of(folder / "metrics.jsonl") if line.get("event") == "out_of_memory"]
    assert len(cuts) == 2, "three records: cut once, and one half again"
    assert said.count("memory ran out on a pack") == 1
    assert "this run cannot be reproduced bit for bit" in said.splitlines()[-1]
    assert json.loads((folder / "adapter" / "ixtune.json").read_text())["reproducible"] is False
    monkeypatch.undo()
    whole = tmp_path / "whole"
    run(text_recipe(whole, data, "adapter.dropout=0", "training.max_steps=2"))
    assert losses(folder)[0] == losses(whole / "run")[0]
    assert losses(folder)[1] == pytest.approx(losses(whole / "run")[1], rel=1e-5)


def test_a_largest_pack_that_does_not_fit_ends_the_run_before_step_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ixtune.training.trainer import AdapterTrainer

    def no_memory(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(AdapterTrainer, "forward_backward", no_memory)
    with pytest.raises(IxtuneError, match="does not fit into memory; it was tried before") as refused:
        run(text_recipe(tmp_path, data))
    assert "training.pack_tokens" in refused.value.hint
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_samples_are_generated_in_the_compute_dtype(data: Path, others: Path, tmp_path: Path) -> None:
    run(
        text_recipe(
            tmp_path, data, f"data.validation={others}", "training.sample_every=1", "training.max_steps=1",
            "training.compute_dtype=bf16",
        )
    )  # fmt: skip
    assert len(lines_of(tmp_path / "run" / "samples.jsonl")) == 4


def test_lora_on_chosen_layers_trains_only_those(data: Path, tmp_path: Path) -> None:
    """Test this with a frozen part below them, and with recomputed activations."""
    changes = ("adapter.layers=[3, 2]", "adapter.projector=frozen", "training.max_steps=2")
    kept, again = tmp_path / "kept", tmp_path / "again"
    run(text_recipe(kept, data, *changes))
    run(text_recipe(again, data, *changes, "training.gradient_checkpointing=true"))
    names = _adapter(kept / "run" / "adapter")
    assert {name.split(".")[4] for name in names} == {"2", "3"}
    assert len(names) == 2 * 5 * 2
    assert losses(again / "run") == losses(kept / "run")
    assert losses(kept / "run")[0][2] > 0, "no gradient"
    with pytest.raises(UsageError, match="adapter.layers names layer 4; the base has layers 0 to 3"):
        run(text_recipe(tmp_path / "none", data, "adapter.layers=[4]"))
