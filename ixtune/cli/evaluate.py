"""`ixtune evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ixtune.cli.options import ImageRootOption, JsonSchemaOption
from ixtune.cli.processes import ProcessesOption, is_first, joined, launch_several
from ixtune.layout import MAX_HD_NUM

if TYPE_CHECKING:
    from ixtune.data.rejects import Reject
    from ixtune.evaluation.contenders import Contender
    from ixtune.evaluation.options import EvaluationOptions, EvaluationSource


def command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Prepared set that was not trained on, or the file of a --benchmark.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter or run folder, as PATH or NAME=PATH; repeat to compare several."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="`nano`, a checkpoint folder or a hub id. Default: the adapters' base.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Merged or exported model, as PATH or NAME=PATH; repeat for several."),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(help="Score: exact_match, anls, relaxed_accuracy, …; repeat for several, main one first."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="docvqa, infographicvqa, chartqa, textvqa, ocrbench, mmbench, or questions for your own JSON Lines."
        ),
    ] = None,
    image_root: ImageRootOption = None,
    hd_num: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_HD_NUM,
            help="Maximum crops per image of a --benchmark. Default: as trained, or as usual for the benchmark.",
        ),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(help="Wording of --benchmark questions; `benchmark` selects the benchmark's usual one."),
    ] = "{question}",
    circular: Annotated[
        bool, typer.Option("--circular", help="Ask multiple-choice questions in every order of options (CircularEval).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write scores and answers to this JSON file; replaces an earlier evaluation.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 8,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum new tokens per answer. Default: enough for the longest reference, at least 64."
        ),
    ] = None,
    json_schema: JsonSchemaOption = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="Quantization of the base: nf4 or none. Default: as trained; none for a base alone."),
    ] = None,
    controls: Annotated[bool, typer.Option(help="Run the controls: images swapped, and the majority answer.")] = True,
    loss: Annotated[bool, typer.Option(help="Measure the loss of the first references, which takes time.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and comparisons as JSON.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Accept a base other than the one an adapter was trained on.")
    ] = False,
    processes: ProcessesOption = 1,
) -> None:
    """Ask base, adapters and merged models the same questions; score the answers with 95 % intervals.

    Example: ixtune evaluate prepared/test --adapter runs/demo --score anls --out runs/demo/evaluation.json

    Example: ixtune evaluate val_v1.0_withQT.json --benchmark docvqa --adapter runs/pages --limit 500

    Example: ixtune evaluate prepared/test --adapter runs/pages --processes 4 --out runs/pages/evaluation.json
    """
    from ixtune.answering.json_schema import read_schema
    from ixtune.base import resolve
    from ixtune.cli.console import quiet_libraries
    from ixtune.evaluation.contenders import contenders
    from ixtune.evaluation.options import EvaluationOptions, EvaluationSource, refuse_other_file, require_data

    if out is not None:
        refuse_other_file(out)
    # check the options before slow imports and before loading a model
    schema = read_schema(json_schema) if json_schema else None
    options = EvaluationOptions(
        tuple(score or ()), limit, batch_size, max_new_tokens, quantize, controls, loss, force, schema
    )
    source = EvaluationSource(
        path=data, benchmark=benchmark, image_root=image_root, hd_num=hd_num, prompt=prompt, circular=circular
    )
    require_data(source)
    models = contenders(base, adapter or (), model or ())
    launch_several(context, processes)
    for one in models:
        resolve(one.base)
    quiet_libraries()
    run(source, models, options, out, as_json=as_json)


def run(
    source: EvaluationSource,
    models: Sequence[Contender],
    options: EvaluationOptions,
    out: Path | None,
    *,
    as_json: bool = False,
) -> None:
    """Evaluate, write the file, and print the scores.

    Args:
        source: The questions.
        models: Models to ask.
        options: Settings of the evaluation.
        out: JSON file for scores and answers.
        as_json: Print scores and comparisons as JSON.

    Raises:
        typer.Exit: Some questions could not be asked; the others were.
    """
    import json
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from ixtune.cli.console import is_quiet, progress
    from ixtune.evaluation.evaluate import evaluate
    from ixtune.evaluation.predict import rejects_of
    from ixtune.files import atomic_write_bytes, atomic_write_json

    with TemporaryDirectory() as folder, progress("answers") as bar:
        images = out.with_name(f"{out.name}.pictures") if out and is_first() else Path(folder)
        with joined():
            found = evaluate(replace(source, images=images), models, options, bar)
    if not is_first():
        return
    if out is not None:
        atomic_write_json(out, found.content)
        rejects_of(out).unlink(missing_ok=True)  # from an earlier evaluation
        if found.rejects:
            atomic_write_bytes(rejects_of(out), b"".join(reject.row() for reject in found.rejects))
    if as_json:
        typer.echo(json.dumps({key: value for key, value in found.content.items() if key != "answers"}, indent=2))
    elif is_quiet() and out is not None:
        typer.echo(str(out))
    else:
        _print(found.content)
        if out is not None:
            typer.echo(f"scores and answers in {out}")
    if found.rejects:
        where = _in_short(found.rejects) if out is None else str(rejects_of(out))
        typer.echo(f"{len(found.rejects)} questions could not be asked: {where}", err=True)
        raise typer.Exit(3)


def _in_short(rejects: Sequence[Reject]) -> str:
    from ixtune.evaluation.exam import reject_line

    return f"the first is {reject_line(rejects[0])}; --out FILE lists all of them"


def _print(found: Mapping[str, Any]) -> None:
    """Print the scores as a table, then the verdicts."""
    from ixtune.cli.console import console, table
    from ixtune.report.sections import with_interval
    from ixtune.report.verdict import title, verdicts

    scores = list(found["results"][0]["scores"])
    measured = [key for key in ("loss", "perplexity") if any(one[key] is not None for one in found["results"])]
    columns = ["answers of", *map(title, scores), *measured]
    rows = [
        [one["name"], *(with_interval(one["scores"][name]) for name in scores)]
        + [_number(one[key]) for key in measured]
        for one in found["results"]
    ]
    screen = console()
    screen.print(table(f"{found['records']} questions, 95 % intervals", columns, rows))
    for sentence in verdicts(found):
        screen.print(f"- {sentence['text']}", markup=False, soft_wrap=True)
    for note in found.get("notes", ()):
        screen.print(f"- {note}", markup=False, soft_wrap=True)
    for one in found["models"]:
        if one["unfinished"]:
            screen.print(f"- {one['unfinished']} answers of {one['name']} were cut off: --max-new-tokens", markup=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
