"""`ixtune evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    data: Annotated[Path, typer.Argument(help="A prepared set that was not trained on.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter or run folder, as PATH or NAME=PATH; repeat for several, side by side."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="`nano`, a checkpoint folder or a hub id. Default: the adapters' base.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A merged or exported model, as PATH or NAME=PATH; repeat for several."),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(help="exact_match, anls, relaxed_accuracy, …; repeat for several, the main one first."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write scores and answers to this JSON file.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    quantize: Annotated[
        str | None, typer.Option(help="nf4 or none. Default: as each adapter was trained; none for a base alone.")
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="Also the blind control (pictures swapped) and the majority answer.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and comparisons as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Accept another base than an adapter was trained on.")] = False,
) -> None:
    """Put the same questions to base, adapters and merged models, and score the answers with 95 % intervals.

    Example: ixtune evaluate prepared/test --adapter runs/demo --score anls --out runs/demo/evaluation.json
    """
    from ixtune.cli.console import console, progress, quiet_libraries

    quiet_libraries()
    from ixtune.evaluation.contenders import contenders
    from ixtune.evaluation.evaluate import Options, evaluate

    options = Options(tuple(score or ()), limit, batch_size, max_new_tokens, quantize, controls, force)
    models = contenders(base, adapter or (), model or ())
    with progress("answers") as bar:
        found = evaluate(data, models, options, bar)
    if out is not None:
        from ixtune.files import atomic_write_json

        atomic_write_json(out, found)
    screen = console()
    if as_json:
        import json

        typer.echo(json.dumps({key: value for key, value in found.items() if key != "answers"}, indent=2))
    else:
        _print(found, screen)
        if out is not None:
            screen.print(f"scores and answers in {out}", markup=False, soft_wrap=True)


def _print(found: Mapping[str, Any], screen: Any) -> None:
    """Scores as a table, and what they say in words."""
    from ixtune.cli.console import table
    from ixtune.report.sections import with_interval
    from ixtune.report.verdict import title, verdicts

    columns = ["answers of", *map(title, found["scores"]), "loss", "perplexity"]
    rows = [
        [one["name"], *(with_interval(one["scores"][name]) for name in found["scores"])]
        + [_number(one["loss"]), _number(one["perplexity"])]
        for one in found["results"]
    ]
    screen.print(table(f"{found['records']} questions of {found['data']}, 95 % intervals", columns, rows))
    for sentence in verdicts(found):
        screen.print(f"- {sentence['text']}", markup=False, soft_wrap=True)
    for one in found["models"]:
        if one["unfinished"]:
            screen.print(f"- {one['unfinished']} answers of {one['name']} were cut off: --max-new-tokens", markup=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
