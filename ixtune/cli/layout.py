"""`ixtune layout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ixtune.cli.console import print_red
from ixtune.cli.options import DpiOption
from ixtune.family import FOUR_KHD, member_named
from ixtune.layout import MAX_HD_NUM

if TYPE_CHECKING:
    from ixtune.layout import PatchLayout


def command(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, documents (scan.pdf, scan.pdf#page=2), folders or patterns; only headers are read.",
            metavar="IMAGE...",
        ),
    ],
    hd_num: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_HD_NUM, help="Maximum number of crops per image. Default: 25 for 4khd, 24 for 2.5."
        ),
    ] = None,
    model: Annotated[str, typer.Option(metavar="4khd|2.5", help="Model whose layout to show.")] = FOUR_KHD.name,
    layout_rule: Annotated[
        str | None,
        typer.Option(metavar="fine-tuning|inference", help="How 2.5 lays out images. Default: fine-tuning."),
    ] = None,
    dpi: DpiOption = None,
    upscale: Annotated[
        bool, typer.Option("--upscale/--no-upscale", help="Enlarge small images, as the reference does.")
    ] = True,
    correct: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Corrections that the reference does not make: exif (rotate), alpha (put on white), depth (scale 16 "
            "to 8 bits), first-frame. Default: none.",
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one object per image.")] = False,
) -> None:
    """Show how images are resized, padded and cut into crops, and how many tokens they take.

    Reports unusable images on stderr, shows the others, and then exits with 1.

    Example: ixtune layout receipt.png report.pdf#page=1-3 --hd-num 16 --json
    """
    from ixtune.data.image_arguments import argument_reader, expand, image_argument
    from ixtune.data.images.header import NOTES
    from ixtune.data.images.pixels import Corrections
    from ixtune.errors import IxtuneError

    member = member_named(model, layout_rule)
    most = hd_num or member.hd_num
    reader = argument_reader(Corrections.of(filter(None, correct.split(","))), dpi)
    shown: list[tuple[str, Sequence[str], PatchLayout]] = []
    bad: list[IxtuneError] = []
    for given in expand(images, bad):
        try:
            pages = reader.read(image_argument(given))
            shown.extend((page.name, page.notes, page.layout(most, upscale=upscale, member=member)) for page in pages)
        except IxtuneError as error:
            bad.append(error)
    if as_json:
        import json

        result = [{"path": name, "notes": notes} | layout.as_dict() for name, notes, layout in shown]
        typer.echo(json.dumps(result, indent=2))
    elif shown:
        from ixtune.cli.console import console, table

        columns = ("image", "size", "resized", "padded", "padding", "grid", "tokens")
        numbers = [column for column in columns if column not in ("image", "padding")]
        console().print(table(None, columns, [_row(name, layout) for name, _, layout in shown], numbers))
        side = member.view_side
        console().print(f"grid: rows x cols of crops; tokens = {side**2} * (crops + 1) + {side} * (rows + 1) + 1")
        for name, notes, _ in shown:
            for note in notes:
                typer.echo(f"note: {name}: {NOTES[note]}")
    for one in bad:
        print_red(f"error: {one}; {one.hint}")
    if bad:
        raise typer.Exit(1)


def _row(name: str, layout: PatchLayout) -> tuple[str, ...]:
    axes = (("width", layout.pad_left, layout.pad_right), ("height", layout.pad_top, layout.pad_bottom))
    padding = ", ".join(f"{axis} {before}+{after}" for axis, before, after in axes if before or after)
    same = (layout.resized_width, layout.resized_height) == (layout.width, layout.height)
    return (
        name,
        f"{layout.width}x{layout.height}",
        "no" if same else f"{layout.resized_width}x{layout.resized_height}",
        f"{layout.final_width}x{layout.final_height}",
        padding or "none",
        f"{layout.rows} x {layout.cols}",
        f"{layout.tokens:,}",
    )
