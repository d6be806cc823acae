"""What stands on the command line -> sources: data, or files that list sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from ixtune.data.sources.data_config import is_config, read_config
from ixtune.data.sources.mixture_file import is_mixture, read_mixture
from ixtune.data.sources.source import Source


def sources_given(paths: Sequence[str], defaults: Source, thousands: bool) -> list[Source]:
    """The sources that some paths stand for.

    Args:
        paths: Data as `Source.path` has it, data configs (.yaml), and the official data.txt.
        defaults: What holds for each source that says nothing itself; its path does not count.
        thousands: The numbers of a data.txt are thousands of records; else they are weights.

    Raises:
        UsageError: A list of sources is wrong.
    """
    found: list[Source] = []
    for path in paths:
        if is_config(Path(path)):
            found += [_filled(source, defaults) for source in read_config(Path(path))]
        elif is_mixture(Path(path)):
            found += [_filled(source, defaults) for source in read_mixture(Path(path), thousands)]
        else:
            found.append(replace(defaults, path=path))
    return found


def _filled(source: Source, defaults: Source) -> Source:
    """The source, with the defaults where it says nothing."""
    empty = {one.name: getattr(defaults, one.name) for one in fields(Source) if getattr(source, one.name) in (None, ())}
    return replace(source, **empty)
