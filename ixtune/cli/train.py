"""`ixtune train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ixtune.cli.options import SetOption
from ixtune.cli.processes import ProcessesOption, is_first, launch_several

if TYPE_CHECKING:
    from ixtune.recipe.recipe import Recipe
    from ixtune.training.run import RunOutcome

_REPORT_RECORDS = 200  # validation records: more of them narrow the intervals and take longer


def command(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML; `ixtune recipes ls` lists the shipped ones.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of recipe keys, e.g. training.seed=1 adapter.rank=16.")
    ] = None,
    changes: SetOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume the run in the output folder. With resume=auto instead, start it if there is none."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan, load, run one step on the largest pack, and write nothing.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(help="Evaluate on the validation set at the end and write RUN/report.html."),
    ] = True,
    processes: ProcessesOption = 1,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Time that the current step may take after a signal; when it is over, the step is abandoned and the "
            "one before is saved. Default: no limit.",
        ),
    ] = None,
) -> None:
    """Train an adapter as described by a recipe: LoRA or QLoRA on the decoder, and the projector.

    Example: ixtune train recipes/demo.yaml output=runs/demo training.max_steps=20 resume=auto
    """
    from ixtune.cli.console import console, ending, is_quiet, quiet_libraries
    from ixtune.exporting.publish import publish, require_login
    from ixtune.recipe import recipe as recipes

    overrides = [*(overrides or ()), *(changes or ())]
    chosen = recipes.load(recipe, overrides)
    if chosen.training.push_to_hub and not dry_run:
        require_login(chosen.training.push_to_hub)
    words = [str(recipe), *overrides, *(["--grace", f"{grace:g}"] if grace is not None else [])]
    launch_several(context, processes)
    quiet_libraries()
    from ixtune.training.failure import RunFailedError
    from ixtune.training.run import train
    from ixtune.training.stopping import StopRequest, StopRequested

    first = is_first()
    if first and chosen.data.validation and chosen.data.validation.resolve() in map(Path.resolve, chosen.data.train):
        typer.echo(
            "warning: data.validation is one of the sets in data.train: its loss and scores do not show what the "
            "adapter does on new data",
            err=True,
        )
    out = console(quiet=is_quiet() or not first)
    try:
        outcome = train(chosen, out, must_resume=resume, only_try=dry_run, grace_s=grace)
    except KeyboardInterrupt as second:  # the first one ends the run with a checkpoint
        raise KeyboardInterrupt("finished checkpoints are kept, nothing half-written is left") from second
    except RunFailedError as failure:
        failure.resume_hint(_again(words))
        raise
    if outcome is None:
        if is_quiet() and first and not dry_run:  # finished before
            typer.echo(str(chosen.output / "adapter"))
        return
    if first:
        ending(_ending(outcome, words, chosen), outcome.adapter or outcome.checkpoint or "")
    if outcome.stopped_by is not None:
        raise typer.Exit(128 + outcome.stopped_by)
    if not first:
        return
    try:
        with StopRequest():
            if report and chosen.data.validation is not None:
                by = [name for name in (chosen.training.best_by, *chosen.training.scores) if name != "loss"]
                _report(chosen.output, chosen.data.validation, list(dict.fromkeys(by)))
            if chosen.training.push_to_hub:
                typer.echo(f"uploaded {publish(chosen.output, chosen.training.push_to_hub)}")
    except StopRequested as stopped:
        _incomplete(["report", str(chosen.output)])
        raise typer.Exit(stopped.exit_code) from stopped


def _report(run: Path, validation: Path, scores: list[str]) -> None:
    """Evaluate a finished run on its validation set and write its report; a failure is reported, the run is kept."""
    import gc
    import io
    from contextlib import nullcontext, redirect_stdout

    import torch

    from ixtune.cli import evaluate
    from ixtune.cli.console import is_quiet, print_error
    from ixtune.cli.report import write
    from ixtune.errors import describe
    from ixtune.evaluation.contenders import contenders
    from ixtune.evaluation.options import EvaluationOptions, EvaluationSource

    gc.collect()  # the trainer's model, before the base is loaded again
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    found, options = run / "evaluation.json", EvaluationOptions(tuple(scores), _REPORT_RECORDS)
    with redirect_stdout(io.StringIO()) if is_quiet() else nullcontext():
        try:
            evaluate.run(EvaluationSource(path=validation), contenders(None, [str(run)], []), options, found)
        except Exception as error:  # without scores the report still has the curves
            print_error(describe(error))
            judged = [word for name in scores for word in ("--score", name)]
            words = ["evaluate", str(validation), "--adapter", str(run), "--limit", str(_REPORT_RECORDS)]
            _incomplete([*words, *judged, "--out", str(found)])
        try:
            write([run], run, verdicts=False)  # the evaluation has already printed the verdicts
        except Exception as error:  # the run itself is complete
            print_error(describe(error))
            _incomplete(["report", str(run)])


def _incomplete(verb: list[str]) -> None:
    again = shlex.join(["ixtune", *verb])
    typer.echo(f"warning: the run is finished, but its report is incomplete; write it with: {again}", err=True)


def _again(words: list[str], resume: bool = True) -> str:
    """Return the command that continues a run, as the user would type it."""
    import os

    from ixtune.training.processes import launch

    command = ["ixtune", "train", *words, *["--resume"] * (resume and "--resume" not in words)]
    if launch.world_size() == 1:
        return shlex.join(command)
    if launch.BY_OPTION:
        return shlex.join([*command, "--processes", str(launch.world_size())])
    launcher = "torchrun … -m " if "TORCHELASTIC_RUN_ID" in os.environ else ""
    return f"{launcher}{shlex.join(command)} (the same command as before, on every machine)"


def _ending(outcome: RunOutcome, words: list[str], recipe: Recipe) -> list[str]:
    import signal

    from ixtune.training.state import resume

    if outcome.stopped_by is not None:
        by = signal.Signals(outcome.stopped_by).name
        if outcome.checkpoint is None:
            lines = [f"stopped  by {by} before there was a step to save"]
        else:
            lines = [f"stopped  by {by} at step {outcome.steps}; checkpoint {outcome.checkpoint}"]
        return [*lines, f"resume   {_again(words, resume.is_begun(recipe.output))}"]
    assert outcome.adapter is not None
    lines = [f"done     {outcome.steps} step{'s' * (outcome.steps != 1)}; adapter in {outcome.adapter}"]
    if outcome.best is not None:
        which = "the last step" if outcome.adapter_step == outcome.steps else f"step {outcome.adapter_step}"
        lines.append(f"         from {which}, the best on validation: {outcome.best}")
    elif recipe.data.validation is None:
        run = shlex.quote(str(outcome.adapter.parent))
        lines.append(f"report   without a validation set a report contains only the curves: ixtune report {run}")
    return lines
