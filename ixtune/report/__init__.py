"""Write the report of one or several runs: report.html, report.md and report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.errors import UsageError
from ixtune.files import atomic_write_json, atomic_write_text
from ixtune.report.figures import figures
from ixtune.report.markdown import markdown
from ixtune.report.page import page
from ixtune.report.run_reader import EVALUATION, distinct_names, read_evaluation, read_run

PAGE, TEXT, DATA = "report.html", "report.md", "report.json"


@dataclass(frozen=True, slots=True)
class Written:
    """Files written.

    Attributes:
        out: The folder.
        verdicts: A sentence for each verdict and note; of several evaluations, with the name of the run.
        missing: A sentence for each part that could not be shown.
    """

    out: Path
    verdicts: tuple[str, ...]
    missing: tuple[str, ...]


def report(runs: Sequence[Path], out: Path, evaluations: Sequence[Path] = ()) -> Written:
    """Write the three files into `out`, each atomically, replacing older ones.

    Args:
        runs: Run folders.
        out: Output folder, created if missing; may be the run's own.
        evaluations: One for each run, or one of all of them; by default evaluation.json of each run.

    Raises:
        UsageError: A folder is not a run, a given evaluation cannot be read, or their numbers do not fit.
    """
    if evaluations and len(evaluations) not in (1, len(runs)):
        raise UsageError(
            f"{len(evaluations)} evaluations for {len(runs)} runs",
            where="--evaluation",
            hint="pass one for each run in the same order, or one of all runs",
        )
    names = distinct_names(list(runs))
    opened = [read_run(run, name) for run, name in zip(runs, names, strict=True)]
    paths = list(evaluations) or [run / EVALUATION for run in runs]
    found: list[tuple[str, Path, Mapping[str, Any]]] = []
    absent: list[str] = []
    for name, path in zip(names, paths, strict=False):
        try:
            found.append((name if len(paths) > 1 else "", path, read_evaluation(path)))
        except UsageError as error:
            if evaluations:  # a given one must exist, the default one need not
                raise
            again = f"`ixtune evaluate DATA --adapter {path.parent} --out {path}`"
            absent.append(
                f"scores are not shown: {error}; {error.hint}"
                if path.exists()
                else f"scores are not shown, because this was not evaluated yet: {again}"
            )
    made = figures(opened, found, absent)
    html = page(made, [content for _, _, content in found])
    # answers may hold half a surrogate pair, which no UTF-8 can
    atomic_write_text(out / PAGE, html.encode("utf-8", "replace").decode())
    atomic_write_text(out / TEXT, markdown(made).encode("utf-8", "replace").decode())
    atomic_write_json(out / DATA, json.loads(json.dumps(made, ensure_ascii=False).encode("utf-8", "replace")))
    verdicts = tuple(
        f"{one['name']}: {sentence}" if one["name"] else sentence
        for one in made["evaluations"]
        for sentence in (*(verdict["text"] for verdict in one["verdicts"]), *one["notes"])
    )
    return Written(out, verdicts, tuple(made["missing"]))
