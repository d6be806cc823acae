"""`ixtune export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ixtune.errors import IxtuneError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ixtune.exporting.profile_check import ProfileCheck


def command(
    adapter: Annotated[Path | None, typer.Argument(help="Adapter or run folder.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Consumer: peft-original, transformers, original, lmdeploy-0.13 or nf4; see --list."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; it must not exist.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base: `nano`, a checkpoint folder or a hub id. Default: the one the adapter names."),
    ] = None,
    onto: Annotated[Literal["bf16", "nf4"], typer.Option(help="What to merge into, as in `ixtune merge`.")] = "bf16",
    force: Annotated[
        bool, typer.Option("--force", help="Accept a base other than the one the adapter was trained on.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload the folder to this private hub repository.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Check a folder that was exported before, hashes included; write nothing.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the profiles: consumer, command to load, and known limits.")
    ] = False,
) -> None:
    """Write an adapter in the form that one consumer loads, and check the result.

    A consumer that cannot be run here is marked "not run"; keys, shapes and configuration are checked in that case.

    Example: ixtune export runs/receipts --profile transformers --out receipts-model
    """
    if listed:
        _list(profile)
    elif check is not None:
        _check(check)
    elif adapter is None or profile is None:
        raise UsageError(
            "missing an adapter and a --profile",
            hint="ixtune export ADAPTER --profile NAME --out DIR; `ixtune export --list` lists the profiles",
        )
    else:
        _export(adapter, profile, out, base, onto, force, push_to_hub)


def _export(
    adapter: Path,
    profile: str,
    out: Path | None,
    base: str | None,
    onto: Literal["bf16", "nf4"],
    force: bool,
    push_to_hub: str | None,
) -> None:
    from ixtune.adapter.profiles import profile_named

    profile_named(profile)  # report an unknown profile first
    if out is None:
        raise UsageError(
            "missing an output folder", where="--out", hint="pass --out with a folder that does not exist yet"
        )
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from ixtune.cli.console import ending, progress_screen, quiet_libraries

    if push_to_hub is not None:
        from ixtune.exporting.hub import check_name

        check_name(push_to_hub)
    quiet_libraries()
    import ixtune.exporting.export as exporting
    from ixtune.adapter.weights import named_base
    from ixtune.base import resolve

    folder = resolve(base or named_base(adapter))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        task = bar.add_task("reading the base", total=None)
        report = exporting.export(
            adapter,
            folder,
            out,
            profile,
            onto=onto,
            force=force,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    lines = [
        f"profile   {report.profile}",
        *_check_lines(report.checks),
        f"consumer  {report.consumer}",
        f"run here  {report.consumer_run}",
        *(f"warning   {warning}" for warning in report.warnings),
        f"folder    {report.out}",
        *_block("load", report.command),
    ]
    ending(lines, report.out, report.warnings)
    if push_to_hub is not None:
        from ixtune.exporting.hub import push

        typer.echo(f"uploaded  {push(out, push_to_hub)}")


def _check(folder: Path) -> None:
    from ixtune.cli.console import quiet_libraries

    quiet_libraries()
    from ixtune.exporting.profile_check import check_folder

    profile, checks = check_folder(folder)
    typer.echo("\n".join([f"profile   {profile}", *_check_lines(checks)]))
    if failed := [check for check in checks if not check.passed]:
        raise IxtuneError(
            f"the folder does not meet the profile {profile}: {len(failed)} of {len(checks)} checks failed",
            where=str(folder),
            hint="export again, or copy the whole folder again",
        )


def _list(only: str | None) -> None:
    from ixtune.adapter.profiles import PROFILES, REFUSED, profile_named

    for profile in [profile_named(only)] if only else PROFILES.values():
        typer.echo(profile.name)
        typer.echo(f"  holds     {profile.makes}")
        typer.echo(f"  for       {profile.consumer}")
        typer.echo(
            f"  checked   {'with its consumer' if profile.run_here else 'keys, shapes, config; consumer not run'}"
        )
        typer.echo("\n".join(_block("  load", profile.command, width=12)))
        for limit in profile.limits:
            typer.echo(f"  not       {limit}")
        typer.echo("")
    if not only:
        for name, reason in REFUSED.items():
            typer.echo(f"{name}: none. {reason[:1].upper()}{reason[1:]}.")


def _check_lines(checks: Sequence[ProfileCheck]) -> list[str]:
    return [f"{'ok' if check.passed else 'FAILS':<8}  {check.what}: {check.found}" for check in checks]


def _block(label: str, text: str, width: int = 10) -> list[str]:
    """Return the lines of a command, the first one after its label."""
    return [f"{label if number == 0 else '':<{width}}{line}" for number, line in enumerate(text.splitlines())]
