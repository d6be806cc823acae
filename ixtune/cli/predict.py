"""`ixtune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ixtune.layout import MAX_HD_NUM

if TYPE_CHECKING:
    from ixtune.answering.settings import Settings
    from ixtune.evaluation.session import Loaded


def command(
    question: Annotated[str | None, typer.Argument(help="Question; <ImageHere> marks the place of an image.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image file; repeat for several.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Answer every question in a .jsonl file or a prepared set.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the answers of --from, a new .jsonl.")] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the images in a .jsonl. Default: its own folder.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of records of a prepared set.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch with --from.")] = 8,
    adapter: Annotated[Path | None, typer.Option(help="Adapter or run folder.")] = None,
    base: Annotated[
        str | None, typer.Option(help="`nano`, a checkpoint folder (a merged one too) or a hub id.")
    ] = None,
    hd_num: Annotated[
        int | None, typer.Option(min=1, max=MAX_HD_NUM, help="Maximum crops per image. Default: as trained, or 25.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Quantization of the base: nf4 or none. Default: as trained.")
    ] = None,
    template: Annotated[
        Literal["training", "original"],
        typer.Option(help="Chat template: training, or original with the system prompt of the original's chat."),
    ] = "training",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum new tokens per answer.")] = 256,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="Sample tokens. Default: take the most likely one.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample from the smallest set of tokens with this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from this many most likely tokens; 0 for all.")] = 0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: make tokens that occurred before less likely.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampling.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Accept another base than the adapter was trained on.")
    ] = False,
) -> None:
    """Answer questions about images with a base, an adapter or a merged model.

    Questions about the same image are answered together: the image is computed once. Rerun the command to resume
    an unfinished file.

    Example: ixtune predict "What is the total?" --image receipt.png --adapter runs/receipts

    Example: ixtune predict --from questions.jsonl --adapter runs/receipts --out answers.jsonl
    """
    from ixtune.answering.settings import Settings
    from ixtune.base import resolve
    from ixtune.cli.console import quiet_libraries
    from ixtune.errors import UsageError
    from ixtune.evaluation.contenders import contender, require_form
    from ixtune.evaluation.questions import require_given
    from ixtune.files import refuse_existing

    # check the options before slow imports and before loading a model
    if (question is None) == (source is None):
        raise UsageError(
            "a question, or --from with a file of them", hint="give one of the two: ixtune predict --help has examples"
        )
    if (source is None) != (out is None):
        raise UsageError("--from and --out belong together", hint="give both, or one question and neither")
    if source is not None and image:
        raise UsageError("--image belongs to one question", hint="name images in the file of questions")
    settings = Settings(
        max_new_tokens, do_sample, temperature, top_p, top_k, repetition_penalty, seed=seed, template=template
    )
    require_form(quantize)
    named = contender(base, adapter)
    require_given(source, image or ())
    if out is not None:
        refuse_existing(out)
    resolve(named.base)  # last: a hub id may be fetched
    quiet_libraries()
    from ixtune.evaluation.session import Loaded

    loaded = Loaded(base, adapter, quantize, force)
    if hd_num is not None and loaded.hd_num not in (None, hd_num):
        typer.echo(f"note: hd_num {hd_num}, but training had {loaded.hd_num}", err=True)
    if question is not None:
        from ixtune.evaluation.predict import predict_one

        answer = predict_one(loaded, question, image or [], loaded.view(hd_num), settings)
        typer.echo(answer.text)
        if answer.finish == "length":
            typer.echo(f"note: cut off after {answer.tokens} tokens: --max-new-tokens", err=True)
        return
    assert source is not None
    assert out is not None
    _into_file(loaded, source, out, image_root, limit, batch_size, hd_num, settings)


def _into_file(
    loaded: Loaded,
    source: Path,
    out: Path,
    image_root: Path | None,
    limit: int | None,
    batch_size: int,
    hd_num: int | None,
    settings: Settings,
) -> None:
    from dataclasses import replace

    from ixtune.cli.console import ending, progress
    from ixtune.data.prepared import manifest, store
    from ixtune.errors import UsageError
    from ixtune.evaluation import questions
    from ixtune.evaluation.predict import predict_all, rejects_of

    if source.is_dir():
        if hd_num is not None or image_root is not None:
            raise UsageError(
                "a prepared set has its images laid out already", hint="leave out --hd-num and --image-root"
            )
        prepared = store.load(source)
        manifest.check_compatible(prepared.manifest, loaded.tokenizer.sha256, loaded.member)
        if limit is not None and limit < len(prepared.dataset):
            prepared = replace(prepared, dataset=prepared.dataset.select(range(limit)))
        asked = questions.from_set(prepared)
    else:
        if limit is not None:
            raise UsageError("--limit is for a prepared set", hint="give a shorter file")
        asked = questions.from_file(source, image_root, loaded.view(hd_num), loaded.tokenizer)
    with progress("questions") as bar:
        outcome = predict_all(loaded, asked, out, settings, batch_size=batch_size, progress=bar)
    made = outcome.answers - outcome.resumed
    before = f", {outcome.resumed} of them from before" * bool(outcome.resumed)
    lines = [f"{outcome.answers} answers in {out}{before}"]
    if made:
        speed = outcome.tokens / outcome.seconds
        lines.append(f"{outcome.tokens} tokens in {outcome.seconds:.1f} s: {speed:.1f} tokens/s")
    computed, reused = outcome.prefixes
    if reused:
        lines.append(f"{computed + reused} prompts with images, {computed} prefixes computed")
    if outcome.unfinished:
        lines.append(f"{outcome.unfinished} cut off by --max-new-tokens {settings.max_new_tokens}")
    ending(lines, out)
    if outcome.rejects:
        typer.echo(f"{outcome.rejects} lines could not be asked: {rejects_of(out)}", err=True)
        raise typer.Exit(3)
