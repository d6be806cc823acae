"""`ixtune merge`: one checkpoint out of a base and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, or the run folder around it.")],
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist.")],
    base: Annotated[
        str | None, typer.Option(help="Base: a folder, a hub id or nano. Default: the one the adapter names.")
    ] = None,
    onto: Annotated[
        Literal["bf16", "nf4"],
        typer.Option(help="bf16: the base as stored. nf4: its decoder linears as QLoRA training saw them."),
    ] = "bf16",
    force: Annotated[bool, typer.Option("--force", help="Accept another base than the one trained on.")] = False,
) -> None:
    """Merge an adapter into its base and check the result.

    Names, dtypes and shards stay those of the base; the weights come out as safetensors.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    import ixtune.adapter.merge as merging
    from ixtune.adapter.weights import named_base
    from ixtune.base import resolve

    folder = resolve(base or named_base(adapter))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading the base", total=None)
        report = merging.merge(
            adapter,
            folder,
            out,
            onto=onto,
            force=force,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    lines = [
        ("tensors", f"{report.tensors}: {report.merged} merged, {report.copied} copied"),
        ("onto", "the base as stored" if onto == "bf16" else "the decoder linears as NF4 gives them back"),
        ("changed", f"{report.changed} hold at least one new value"),
        ("check", f"{report.sampled_rows} rows recomputed, largest error {report.max_abs_error:.2g}"),
        ("base", report.base_identity[:12]),
        ("merged", report.merged_identity[:12]),
        ("folder", report.out),
    ]
    for name, value in lines + [("warning", text) for text in report.warnings]:
        typer.echo(f"{name:<8} {value}")
