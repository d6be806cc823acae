"""The same prompts to the adapter on its base and to the merged model: logits compared, greedy answers compared.

Weights are rounded when they are merged, so a merged model in bf16 is not the adapter to the last bit. How much that
matters, its answers say.
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
from ixtune.data.images.pixels import Corrections
from ixtune.data.prepared import manifest, store
from ixtune.data.processor_files import DEFAULT_HD_NUM
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.evaluation.questions import Asked, Question, View, from_file, from_set
from ixtune.evaluation.session import Loaded
from ixtune.files import atomic_write_json
from ixtune.merging.merge import REPORT_FILE
from ixtune.merging.merge_plan import Onto
from ixtune.training.batch import ImageSource

ENOUGH = 0.9  # of the answers must be the same; rounding to bf16 may turn one whose two likeliest tokens are near
LONGEST_TOKENS = 64  # of an answer
_COMPARED_TOKENS = 16  # of each answer, with all logits kept on the CPU: 6 MB a question at the 7B's vocabulary


@dataclass(frozen=True, slots=True)
class Side:
    """The merged model beside the adapter on one base.

    Attributes:
        base: The base the adapter was put on: as stored, or its decoder linears in NF4.
        max_logit_difference: The largest over all questions, vocabulary and the first tokens of the adapter's answers.
        mean_logit_difference: Their mean.
        adapter_effect: The mean by which the adapter itself moves these logits on this base.
        same_answers: Greedy answers that are the same to the last token.
    """

    base: Onto
    max_logit_difference: float
    mean_logit_difference: float
    adapter_effect: float
    same_answers: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What the comparison found.

    Attributes:
        questions: How many were asked.
        sides: One for each base; the first is the one that was merged onto.
        closer: The base on which the adapter answers most like the merged model; None if only one was asked.
        passed: Whether enough answers are those of the adapter on the base merged onto, and the logits nearer to the
            adapter's than to those without it.
    """

    questions: int
    sides: tuple[Side, ...]
    closer: Onto | None
    passed: bool


@dataclass(frozen=True, slots=True)
class _Said:
    """One answer: prompt and answer as ids, and the logits that chose its first tokens, fp32 [tokens, V]."""

    ids: list[int]
    prompt_tokens: int
    logits_TV: torch.Tensor


def questions_for(adapter: Path, base: Path, source: Path, limit: int) -> Asked:
    """The first questions of a prepared set or a `.jsonl` file, shown as the adapter's training saw images.

    Raises:
        IxtuneError: They cannot be read, or none is left to ask.
    """
    tokenizer = Tokenizer.from_base(base)
    if source.is_dir():
        prepared = store.load(source)
        manifest.check_compatible(prepared.manifest, tokenizer.sha256)
        chosen = prepared.dataset.select(range(min(limit, len(prepared.dataset))))
        asked = from_set(replace(prepared, dataset=chosen))
    else:
        record = read_adapter(adapter).record
        view = View(
            int(record.get("hd_num") or DEFAULT_HD_NUM),
            bool(record.get("upscale", True)),
            Corrections.of(record.get("corrections", ())),
        )
        asked = from_file(source, None, view, tokenizer)
    if asked.rejects:
        first = asked.rejects[0]
        raise IxtuneError(
            f"{len(asked.rejects)} lines cannot be asked, the first: {first.found}", where=str(source), hint=first.hint
        )
    if not asked.questions:
        raise IxtuneError("there is no question to ask", where=str(source), hint="give a set that holds records")
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
) -> Verification:
    """Compare, and write what was found into the merged model's report.

    One model is loaded at a time.

    Args:
        adapter: The one that was merged.
        base: The base it was merged into.
        merged: What came out.
        asked: From `questions_for`.
        onto: The bases to put the adapter on; first the one that was merged onto.
        force: Accept another base than the adapter was trained on.
        progress: Told of each question that one model has answered.
    """

    def tell() -> None:
        if progress is not None:
            progress(1)

    spoken: list[tuple[list[_Said], float]] = []
    dtype = None
    for kind in onto:
        loaded = Loaded(base, adapter, "nf4" if kind == "nf4" else "none", force)
        dtype = loaded.dtype
        said, effect = [], 0.0
        for question in asked.questions:
            said.append(_answer(loaded, asked, question))
            with loaded.as_base():
                effect += (_logits(loaded, asked, question, said[-1]) - said[-1].logits_TV).abs().mean().item()
            tell()
        spoken.append((said, effect / len(said)))
        del loaded
        _free()
    loaded = Loaded(str(merged), None, "none")
    if loaded.dtype != dtype:
        raise IxtuneError(
            f"the merged model computes in {loaded.dtype}, the adapter in {dtype}",
            where=str(merged),
            hint="merge again: ixtune.json in that folder is not that of this merge",
        )
    greedy = []
    for question in asked.questions:
        greedy.append(_ids(loaded, asked, question)[0])
        tell()
    sides = []
    for kind, (said, effect) in zip(onto, spoken, strict=True):
        differences = [
            (_logits(loaded, asked, question, one) - one.logits_TV).abs()
            for question, one in zip(asked.questions, said, strict=True)
        ]
        sides.append(
            Side(
                base=kind,
                max_logit_difference=max(one.max().item() for one in differences),
                mean_logit_difference=sum(one.mean().item() for one in differences) / len(differences),
                adapter_effect=effect,
                same_answers=sum(one.ids == ids for one, ids in zip(said, greedy, strict=True)),
            )
        )
    del loaded
    _free()
    found = Verification(len(greedy), tuple(sides), _closer(sides), _passes(sides[0], len(greedy)))
    path = merged / REPORT_FILE
    atomic_write_json(path, json.loads(path.read_bytes()) | {"answers": asdict(found)})
    return found


def _passes(side: Side, questions: int) -> bool:
    near = side.mean_logit_difference < side.adapter_effect or side.adapter_effect == side.mean_logit_difference == 0
    return near and side.same_answers >= ENOUGH * questions


def _closer(sides: Sequence[Side]) -> Onto | None:
    return min(sides, key=lambda side: side.mean_logit_difference).base if len(sides) > 1 else None


class _Ids(BaseStreamer):
    """Collects the ids of the prompt and of what follows."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        """Nothing is held back."""


def _ids(loaded: Loaded, asked: Asked, question: Question) -> tuple[list[int], int]:
    """Ids of prompt and greedy answer together, and how many are the prompt's."""
    collected = _Ids()
    answerer = Answerer(loaded.model, loaded.tokenizer, ImageSource(asked.files), Settings(LONGEST_TOKENS))
    with loaded.autocast():
        answerer.answer([question.prompt], collected)
    return collected.ids, len(question.prompt.ids(loaded.tokenizer))


def _answer(loaded: Loaded, asked: Asked, question: Question) -> _Said:
    ids, prompt_tokens = _ids(loaded, asked, question)
    unheard = _Said(ids, prompt_tokens, torch.empty(0))
    return replace(unheard, logits_TV=_logits(loaded, asked, question, unheard))


def _logits(loaded: Loaded, asked: Asked, question: Question, said: _Said) -> torch.Tensor:
    """The model's logits where the first tokens of that answer are chosen, fp32 [tokens, V] on the CPU."""
    ids = said.ids[: said.prompt_tokens + _COMPARED_TOKENS][:-1]  # no token is chosen behind the last
    device = next(loaded.model.parameters()).device
    images: dict[str, Any] = ImageSource(asked.files).of([{"pictures": question.prompt.images}])
    images = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in images.items()}
    with torch.no_grad(), loaded.autocast():
        out = loaded.model(
            input_ids=torch.tensor([ids], device=device), logits_to_keep=len(ids) - said.prompt_tokens + 1, **images
        )
    logits_TV: torch.Tensor = out.logits[0].float().cpu()
    return logits_TV


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
