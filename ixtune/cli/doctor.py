"""`ixtune doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ixtune.cli.options import finite

if TYPE_CHECKING:
    from ixtune.doctor import MachineCheck, Trainable

_STATES = {"ok": "ok", "note": "note", "broken": "BROKEN"}


def command(
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-gib",
            callback=finite,
            min=0.1,
            help="List what a GPU with this memory in GiB could train, instead of this machine's.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check this machine and list the recipes that it can train.

    Checks Python, torch, GPU, libraries, memory, disk, hub and bases. Installs, loads and downloads nothing. The exit
    code is 1 if training cannot work here.

    Example: ixtune doctor

    Example: ixtune doctor --gpu-gib 24
    """
    from dataclasses import asdict

    from ixtune.cli.console import progress, quiet_libraries

    quiet_libraries()
    from ixtune.doctor import checks, trainable

    found = list(checks())
    if as_json:
        import json

        able = trainable(gpu_gib)
        checked = [{"name": one.name, "state": one.state, "found": one.found, "mend": one.hint} for one in found]
        result = {"checks": checked, "recipes": [asdict(one) for one in able]}
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _show_checks(found)
        with progress("planning the recipes"):  # some seconds
            able = trainable(gpu_gib)
        _show_recipes(able, gpu_gib)
        broken = [one.name for one in found if one.state == "broken"]
        sound = "this machine is ready" if not broken else f"broken: {', '.join(broken)}"
        fitting = sum(one.fits for one in able)
        typer.echo(f"verdict  {sound}; {fitting} of {len(able)} recipes can be trained {_where(gpu_gib)}")
    if any(one.state == "broken" for one in found):
        raise typer.Exit(1)


def _show_checks(found: list[MachineCheck]) -> None:
    from ixtune.cli.console import console, table

    rows = [(one.name, _STATES[one.state], one.found + (f"; {one.hint}" if one.hint else "")) for one in found]
    console().print(table(None, ("checked", "", "found"), rows), "")


def _show_recipes(able: list[Trainable], gpu_gib: float | None) -> None:
    from ixtune.cli.console import console, table

    heads = ("recipe", "planned on", "needs at least", _where(gpu_gib), "time at least")
    title = "recipes, planned by `ixtune plan` on 1,000 made-up records; not measured on a GPU"
    console().print(table(title, heads, [_row(one) for one in able]), "")


def _where(gpu_gib: float | None) -> str:
    return "here" if gpu_gib is None else f"on a GPU with {gpu_gib:g} GiB"


def _row(one: Trainable) -> tuple[str, ...]:
    if one.mix is None:
        return (one.recipe, "the embedded base", "no GPU", "yes, on the CPU", "")
    least = f"{one.least_bytes / 2**30:.1f} GiB"
    if one.needed_bytes is None:
        return (one.recipe, one.mix, least, "no: there is no GPU", "")
    again = f", {one.layers_again} layers checkpointed" if one.layers_again else ""
    needed = f"{one.needed_bytes / 2**30:.1f} GiB{again}" if one.fits else "no"
    return (one.recipe, one.mix, least, needed, "" if one.seconds is None else f"{one.seconds / 60:.0f} min")
