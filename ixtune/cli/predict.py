"""`ixtune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ixtune.layout import MAX_HD_NUM

DEFAULT_HD_NUM = 25  # the original's own default for chat


def command(
    question: Annotated[str, typer.Argument(help="The question; <ImageHere> marks where a picture stands.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat for several.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter or run folder.")] = None,
    base: Annotated[
        str | None, typer.Option(help="`nano`, a checkpoint folder (a merged one too) or a hub id.")
    ] = None,
    hd_num: Annotated[
        int | None, typer.Option(min=1, max=MAX_HD_NUM, help="Most crops. Default: as trained, or 25.")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="nf4 or none. Default: as the adapter was trained.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    force: Annotated[
        bool, typer.Option("--force", help="Accept another base than the adapter was trained on.")
    ] = False,
) -> None:
    """Answer one question about pictures with a base, an adapter or a merged model.

    Example: ixtune predict "What is the total?" --image receipt.png --adapter runs/receipts
    """
    from ixtune.cli.console import quiet_libraries

    quiet_libraries()
    from ixtune.evaluation.predict import predict
    from ixtune.evaluation.session import Loaded

    loaded = Loaded(base, adapter, quantize, force)
    typer.echo(predict(loaded, question, image or [], hd_num or loaded.hd_num or DEFAULT_HD_NUM, max_new_tokens))
