"""Run an evaluation: load one model after the other and ask each the same questions."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

import ixtune
from ixtune import base
from ixtune.answering.answerer import Answerer
from ixtune.answering.json_schema import JsonGrammar
from ixtune.answering.prompt import Prompt
from ixtune.answering.settings import Settings
from ixtune.checkpoint.member import member_in
from ixtune.data.benchmarks import BENCHMARKS, read
from ixtune.data.prepared import manifest, store
from ixtune.data.rejects import Reject
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError, UsageError
from ixtune.evaluation.compare import Answers, ask, blind_name, judged, majority, swapped
from ixtune.evaluation.contenders import Contender
from ixtune.evaluation.exam import Exam, exam_of, exam_of_items
from ixtune.evaluation.options import USUAL, EvaluationOptions, EvaluationSource, require_data
from ixtune.evaluation.session import Loaded, record_of, view_of
from ixtune.evaluation.shared_vectors import SharedVectors
from ixtune.family import FOUR_KHD, require_same
from ixtune.files import sha256_file
from ixtune.model.prefix_cache import PrefixCache
from ixtune.scores.case import Case
from ixtune.scores.judging import require_judgeable
from ixtune.training.monitoring.validation import mean_loss
from ixtune.training.processes import parallel

FORMAT = 2
PACK_TOKENS = 16384  # for the loss


Progress = Callable[[int, int], None]
"""Called with the number of new answers and the total number."""
Advance = Callable[[int], None]
Scores = tuple[str, ...]
_LEAST_TOKENS, _SPARE_TOKENS = 64, 32  # of an answer
_USUAL_SCORES = ("exact_match",)  # of a prepared set


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        content: Content of an evaluation file (format 2): `models`, `results`, `comparisons`, `answers`, and the data.
        rejects: Entries of the data that could not be asked.
    """

    content: dict[str, Any]
    rejects: tuple[Reject, ...]


def evaluate(
    source: EvaluationSource, models: Sequence[Contender], options: EvaluationOptions, progress: Progress | None = None
) -> Evaluation:
    """Ask every model the same questions and judge the answers.

    Processes that have joined (`ixtune.training.processes.parallel.join`) share the questions, and each returns the
    whole evaluation.

    Args:
        source: The questions.
        models: Models to ask; the others are compared with the first one.
        options: Settings of the evaluation.
        progress: Called after each batch.

    Raises:
        IxtuneError: Data or models cannot be used, or do not belong together.
    """
    exam, about, usual = _opened(source, models, options.limit)
    scores = options.scores or usual
    cases = [(one.id, Case("", one.references, one.options, one.kind)) for one in exam.questions]
    hint = "choose another score, or give these questions other references"
    require_judgeable(scores, cases, where="--score", hint=hint)
    blind: dict[str, list[Prompt]] = {}
    notes = _trained_on(models, about.get("manifest_sha256"))
    if options.controls and any(question.prompt.images for question in exam.questions):
        try:
            others = swapped(exam.questions)
        except IxtuneError:
            notes.append("The blind control is left out: it needs questions about different images.")
        else:
            blind = dict.fromkeys((one.name for one in _blinded(models)), others)
    if options.json_schema:
        notes += _schema_notes(options.json_schema, exam, Tokenizer.from_base(base.resolve(models[0].base)))
    total = (len(models) + len(blind)) * len(exam.questions)

    def advance(count: int) -> None:
        if progress is not None:
            progress(count, total)

    answered, described = [], []
    longest = options.max_new_tokens or _longest(exam)
    vectors = SharedVectors(exam.files)
    for group in _groups(models):
        chosen = replace(options, max_new_tokens=longest)
        for answers, description in _asked(group, exam, blind, vectors, chosen, advance):
            answered.append(answers)
            described += [description] if description else []
        vectors.release()
        gc.collect()  # free this model before loading the next
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    answered.sort(key=lambda one: one.control)
    if options.controls:
        answered.append(majority(exam.questions))
    found = judged(exam.questions, answered, scores)
    for question, row in zip(exam.questions, found["answers"], strict=True):
        row["pictures"] = [_image(exam, stored) for stored in question.prompt.images]
    content = {
        "format": FORMAT,
        "ixtune_version": ixtune.__version__,
        "data": str(source.path),
        **about,
        "max_new_tokens": longest,
        "json_schema": json.loads(options.json_schema) if options.json_schema else None,
        "records": len(exam.questions),
        "rejected": len(exam.rejects),
        "notes": notes,
        "scores": list(scores),
        "main_score": scores[0],
        "models": described,
        **found,
    }
    return Evaluation(content, exam.rejects)


def _opened(
    source: EvaluationSource, models: Sequence[Contender], limit: int | None
) -> tuple[Exam, dict[str, Any], Scores]:
    """Return the questions, facts about them for the file, and their usual scores."""
    require_data(source)
    if source.benchmark is None:
        prepared = store.load(source.path, source.image_root)
        about: dict[str, Any] = {"manifest_sha256": sha256_file(source.path / manifest.MANIFEST)}
        return exam_of(prepared, limit), about, _USUAL_SCORES
    items = read(source.benchmark, source.path, source.image_root, images=source.images, circular=source.circular)
    if source.circular and not any(item.options for item in items.items):
        raise UsageError("no question has options to reorder", where="--circular", hint="remove --circular")
    benchmark = BENCHMARKS[source.benchmark]
    prompt = benchmark.prompt if source.prompt == USUAL else source.prompt
    trained = next((one for one in models if record_of(base.resolve(one.base), one.adapter)), models[0])
    record = record_of(base.resolve(trained.base), trained.adapter)
    member = member_in(base.resolve(trained.base)) or FOUR_KHD
    usual = benchmark.hd_num and member.like(benchmark.hd_num)
    view = view_of(record, source.hd_num, member, usual)
    exam = exam_of_items(items, prompt, view, Tokenizer.from_base(base.resolve(models[0].base)), limit)
    file = {"file_sha256": sha256_file(source.path)} if source.path.is_file() else {}
    about = {
        "benchmark": benchmark.name,
        **file,
        "prompt": prompt,
        "hd_num": view.hd_num,
        "circular": source.circular,
        "skipped": items.skipped,
    }
    return exam, about, benchmark.scores


def _trained_on(models: Sequence[Contender], manifest_sha256: str | None) -> list[str]:
    """Return a note for each model whose record names this prepared set as training data."""
    notes = []
    for one in models:
        folder = base.resolve(one.base)
        records = [record_of(folder, None), *([record_of(folder, one.adapter)] if one.adapter else [])]
        if manifest_sha256 in {trained for record in records for trained in _training_sets(record)}:
            notes.append(f"{one.name} was trained on this set: its scores do not show what it does on new data.")
    return notes


def _training_sets(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the manifest hashes of the sets that a model, its parts and its ancestors were trained on."""
    yield from ((record.get("data") or {}).get("manifest_sha256") or {}).values()
    for part in (*(record.get("ancestors") or ()), *(record.get("adapters") or ())):
        yield from _training_sets(part)


def _schema_notes(schema: str, exam: Exam, tokenizer: Tokenizer) -> list[str]:
    """Return that answers were constrained to a schema, and how many questions have no reference that follows it."""
    grammar = JsonGrammar(schema, tokenizer)
    fit = [any(grammar.fits(tokenizer.encode(one)) for one in question.references) for question in exam.questions]
    notes = ["Every answer was constrained to the JSON schema of --json-schema."]
    if missing := fit.count(False):
        notes.append(f"{missing} of {len(fit)} questions have no reference that follows the schema, keys in its order.")
    return notes


def _longest(exam: Exam) -> int:
    """Return enough tokens for the longest reference, and to show an answer that does not end."""
    return max(_LEAST_TOKENS, _SPARE_TOKENS + max(int(row["supervised_tokens"]) for row in exam.rows.rows))


def _blinded(models: Sequence[Contender]) -> Sequence[Contender]:
    """Return the models that also answer with swapped images: the adapters; a merged model would answer the same."""
    return [one for one in models if one.adapter] or models[1:] or models


def _groups(models: Sequence[Contender]) -> Iterator[list[Contender]]:
    """Yield models to load together: a base with the first adapter on it, and each other one alone."""
    waiting = list(models)
    while waiting:
        one = waiting.pop(0)
        partner = next((other for other in waiting if other.adapter and other.base == one.base), None)
        if one.adapter is None and partner is not None:
            waiting.remove(partner)
            yield [one, partner]
        else:
            yield [one]


def _asked(
    group: Sequence[Contender],
    exam: Exam,
    blind: Mapping[str, Sequence[Prompt]],
    vectors: SharedVectors,
    options: EvaluationOptions,
    advance: Advance,
) -> Iterator[tuple[Answers, dict[str, Any] | None]]:
    """Load a group and let each answer; yield the answers with a description of the model, or None for a control."""
    loaded = Loaded(group[-1].base, group[-1].adapter, options.quantize, options.force)
    if exam.manifest is not None:
        manifest.check_compatible(exam.manifest, loaded.tokenizer.sha256, loaded.member)
    if exam.tokenizer_sha256 not in (None, loaded.tokenizer.sha256):
        raise IxtuneError(
            "the models have different vocabularies",
            where=group[-1].base,
            hint="evaluate them separately: losses in tokens of different vocabularies cannot be compared",
        )
    shown = next((question.prompt.member for question in exam.questions if question.prompt.images), loaded.member)
    hint = "evaluate models of one member of the family at a time"
    require_same(shown, loaded.member, "the layout of the images", group[-1].base, hint)
    images = vectors.source(loaded)
    assert options.max_new_tokens is not None
    settings = Settings(options.max_new_tokens, json_schema=options.json_schema)
    for one in group:
        with loaded.autocast(), loaded.as_base() if one.adapter is None else nullcontext(loaded.model) as model:
            answerer = Answerer(model, loaded.tokenizer, images, settings)
            prompts: dict[str, Sequence[Prompt]] = {one.name: [question.prompt for question in exam.questions]}
            if one.name in blind:
                prompts[blind_name(one.name)] = blind[one.name]
            loss = mean_loss(model, exam.rows, images, PACK_TOKENS, loaded.dtype) if options.loss else None
            answers, *controls = ask(answerer, prompts, options.batch_size, advance)
            answers = replace(answers, loss=loss)
            yield answers, _described(one, loaded, answers, answerer.prefixes)
            yield from ((replace(control, control=True), None) for control in controls)


def _described(one: Contender, loaded: Loaded, answers: Answers, prefixes: PrefixCache) -> dict[str, Any]:
    """Return the description of this model, and the cost of its answers."""
    weights = loaded.description()
    computed, reused = parallel.total(prefixes.computed, prefixes.reused)
    return {
        "name": one.name,
        "base": one.base,
        "adapter": str(one.adapter) if one.adapter else None,
        **weights,
        "adapter_sha256": weights["adapter_sha256"] if one.adapter else None,
        "hd_num": loaded.hd_num,
        "generate_s": answers.seconds,
        "answer_tokens": answers.tokens,
        "unfinished": answers.unfinished,
        "prefixes": {
            "computed": int(computed),
            "reused": int(reused),
            "peak_bytes": parallel.largest(prefixes.peak_bytes),
        },
    }


def _image(exam: Exam, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the path and layout of an image."""
    sizes = {"width": stored["width"], "height": stored["height"], "rows": stored["rows"], "columns": stored["cols"]}
    return {"path": str(exam.files.path(stored)), **sizes, "tokens": stored["tokens"]}
