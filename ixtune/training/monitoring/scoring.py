"""Scores of the model in the making: some validation records are answered, and the answers judged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel

from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.scores import SCORES
from ixtune.scores.case import Case
from ixtune.training.batch import ImageSource
from ixtune.training.monitoring import answers
from ixtune.training.processes import parallel

_NAMED_RECORDS = 5


def require_judgeable(records: TrainingSet, indices: Sequence[int], names: Sequence[str]) -> None:
    """Refuse a score that cannot be taken on these records, before anything is trained.

    Raises:
        IxtuneError: A reference is not of the form that the score needs, such as JSON; some records are named.
    """
    for name in names:
        wrong = []
        for index in indices:
            try:
                SCORES[name].part(Case("", answers.references_of(records.record(index))))
            except ValueError as error:
                wrong.append(f"{records.identity(index)}: {error}")
        if wrong:
            raise IxtuneError(
                f"{name} cannot judge answers to {len(wrong):,} of the {len(indices):,} records that would be scored",
                where="training.scores",
                hint=f"take {name} out of training.scores, or give these records other references",
                notes=wrong[:_NAMED_RECORDS],
            )


def measure(
    model: PeftModel,
    records: TrainingSet,
    indices: Sequence[int],
    names: Sequence[str],
    images: ImageSource,
    tokenizer: Tokenizer,
    batch_tokens: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Each score by its name, of greedy answers to the last question of some records.

    Of several processes each answers its share of the batches.

    Args:
        model: the network with its adapter; its mode is put back.
        records: the validation set.
        indices: which of them are asked.
        names: of the scores.
        images: where those of the records come from.
        tokenizer: the base's.
        batch_tokens: most tokens of a batch, padding and answers included. A step of training on a pack of as many
            keeps more of each token than generation does, whose cache is smaller than the inputs of all layers.
        dtype: of autocast.
    """
    sums = {name: [0.0, 0.0] for name in names}
    with answers.asking(model, dtype):
        for chosen in parallel.share(batches(records, indices, batch_tokens)):
            asked = [records.record(index) for index in chosen]
            for record, answer in zip(asked, answers.answer(model, asked, images, tokenizer), strict=True):
                case = Case(answer.text, answers.references_of(record))
                for name, parts in sums.items():
                    for place, value in enumerate(SCORES[name].part(case)):
                        parts[place] += value
    totals = parallel.total(*(value for parts in sums.values() for value in parts))
    return {name: totals[2 * at] / totals[2 * at + 1] for at, name in enumerate(sums)}


def batches(records: TrainingSet, indices: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Records to be answered together, those of similar length; one that is too long for a batch is alone."""

    def most_tokens(index: int) -> int:
        # prompt, and at most twice its answer: `answers.answer`
        return records.lengths[index] + records.supervised[index] + answers.SPARE_TOKENS

    made: list[list[int]] = []
    for index in sorted(indices, key=lambda index: (most_tokens(index), index)):
        if made and (len(made[-1]) + 1) * most_tokens(index) <= batch_tokens:
            made[-1].append(index)
        else:
            made.append([index])
    return made
