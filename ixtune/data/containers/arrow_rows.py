"""Convert Arrow batches to rows of plain Python values; images stay the bytes of their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import listed
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Fault
from ixtune.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

# rows held at once: a scanned page as PNG takes 20 MB, a row of text a few hundred bytes
_ROWS_WITH_BYTES = 8
_ROWS_WITHOUT = 512
PICTURES_BYTES = 8 * limits.MAX_ENTRY_BYTES
"""Maximum size of a row; larger ones are rejected: the number of images per record is limited."""


def batch_rows(schema: pyarrow.Schema) -> int:
    """Return the number of rows to hold in memory at once."""
    return _ROWS_WITH_BYTES if any(_any_type(field.type, _is_binary) for field in schema) else _ROWS_WITHOUT


def column_names(schema: pyarrow.Schema, where: str) -> list[str]:
    """Return the names of the columns.

    Args:
        schema: Schema of a table.
        where: Name of the table in messages.

    Raises:
        UsageError: There is none, or one occurs twice.
    """
    names: list[str] = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UsageError(
            f"two columns have the same name: {listed(twice)}" if twice else "the table has no columns",
            where=where,
            hint="write the table again with one name for each column",
        )
    return names


def rows_of(batch: pyarrow.RecordBatch | pyarrow.Table) -> Iterator[tuple[dict[str, Any] | None, Fault | None]]:
    """Yield the rows of a batch as mappings of column names to values, or the fault of a row.

    Numbers in a class-label column become the label's name, and JSON columns are parsed.
    """
    labels = _labels(batch.schema)
    columns = {name: _values(batch.column(name), labels.get(name)) for name in batch.schema.names}
    sizes = _sizes(batch) if batch.nbytes > limits.MAX_ENTRY_BYTES else None
    for at in range(batch.num_rows):
        value = {name: values[at] for name, values in columns.items()}
        fault = next((one for one in value.values() if isinstance(one, Fault)), None)
        if fault is None and sizes is not None and sizes[at] > PICTURES_BYTES:
            fault = too_large(sizes[at], PICTURES_BYTES)
        yield (None, fault) if fault else (value, None)


def too_large(size: int, most: int) -> Fault:
    """Return the fault for a row with too many bytes."""
    return Fault(
        Reason.RECORD_TOO_LARGE,
        f"the row has {size:,} bytes, more than {most:,}",
        "write images as files and give their paths, or split the row",
    )


def _values(column: pyarrow.ChunkedArray | pyarrow.Array, labels: list[str] | None) -> list[Any]:
    """Return the values of a column, with a Fault for each that Python cannot hold."""
    import pyarrow

    if pyarrow.types.is_float32(column.type):  # 0.1 would become the double 0.10000000149011612; as text it stays 0.1
        return [None if text is None else float(text) for text in column.cast(pyarrow.string()).to_pylist()]
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):  # UnicodeDecodeError among them
        values = [_value(one) for one in column]
    if labels is not None:
        values = [_named(value, labels) for value in values]
    elif _any_type(column.type, _is_json):
        values = [_from_json(value, column.type) for value in values]
    return values


def _value(scalar: pyarrow.Scalar) -> Any:
    import pyarrow

    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        found = f"a text holds the byte 0x{error.object[error.start]:02X}, which is not UTF-8"
        return Fault(Reason.NOT_UTF8, found, "write the table again with texts in UTF-8")
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:
        found = f"a value of the type {scalar.type} cannot be read: {str(error).splitlines()[0]}"
        return Fault(Reason.BAD_FIELD, found, "write the column as text")


def _labels(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Return the class names of each class-label column, which `datasets` keeps in the metadata of the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind.get("feature", kind) for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):  # written by something else, or not at all
        return {}
    return {
        name: kind["names"]
        for name, kind in kinds.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }


def _named(value: Any, labels: list[str]) -> Any:
    """Return the name of a class; None for -1, which means no class."""
    if isinstance(value, list):
        return [_named(one, labels) for one in value]
    return labels[value] if isinstance(value, int) and 0 <= value < len(labels) else None


def _sizes(batch: pyarrow.RecordBatch | pyarrow.Table) -> list[int]:
    return [batch.slice(at, 1).nbytes for at in range(batch.num_rows)]


def _any_type(kind: pyarrow.DataType, wanted: Any) -> bool:
    """Return whether a type or one inside it is wanted."""
    if wanted(kind):
        return True
    return any(_any_type(kind.field(at).type, wanted) for at in range(kind.num_fields))


def _is_binary(kind: pyarrow.DataType) -> bool:
    import pyarrow

    types = pyarrow.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_json(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return isinstance(kind, pyarrow.JsonType)


def _from_json(value: Any, kind: pyarrow.DataType) -> Any:
    """Return a value with its JSON texts decoded; Arrow has them where a list holds values of several types."""
    if value is None:
        return None
    if _is_json(kind):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # a text after all
    if isinstance(value, dict):
        return {name: _from_json(one, kind.field(name).type) for name, one in value.items()}
    if isinstance(value, list) and kind.num_fields == 1:
        return [_from_json(one, kind.field(0).type) for one in value]
    return value
