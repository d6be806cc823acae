"""`ixtune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ixtune.cli.options import (
    AdapterOption,
    BaseOption,
    DoSampleOption,
    DpiOption,
    ForceOption,
    HdNumOption,
    ImageRootOption,
    JsonSchemaOption,
    MaxNewTokensOption,
    QuantizeOption,
    RepetitionPenaltyOption,
    SeedOption,
    TemperatureOption,
    TemplateOption,
    TopKOption,
    TopPOption,
)
from ixtune.cli.processes import ProcessesOption, is_first, joined, launch_several

if TYPE_CHECKING:
    from ixtune.answering.settings import Settings
    from ixtune.evaluation.predict import Predicted
    from ixtune.evaluation.questions import Asked, ImageView
    from ixtune.evaluation.session import Loaded

_REJECTS_SHOWN = 3
_TABLES = (".csv", ".tsv", ".xlsx", ".parquet")


def command(
    context: typer.Context,
    question: Annotated[
        str | None, typer.Argument(help="The question; <ImageHere> marks where an image goes, by default in front.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="Image, or page of a document (scan.pdf#page=2); repeat for several. With --out also a folder or a "
            "pattern such as 'scans/*.pdf'."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Questions to answer: JSON Lines, CSV or any other form that prepare reads, a prepared set, or a "
            "folder of images to ask the question about.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the answers to this .jsonl file; --image then asks about each image.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="OURS=THEIRS,...", help="Names of fields with --from, as in prepare: question=q,image=file,id=key."
        ),
    ] = "",
    image_root: ImageRootOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Answer only the first N questions. Default: all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of questions answered at once.")] = 8,
    adapter: AdapterOption = None,
    base: BaseOption = None,
    hd_num: HdNumOption = None,
    dpi: DpiOption = None,
    quantize: QuantizeOption = None,
    template: TemplateOption = "training",
    max_new_tokens: MaxNewTokensOption = 256,
    json_schema: JsonSchemaOption = None,
    do_sample: DoSampleOption = False,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: SeedOption = 0,
    force: ForceOption = False,
    processes: ProcessesOption = 1,
) -> None:
    """Answer one question, or every question in a file, about images and pages of documents.

    Questions about the same image are answered together: the image is computed once. Rerun the command to resume
    an unfinished file.

    Example: ixtune predict "What is the total?" --image receipt.png --adapter runs/receipts

    Example: ixtune predict --from questions.csv --adapter runs/receipts --out answers.jsonl

    Example: ixtune predict "What is the total?" --image 'scans/*.pdf' --adapter runs/receipts --out answers.jsonl

    Example: ixtune predict "Read this receipt." --image receipt.png --adapter runs/receipts --json-schema receipt.json
    """
    from ixtune.answering.json_schema import read_schema
    from ixtune.answering.settings import Settings
    from ixtune.base import resolve
    from ixtune.cli.console import quiet_libraries
    from ixtune.data.containers.container_detection import container_of
    from ixtune.data.image_arguments import expand, is_prepared, require_single
    from ixtune.errors import UsageError
    from ixtune.evaluation.contenders import contender, require_form
    from ixtune.evaluation.questions import require_given
    from ixtune.files import refuse_existing

    # check the options before slow imports and before loading a model
    images = image or []
    if question is None and source is None:
        raise UsageError("there is no question", hint="pass a question, or --from FILE; see ixtune predict --help")
    if source is not None and out is None:
        raise UsageError("--from and --out belong together", hint="add --out answers.jsonl")
    if source is not None and images:
        raise UsageError("--image and --from are both given", hint="leave out one of them, or name images in the file")
    if processes > 1 and out is None:
        raise UsageError("--processes is for many questions", hint="add --out answers.jsonl, or leave out --processes")
    if out is not None and source is None and not images:
        raise UsageError("--out writes the answers about --image or --from", hint="leave out --out")
    if out is None:
        require_single(images)
    else:
        images = expand(images)
    if source is not None and is_prepared(source):
        _require_for_a_set(question, hd_num, dpi, columns)
    settings = Settings(
        max_new_tokens,
        do_sample,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        seed=seed,
        template=template,
        json_schema=read_schema(json_schema) if json_schema else None,
    )
    require_form(quantize)
    named = contender(base, adapter)
    require_given(source, images if out is None else ())
    if source is not None and not is_prepared(source) and (question is None or source.is_file()):
        container_of(str(source))
    if out is not None:
        if out.suffix.lower() in _TABLES:
            raise UsageError(
                "the answers are written as JSON Lines",
                where=f"--out {out}",
                hint=f"name a .jsonl file, e.g. --out {out.with_suffix('.jsonl')}",
            )
        refuse_existing(out)
    launch_several(context, processes)
    resolve(named.base)  # last: a hub id may be fetched
    quiet_libraries()
    from dataclasses import replace

    from ixtune.evaluation import questions
    from ixtune.evaluation.session import Loaded

    with joined():
        loaded = Loaded(base, adapter, quantize, force)
        if hd_num is not None and loaded.hd_num not in (None, hd_num) and is_first():
            typer.echo(f"note: hd_num {hd_num}, but training had {loaded.hd_num}", err=True)
        view = replace(loaded.view(hd_num), dpi=dpi)
        if out is None:
            assert question is not None
            _one(loaded, question, images, view, settings)
            return
        if source is None:
            assert question is not None
            asked = questions.from_images(question, images, view, loaded.tokenizer)
        else:
            asked = _asked(loaded, question, source, columns, image_root, view)
        if limit is not None:
            asked = replace(asked, questions=asked.questions[:limit])
        outcome = _into_file(loaded, asked, out, batch_size, settings)
    if is_first():
        _print(outcome, asked, out, settings)


def _one(loaded: Loaded, question: str, images: list[str], view: ImageView, settings: Settings) -> None:
    """Answer one question on the screen."""
    from ixtune.evaluation.predict import predict_one

    answer = predict_one(loaded, question, images, view, settings)
    typer.echo(answer.text)
    if answer.finish == "length":
        closed = f"; {answer.added} was added to complete the JSON" * bool(answer.added)
        typer.echo(f"note: cut off after {answer.tokens} tokens: --max-new-tokens{closed}", err=True)


def _require_for_a_set(question: str | None, hd_num: int | None, dpi: int | None, columns: str) -> None:
    """Refuse options that a prepared set already determines."""
    from ixtune.errors import UsageError

    given = {"the question": question, "--hd-num": hd_num, "--dpi": dpi, "--columns": columns or None}
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{name} has no effect on a prepared set",
                hint=f"leave out {name}: the set holds questions and image layouts",
            )


def _asked(
    loaded: Loaded, question: str | None, source: Path, columns: str, image_root: Path | None, view: ImageView
) -> Asked:
    """Read the questions of a prepared set, a file, or a folder of images."""
    from ixtune.data.image_arguments import expand, is_prepared
    from ixtune.data.prepared import manifest, store
    from ixtune.data.sources.data_config import columns_of
    from ixtune.data.sources.source import Source
    from ixtune.evaluation import questions

    if is_prepared(source):
        prepared = store.load(source, image_root)
        manifest.check_compatible(prepared.manifest, loaded.tokenizer.sha256, loaded.member)
        return questions.from_set(prepared)
    if source.is_dir() and question is not None:
        return questions.from_images(question, expand([str(source)]), view, loaded.tokenizer)
    asked = Source(path=str(source), columns=columns_of(columns), question=question, image_root=image_root)
    return questions.from_file(asked, view, loaded.tokenizer)


def _into_file(loaded: Loaded, asked: Asked, out: Path, batch_size: int, settings: Settings) -> Predicted:
    from ixtune.cli.console import progress
    from ixtune.errors import DataError
    from ixtune.evaluation.predict import predict_all

    if not asked.questions:
        first = asked.rejects[0]
        raise DataError(
            f"none of {len(asked.rejects):,} entries can be asked, the first: {first.found}",
            where=first.where,
            hint=first.hint,
        )
    with progress("questions") as bar:
        return predict_all(loaded, asked, out, settings, batch_size=batch_size, progress=bar)


def _print(outcome: Predicted, asked: Asked, out: Path, settings: Settings) -> None:
    """Print the summary.

    Raises:
        typer.Exit: Some entries could not be asked; the others were.
    """
    from ixtune.cli.console import ending
    from ixtune.evaluation.predict import rejects_of

    made = outcome.answers - outcome.resumed
    before = f", {outcome.resumed} of them from an earlier run" * bool(outcome.resumed)
    lines = [f"{outcome.answers} answers in {out}{before}"]
    if made:
        speed = outcome.tokens / max(outcome.seconds, 1e-9)
        lines.append(f"{outcome.tokens} tokens in {outcome.seconds:.1f} s: {speed:.1f} tokens/s")
    computed, reused = outcome.prefixes
    if reused:
        lines.append(f"{computed + reused} prompts with images, {computed} prefixes computed")
    if outcome.unfinished:
        closed = ", their JSON completed" * bool(settings.json_schema)
        lines.append(f"{outcome.unfinished} cut off by --max-new-tokens {settings.max_new_tokens}{closed}")
    ending(lines, out)
    if outcome.rejects:
        typer.echo(f"{outcome.rejects} could not be asked: {rejects_of(out)}", err=True)
        for reject in asked.rejects[:_REJECTS_SHOWN]:
            typer.echo(f"  {reject.where}: {reject.found}; hint: {reject.hint}", err=True)
        raise typer.Exit(3)
