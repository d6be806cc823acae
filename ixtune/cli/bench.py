"""`ixtune bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

_TWIN, _FULL_SIZE = "the twin", "the 7B's own shapes"


def command(
    records: Annotated[
        int | None, typer.Option("--records", min=4, help="Number of records of the mix to train on. Default: 8.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="Number of measurements of each variant; the median is used. Default: 1."),
    ] = None,
    full_size: Annotated[
        bool,
        typer.Option("--full-size", help="Measure the 7B's own shapes, with random weights, on this machine's GPU."),
    ] = False,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="With --full-size: number of decoder layers. Default: all.")
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            "--questions",
            min=2,
            help="With --full-size: also measure the largest page with this number of questions, with and without "
            "shared prefixes.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure time and memory of a training step, against plain Trainer + PEFT.

    By default on one CPU thread, with a twin: a small network with the proportions of the 7B (about ten minutes).
    --full-size measures the 7B's shapes and needs a GPU.

    Example: ixtune bench --records 8 --rounds 3
    """
    import json

    from ixtune import platforms
    from ixtune.cli.console import aside, console, quiet_libraries, table
    from ixtune.errors import UsageError

    own = {"--records": records, "--rounds": rounds} if full_size else {"--layers": layers, "--questions": questions}
    for option, value in own.items():
        if value is not None:
            raise UsageError(
                f"{option} is for {_TWIN if full_size else _FULL_SIZE}, not for {_FULL_SIZE if full_size else _TWIN}",
                hint="leave it out" if full_size else "add --full-size, which needs a GPU, or leave it out",
            )
    records, rounds = records or 8, rounds or 1
    out, stderr = console(), aside()
    log: Callable[[str], None] = (lambda line: None) if as_json else (lambda line: stderr.print(line, highlight=False))
    if full_size:
        quiet_libraries()
        from ixtune.bench import full

        rows = full.measure(layers=layers, questions=questions or 1, log=log)
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        out.print(
            table(
                None,
                ("questions", "tokens", "checkpointed", "peak GiB", "planned GiB", "tokens/s", "of the matmul limit"),
                [
                    (
                        f"{row['questions']}{', shared page' if row['shared'] else ''}",
                        f"{row['tokens']:,}",
                        "all layers" if row["checkpointed"] else "none",
                        f"{row['used_gib']:.2f}",
                        f"{row['planned_gib']:.2f}",
                        f"{row['tokens_per_s']:,.0f}",
                        f"{row['limit_share']:.0%}",
                    )
                    for row in rows
                ],
            )
        )
        return
    from ixtune.bench import compare, mix, twin

    figures = compare.measure(
        compare.ways(),
        records=records,
        rounds=rounds,
        config=twin.CONFIG,
        rank=twin.RANK,
        log=log,
    )
    found = compare.ratios(figures, records=records, config=twin.CONFIG, rank=twin.RANK)
    if as_json:
        typer.echo(json.dumps(compare.as_json(figures, found), indent=2))
        return
    chosen = mix.records(records)
    padding = ", ".join(f"{mix.padded_share(chosen, size):.0%} at batch {size}" for size in (4, 8))
    out.print(
        f"\nmix      {mix.NAME}: {records} records, {sum(r.tokens for r in chosen):,} tokens; padding {padding}",
        highlight=False,
    )
    load = platforms.load()
    out.print(f"machine  one thread, load {'unknown' if load is None else f'{load:.2f}'}", highlight=False)
    out.print(
        table(
            None,
            ("way", "CPU s per 1,000 tokens", "peak MiB"),
            [(one.way.name, f"{one.cpu_s_per_1000_tokens:.2f}", f"{one.peak_mib:,.0f}") for one in figures],
        )
    )
    out.print(
        table(
            "ixtune (time: without checkpointing; memory: same checkpointing) against",
            ("baseline", "time", "ideal", "time / ideal", "memory"),
            [
                (
                    one.plain.name,
                    f"{one.time:.2f}",
                    f"{one.ideal:.2f}",
                    f"{one.time / one.ideal:.2f}",
                    f"{one.memory:.2f}",
                )
                for one in found
            ],
        )
    )
