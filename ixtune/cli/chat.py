"""`ixtune chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from ixtune.layout import MAX_HD_NUM


def command(
    adapter: Annotated[Path | None, typer.Option(help="Adapter or run folder.")] = None,
    base: Annotated[
        str | None, typer.Option(help="`nano`, a checkpoint folder (a merged one too) or a hub id.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="Image to start with, or page of a document (scan.pdf#page=2); repeat for several."),
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum new tokens per answer.")] = 512,
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
    """Chat about images with a base, an adapter or a merged model.

    Example: ixtune chat --adapter runs/receipts --image receipt.png
    """
    from ixtune.answering.settings import Settings
    from ixtune.base import resolve
    from ixtune.cli.console import quiet_libraries
    from ixtune.evaluation.contenders import contender, require_form

    # check the options before slow imports and before loading a model
    settings = Settings(
        max_new_tokens, do_sample, temperature, top_p, top_k, repetition_penalty, seed=seed, template=template
    )
    require_form(quantize)
    resolve(contender(base, adapter).base)
    quiet_libraries()
    from ixtune.evaluation.chat import Chat, converse
    from ixtune.evaluation.session import Loaded

    loaded = Loaded(base, adapter, quantize, force)
    chat = Chat(loaded, loaded.view(hd_num), settings, _write)
    model = f"{loaded.base_name} with {adapter}" if adapter else loaded.base_name
    _write(f"{model}, hd_num {chat.view.hd_num}; /help lists the commands, /quit leaves\n")
    if image:
        chat.line("/image " + " ".join(map(_quoted, image)))
    converse(chat, _lines())


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)


def _lines() -> Iterator[str]:
    """Yield lines from the terminal or a pipe; Ctrl-C discards the line, Ctrl-D ends."""
    typed = sys.stdin.isatty()
    if typed:
        import readline  # noqa: F401 - gives input() a history and editing
    while True:
        try:
            yield input("> " if typed else "")
        except EOFError:
            if typed:
                _write("\n")
            return
