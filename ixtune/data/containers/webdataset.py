"""Read WebDataset shards: consecutive members of a tar with the same key are one sample.

    shard-000.tar: 0001.jpg, 0001.json, 0002.jpg, 0002.json, ...

The key of a member is its path up to the first dot of its name; what follows the dot says what it is: an image, JSON,
or text. Nothing is unpacked to the disk, and no link is followed. A JSON member with `conversations` or `messages` is
the record, to which the images are given as `image`. Otherwise the sample is a row of a table: the fields of the
JSON, `image`, `text` (also from .caption), and NAME from NAME.txt, such as 0001.question.txt and 0001.answer.txt.

Each shard is read up to where it breaks: a sample is complete if another one or the end marker follows it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ixtune.data.containers.arrow_rows import PICTURES_BYTES
from ixtune.data.containers.members import KINDS, PICTURES, fields_of_members, kind_of
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import listed, shown
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry, Fault
from ixtune.errors import IxtuneError, UsageError

_BLOCK = 1 << 20
_MEND = "write the members of each sample one after the other: KEY.jpg and KEY.json, or KEY.txt"


def shards(path: Path) -> tuple[Path, ...]:
    """Return the tar files of a source: itself, or those in the folder by name.

    Raises:
        UsageError: The folder holds none.
    """
    if not path.is_dir():
        return (path,)
    found = tuple(sorted(path.glob("*.tar")))
    if not found:
        raise UsageError("the folder holds no *.tar", where=str(path), hint="pass the folder with the shards")
    return found


def entries(shards: Sequence[Path]) -> Iterator[Entry]:
    """Yield the samples of all shards in order.

    Raises:
        IxtuneError: A shard is not a tar file.
    """
    number = done = 0
    for shard in shards:
        # the numbering of keys often restarts in each shard
        prefix = f"{shard.stem}/" if len(shards) > 1 else ""
        for sample, position in _samples(shard):
            number += 1
            value, fault = _value(sample, prefix)
            place = Place("member", sample.key)
            yield Entry(number, str(shard), place, value=value, fault=fault, position=done + position)
        done += shard.stat().st_size


@dataclass(slots=True)
class _Sample:
    """Members with the same key.

    Attributes:
        key: Their path up to the first dot of the name.
        names: The path of each, by what follows that dot.
        members: Path and content of the members to read, by the same key.
        size: Total size in bytes.
        fault: The reason why the sample is not usable.
    """

    key: str
    names: dict[str, str] = field(default_factory=dict)
    members: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    size: int = 0
    fault: Fault | None = None

    def refuse(self, reason: Reason, found: str, hint: str = _MEND) -> None:
        """Set the fault, unless there is one already, and drop the members, which are no longer needed."""
        self.fault = self.fault or Fault(reason, found, hint)
        self.members.clear()


def _samples(shard: Path) -> Iterator[tuple[_Sample, int]]:
    """Yield the samples of a shard, each with the position reached in the shard."""
    keys: set[str] = set()
    sample: _Sample | None = None
    tar: tarfile.TarFile | None = None
    name = shard.name
    with _opened(shard) as file:
        try:
            tar = tarfile.TarFile(fileobj=file, encoding="utf-8")
            while (member := _next(tar)) is not None:
                key, ending = _split(member.name)
                if member.isdir() or not key:
                    continue
                name = member.name
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample, member.offset
                    sample = _Sample(key)
                    if key in keys:
                        sample.refuse(Reason.DUPLICATE_ID, f"the key {shown(key)} occurs earlier in the shard")
                    keys.add(key)
                _add(sample, ending, member, tar)
            whole, broken = _end(file, tar.offset)
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            if tar is None:  # not even the first header could be read
                raise IxtuneError(
                    f"this is not a tar file: {error}",
                    where=str(shard),
                    hint="pass tar files without compression, or download the shard again",
                ) from error
            whole, broken = False, str(error)
        position = file.tell()
    if sample is not None and whole:
        yield sample, position
    if broken is not None:
        rest = _Sample(name)
        hint = "download or write the shard again: the number of lost samples is unknown"
        rest.refuse(Reason.SOURCE_BROKEN, f"the shard breaks off in or after {shown(name)}: {broken}", hint)
        yield rest, position


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Return the next member."""
    member = tar.next()
    tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
    if member is not None and tar.offset <= member.offset:
        raise tarfile.ReadError("a member of negative size")  # which would be read again and again
    return member


def _end(file: IO[bytes], offset: int) -> tuple[bool, str | None]:
    """Return whether the last sample is complete, and a problem at the end of a tar file.

    `tarfile` takes anything that is not a header for the end.
    """
    file.seek(offset)
    mark = file.read(tarfile.BLOCKSIZE)
    if mark.strip(b"\0") or len(mark) < tarfile.BLOCKSIZE:
        return False, "neither a member nor the end marker follows"
    while block := file.read(_BLOCK):
        if block.strip(b"\0"):
            return True, "more data follow its end marker, perhaps another tar file"
    return True, None


def _split(name: str) -> tuple[str, str]:
    """Return (key, ending) of a member; no key for hidden files, which archivers add on their own."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else "", ending.lower())


def _add(sample: _Sample, ending: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """Add a member to its sample; members that no record needs are not read."""
    name = shown(member.name)
    if ending in sample.names:
        sample.refuse(Reason.BAD_FIELD, f"two members of the sample end with .{ending}: {name} is the second")
    sample.names[ending] = member.name
    if kind_of(ending) not in KINDS or sample.fault is not None:
        return
    sample.size += member.size
    is_image = kind_of(ending) in PICTURES
    most = PICTURES_BYTES if is_image else limits.MAX_ENTRY_BYTES
    if not member.isreg():
        hint = "pack the files themselves: tar --dereference --hard-dereference"
        sample.refuse(Reason.BAD_FIELD, f"{name} is a link or a device, which is not followed", hint)
    elif member.size > most or sample.size > PICTURES_BYTES:
        hint = "make it smaller, or split the sample"
        sample.refuse(Reason.RECORD_TOO_LARGE, f"with {name} the sample has {sample.size:,} bytes", hint)
    elif not member.size and is_image:
        sample.refuse(Reason.PICTURE_EMPTY, f"{name} has no content", "pack the image again")
    else:
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        sample.members[ending] = (member.name, content.read())


def _value(sample: _Sample, prefix: str) -> tuple[dict[str, Any] | None, Fault | None]:
    if sample.fault is None and not sample.members:
        sample.refuse(Reason.NOT_A_RECORD, f"no member is an image, JSON or text: {listed(sample.names.values())}")
    if sample.fault is not None:
        return None, sample.fault
    fields, fault = fields_of_members(sample.key, sample.members)
    if fields.get("id") is None:
        fields["id"] = prefix + sample.key
    return (None, fault) if fault else (fields, None)


@contextmanager
def _opened(shard: Path) -> Iterator[IO[bytes]]:
    try:
        file = open(shard, "rb")  # noqa: SIM115 - closed below; only its opening is explained here
    except OSError as error:
        raise IxtuneError(
            f"the shard cannot be read: {error.strerror}", where=str(shard), hint="check its permissions"
        ) from error
    with file:
        yield file
