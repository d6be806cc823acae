"""Scores during training: answer some validation records and judge the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel

from ixtune.answering.answerer import Answerer
from ixtune.answering.batches import batches
from ixtune.answering.settings import Settings
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.model.prefix_cache import PrefixCache
from ixtune.scores import judging
from ixtune.scores.case import Case
from ixtune.training.batch import ImageSource
from ixtune.training.monitoring import answers
from ixtune.training.processes import parallel
from ixtune.training.stopping import together


def require_judgeable(records: TrainingSet, indices: Sequence[int], names: Sequence[str]) -> None:
    """Refuse a score that does not fit these records, before anything is trained.

    Raises:
        IxtuneError: A reference does not have the form that the score needs, such as JSON; lists some records.
    """
    cases = [(records.identity(index), Case("", answers.references_of(records.record(index)))) for index in indices]
    hint = "remove the score from training.scores, or give these records other references"
    judging.require_judgeable(names, cases, where="training.scores", hint=hint)


def measure(
    model: PeftModel,
    records: TrainingSet,
    indices: Sequence[int],
    names: Sequence[str],
    images: ImageSource,
    tokenizer: Tokenizer,
    batch_tokens: int,
    dtype: torch.dtype,
    leave: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Return each score of greedy answers to the last question of some records.

    With several processes, each answers its share of the batches.

    Args:
        model: The network with its adapter; its mode is restored.
        records: The validation set.
        indices: Records to answer.
        names: Names of the scores.
        images: Source of the records' images.
        tokenizer: The base's.
        batch_tokens: Maximum tokens of a batch: each shared prefix once, padding and answers included. A training step
            on a pack of this size keeps more of each token than generation does, whose cache is smaller than the
            inputs of all layers, so scores need no memory beyond the plan.
        dtype: Dtype of autocast.
        leave: Called before each batch and each token; once it returns True in any process, nothing more is generated.

    Returns:
        The scores by name, or None if a process left.
    """
    sums: dict[tuple[str, int], tuple[float, float]] = {}
    # no prefix outlives its batch, so that memory stays within the plan
    answerer = Answerer(model, tokenizer, images, Settings(), PrefixCache(0), leave=leave)
    sizes = [answers.size_of(records.record(index)) for index in indices]
    with answers.asking(model, dtype), together():
        for chosen in parallel.my_batches(batches(sizes, max_tokens=batch_tokens), sizes):
            if leave():
                break
            asked = [records.record(indices[at]) for at in chosen]
            said = answers.answer(answerer, asked)
            cases = [Case(one.text, answers.references_of(record)) for record, one in zip(asked, said, strict=True)]
            for name in names:
                got, possible = zip(*judging.parts(name, cases), strict=True)
                sums[name, chosen[0]] = sum(got), sum(possible)
    if parallel.any_of(leave()):
        return None
    found = sorted(parallel.merged(sums).items())  # in one order, so that sums are equal
    return {
        name: sum(got for (of, _), (got, _) in found if of == name)
        / sum(possible for (of, _), (_, possible) in found if of == name)
        for name in names
    }
