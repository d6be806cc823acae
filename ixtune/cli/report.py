"""`ixtune report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `ixtune train`.", metavar="RUN...")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Evaluation file of each run, or one file for all runs. Default: RUN/evaluation.json, if it exists."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default with one run: the run folder.")] = None,
) -> None:
    """Write report.html, report.md and report.json of a run, or compare several runs.

    Example: ixtune report runs/demo --evaluation runs/demo/evaluation.json --out runs/demo-report
    """
    from ixtune.errors import UsageError

    if out is None and len(runs) > 1:
        raise UsageError("several runs need a folder for their report", hint="pass --out DIR")
    write(runs, out or runs[0], evaluation or ())


def write(runs: Sequence[Path], out: Path, evaluations: Sequence[Path] = (), *, verdicts: bool = True) -> None:
    """Write the report and print where it is.

    Args:
        runs: Run folders.
        out: Folder to write to.
        evaluations: See `ixtune.report.report`.
        verdicts: Print the verdicts, too.
    """
    from ixtune.cli.console import aside, ending
    from ixtune.report import PAGE, report

    written = report(runs, out, evaluations)
    screen = aside()
    for sentence in written.verdicts if verdicts else ():
        screen.print(sentence, markup=False, soft_wrap=True)
    for sentence in written.missing:
        screen.print(f"missing  {sentence}", markup=False, soft_wrap=True)
    ending([f"report   {written.out / PAGE}"], written.out / PAGE)
