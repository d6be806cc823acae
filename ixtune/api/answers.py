"""The public functions that ask models: scores and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ixtune.api.arguments import JsonSchema, Quantize, StrPath, path_of, schema_of, several_of

if TYPE_CHECKING:
    from ixtune.answering.answerer import Answer
    from ixtune.evaluation.evaluate import Evaluation


def evaluate(
    data: StrPath,
    *,
    adapters: StrPath | Sequence[StrPath] = (),
    base: str | None = None,
    models: StrPath | Sequence[StrPath] = (),
    scores: Sequence[str] = (),
    benchmark: str | None = None,
    image_root: StrPath | None = None,
    hd_num: int | None = None,
    prompt: str = "{question}",
    circular: bool = False,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    json_schema: JsonSchema | None = None,
    quantize: Quantize | None = None,
    controls: bool = True,
    loss: bool = True,
    force: bool = False,
    out: StrPath | None = None,
    report: StrPath | None = None,
) -> Evaluation:
    """Ask base, adapters and merged models the same questions, and score the answers with 95 % intervals.

    Args:
        data: A prepared set that was not trained on; with `benchmark`, that benchmark's file.
        adapters: Adapter or run folders, each as PATH or NAME=PATH.
        base: `nano`, a checkpoint folder or a hub id; by default the base that each adapter names.
        models: Merged or exported models, each as PATH or NAME=PATH.
        scores: Names of scores, the main one first; by default those usual for the data.
        benchmark: `docvqa`, `infographicvqa`, `chartqa`, `textvqa`, `ocrbench`, `mmbench`, or `questions`.
        image_root: Folder of the benchmark's images; by default the folder of its file.
        hd_num: Maximum number of crops per image of a benchmark; by default as trained.
        prompt: How to ask a benchmark's question, with `{question}`; `benchmark` for the usual wording.
        circular: Ask multiple-choice questions in every order of their options (CircularEval).
        limit: Maximum number of questions.
        batch_size: Number of questions to answer at a time.
        max_new_tokens: Maximum new tokens per answer; by default enough for the longest reference, at least 64.
        json_schema: JSON schema that every answer follows, or its file; by default answers are free text.
        quantize: `nf4` or `none`; by default as each adapter was trained.
        controls: Add the blind control (images swapped) and the majority answer.
        loss: Measure the loss of the first references, which takes time.
        force: Accept another base than an adapter was trained on.
        out: JSON file to write scores and answers to; replaces an earlier evaluation.
        report: Folder to write report.html, report.md and report.json to; `adapters` must be run folders.

    Returns:
        Scores, comparisons and answers in `content`, and the questions that could not be asked.

    Raises:
        IxtuneError: The data, a model or an option is wrong, or a score cannot be measured on these questions.

    Examples:
        >>> import ixtune
        >>> found = ixtune.evaluate("prepared/validation", adapters="run", scores=["anls"], max_new_tokens=4)
        >>> [one["name"] for one in found.content["results"]]
        ['base', 'adapter', 'adapter, images swapped', 'majority answer']
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from ixtune.evaluation.contenders import contenders
    from ixtune.evaluation.options import EvaluationOptions, EvaluationSource, refuse_other_file, require_data
    from ixtune.files import atomic_write_json

    if out is not None:
        refuse_other_file(Path(out))
    schema = schema_of(json_schema)
    options = EvaluationOptions(
        tuple(map(str, several_of(scores))), limit, batch_size, max_new_tokens, quantize, controls, loss, force, schema
    )
    source = EvaluationSource(
        path=Path(data),
        benchmark=benchmark,
        image_root=path_of(image_root),
        hd_num=hd_num,
        prompt=prompt,
        circular=circular,
    )
    require_data(source)
    named = [str(one) for one in several_of(adapters)]
    who = contenders(base, named, [str(one) for one in several_of(models)])
    from ixtune.evaluation.evaluate import evaluate as evaluate_all

    with TemporaryDirectory() as folder:
        images = Path(f"{out}.pictures") if out else Path(folder)
        found = evaluate_all(replace(source, images=images), who, options)
        if out is not None:
            atomic_write_json(Path(out), found.content)
        if report is not None:
            from ixtune.report import report as write_report

            kept = Path(out) if out is not None else Path(folder) / "evaluation.json"
            if out is None:
                atomic_write_json(kept, found.content)
            runs = [Path(one if Path(one).exists() else one.partition("=")[2]) for one in named]
            write_report(runs, Path(report), [kept])
    return found


def predict(
    question: str,
    images: StrPath | Sequence[StrPath] = (),
    *,
    adapter: StrPath | None = None,
    base: StrPath | None = None,
    hd_num: int | None = None,
    dpi: int | None = None,
    quantize: Quantize | None = None,
    template: Literal["training", "original"] = "training",
    max_new_tokens: int = 256,
    json_schema: JsonSchema | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    force: bool = False,
) -> Answer:
    """Load a model and answer one question about images. For many questions load it once, with `load_model`.

    Args:
        question: The question; `<ImageHere>` marks the position of an image; by default images come first.
        images: Image files; of a PDF all pages are shown, of `file.pdf#page=2` one.
        adapter: Adapter or run folder.
        base: `nano`, a checkpoint or merged folder, or a hub id; by default the base the adapter names.
        hd_num: Maximum number of crops per image; by default as trained, or 25.
        dpi: Pixels per inch of PDF pages; by default as many as fill the layout at hd_num.
        quantize: `nf4` or `none`; by default as the adapter was trained.
        template: `training`, or `original` with the system prompt of the original's chat.
        max_new_tokens: Maximum new tokens.
        json_schema: JSON schema that the answer follows, or its file; by default the answer is free text.
        do_sample: Sample tokens instead of taking the most likely one.
        temperature: Divide the logits by this when sampling.
        top_p: Sample from the most likely tokens that together have this probability.
        top_k: Sample from this number of most likely tokens; 0 for all.
        repetition_penalty: Make tokens that occurred before less likely; 1 for no penalty.
        seed: Random seed for sampling.
        force: Accept another base than the adapter was trained on.

    Returns:
        The answer's text, its number of tokens, and whether it ended or was cut off.

    Raises:
        IxtuneError: A model or image cannot be read, or an option is wrong.

    Examples:
        >>> import ixtune
        >>> answer = ixtune.predict("What is this?", "photos/0.png", adapter="run", max_new_tokens=4)
        >>> answer.tokens <= 4
        True
    """
    from dataclasses import replace

    from ixtune.answering.settings import Settings
    from ixtune.errors import require_at_least
    from ixtune.evaluation.questions import require_given

    settings = Settings(
        max_new_tokens,
        do_sample,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        seed=seed,
        template=template,
        json_schema=schema_of(json_schema),
    )
    require_at_least("dpi", dpi, 1)
    files = [str(image) for image in several_of(images)]
    require_given(None, files)
    from ixtune.evaluation.predict import predict_one
    from ixtune.evaluation.session import Loaded

    loaded = Loaded(None if base is None else str(base), path_of(adapter), quantize, force)
    return predict_one(loaded, question, files, replace(loaded.view(hd_num), dpi=dpi), settings)
