"""Read sources and images from object stores by their fsspec URL: s3://, gs://, hf://, az://.

`prepare --embed-images` accepts such URLs as sources and image roots. A source is downloaded to a temporary folder
first; images are read one by one by the workers and copied into the set. Credentials come from the environment or the
store's own configuration (such as AWS_PROFILE), never from the URL, and are never printed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError, UsageError

SCHEMES = ("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss")

_ADDRESS = re.compile(rf"(?P<scheme>{'|'.join(SCHEMES)})://(?P<rest>.*)", re.DOTALL)
_USER = re.compile(r"//[^/\s@]*@")
_QUERY = re.compile(r"\?\S*")
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|SIGNATURE", re.IGNORECASE)
_SHORTEST_SECRET = 6
_EXTRAS = {"s3": "s3", "s3a": "s3"}
# what must stay free on the disk of the temporary folder
_SPARE_BYTES = 1 << 30
_MOST_FILES = 1_000_000
# waiting for a store is cheap, and what was read ahead is bounded in bytes
_THREADS = 16
_KEPT_BYTES = 128 << 20


def is_remote(path: str | os.PathLike[str] | None) -> bool:
    """Return whether a path is a URL in an object store."""
    return path is not None and _ADDRESS.match(os.fspath(path)) is not None


def roots_of(image_root: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return `image_root` and `remote_root` of a `Source` for an image root that is a folder or a URL."""
    if is_remote(image_root):
        return {"image_root": None, "remote_root": str(image_root)}
    return {"image_root": None if image_root is None else Path(image_root), "remote_root": None}


def require_embedded(sources: Iterable[Source], *, embed: bool) -> None:
    """Raise unless images are embedded where a source or an image root is in an object store.

    Raises:
        UsageError: They are not, or a URL contains credentials.
    """
    for address in (one for source in sources for one in (source.path, source.remote_root) if is_remote(one)):
        assert address is not None
        if _USER.search(address) or _QUERY.search(address):
            raise UsageError(
                "the URL contains a user, a password or a query",
                where=without_secrets(address),
                hint="leave them out; credentials come from the environment, such as AWS_ACCESS_KEY_ID or HF_TOKEN",
            )
        if not embed:
            raise UsageError(
                "data in an object store, and the prepared set would only refer to it",
                where=address,
                hint="pass --embed-images to copy the images into the set, or download them",
            )


@contextmanager
def local_copies(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """Yield the sources with those of object stores replaced by local copies, which are removed afterwards.

    Raises:
        UsageError: A package for the store is missing, or there is no such object.
        IxtuneError: The store cannot be reached or refuses access, or the source does not fit on the disk.
    """
    if not any(is_remote(source.path) for source in sources):
        yield list(sources)
        return
    with TemporaryDirectory(prefix="ixtune-") as folder:
        yield [
            _downloaded(source, Path(folder, str(at))) if is_remote(source.path) else source
            for at, source in enumerate(sources)
        ]


def without_secrets(text: str) -> str:
    """Return a text without the user and query parts of URLs, and without secrets of the environment."""
    text = _QUERY.sub("?...", _USER.sub("//...@", text)) if "://" in text else text
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, "...")
    return text


@dataclass(slots=True)
class RemoteFolder:
    """An image root in an object store.

    Attributes:
        address: Its address.
    """

    address: str
    _kept: OrderedDict[str, bytes] = field(default_factory=OrderedDict)

    def read(self, path: str, most: int) -> bytes:
        """Return the content of a file.

        Args:
            path: Relative to the folder, or its whole address below the folder.
            most: Maximum size in bytes.

        Raises:
            RecordError: There is no such file, it is too large, or the path is outside the folder.
            IxtuneError: The store cannot be reached or refuses access.
        """
        relative = self._relative(path)
        if relative not in self._kept:
            content = self._fetched(relative, most)
            if len(content) > _KEPT_BYTES // 4:
                return content
            self._keep(relative, content)
        return self._kept[relative]

    def read_ahead(self, paths: Iterable[str], most: int) -> None:
        """Read files at the same time, so that `read` finds them; errors are left to `read`."""

        def fetch(path: str) -> tuple[str, bytes] | None:
            try:
                relative = self._relative(path)
                return relative, self._fetched(relative, most)
            except IxtuneError:
                return None

        wanted = [path for path in dict.fromkeys(paths) if path not in self._kept]
        with ThreadPoolExecutor(_THREADS) as pool:
            for found in pool.map(fetch, wanted):
                if found is not None and len(found[1]) <= _KEPT_BYTES // 4:
                    self._keep(*found)

    def _keep(self, relative: str, content: bytes) -> None:
        self._kept[relative] = content
        while sum(map(len, self._kept.values())) > _KEPT_BYTES:
            self._kept.popitem(last=False)

    def _relative(self, path: str) -> str:
        relative = path.removeprefix(self.address.rstrip("/") + "/").replace("\\", "/").strip()
        pure = PurePosixPath(relative)
        if is_remote(relative) or pure.is_absolute() or ".." in pure.parts or "\0" in relative:
            raise RecordError(
                Reason.PATH_OUTSIDE_ROOT,
                f"the path is outside the image root {self.address}",
                where=path,
                hint="pass a higher folder as --image-root",
            )
        return str(pure)

    def _fetched(self, relative: str, most: int) -> bytes:
        system, root = _system(self.address)
        try:
            content: bytes = system.cat_file(f"{root.rstrip('/')}/{relative}", start=0, end=most + 1)
        except FileNotFoundError:
            raise RecordError(
                Reason.PICTURE_MISSING,
                f"there is no such image below {self.address}",
                where=relative,
                hint="check the path, or pass the folder it is relative to as --image-root",
            ) from None
        except Exception as error:
            if _is_empty(error):
                content = b""
            else:
                raise _failed(error, f"{self.address.rstrip('/')}/{relative}") from None
        if len(content) > most:
            raise RecordError(
                Reason.PICTURE_TOO_LARGE,
                f"a file of more than {most >> 20} MiB",
                where=relative,
                hint="save it with compression",
            )
        return content


def below(value: Any, address: str) -> Any:
    """Return a value of a record with all paths made relative to the image root's URL."""
    if isinstance(value, str):
        return value.removeprefix(address.rstrip("/") + "/")
    if isinstance(value, dict):
        return {name: below(one, address) for name, one in value.items()}
    return [below(one, address) for one in value] if isinstance(value, list) else value


def _is_empty(error: Exception) -> bool:
    """Return whether a store refuses a range because the file has no bytes."""
    return "InvalidRange" in str(error) or "416" in str(error)


def _system(address: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    import fsspec

    match = _ADDRESS.match(address)
    assert match is not None
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError:
        extra = _EXTRAS.get(match["scheme"], "remote")
        raise UsageError(
            f"the package that reads {match['scheme']}:// is not installed",
            where=address,
            hint=f'pip install "ixtune[{extra}]", or download the data',
        ) from None
    except Exception as error:
        raise _failed(error, address) from None
    return system, path


def _downloaded(source: Source, folder: Path) -> Source:
    """Return a source with its files in a local folder, and its image root where it is."""
    address = source.path.rstrip("/")
    system, path = _system(address)
    try:
        files = {name: int(one.get("size") or 0) for name, one in system.find(path, detail=True).items()}
        if not files:
            raise UsageError("there is no such file or folder", where=address, hint="check the URL")
        _require_room(address, files, folder)
        single = list(files) == [path]
        for name in files:
            relative = PurePosixPath(name).name if single else name.removeprefix(path).lstrip("/")
            if ".." in PurePosixPath(relative).parts:
                raise UsageError("a name in the folder points outside it", where=address, hint="rename it")
            target = folder / PurePosixPath(address).name / relative if not single else folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(target))
    except IxtuneError:
        raise
    except Exception as error:
        raise _failed(error, address) from None
    local = folder / PurePosixPath(address).name
    remote_root = source.remote_root
    if single and remote_root is None and source.image_root is None:
        remote_root = address.rpartition("/")[0]
    return replace(source, path=str(local), origin=address, remote_root=remote_root)


def _require_room(address: str, files: dict[str, int], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(files.values()), shutil.disk_usage(folder).free
    if len(files) > _MOST_FILES or needed + _SPARE_BYTES > free:
        raise IxtuneError(
            f"{len(files):,} files of {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free in {folder.parent.parent}",
            where=address,
            hint="set TMPDIR to a folder on a larger disk, or prepare the data in parts",
        )


def _failed(error: Exception, address: str) -> IxtuneError:
    """Return the error for a failed request to a store, without any secret."""
    name = type(error).__name__
    first = without_secrets((str(error).splitlines() or [""])[0])[:200]
    if isinstance(error, FileNotFoundError):
        return UsageError("there is no such file or folder", where=address, hint="check the URL")
    if isinstance(error, PermissionError) or "Credential" in name or "Auth" in name or "Gated" in name:
        return IxtuneError(
            f"the store refuses access ({name}{f': {first}' if first else ''})",
            where=address,
            hint="set the store's credentials in the environment, such as AWS_PROFILE, "
            "GOOGLE_APPLICATION_CREDENTIALS or HF_TOKEN",
        )
    offline = "Offline" in name or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
    unset = "unset HF_HUB_OFFLINE to download from the hub, or " if address.startswith("hf:") and offline else ""
    return IxtuneError(
        f"the store cannot be read ({name}{f': {first}' if first else ''})",
        where=address,
        hint=f"{unset}check the network and the URL, or download the data and pass the local folder",
    )
