"""Read Parquet files, an entry for each row. Never more than one small batch is held."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ixtune.data.containers.arrow_rows import batch_rows, column_names, rows_of
from ixtune.data.record import Place
from ixtune.data.schemas.fields import listed
from ixtune.data.sources.entry import Entry
from ixtune.errors import IxtuneError, UsageError

if TYPE_CHECKING:
    import pyarrow.parquet

# read in blocks of this size, so that a row group of large images is never entirely in memory
_PARQUET_BUFFER_BYTES = 1 << 20
# datasets names the files of a split like this: train-00000-of-00003.parquet
_SPLIT_OF_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")


def parquet_files(path: Path, split: str | None = None) -> tuple[Path, ...]:
    """Return the Parquet files of a source: itself, or those in the folder by name.

    Args:
        path: A file or a folder.
        split: Split to read, if the file names have splits as in `datasets`.

    Raises:
        UsageError: The folder holds no Parquet file, or several splits of which none is chosen.
    """
    if not path.is_dir():
        return (path,)
    by_split: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.parquet")):
        match = _SPLIT_OF_SHARD.fullmatch(file.name)
        by_split.setdefault(match[1] if match else "", []).append(file)
    if not by_split:
        raise UsageError("the folder holds no *.parquet", where=str(path), hint="pass the folder with the files")
    if split is not None and split in by_split:
        return tuple(by_split[split])
    if split is not None or len(by_split) > 1:
        found = ", ".join(name or "files without a split" for name in by_split)
        raise UsageError(
            f"the folder holds {found}" + (f", but no split {split}" if split is not None else ""),
            where=str(path),
            hint="choose one with --split, or pass the files one by one",
        )
    return tuple(next(iter(by_split.values())))


def parquet_entries(files: Sequence[Path]) -> Iterator[Entry]:
    """Yield the rows of Parquet files, in order, as mappings of column names to values; images stay undecoded.

    Raises:
        IxtuneError: A file is not Parquet, or its data are corrupt.
    """
    number = 0
    for path in files:
        at, name = 0, str(path)
        with _parquet(path) as file:
            for batch in file.iter_batches(batch_size=batch_rows(file.schema_arrow)):
                for value, fault in rows_of(batch):
                    number, at = number + 1, at + 1
                    yield Entry(number, name, Place("row", at), value=value, fault=fault, position=number)


def parquet_columns(files: Sequence[Path]) -> list[str]:
    """Return the column names of Parquet files.

    Raises:
        UsageError: They differ from file to file, or a name occurs twice.
        IxtuneError: A file is not Parquet.
    """
    first: list[str] = []
    for path in files:
        with _parquet(path) as file:
            names = column_names(file.schema_arrow, str(path))
        if first and set(names) != set(first):
            raise UsageError(
                f"the columns are {listed(names)}; those of {files[0].name} are {listed(first)}",
                where=str(path),
                hint="pass files with the same columns, or each as a separate source",
            )
        first = first or names
    return first


def parquet_rows(files: Sequence[Path]) -> int:
    """Return the number of rows of Parquet files, from their footers."""
    total = 0
    for path in files:
        with _parquet(path) as file:
            total += file.metadata.num_rows
    return total


@contextmanager
def _parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise IxtuneError(
            f"the Parquet file cannot be read: {str(error).splitlines()[0]}",
            where=str(path),
            hint="download or write it again; it may have been truncated",
        ) from error
