"""`ixtune evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    data: Annotated[Path, typer.Argument(help="A prepared set that was not trained on.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter or run folder; without it the base alone.")] = None,
    base: Annotated[
        str | None, typer.Option(help="`nano`, a checkpoint folder or a hub id. Default: the adapter's base.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write scores and answers to this JSON file.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many records.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Records answered at a time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    quantize: Annotated[
        str | None, typer.Option(help="nf4 or none. Default: as the adapter was trained; none for a base alone.")
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="Also the blind control (pictures swapped) and the majority answer.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Accept another base than the adapter was trained on.")
    ] = False,
) -> None:
    """Score base and adapter side by side on a held-out set: exact match with 95 % intervals, and loss.

    Example: ixtune evaluate prepared/test --adapter runs/demo --out runs/demo/evaluation.json
    """
    from ixtune.cli.console import console, progress, quiet_libraries, table

    quiet_libraries()
    from ixtune.evaluation.session import evaluate

    with progress("records") as bar:
        report = evaluate(
            data,
            adapter=adapter,
            base_name=base,
            limit=limit,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            quantize=quantize,
            controls=controls,
            force=force,
            progress=bar,
        )
    rows = [
        (r["name"], f"{r['exact_match']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}", _loss(r["loss"]))
        for r in report["results"]
    ]
    console().print(table(f"{report['records']} records", ("answers of", "exact match", "95 % interval", "loss"), rows))
    if out is not None:
        from ixtune.files import atomic_write_json

        atomic_write_json(out, report)
        console().print(f"scores and answers in {out}", highlight=False)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
