"""Test that a non-finite loss or gradient stops the step and that its records are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from text_run import prepare_texts, text_recipe

from ixtune.adapter import attach
from ixtune.errors import IxtuneError
from ixtune.planning.memory_options import MemoryOptions
from ixtune.training.assembly import assemble, build
from ixtune.training.inputs import open_inputs
from ixtune.training.trainer import AdapterTrainer

Sabotage = Callable[[AdapterTrainer], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("texts") / "train", count=6)


def _fail(folder: Path, data: Path, sabotage: Sabotage) -> IxtuneError:
    """Train on one pack of three records and on another, in one step; the weights must stay as they were."""
    recipe = text_recipe(folder, data, "training.gradient_accumulation=2", "training.max_steps=1")
    inputs = open_inputs(recipe)
    network = build(recipe, inputs, MemoryOptions(0, 16, False), lambda _: None)
    trainer = assemble(recipe, inputs, network, folder / "run", [(0, 1, 2), (3, 4, 5)])
    before = {name: parameter.clone() for name, parameter in attach.trainable(trainer.model)}
    sabotage(trainer)
    with pytest.raises(IxtuneError, match="training diverged") as failed:
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in attach.trainable(trainer.model))
    return failed.value


def _records(error: IxtuneError) -> list[str]:
    return [note.split("record ")[1].split()[0] for note in error.notes if "record t" in note]


def _spoil_losses(trainer: AdapterTrainer, spoils: Callable[[dict[str, Any]], bool]) -> None:
    """Make the loss of some batches NaN before the reduction."""
    model = trainer.model.get_base_model()
    forward = model.forward

    def spoilt(**batch: Any) -> Any:
        output = forward(**batch)
        if spoils(batch):
            output.loss = output.loss * torch.nan
        return output

    model.forward = spoilt


def _at_record(trainer: AdapterTrainer, index: int, change: Callable[[torch.Tensor, slice], torch.Tensor]) -> None:
    """Change the embeddings of one record wherever it is in a pack."""
    wanted = trainer.collator.training_set.record(index)["token_ids"]

    def hook(_: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        row = inputs[0].flatten().tolist()
        for at in range(len(row)):
            if row[at : at + len(wanted)] == wanted:
                return change(output, slice(at, at + len(wanted)))
        return output

    trainer.model.get_base_model().model.tok_embeddings.register_forward_hook(hook)


def test_a_record_with_a_nan_loss_is_named_alone(data: Path, tmp_path: Path) -> None:
    """The other records of its pack are not affected."""

    def spoil(embeddings: torch.Tensor, rows: slice) -> torch.Tensor:
        embeddings[:, rows] = torch.nan
        return embeddings

    error = _fail(tmp_path, data, lambda trainer: _at_record(trainer, 4, spoil))
    assert "the loss is nan in step 1, which was not applied" in error.what
    assert _records(error) == ["t4"]
    assert str(data) in error.notes[0]
    assert "data.json" in error.notes[0]
    assert "lower training.learning_rate" in error.hint


def test_diverged_weights_are_blamed_if_every_record_fails(data: Path, tmp_path: Path) -> None:
    error = _fail(tmp_path, data, lambda trainer: _spoil_losses(trainer, lambda _: True))
    assert error.notes[0].startswith("every record of the micro-batch does so")
    assert _records(error) == ["t0", "t1", "t2", "t3", "t4", "t5"]


def test_records_that_fail_only_together_are_named_as_a_group(data: Path, tmp_path: Path) -> None:
    error = _fail(tmp_path, data, lambda trainer: _spoil_losses(trainer, lambda batch: len(batch["cu_seq_lens_q"]) > 2))
    assert error.notes[0].startswith("no record does so alone")


def test_an_infinite_gradient_is_found_before_the_step(data: Path, tmp_path: Path) -> None:
    def break_gradient(trainer: AdapterTrainer) -> None:
        trained = next(parameter for _, parameter in attach.trainable(trainer.model))

        def overflow(embeddings: torch.Tensor, _: slice) -> torch.Tensor:
            embeddings = embeddings + 0 * trained.sum()  # a way from the embeddings to something that is trained
            embeddings.register_hook(lambda gradient: gradient * torch.inf)
            return embeddings

        _at_record(trainer, 2, overflow)

    error = _fail(tmp_path, data, break_gradient)
    assert "the gradient norm is nan" in error.what
    assert _records(error) == ["t2"]
