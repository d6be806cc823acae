"""Compare logits and greedy answers of a merged model with those of the adapter on its base.

Merging rounds the weights, so a merged model in bf16 differs from the adapter in the last bits. Its answers show how
much that matters.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from ixtune.adapter.weights import read_adapter
from ixtune.answering.answerer import Answerer
from ixtune.answering.settings import Settings
from ixtune.checkpoint.member import member_in
from ixtune.data.prepared import manifest, store
from ixtune.data.sources.source import Source
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.evaluation.questions import Asked, Question, from_file, from_set
from ixtune.evaluation.session import Loaded, view_of
from ixtune.family import FOUR_KHD
from ixtune.files import atomic_write_json
from ixtune.merging.merge import REPORT_FILE
from ixtune.merging.merge_plan import Onto
from ixtune.training.batch import ImageSource

ENOUGH = 0.9  # share of equal answers to pass; rounding to bf16 may change one whose two top tokens are close
LONGEST_TOKENS = 64  # maximum new tokens per answer
_COMPARED_TOKENS = 16  # tokens per answer whose logits are compared on the CPU: 6 MB a question for the 7B


@dataclass(frozen=True, slots=True)
class Side:
    """Comparison of the merged model with the adapter on one base.

    Attributes:
        base: The adapter's base: as stored, or with its decoder linears in NF4.
        max_logit_difference: Maximum over all questions, the vocabulary and the first tokens of the adapter's answers.
        mean_logit_difference: Mean over the same.
        adapter_effect: Mean change of these logits by the adapter itself.
        same_answers: Number of identical greedy answers.
    """

    base: Onto
    max_logit_difference: float
    mean_logit_difference: float
    adapter_effect: float
    same_answers: int


@dataclass(frozen=True, slots=True)
class MergeVerification:
    """Result of the comparison.

    Attributes:
        questions: Number of questions.
        sides: One comparison per base; the first is the base of the merge.
        closer: Base on which the adapter's logits are closest to the merged model's; None with a single base.
        passed: Whether enough answers equal the adapter's on the base of the merge, and the logits are closer to the
            adapter's than to the base's.
    """

    questions: int
    sides: tuple[Side, ...]
    closer: Onto | None
    passed: bool


@dataclass(frozen=True, slots=True)
class _Reply:
    """Answer: ids of prompt and answer, and the logits of its first tokens, fp32 [tokens, V]."""

    ids: list[int]
    prompt_tokens: int
    logits_TV: torch.Tensor


def questions_for(adapter: Path, base: Path, source: Path, limit: int) -> Asked:
    """Return the first questions of a prepared set or a `.jsonl` file, in the image layout of the adapter's training.

    Raises:
        IxtuneError: They cannot be read, or there are none.
    """
    tokenizer, member = Tokenizer.from_base(base), member_in(base) or FOUR_KHD
    if source.is_dir():
        prepared = store.load(source)
        manifest.check_compatible(prepared.manifest, tokenizer.sha256, member)
        chosen = prepared.dataset.select(range(min(limit, len(prepared.dataset))))
        asked = from_set(replace(prepared, dataset=chosen))
    else:
        view = view_of(read_adapter(adapter).record, None, member)
        asked = from_file(Source(path=str(source)), view, tokenizer)
    if asked.rejects:
        first = asked.rejects[0]
        raise IxtuneError(
            f"{len(asked.rejects)} lines cannot be asked, the first: {first.found}", where=str(source), hint=first.hint
        )
    if not asked.questions:
        raise IxtuneError("there is no question to ask", where=str(source), hint="pass a set that holds records")
    return replace(asked, questions=asked.questions[:limit])


def verify_merge(
    adapter: Path,
    base: str,
    merged: Path,
    asked: Asked,
    *,
    onto: Sequence[Onto],
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> MergeVerification:
    """Compare the models one after the other, and write the result into the merged model's report.

    Args:
        adapter: The merged adapter.
        base: The base it was merged into.
        merged: Folder of the merged model.
        asked: Questions, from `questions_for`.
        onto: Bases for the adapter; first the one of the merge.
        force: Accept another base than the adapter was trained on.
        progress: Called after each question that one model has answered.
    """

    def advance() -> None:
        if progress is not None:
            progress(1)

    of_adapter: list[tuple[list[_Reply], float]] = []
    dtype = None
    for kind in onto:
        loaded = Loaded(base, adapter, "nf4" if kind == "nf4" else "none", force)
        dtype = loaded.dtype
        replies, effect = [], 0.0
        for question in asked.questions:
            replies.append(_answer(loaded, asked, question))
            with loaded.as_base():
                effect += (_logits(loaded, asked, question, replies[-1]) - replies[-1].logits_TV).abs().mean().item()
            advance()
        of_adapter.append((replies, effect / len(replies)))
        del loaded
        _free()
    loaded = Loaded(str(merged), None, "none")
    if loaded.dtype != dtype:
        raise IxtuneError(
            f"the merged model computes in {loaded.dtype}, the adapter in {dtype}",
            where=str(merged),
            hint="merge again: ixtune.json in that folder belongs to another merge",
        )
    greedy = []
    for question in asked.questions:
        greedy.append(_ids(loaded, asked, question)[0])
        advance()
    sides = []
    for kind, (replies, effect) in zip(onto, of_adapter, strict=True):
        differences = [
            (_logits(loaded, asked, question, one) - one.logits_TV).abs()
            for question, one in zip(asked.questions, replies, strict=True)
        ]
        sides.append(
            Side(
                base=kind,
                max_logit_difference=max(one.max().item() for one in differences),
                mean_logit_difference=sum(one.mean().item() for one in differences) / len(differences),
                adapter_effect=effect,
                same_answers=sum(one.ids == ids for one, ids in zip(replies, greedy, strict=True)),
            )
        )
    del loaded
    _free()
    found = MergeVerification(len(greedy), tuple(sides), _closer(sides), _passes(sides[0], len(greedy)))
    path = merged / REPORT_FILE
    atomic_write_json(path, json.loads(path.read_bytes()) | {"answers": asdict(found)})
    return found


def _passes(side: Side, questions: int) -> bool:
    near = side.mean_logit_difference < side.adapter_effect or side.adapter_effect == side.mean_logit_difference == 0
    return near and side.same_answers >= ENOUGH * questions


def _closer(sides: Sequence[Side]) -> Onto | None:
    return min(sides, key=lambda side: side.mean_logit_difference).base if len(sides) > 1 else None


class _Ids(BaseStreamer):
    """Collects the ids of prompt and answer."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        """Do nothing: no tokens are buffered."""


def _ids(loaded: Loaded, asked: Asked, question: Question) -> tuple[list[int], int]:
    """Return the ids of prompt and greedy answer, and the number of the prompt's."""
    collected = _Ids()
    answerer = Answerer(loaded.model, loaded.tokenizer, ImageSource(asked.files), Settings(LONGEST_TOKENS))
    with loaded.autocast():
        answerer.answer([question.prompt], collected)
    return collected.ids, len(question.prompt.ids(loaded.tokenizer, member=loaded.member))


def _answer(loaded: Loaded, asked: Asked, question: Question) -> _Reply:
    ids, prompt_tokens = _ids(loaded, asked, question)
    reply = _Reply(ids, prompt_tokens, torch.empty(0))
    return replace(reply, logits_TV=_logits(loaded, asked, question, reply))


def _logits(loaded: Loaded, asked: Asked, question: Question, reply: _Reply) -> torch.Tensor:
    """Return the model's logits at the first tokens of an answer, fp32 [tokens, V] on the CPU."""
    ids = reply.ids[: reply.prompt_tokens + _COMPARED_TOKENS][:-1]  # no token follows the last
    device = next(loaded.model.parameters()).device
    images: dict[str, Any] = ImageSource(asked.files).of([{"pictures": question.prompt.images}])
    images = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in images.items()}
    with torch.no_grad(), loaded.autocast():
        out = loaded.model(
            input_ids=torch.tensor([ids], device=device), logits_to_keep=len(ids) - reply.prompt_tokens + 1, **images
        )
    logits_TV: torch.Tensor = out.logits[0].float().cpu()
    return logits_TV


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
