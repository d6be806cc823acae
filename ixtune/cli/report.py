"""`ixtune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `ixtune train`.", metavar="RUN...")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluation of each run, or one of all. Default: RUN/evaluation.json, if it is there."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to. Default, for one run: its own.")] = None,
) -> None:
    """Write report.html, report.md and report.json: did it get better? Several runs are compared.

    Example: ixtune report runs/demo --evaluation runs/demo/evaluation.json --out runs/demo-report
    """
    from ixtune.cli.console import aside, ending
    from ixtune.errors import UsageError
    from ixtune.report import PAGE, report

    if out is None and len(runs) > 1:
        raise UsageError("several runs need a folder for their report", mend="give --out DIR")
    written = report(runs, out or runs[0], evaluation or ())
    screen = aside()
    for sentence in written.verdicts:
        screen.print(sentence, markup=False, soft_wrap=True)
    for sentence in written.missing:
        screen.print(f"missing  {sentence}", markup=False, soft_wrap=True)
    ending([f"report   {written.out / PAGE}"], written.out / PAGE)
