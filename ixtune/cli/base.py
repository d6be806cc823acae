"""`ixtune base`: describe a base, verify it, convert it to safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ixtune.cli.verbs import Verbs
from ixtune.files import readable_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ixtune.checkpoint.verify import Verification

app = typer.Typer(
    help="""Describe a base, verify it, and convert it to safetensors.

    Example: ixtune base info nano
    """,
    cls=Verbs,
    no_args_is_help=True,
)

_BaseName = Annotated[str, typer.Argument(metavar="BASE", help="`nano`, a checkpoint folder, or a hub id.")]
_Json = Annotated[bool, typer.Option("--json", help="Print a JSON object with every finding.")]
_SHOWN = 12  # number of findings to show per kind; a lost shard makes hundreds


@app.command("info", short_help="Describe a base: sizes, dtype, identity, license terms.")
def info(base: _BaseName, as_json: _Json = False) -> None:
    """Describe a base: sizes, parameters, shards, dtype, identity, license terms.

    Reads only the headers and the first and last bytes of each tensor.

    Example: ixtune base info nano
    """
    from ixtune.base import resolve
    from ixtune.checkpoint.describe import describe

    facts = describe(resolve(base))
    if as_json:
        _print_json(facts)
        return
    vision = facts["vision"]
    lines = [
        ("folder", facts["folder"]),
        ("model", facts["form"]),
        (
            "decoder",
            f"{facts['layers']} layers, hidden {facts['hidden']:,}, intermediate {facts['intermediate']:,}, "
            f"{facts['heads']} heads with {facts['kv_heads']} key/value heads, vocabulary {facts['vocabulary']:,}",
        ),
        (
            "vision",
            f"{vision['layers']} layers, hidden {vision['width']:,}, "
            f"views of {vision['side']} px in patches of {vision['patch']}",
        ),
        ("weights", f"{facts['tensors']} tensors, {_dtypes(facts['dtypes'])}, {readable_size(facts['bytes'])}"),
        *(("shard", f"{name}  {readable_size(size)}") for name, size in facts["shards"].items()),
        ("parameters", f"{sum(facts['parameters'].values()):,}"),
        *(("", f"{count:>15,}  {part}") for part, count in facts["parameters"].items()),
        ("in NF4", f"{readable_size(facts['nf4_bytes'])} in memory, decoder linears in 4 bits"),
        ("tokenizer", facts["tokenizer_sha256"] or "none in the folder"),
        ("identity", facts["identity"]),
        ("code", _code(facts["code_files"])),
        ("terms", facts["terms"]),
    ]
    _print_lines(lines)


@app.command("verify", short_help="Check every tensor and file of a base.")
def verify(
    base: _BaseName,
    headers_only: Annotated[
        bool,
        typer.Option("--headers-only", help="Skip the hashes and check names, shapes and dtypes only; takes a moment."),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Check a base for completeness: name, shape and dtype of every tensor, and the hash of every file.

    Compares hashes with known ones: from a report of ixtune, the hub cache, or the released tokenizer. Exits with 1 if
    anything is missing, superfluous or different.

    Example: ixtune base verify models/ixc2-4khd
    """
    import ixtune.checkpoint.verify as verifying

    with _bytes_bar() as (bar, task):
        bar.update(task, description="hashing")
        found = verifying.verify(
            _folder(base), hashes=not headers_only, advance=lambda nbytes: bar.advance(task, nbytes)
        )
    if as_json:
        _print_json(_as_json(found))
    else:
        _print_verification(found, headers_only)
    if found.findings:
        raise typer.Exit(1)


@app.command("convert", short_help="Convert the .bin shards of a base to safetensors.")
def convert(
    base: _BaseName,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
) -> None:
    """Convert the .bin shards of a base to safetensors, and check the files written.

    Keeps names, values and shards: shard k becomes shard k. Copies all other files. Refuses a .bin that contains code,
    and never runs it.

    Example: ixtune base convert models/ixc2-4khd --out models/ixc2-4khd-safetensors
    """
    import ixtune.checkpoint.convert as converting
    from ixtune.base import resolve
    from ixtune.cli.console import ending

    with _bytes_bar() as (bar, task):
        report = converting.convert(
            resolve(base),
            out,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    lines = [
        ("tensors", f"{report.tensors}, {readable_size(report.nbytes)}, each compared after it was written"),
        *(("shard", f"{old} -> {new}") for old, new in report.shards.items()),
        ("carried", ", ".join(report.carried) or "nothing"),
        ("identity", f"{report.identity}, as the source"),
        ("folder", report.out),
    ]
    ending(_lines(lines), report.out)


@contextmanager
def _bytes_bar() -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar that counts bytes, on a terminal only."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from ixtune.cli.console import progress_screen

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        yield bar, bar.add_task("reading the base", total=None)


def _folder(base: str) -> Path:
    """Return the folder of a base, complete or not: `verify` reports what is missing."""
    from ixtune.base import resolve

    path = Path(base).expanduser()
    return path if path.is_dir() else resolve(base)


def _print_verification(found: Verification, headers_only: bool) -> None:
    lines = [
        ("folder", str(found.folder)),
        ("model", found.form),
        (
            "tensors",
            f"{found.tensors} found, {found.expected} expected, {_dtypes(found.dtypes)}, {readable_size(found.nbytes)}",
        ),
    ]
    for name, sha256 in found.file_sha256.items():
        source = found.compared.get(name)
        lines.append(
            ("sha256", f"{sha256}  {name}  ({f'known from {source}' if source else 'nothing to compare with'})")
        )
    if headers_only:
        lines.append(("sha256", "not computed (--headers-only)"))
    if found.identity:
        lines.append(("identity", found.identity))
    for kind, findings in found.findings.items():
        lines += [(kind, line) for line in findings[:_SHOWN]]
        if len(findings) > _SHOWN:
            lines.append((kind, f"and {len(findings) - _SHOWN} more: --json lists all"))
    counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in found.findings.items())
    lines.append(("verdict", f"INCOMPLETE or damaged: {counts}" if counts else "complete"))
    _print_lines(lines)


def _as_json(found: Verification) -> dict[str, Any]:
    return {
        "folder": str(found.folder),
        "form": found.form,
        "whole": not found.findings,
        "tensors": found.tensors,
        "expected": found.expected,
        "bytes": found.nbytes,
        "dtypes": found.dtypes,
        "identity": found.identity,
        "file_sha256": found.file_sha256,
        "compared": found.compared,
        "findings": {kind: list(lines) for kind, lines in found.findings.items()},
    }


def _print_lines(lines: list[tuple[str, str]]) -> None:
    typer.echo("\n".join(_lines(lines)))


def _lines(lines: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {value}" for name, value in lines]


def _print_json(facts: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


def _dtypes(counts: dict[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {dtype}" for dtype, n in counts.items())


def _code(files: list[str]) -> str:
    return f"{', '.join(files)}: copied, never run" if files else "none, and none is needed"
