"""Compare ixtune with plain Trainer + PEFT in alternating processes: time, memory, ideal ratio."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ixtune.bench import mix, twin
from ixtune.checkpoint.sizes import Sizes
from ixtune.data.pack import pack
from ixtune.errors import IxtuneError
from ixtune.planning.flops import flops

PACK_TOKENS = 16384 // mix.SCALE
# Freed blocks go back to the system at once, so that resident memory follows the tensors. That costs time, so memory
# is measured in separate runs.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_ARENA_MAX": "1",
}
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True, slots=True)
class Way:
    """Way of training to measure.

    Attributes:
        name: name in tables.
        batch: records of a padded batch; None for ixtune's packs.
        checkpointed: whether every layer is recomputed in the backward pass.
        share: whether packs compute the page of several questions once.
    """

    name: str
    batch: int | None
    checkpointed: bool
    share: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """Measurements of one way.

    Attributes:
        way: the measured way.
        cpu_s_per_1000_tokens: process CPU time of one thread per 1,000 real tokens, the median of the rounds.
        peak_mib: most memory over the state after imports.
    """

    way: Way
    cpu_s_per_1000_tokens: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratios of ixtune to one plain way.

    Attributes:
        plain: the plain way.
        time: ratio of CPU time.
        ideal: fraction of operations left without padding, recomputation, and the head on unsupervised rows.
        memory: ratio of peak memory to the plain way with the same checkpointing.
    """

    plain: Way
    time: float
    ideal: float
    memory: float


def ways(batches: Sequence[int] = (4, 8)) -> list[Way]:
    """List the ways: ixtune, and the plain way in each batch size, each without and with checkpointing."""
    made = [Way("ixtune", None, False), Way("ixtune, checkpointed", None, True)]
    for batch in batches:
        made += [Way(f"plain, batch {batch}", batch, False), Way(f"plain, batch {batch}, checkpointed", batch, True)]
    return made


SHARING = (
    Way("ixtune, pages shared", None, False, share=True),
    Way("ixtune", None, False),
    Way("plain, batch 4", 4, False),
)
"""Plain way that prefix sharing is compared with, on a mix of several questions per page."""


def ideal(way: Way, records: int, config: dict[str, Any], rank: int) -> float:
    """Return the operations of the records alone as a fraction of those of a plain way."""
    sizes, trained = Sizes.from_config_json(config), twin.trained(rank)
    chosen = mix.records(records)
    needed = flops(sizes, trained, mix.shape(chosen)).total
    assert way.batch is not None
    layers = sizes.layers if way.checkpointed else 0
    spent = [flops(sizes, trained, mix.shape(b, padded=True), layers).total for b in mix.batches(chosen, way.batch)]
    return needed / sum(spent)


def measure(
    chosen: Sequence[Way],
    *,
    records: int,
    rounds: int,
    config: dict[str, Any],
    rank: int,
    name: str = mix.NAME,
    memory: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> list[Figures]:
    """Time every way in turn, `rounds` times, and then its memory (NaN if `memory` is off).

    Raises:
        IxtuneError: a way failed, with its last line.
    """
    seconds: dict[str, list[float]] = {way.name: [] for way in chosen}
    for turn in range(rounds):
        for way in chosen:
            found = _run(_case(way, records, config, rank, name), {})
            seconds[way.name].append(1000 * found["cpu_s"] / found["tokens"])
            log(f"round {turn + 1}/{rounds}  {way.name}: {seconds[way.name][-1]:.2f} s per 1,000 tokens")
    figures = []
    for way in chosen:
        peak = math.nan
        if memory:
            peak = _run(_case(way, records, config, rank, name), _ALLOCATOR)["peak_mib"]
            log(f"memory  {way.name}: {peak:,.0f} MiB")
        figures.append(Figures(way, statistics.median(seconds[way.name]), peak))
    return figures


def ratios(figures: Sequence[Figures], *, records: int, config: dict[str, Any], rank: int) -> list[Ratio]:
    """Compute the ratios to every plain way: time of ixtune without checkpointing, memory like against like."""
    ours = {found.way.checkpointed: found for found in figures if found.way.batch is None}
    return [
        Ratio(
            plain=found.way,
            time=ours[False].cpu_s_per_1000_tokens / found.cpu_s_per_1000_tokens,
            ideal=ideal(found.way, records, config, rank),
            memory=ours[found.way.checkpointed].peak_mib / found.peak_mib,
        )
        for found in figures
        if found.way.batch is not None
    ]


def as_json(figures: Sequence[Figures], found: Sequence[Ratio]) -> dict[str, Any]:
    """Return everything as a JSON-serializable dict."""
    return {"ways": [asdict(one) for one in figures], "ratios": [asdict(one) for one in found]}


def _case(way: Way, records: int, config: dict[str, Any], rank: int, name: str = mix.NAME) -> dict[str, Any]:
    chosen = mix.records(records, name)
    if way.batch is None:
        prefixes = mix.prefixes(chosen) if way.share else None
        steps = len(pack([record.tokens for record in chosen], PACK_TOKENS, prefixes))
    else:
        steps = len(mix.batches(chosen, way.batch))
    return {
        "way": "plain" if way.batch else "ixtune",
        "mix": name,
        "share": way.share,
        "records": records,
        "batch": way.batch,
        "pack_tokens": PACK_TOKENS,
        "checkpointed": way.checkpointed,
        "config": config,
        "rank": rank,
        "max_steps": steps + 1,
    }


def _run(case: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "ixtune.bench.worker"],
        input=json.dumps(case),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **_QUIET, **variables, "PYTHONPATH": path},
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise IxtuneError(
            f"a run of the benchmark failed: {last}",
            where=json.dumps({key: value for key, value in case.items() if key != "config"}),
            hint="measure fewer records with --records, or report it",
        )
    found: dict[str, Any] = json.loads(lines[-1])
    return found
