"""`ixtune layout`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ixtune.layout import PatchLayout


def command(
    images: Annotated[list[Path], typer.Argument(help="Pictures; only their headers are read.", metavar="IMAGE...")],
    hd_num: Annotated[int, typer.Option(min=1, help="Most 336x336 crops per picture.")] = 25,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one object per picture.")] = False,
) -> None:
    """Show how pictures are resized, padded and cut, and how many tokens they take.

    Example: ixtune layout receipt.png scan.jpg --hd-num 16 --json
    """
    from ixtune.data.pixels import read_size
    from ixtune.errors import UsageError
    from ixtune.layout import LayoutError, plan

    layouts: list[tuple[Path, PatchLayout]] = []
    for path in images:
        width, height = read_size(path)
        try:
            layouts.append((path, plan(width, height, hd_num)))
        except LayoutError as error:
            raise UsageError(str(error), where=str(path), mend="crop the picture, or raise --hd-num") from error
    if as_json:
        import json

        typer.echo(json.dumps([{"path": str(path)} | layout.as_dict() for path, layout in layouts], indent=2))
        return
    from ixtune.cli.console import console, table

    columns = ("picture", "size", "resized", "padded to", "padding", "rows x cols", "tokens", "of these")
    console().print(table(None, columns, [_row(path, layout) for path, layout in layouts]))


def _row(path: Path, layout: PatchLayout) -> tuple[str, ...]:
    from ixtune.layout import token_parts

    sides = ("left", "right") if layout.pad_axis == "x" else ("top", "bottom")
    padding = f"{layout.pad_before} {sides[0]}, {layout.pad_after} {sides[1]}"
    parts = token_parts(layout.rows, layout.cols)
    newlines = parts["global_newlines"] + parts["crop_newlines"]
    return (
        str(path),
        f"{layout.width}x{layout.height}",
        f"{layout.resized_width}x{layout.resized_height}",
        f"{layout.final_width}x{layout.final_height}",
        padding if layout.pad_before + layout.pad_after else "none",
        f"{layout.rows} x {layout.cols}",
        f"{layout.tokens:,}",
        f"{parts['global_view']} global view, {parts['crops']:,} crops, {newlines} newlines, 1 separator",
    )
