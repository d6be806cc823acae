"""Command line: one small module per command; heavy imports are inside the functions."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from ixtune import __version__
from ixtune.cli import (
    base,
    bench,
    chat,
    clean,
    console,
    doctor,
    evaluate,
    export,
    init,
    inspect,
    layout,
    merge,
    plan,
    predict,
    prepare,
    preview,
    recipes,
    report,
    serve,
    train,
)
from ixtune.cli.console import print_error
from ixtune.cli.verbs import AllVerbs, Panels
from ixtune.errors import describe

# no rich markup: it would cost each --help a tenth of a second and more
app = typer.Typer(
    name="ixtune",
    cls=AllVerbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init", short_help="Write a data config and a recipe for your data.")(init.command)
app.command("doctor")(doctor.command)
app.command("prepare", short_help="Convert data into a prepared set.", cls=Panels)(prepare.command)
app.command("preview", short_help="Draw images with their crop grids, and list all records.")(preview.command)
app.command("layout", short_help="Show how images are cut into crops, and their tokens.")(layout.command)
app.command("plan", short_help="Estimate memory, steps and time of a training run.")(plan.command)
app.command("train", short_help="Train an adapter as described by a recipe.")(train.command)
app.command("evaluate", short_help="Score the answers of base, adapters and merged models.")(evaluate.command)
app.command("report", short_help="Write the report of a run, or compare several runs.")(report.command)
app.command("predict", short_help="Answer one question, or every question in a file.")(predict.command)
app.command("chat")(chat.command)
app.command("serve", short_help="Serve a base and its adapters over HTTP.")(serve.command)
app.command("inspect", short_help="Describe a folder and check its hashes.")(inspect.command)
app.command("clean", short_help="List files that a run no longer needs, or remove them.")(clean.command)
app.command("merge")(merge.command)
app.command("export", short_help="Write an adapter in the form that one consumer loads.")(export.command)
app.command("bench", short_help="Measure time and memory of a training step.")(bench.command)
app.add_typer(base.app, name="base")
app.add_typer(recipes.app, name="recipes")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ixtune {__version__}")
        raise typer.Exit


@app.callback()
def _ixtune(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="IXTUNE_DEBUG", help="Show the traceback of an error.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", envvar="IXTUNE_QUIET", help="Print only the result and errors, no progress.")
    ] = False,
) -> None:
    """Fine-tune InternLM-XComposer2-4KHD-7B on your data, with LoRA or QLoRA on one GPU.

    The usual order is init, prepare, plan, train, evaluate, merge. `ixtune doctor` checks this machine.

    Example: ixtune init --data questions.csv --gpu-gib 24 --task documents
    """
    context.ensure_object(dict)["debug"] = debug
    console.be_quiet(quiet)
    if os.environ.get("NO_COLOR"):
        context.color = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments`; by default, on those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or recipe, 3 bad data, 130 interrupted.
    """
    options = {"debug": False, "arguments": [*(sys.argv[1:] if arguments is None else arguments)]}
    try:
        app(args=arguments, obj=options, prog_name="ixtune")
        code = 0
    except SystemExit as end:  # raised by typer after it has printed its messages
        code = end.code if isinstance(end.code, int) else 0
    except Exception as error:
        if options["debug"]:
            traceback.print_exc()
        problem = describe(error)
        print_error(problem)
        code = problem.exit_code
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has gone; keep Python's own flush at exit silent too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    return code
