"""Test resuming a run with changed keys, and extending it beyond its planned steps."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from text_run import lines_of, losses, prepare_texts, run, text_recipe

from ixtune.errors import IxtuneError
from ixtune.training.state.extension import Extension, schedule

CONSTANT = ("training.schedule=constant", "training.warmup_ratio=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("texts") / "train")


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of six steps at a constant learning rate."""
    folder = tmp_path_factory.mktemp("plain")
    run(text_recipe(folder, data, *CONSTANT))
    return folder / "run"


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def copied(plain: Path, folder: Path, *without: str) -> None:
    shutil.copytree(plain, folder / "run", ignore=shutil.ignore_patterns(*without))


def test_keys_that_do_not_affect_training_may_change(data: Path, plain: Path, tmp_path: Path) -> None:
    copied(plain, tmp_path, "adapter", "checkpoint-6")
    recipe = text_recipe(
        tmp_path, data, *CONSTANT, "training.log_every=2", "training.save_every=1", "training.keep_checkpoints=1",
        "training.gradient_checkpointing=true", "training.vision_chunk=1",
    )  # fmt: skip
    run(recipe, must_resume=True)
    assert weights(tmp_path / "run" / "adapter") == weights(plain / "adapter")
    assert [line["step"] for line in lines_of(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4, 6]
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["levers"]["checkpointed_layers"] == 4


def test_an_extended_run_equals_one_of_that_length_from_the_start(data: Path, plain: Path, tmp_path: Path) -> None:
    copied(plain, tmp_path)
    longer = (*CONSTANT, "training.max_steps=10", "resume=extend")
    outcome, said = run(text_recipe(tmp_path, data, *longer))
    assert "extend   from step 6: 6 optimizer steps become 10" in said
    assert outcome.steps == 10
    straight = tmp_path / "straight"
    run(text_recipe(straight, data, *CONSTANT, "training.max_steps=10"))
    assert losses(tmp_path / "run") == losses(straight / "run")
    assert weights(tmp_path / "run" / "adapter") == weights(straight / "run" / "adapter")
    assert weights(tmp_path / "run" / "adapter-6") == weights(plain / "adapter")
    info = json.loads((tmp_path / "run" / "adapter" / "ixtune.json").read_text())
    assert info["extensions"] == [{"step": 6, "steps_before": 6, "steps_after": 10}]
    (event,) = [line for line in lines_of(tmp_path / "run" / "metrics.jsonl") if line.get("event") == "extended"]
    assert (event["step"], event["steps_before"], event["steps_after"]) == (6, 6, 10)
    # a job that is requeued runs the same command again
    nothing, said = run(text_recipe(tmp_path, data, *longer))
    assert nothing is None
    assert "finished already" in said


def test_an_interrupted_extension_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """Use a schedule that had ended and rises again."""
    first = text_recipe(tmp_path / "whole", data, "training.max_steps=4")
    run(first)
    longer = ("training.max_steps=9", "resume=extend", "training.warmup_ratio=0.5")
    with pytest.raises(IxtuneError, match="differs") as refused:
        run(text_recipe(tmp_path / "whole", data, *longer))
    assert "training.warmup_ratio: 0.01 in the run, 0.5 now" in refused.value.notes
    run(text_recipe(tmp_path / "whole", data, *longer[:2]))
    folder = tmp_path / "whole" / "run"
    rates = [line["learning_rate"] for line in lines_of(folder / "metrics.jsonl") if "loss" in line]
    cosine = [1e-3 * (1 + math.cos(math.pi * (step - 1) / 8)) / 2 for step in range(4, 9)]
    assert rates[4:] == pytest.approx(cosine), "as in a run of nine steps, of which one is warm-up"

    copied(folder, tmp_path, "adapter", "checkpoint-9")
    run(text_recipe(tmp_path, data, *longer[:2]))
    assert weights(tmp_path / "run" / "adapter") == weights(folder / "adapter")
    assert losses(tmp_path / "run") == losses(folder)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (("training.max_steps=5",), "it has 6 and is at step 6, the recipe gives 5", "raise training.epochs"),
        (("training.max_steps=9", "adapter.rank=4"), "the recipe differs", "adapter.start_from="),
        (("training.max_steps=9", "training.learning_rate=1e-4"), "the recipe differs", "resume with the same recipe"),
    ],
)
def test_an_invalid_extension_is_refused_with_its_reason(
    data: Path, plain: Path, tmp_path: Path, changes: tuple[str, ...], message: str, hint: str
) -> None:
    copied(plain, tmp_path)
    with pytest.raises(IxtuneError, match=message) as refused:
        run(text_recipe(tmp_path, data, *CONSTANT, *changes, "resume=extend"))
    assert hint in refused.value.hint
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_run_without_checkpoints_cannot_be_extended(data: Path, plain: Path, tmp_path: Path) -> None:
    copied(plain, tmp_path, "checkpoint-*")
    with pytest.raises(IxtuneError, match="there is no checkpoint to extend the run from") as refused:
        run(text_recipe(tmp_path, data, *CONSTANT, "training.max_steps=9", "resume=extend"))
    assert (
        refused.value.hint
        == f"to continue from its adapter, start a new run with adapter.start_from={tmp_path / 'run'}"
    )


def test_resuming_a_finished_run_suggests_extend_and_start_from(data: Path, plain: Path, tmp_path: Path) -> None:
    copied(plain, tmp_path)
    with pytest.raises(IxtuneError, match="finished already") as refused:
        run(text_recipe(tmp_path, data, *CONSTANT), must_resume=True)
    assert "resume=extend" in refused.value.hint
    assert f"adapter.start_from={tmp_path / 'run'}" in refused.value.hint


def test_the_learning_rate_moves_from_one_schedule_to_the_next() -> None:
    def linear(steps: int) -> Any:
        return lambda step: 1 - step / steps

    found = schedule([linear(10), linear(30)], [Extension(10, 10, 30)], warmup_ratio=0.2)
    assert [found(step) for step in (0, 5, 9)] == pytest.approx([1, 0.5, 0.1])
    assert [found(step) for step in (10, 11, 13, 20)] == pytest.approx([2 / 3 / 4, 19 / 30 / 2, 17 / 30, 1 / 3])
    twice = schedule([linear(10), linear(20), linear(40)], [Extension(10, 10, 20), Extension(12, 20, 40)], 0.0)
    assert [twice(step) for step in (11, 12)] == pytest.approx([9 / 20, 28 / 40])
