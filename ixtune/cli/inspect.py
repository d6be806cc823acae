"""`ixtune inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_BAR = 24


def command(
    path: Annotated[Path, typer.Argument(help="Adapter, run, checkpoint, merged model or prepared set.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second prepared set: count the images and records that both have.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Compare an adapter with this base's weights: `nano`, a folder or a hub id.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Describe a folder, check its hashes, and show which parts of the base an adapter changed most.

    The exit code is 1 if something is damaged.

    Example: ixtune inspect runs/receipts --base nano

    Example: ixtune inspect prepared/train prepared/benchmark
    """
    if other is not None:
        _compare(path, other, as_json)
        return
    from ixtune.folder_inspection import inspect

    found = inspect(path, base)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2, default=str))
        raise typer.Exit(0 if found.whole else 1)
    typer.echo(f"{found.kind}  {found.path}")
    if found.adapter is not None:
        _show(found.adapter, compared=base is not None)
    width = max((len(name) for name in found.facts), default=0)
    for name, value in found.facts.items():
        typer.echo(f"{name:<{width}}  {_plain(value)}")
    for checked in found.checks:
        typer.echo(f"ok       {checked}")
    for problem in found.damage:
        typer.echo(f"DAMAGED  {problem}")
    raise typer.Exit(0 if found.whole else 1)


def _compare(first: Path, second: Path, as_json: bool) -> None:
    from ixtune.data.prepared.shared_images import compare

    found = compare(first, second)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
        return
    typer.echo(
        f"images   {found.images[0]:,} in {first}, {found.images[1]:,} in {second}, {found.shared_images:,} in both"
    )
    for folder, showing, records in zip((first, second), found.showing, found.records, strict=True):
        typer.echo(f"records  {showing:,} of {records:,} in {folder} show one of these")
    typer.echo(f"equal    {found.equal_records:,} records of {second} are in {first} too: the same images and turns")
    if found.shared_images:
        typer.echo(f"hint     ixtune prepare ... --exclude {second} leaves out records that show an image of it")


def _show(adapter: dict[str, Any], *, compared: bool) -> None:
    from ixtune.cli.console import console, table

    updates = adapter["updates"]

    def key(one: dict[str, Any]) -> float:
        return float(one["change"]["ratio"] if compared else one["norm"])

    largest = max((key(one) for one in updates), default=0.0)
    heads = ["update of", "rank", "norm", "effective rank", *(["of the base"] if compared else []), ""]
    rows = [
        (
            one["name"].removesuffix(".weight"),
            str(one["rank"]),
            f"{one['norm']:.3g}",
            f"{one['effective_rank']:.1f}",
            *([f"{one['change']['ratio']:.2%}"] if compared else []),
            "█" * round(_BAR * key(one) / largest) if largest else "",
        )
        for one in updates
    ]
    if rows:
        console().print(table(None, heads, rows))
    if adapter["parts"]:
        typer.echo("changed most: " + ", ".join(f"{part} {norm:.3g}" for part, norm in adapter["parts"].items()))
    for one in adapter["whole"]:
        moved = f", changed by {one['change']['ratio']:.2%} of the base's norm" if compared else ""
        typer.echo(f"trained in full: {one['name']}, {'x'.join(map(str, one['shape']))}{moved}")
    turned = [one["change"]["magnitude"] for one in updates if compared and one["magnitudes"]]
    if turned:
        typer.echo(f"DoRA magnitudes changed by {min(turned):.2%} to {max(turned):.2%} of the base's")
    if not adapter["has_effect"]:
        typer.echo("the adapter has no effect: every update is zero")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
