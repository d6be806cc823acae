"""Public functions of `import ixtune`: one per command, with the command's defaults.

Each imports what it needs when it is called. Errors are `ixtune.errors.IxtuneError`s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from ixtune.base import HUB_ID

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from ixtune.answering.answerer import Answer
    from ixtune.data.prepare import PrepareReport
    from ixtune.evaluation.evaluate import Evaluation
    from ixtune.exporting.export import ExportReport
    from ixtune.merging.merge import MergeReport
    from ixtune.model.model import IXC2ForCausalLM
    from ixtune.planning.plan import Plan
    from ixtune.processing import IXC2Processor
    from ixtune.recipe.recipe import Recipe
    from ixtune.training.run import Outcome

StrPath: TypeAlias = str | Path
Quantize: TypeAlias = Literal["nf4", "none"]

__all__ = ["evaluate", "export", "load_model", "load_processor", "merge", "plan", "predict", "prepare", "train"]


def prepare(
    sources: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    base: str = HUB_ID,
    hd_num: int | None = None,
    image_root: StrPath | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    question: str | None = None,
    system: str | None = None,
    split: str | None = None,
    config: str | None = None,
    dataset: str | None = None,
    encoding: str | None = None,
    image_pattern: str | None = None,
    missing_placeholder: Literal["front", "reject"] | None = None,
    allow_image_text: bool = False,
    ratios: bool = False,
    max_tokens: int | None = None,
    over_length: Literal["reject", "lower"] = "reject",
    upscale: bool = True,
    corrections: Sequence[str] = (),
    verify: bool = False,
    embed_images: bool = False,
    pages: Literal["one", "all"] = "one",
    dpi: int | None = None,
    exclude: StrPath | Sequence[StrPath] = (),
    near_duplicates: bool = False,
    val_fraction: float = 0.0,
    seed: int = 0,
    max_reject_rate: float = 0.01,
    workers: int = 1,
    model: str | None = None,
    layout_rule: str | None = None,
) -> PrepareReport:
    """Turn raw data into a prepared set: token ids, image layouts, and a list of rejected records.

    Args:
        sources: One or several files, folders, hub datasets or data configs (YAML), in any form `ixtune prepare` reads.
        out: Folder to write; it must not exist.
        base: Base whose tokenizer to use: `nano`, a folder, or a hub id.
        hd_num: Maximum number of 336x336 crops per image, unless a source or record says otherwise.
        image_root: Folder that image paths are relative to; by default the source's own.
        format: Form of the data, such as `csv` or `llava`; detected by default.
        columns: Our column names to theirs, for tables: `{"question": "q"}`.
        question: Question to ask of each row of a table without a question column.
        system: System prompt for records that have none.
        split: Split of a dataset, sheet of a workbook, or list of a JSON object, if there are several.
        config: Configuration of a hub dataset that has several.
        dataset: Data set to read from LLaMA-Factory's dataset_info.json.
        encoding: Text encoding of CSV and TSV files; by default UTF-8, or UTF-16 with a byte order mark.
        image_pattern: Path of each image with fields in braces, such as `{image_id:012d}.jpg`.
        missing_placeholder: Put images that no placeholder places in `front` of the first question, or `reject` the
            record; by default a single image goes in front and several are rejected.
        allow_image_text: Train marks such as <img> as text; by default records with them are rejected.
        ratios: Read the numbers in a data.txt as weights, not as thousands of records.
        max_tokens: Maximum tokens per record, image tokens included; no limit by default.
        over_length: Reject longer records, or lower their images' hd_num until they fit.
        upscale: Enlarge small images, as the reference does.
        corrections: Departures from the reference: `exif`, `alpha`, `depth`, `first-frame`.
        verify: Decode every image completely.
        embed_images: Copy the images into the set.
        pages: Take `all` pages of a TIFF that is named without a page, or reject it (`one`).
        dpi: Resolution of PDF pages; by default the one that fills the layout.
        exclude: Prepared sets whose images no record may show, such as a benchmark.
        near_duplicates: Treat images that look the same as one image in the split and for `exclude`.
        val_fraction: Fraction of records to put in `out/validation`; the others go to `out/train`.
        seed: Random seed for the split and for weighted sampling.
        max_reject_rate: Fraction of rejects above which `TooManyRejects` is raised; the set is written all the same.
        workers: Number of processes; any number gives the same bytes.
        model: `4khd` or `2.5`; by default as the base's tensors say.
        layout_rule: How 2.5 lays out images: `fine-tuning` (the default) or `inference`.

    Returns:
        Counts by source, reject reason and set.

    Raises:
        IxtuneError: A source, an option or the tokenizer is wrong; `out` does not exist then.

    Examples:
        >>> import ixtune
        >>> report = ixtune.prepare("questions.csv", "prepared", base="nano", hd_num=1, image_root="photos",
        ...     val_fraction=0.5)
        >>> report.read, report.accepted, report.rejected
        (8, 8, 0)
    """
    from ixtune.base import resolve_tokenizer
    from ixtune.checkpoint.member import member_for
    from ixtune.data.prepare import prepare as prepare_set
    from ixtune.data.prepared.manifest import Options
    from ixtune.data.sources.command_line import sources_given
    from ixtune.data.sources.data_config import format_of
    from ixtune.data.sources.source import Source

    container, schema = format_of(format) if format else (None, None)
    defaults = Source(
        path="",
        container=container,
        schema=schema,
        columns=tuple((columns or {}).items()),
        question=question,
        image_root=_path(image_root),
        system=system,
        split=split,
        config=config,
        encoding=encoding,
        image_pattern=image_pattern,
        missing_placeholder=missing_placeholder,
        allow_image_text=allow_image_text or None,
    )
    folder = resolve_tokenizer(base)
    member = member_for(base, folder, model, layout_rule)
    options = Options(
        model=member.name,
        layout_rule=member.rule.name,
        hd_num=hd_num,
        upscale=upscale,
        corrections=tuple(corrections),
        max_tokens=max_tokens,
        over_length=over_length,
        verify=verify,
        embed_images=embed_images,
        pages=pages,
        dpi=dpi,
        exclude=tuple(map(str, _several(exclude))),
        near_duplicates=near_duplicates,
        val_fraction=val_fraction,
        seed=seed,
    )
    given = [str(source) for source in _several(sources)]
    return prepare_set(
        sources_given(given, defaults, not ratios, dataset),
        Path(out),
        base=folder,
        options=options,
        max_reject_rate=max_reject_rate,
        workers=workers,
    )


def plan(
    recipe: Recipe | StrPath,
    overrides: Sequence[str] = (),
    *,
    gpu_gib: float | None = None,
    mix: str | None = None,
    processes: int = 1,
) -> Plan:
    """Estimate memory, steps and time of a training run before loading the model.

    Args:
        recipe: A recipe, its file, or the name of one that ships.
        overrides: Changes to it, as `section.key=value`.
        gpu_gib: Memory of the GPU to plan for, in GiB; the one found here by default.
        mix: Plan on 1,000 made-up records of this kind, such as `documents`, instead of on the recipe's data.
        processes: Number of processes that share the packs of a step.

    Returns:
        The plan; `fits` is None if nobody knows the memory there is.

    Raises:
        IxtuneError: The recipe, the data or the base are wrong, or a record is longer than a pack.

    Examples:
        >>> import ixtune
        >>> plan = ixtune.plan("documents", mix="documents", gpu_gib=22)
        >>> plan.steps, plan.fits
        (56, True)
    """
    from ixtune.planning.plan import make_plan
    from ixtune.planning.plan_inputs import open_for_plan

    chosen = _recipe(recipe, overrides)
    sizes, records, machine, _ = open_for_plan(chosen, gpu_gib, mix)
    return make_plan(chosen, sizes, records, machine, processes=processes)


def train(
    recipe: Recipe | StrPath,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    dry_run: bool = False,
    grace: float | None = None,
    quiet: bool = False,
) -> Outcome | None:
    """Train an adapter as the recipe says.

    Unlike the command, this does not write a report at the end: call `evaluate` with `report=` for one.

    Args:
        recipe: A recipe, its file, or the name of one that ships.
        overrides: Changes to it, as `section.key=value`; `resume=auto` resumes a run or starts a missing one.
        resume: Require an unfinished run in the output folder, and continue it.
        dry_run: Plan, load, take one step on the largest pack, and write nothing.
        grace: Seconds that the current step has to finish after a signal; no limit by default.
        quiet: Print nothing.

    Returns:
        Result of the run: the adapter folder and its step, or after Ctrl-C the last checkpoint. None after a dry run,
        or if `resume=auto` finds the run finished.

    Raises:
        IxtuneError: The recipe, the data, the base or the run folder are wrong, or training diverged.

    Examples:
        >>> import ixtune
        >>> outcome = ixtune.train("recipe.yaml", ["data.train=prepared/train", "output=run"], quiet=True)
        >>> outcome.steps, str(outcome.adapter)
        (2, 'run/adapter')
    """
    from rich.console import Console

    from ixtune.training.run import train as train_run

    console = Console(quiet=quiet, highlight=False)
    return train_run(_recipe(recipe, overrides), console, must_resume=resume, only_try=dry_run, grace_s=grace)


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
    quantize: Quantize | None = None,
    controls: bool = True,
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
        quantize: `nf4` or `none`; by default as each adapter was trained.
        controls: Add the blind control (images swapped) and the majority answer.
        force: Accept another base than an adapter was trained on.
        out: JSON file to write scores and answers to.
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
    from ixtune.evaluation.options import Options, Source, require_data
    from ixtune.files import atomic_write_json

    options = Options(tuple(scores), limit, batch_size, max_new_tokens, quantize, controls, force)
    source = Source(
        path=Path(data),
        benchmark=benchmark,
        image_root=_path(image_root),
        hd_num=hd_num,
        prompt=prompt,
        circular=circular,
    )
    require_data(source)
    named = [str(one) for one in _several(adapters)]
    who = contenders(base, named, [str(one) for one in _several(models)])
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
        question: The question; `<ImageHere>` marks where an image stands, by default in front.
        images: Image files; of a PDF all pages are shown, of `file.pdf#page=2` one.
        adapter: Adapter or run folder.
        base: `nano`, a checkpoint or merged folder, or a hub id; by default the base the adapter names.
        hd_num: Maximum number of crops per image; by default as trained, or 25.
        dpi: Pixels per inch of PDF pages; by default as many as fill the layout at hd_num.
        quantize: `nf4` or `none`; by default as the adapter was trained.
        template: `training`, or `original` with the system prompt of the original's chat.
        max_new_tokens: Maximum new tokens.
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
    from ixtune.evaluation.questions import require_given

    settings = Settings(
        max_new_tokens, do_sample, temperature, top_p, top_k, repetition_penalty, seed=seed, template=template
    )
    files = [str(image) for image in _several(images)]
    require_given(None, files)
    from ixtune.evaluation.predict import predict_one
    from ixtune.evaluation.session import Loaded

    loaded = Loaded(None if base is None else str(base), _path(adapter), quantize, force)
    return predict_one(loaded, question, files, replace(loaded.view(hd_num), dpi=dpi), settings)


def merge(
    adapters: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    base: str | None = None,
    weights: Sequence[float] | None = None,
    in_turn: bool = False,
    onto: Literal["bf16", "nf4"] = "bf16",
    force: bool = False,
) -> MergeReport:
    """Merge adapters into their base, write one checkpoint under the original names, and check it.

    After a kill the same call resumes.

    Args:
        adapters: Adapter or run folders.
        out: Folder to write; it must not exist.
        base: `nano`, a checkpoint folder or a hub id; by default the base the first adapter names.
        weights: Factor of each adapter's change: W + sum of wi (Wi - W).
        in_turn: Each adapter was trained on the base with those before it merged in.
        onto: `bf16`: the base as stored. `nf4`: its decoder linears as QLoRA training saw them.
        force: Accept another base than the one trained on.

    Returns:
        Adapters merged and result of the check.

    Raises:
        IxtuneError: An adapter or the base is wrong, the disk is full, or the check fails; `out` does not exist then.

    Examples:
        >>> import ixtune
        >>> report = ixtune.merge("run", "merged")
        >>> report.merged > 0, report.max_abs_error < 0.01
        (True, True)
    """
    from ixtune.adapter.weights import named_base
    from ixtune.base import resolve
    from ixtune.merging.merge import merge as merge_adapters

    folders = [Path(one) for one in _several(adapters)]
    found = resolve(base or named_base(folders[0]))
    return merge_adapters(folders, found, Path(out), weights=weights, in_turn=in_turn, onto=onto, force=force)


def export(
    adapter: StrPath,
    out: StrPath,
    profile: str,
    *,
    base: str | None = None,
    onto: Literal["bf16", "nf4"] = "bf16",
    force: bool = False,
) -> ExportReport:
    """Write an adapter in the form that one consumer loads, and check it.

    Args:
        adapter: Adapter or run folder.
        out: Folder to write; it must not exist.
        profile: `peft-original`, `transformers`, `original`, `lmdeploy-0.13` or `nf4`.
        base: `nano`, a checkpoint folder or a hub id; by default the base the adapter names.
        onto: What to merge onto, as in `merge`.
        force: Accept another base than the one trained on.

    Returns:
        The command that loads it, the checks, and what is known not to work.

    Raises:
        IxtuneError: The adapter or the base does not allow this profile, or a check fails; `out` does not exist then.

    Examples:
        >>> import ixtune
        >>> report = ixtune.export("run", "exported", "transformers")
        >>> all(check.passed for check in report.checks)
        True
    """
    from ixtune.adapter.weights import named_base
    from ixtune.base import resolve
    from ixtune.exporting.export import export as export_adapter

    folder = Path(adapter)
    found = resolve(base or named_base(folder))
    return export_adapter(folder, found, Path(out), profile, onto=onto, force=force)


def load_model(
    base: StrPath | None = None,
    *,
    adapter: StrPath | None = None,
    quantize: bool | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    force: bool = False,
) -> IXC2ForCausalLM | PeftModel:
    """Load a base, a merged model, or a base with an adapter, ready for `generate`.

    Args:
        base: `nano`, a checkpoint or merged folder, or a hub id; by default the base the adapter names.
        adapter: Adapter or run folder to put on it.
        quantize: Load the decoder linears in NF4; by default as the adapter was trained, else not.
        dtype: Type of all other weights; by default bfloat16 on a GPU, float32 elsewhere.
        device: Where to load to; by default the GPU if there is one.
        force: Accept another base than the adapter was trained on.

    Returns:
        The network in evaluation mode, or PEFT's model around it if there is an adapter.

    Raises:
        IxtuneError: Nothing is named, or the base or the adapter cannot be loaded.

    Examples:
        >>> import ixtune
        >>> model = ixtune.load_model(adapter="run")
        >>> type(model).__name__
        'PeftModelForCausalLM'
    """
    import torch

    from ixtune.adapter import bundle
    from ixtune.adapter.folder import read_info
    from ixtune.base import resolve
    from ixtune.checkpoint.identity import base_identity
    from ixtune.checkpoint.shards import open_checkpoint
    from ixtune.evaluation.contenders import contender
    from ixtune.model.loading import load_base

    named = contender(None if base is None else str(base), _path(adapter))
    folder = resolve(named.base)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    form = dtype or (torch.bfloat16 if place.startswith("cuda") else torch.float32)
    if quantize is None:
        quantize = named.adapter is not None and read_info(named.adapter).get("quantize") == "nf4"
    network, _ = load_base(folder, quantize=quantize, dtype=form, device=place)
    if named.adapter is None:
        return network
    model = bundle.load(network, named.adapter, base_identity(open_checkpoint(folder)), force)
    for parameter in model.parameters():  # trained parts come in fp32; without autocast all must have one type
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(form)
    return model


def load_processor(
    base: StrPath | None = None,
    *,
    adapter: StrPath | None = None,
    hd_num: int | None = None,
) -> IXC2Processor:
    """Load the processor that turns questions and images into the arguments of `generate`, and ids into text.

    Args:
        base: `nano`, a checkpoint or merged folder, or a hub id; by default the base the adapter names.
        adapter: Adapter or run folder; images are then laid out as in its training.
        hd_num: Maximum number of crops per image; by default as trained, or 25.

    Returns:
        A transformers processor.

    Raises:
        IxtuneError: Nothing is named, or the base has no tokenizer.

    Examples:
        >>> import ixtune
        >>> processor = ixtune.load_processor(adapter="run")
        >>> inputs = processor(images=["photos/0.png"], text="What is this?")
        >>> sorted(inputs)
        ['attention_mask', 'crops', 'grids', 'input_ids']
    """
    from ixtune.base import resolve_tokenizer
    from ixtune.checkpoint.member import member_for
    from ixtune.evaluation.contenders import contender
    from ixtune.evaluation.session import record_of, view_of
    from ixtune.processing import VOCABULARY_FILE, IXC2ImageProcessor, IXC2Processor, IXC2Tokenizer

    named = contender(None if base is None else str(base), _path(adapter))
    folder = resolve_tokenizer(named.base)
    view = view_of(record_of(folder, named.adapter), hd_num, member_for(named.base, folder))
    corrections, laid_out = view.corrections.names(), view.member.record()
    images = IXC2ImageProcessor(view.hd_num, view.upscale, corrections, **laid_out)
    return IXC2Processor(images, IXC2Tokenizer(str(folder / VOCABULARY_FILE)))


def _recipe(recipe: Recipe | StrPath, overrides: Sequence[str]) -> Recipe:
    """Return the recipe itself, or load it from its file or from those that ship."""
    from ixtune.errors import UsageError
    from ixtune.recipe import recipe as recipes
    from ixtune.recipe.shipped_recipes import recipe_named

    if isinstance(recipe, recipes.Recipe):
        if overrides:
            raise UsageError("overrides change a recipe file, not a Recipe", hint="use recipe.model_copy(update=...)")
        return recipe
    path = Path(recipe)
    return recipes.load(
        path if path.exists() or path.suffix in (".yaml", ".yml") else recipe_named(str(recipe)).path, overrides
    )


def _several(given: StrPath | Sequence[StrPath]) -> list[StrPath]:
    return [given] if isinstance(given, str | Path) else list(given)


def _path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)
