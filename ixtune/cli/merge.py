"""`ixtune merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ixtune.evaluation.questions import Asked
    from ixtune.evaluation.verify_merge import MergeVerification
    from ixtune.merging.merge_plan import MergePlan

_ONTO = {"bf16": "the base as stored", "nf4": "the dequantized NF4 weights of the decoder linears"}
_QUESTIONS = 32  # asked of each model by --verify-answers


def command(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="Adapter or run folder; several are combined."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base: `nano`, a checkpoint folder or a hub id. Default: the one the adapter names."),
    ] = None,
    onto: Annotated[
        Literal["bf16", "nf4"],
        typer.Option(
            help="Merge into the base as stored (bf16), or into its dequantized NF4 weights (nf4), as QLoRA saw them."
        ),
    ] = "bf16",
    weights: Annotated[
        str | None,
        typer.Option(metavar="W1,W2,...", help="Weight of each adapter's change: W + sum of wi (Wi - W)."),
    ] = None,
    in_turn: Annotated[
        bool,
        typer.Option(
            "--in-turn", help="Merge the adapters in this order, each trained on the result of those before it."
        ),
    ] = False,
    verify_answers: Annotated[
        Path | None,
        typer.Option(
            help="Prepared set or .jsonl of questions; compare the answers of the adapter and of the merged model."
        ),
    ] = None,
    verify_onto: Annotated[
        Literal["merged", "both"],
        typer.Option(
            help="With --verify-answers: compare with the adapter on the base merged into, or on both bf16 and NF4."
        ),
    ] = "merged",
    force: Annotated[
        bool, typer.Option("--force", help="Accept a base other than the one the adapter was trained on.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check adapter, base and disk space, print what would be written, and stop."),
    ] = False,
) -> None:
    """Merge an adapter into its base and check the result.

    Keeps the base's names, dtypes and shards, and writes safetensors. If a merge is killed, rerun the same command to
    resume it.

    Example: ixtune merge runs/receipts --out merged

    Example: ixtune merge runs/receipts --out merged --dry-run

    Example: ixtune merge runs/receipts runs/charts --weights 0.6,0.4 --out merged
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    import ixtune.merging.merge as merging
    from ixtune.adapter.weights import named_base
    from ixtune.base import resolve
    from ixtune.cli.console import ending, progress_screen
    from ixtune.errors import UsageError

    numbers = _numbers(weights)
    if verify_answers is not None and (len(adapters) > 1 or numbers not in (None, [1.0])):
        raise UsageError(
            "--verify-answers compares with one adapter, not with a weighted combination",
            hint="leave out --verify-answers",
        )
    name_of_base = base or named_base(adapters[0])
    folder = resolve(name_of_base)
    asked = None
    if verify_answers is not None:  # read before gigabytes are written
        from ixtune.evaluation.verify_merge import questions_for

        asked = questions_for(adapters[0], folder, verify_answers, _QUESTIONS)
    if dry_run:
        from ixtune.merging.merge_plan import plan_merge

        plan = plan_merge(adapters, folder, out, weights=numbers, in_turn=in_turn, onto=onto, force=force)
        typer.echo("\n".join(_shown(_planned(plan, out) + [("warning", text) for text in plan.warnings])))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        task = bar.add_task("reading the base", total=None)
        report = merging.merge(
            adapters,
            folder,
            out,
            weights=numbers,
            in_turn=in_turn,
            onto=onto,
            force=force,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    lines = [
        ("tensors", f"{report.tensors}: {report.merged} merged, {report.copied} copied"),
        ("formula", report.arithmetic),
        ("onto", _ONTO[onto]),
        ("changed", f"{report.changed} tensors have at least one new value"),
        (
            "check",
            f"read {report.sampled_rows} rows back from the disk and recomputed them in float64: largest difference "
            f"{report.max_abs_error:.2g}, within the rounding of the stored dtype",
        ),
        *([("resumed", f"{report.resumed_shards} shards were already finished")] if report.resumed_shards else []),
        ("base", report.base_identity[:12]),
        ("merged", report.merged_identity[:12]),
        ("folder", report.out),
    ]
    found = None
    if asked is not None:
        found = _compare(adapters[0], name_of_base, out, asked, onto, verify_onto, force)
        lines += _verification_lines(found)
    lines += [("warning", text) for text in report.warnings]
    ending(_shown(lines), report.out, report.warnings)
    if found is not None and not found.passed:
        typer.echo("the answers of the merged model differ from those of the adapter: see merge_report.json", err=True)
        raise typer.Exit(1)


def _shown(lines: list[tuple[str, str]]) -> list[str]:
    return [f"{name:<8} {value}" for name, value in lines]


def _planned(plan: MergePlan, out: Path) -> list[tuple[str, str]]:
    from ixtune.data.generation_file import GENERATION_FILE
    from ixtune.merging.shard_writer import carried_name

    return [
        ("tensors", f"{len(plan.base.tensors)}: {len(plan.merged)} to merge, {len(plan.copied)} to copy"),
        ("formula", plan.arithmetic),
        ("onto", _ONTO[plan.onto]),
        *(("file", f"{name}, {_size(nbytes)}") for name, nbytes in plan.shard_bytes.items()),
        *(("file", f"{carried_name(name)}, a copy") for name in plan.carried),
        ("file", f"{GENERATION_FILE}, with both tokens that end an answer"),
        ("disk", f"{_size(plan.needed_bytes)} needed, {_size(plan.free_bytes)} free"),
        ("base", plan.identity[:12]),
        ("folder", f"{out}: nothing was written"),
    ]


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.1f} MiB"


def _compare(
    adapter: Path, base: str, merged: Path, asked: Asked, onto: Literal["bf16", "nf4"], sides: str, force: bool
) -> MergeVerification:
    from ixtune.cli.console import progress, quiet_libraries

    quiet_libraries()
    from ixtune.evaluation.verify_merge import verify_merge

    other: Literal["bf16", "nf4"] = "nf4" if onto == "bf16" else "bf16"
    bases = (onto, other) if sides == "both" else (onto,)
    with progress("questions") as bar:
        return verify_merge(adapter, base, merged, asked, onto=bases, force=force, progress=bar)


def _verification_lines(found: MergeVerification) -> list[tuple[str, str]]:
    answers = [
        (
            "answers",
            f"{side.same_answers} of {found.questions} equal the adapter's on {side.base}; logits differ by at most "
            f"{side.max_logit_difference:.2g}, {side.mean_logit_difference:.2g} on average "
            f"(the adapter itself changes them by {side.adapter_effect:.2g})",
        )
        for side in found.sides
    ]
    return answers + ([("closer", f"to the adapter on {found.closer}")] if found.closer else [])


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(number) for number in weights.split(",")]
    except ValueError:
        from ixtune.errors import UsageError

        raise UsageError(
            f"--weights {weights} is not a list of numbers", hint="write for example --weights 0.6,0.4"
        ) from None
