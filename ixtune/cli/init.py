"""`ixtune init`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ixtune.cli.options import finite

if TYPE_CHECKING:
    from ixtune.init_project.first_look import Data


def command(
    data: Annotated[
        str | None, typer.Option(help="File or folder of records, in any form that `ixtune prepare` reads.")
    ] = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-gib",
            callback=finite,
            min=0,
            help="Memory of the GPU in GiB; 0 for no GPU, which selects the embedded base.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task: documents, charts, receipts, screenshots or multi-image.", metavar="NAME")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to; created if needed.")] = Path("mine"),
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that image paths are relative to. Default: the data's folder.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="OURS=THEIRS,...", help="Column names of a table, e.g. question=q,answer=a,image=file,id=key."
        ),
    ] = "",
    model: Annotated[
        str | None, typer.Option(metavar="4khd|2.5", help="Model to train. Default: the model of the base, or 4khd.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base: `nano`, a checkpoint folder, or a hub id. Default: the released 7B.")
    ] = None,
) -> None:
    """Write a data config and a recipe for your data, and print the commands to run next.

    Asks for the data, the GPU memory and the task, unless they are given as options.

    Example: ixtune init

    Example: ixtune init --data questions.csv --image-root photos --gpu-gib 24 --task documents --out mine
    """
    from ixtune.cli.console import ending
    from ixtune.init_project.project import require_free, write_project
    from ixtune.init_project.tasks import task_named

    # before anything is asked
    require_free(out)
    if task is not None:
        task_named(task)
    found = _data(data, image_root, columns)
    memory = _gpu_gib() if gpu_gib is None else gpu_gib
    chosen = task or _task()
    made = write_project(found, memory, chosen, out, base, model)
    lines = [f"written  {path}" for path in made.files]
    lines += [f"note     {note}" for note in made.notes]
    if not memory and base is None:
        lines.append("note     without a GPU this trains the embedded base, which reads simple printed pages only")
    ending([*lines, "", "run next, in this order:", *(f"  {line}" for line in made.commands)], "\n".join(made.commands))


def _data(given: str | None, image_root: Path | None, columns: str) -> Data:
    from ixtune.cli.console import is_quiet, print_error
    from ixtune.errors import IxtuneError
    from ixtune.init_project.first_look import look

    while True:
        path = given or os.path.expanduser(
            _ask("1 of 3: your data (a CSV, a JSON file, a folder with images and metadata, ...)")
        )
        try:
            found = look(path, image_root, columns)
            break
        except IxtuneError as error:
            if given:
                raise
            print_error(error)
    if not is_quiet():
        typer.echo(f"found    {path}: {found.opened.detected}; {found.counted}")
        if (root := found.opened.source.image_root) is not None:
            typer.echo(f"images   {root}")
    return found


def _gpu_gib() -> float:
    from ixtune.planning.gpus import detect

    machine = detect()
    here = round((machine.memory_bytes or 0) / 2**30, 1) if machine.device == "cuda" else 0
    found = f"found: {machine.source}" if here else "none found; 0 for none"
    while True:
        text = _ask(f"2 of 3: memory of the GPU in GiB ({found})", f"{here:g}")
        try:
            if 0 <= (memory := float(text)) < math.inf:
                return memory
        except ValueError:
            pass
        typer.echo(f"enter a number such as 24, not {text!r}", err=True)


def _task() -> str:
    from ixtune.init_project.tasks import TASKS

    typer.echo("\n".join(f"  {name:<12} {task.summary}" for name, task in TASKS.items()), err=True)
    while True:
        text = _ask("3 of 3: the task", next(iter(TASKS)))
        if text in TASKS:
            return text
        typer.echo(f"enter one of {', '.join(TASKS)}, not {text!r}", err=True)


def _ask(question: str, default: str | None = None) -> str:
    from ixtune.errors import UsageError

    typer.echo(f"{question}{'' if default is None else f' [{default}]'}: ", nl=False, err=True)
    try:
        return input().strip() or default or ""
    except EOFError as end:
        typer.echo(err=True)
        raise UsageError("the questions were not answered", hint="pass --data, --gpu-gib and --task") from end
