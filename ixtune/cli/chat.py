"""`ixtune chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from ixtune.cli.options import (
    AdapterOption,
    BaseOption,
    DoSampleOption,
    ForceOption,
    HdNumOption,
    MaxNewTokensOption,
    QuantizeOption,
    RepetitionPenaltyOption,
    SeedOption,
    TemperatureOption,
    TemplateOption,
    TopKOption,
    TopPOption,
)


def command(
    adapter: AdapterOption = None,
    base: BaseOption = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="Image to start with, or page of a document (scan.pdf#page=2); repeat for several."),
    ] = None,
    hd_num: HdNumOption = None,
    quantize: QuantizeOption = None,
    template: TemplateOption = "training",
    max_new_tokens: MaxNewTokensOption = 512,
    do_sample: DoSampleOption = False,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: SeedOption = 0,
    force: ForceOption = False,
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
