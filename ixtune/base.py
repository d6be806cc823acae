"""Find a base checkpoint: the embedded one, a folder, or a snapshot of the Hugging Face hub.

A base is a folder in the original format: `config.json`, `tokenizer.model`, and `.bin` or `.safetensors` weights, with
or without an index. Preparing data needs its `tokenizer.model` only. Remote code is never downloaded: no `.py` file is
among the patterns.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD

HUB_ID = FOUR_KHD.hub_id
"""Default base."""
NANO = "nano"

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED_IN_REPOSITORY = {"nano": "examples/nano-base/base", "recipes": "recipes"}
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZER = "tokenizer.model"
_CONFIG = "config.json"
_HUB_FILES = ["*.json", "*.safetensors", "*.bin", _TOKENIZER]
# owner/name as the hub allows it; a leading dot is reserved for paths, so that ../x is never taken for an id
_HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*")


def shipped(kind: Literal["nano", "recipes"]) -> Path:
    """Return a folder that ships with ixtune: from the installed wheel, else from the repository.

    Raises:
        IxtuneError: Neither exists, so the installation is broken.
    """
    installed = _PACKAGE / "_shipped" / kind
    in_repository = _PACKAGE.parent / _SHIPPED_IN_REPOSITORY[kind]
    for folder in (installed, in_repository):
        if folder.is_dir():
            return folder
    raise IxtuneError(
        f"the {kind} folder is missing from this installation of ixtune",
        where=str(installed),
        hint="reinstall ixtune",
    )


def resolve(name: str) -> Path:
    """Return the folder of the base called `name`, after checking that it is complete. Loads nothing.

    Args:
        name: `nano` for the embedded base, a folder, or a hub id such as `HUB_ID`. A hub id is taken from the local
            cache, or downloaded if the cache is incomplete. A folder never causes a request.

    Raises:
        IxtuneError: There is no such folder or hub id, it cannot be downloaded, or it is not a checkpoint; the
            message names what is missing.
    """
    return _folder(name, _HUB_FILES, _missing_parts)


def cached(hub_id: str) -> Path | None:
    """Return the folder of a hub id in the local cache, or None if it is incomplete. Sends no request."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return None if _missing_parts(folder) else folder


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a hub id, owner/name."""
    return bool(_HUB_ID_PATTERN.fullmatch(name)) and ".." not in name


def resolve_tokenizer(name: str) -> Path:
    """Return the folder with the `tokenizer.model` of the base called `name`; its weights may be missing.

    Args:
        name: As in `resolve`. For a hub id, only the tokenizer is downloaded (1.5 MB, not 17 GB).

    Raises:
        IxtuneError: There is no such folder or hub id, it cannot be downloaded, or it has no tokenizer.
    """
    return _folder(name, [_TOKENIZER], _missing_tokenizer)


def resolve_config(name: str) -> Path:
    """Return the folder with the `config.json` of the base called `name`; all else may be missing.

    Args:
        name: As in `resolve`. For a hub id, only that file is downloaded.

    Raises:
        IxtuneError: There is no such folder or hub id, it cannot be downloaded, or it has no config.json.
    """
    return _folder(name, [_CONFIG], _missing_config)


def _folder(name: str, hub_files: list[str], missing_parts: Callable[[Path], list[str]]) -> Path:
    """Return the complete folder called `name`; `hub_files` are the patterns to download for a hub id."""
    if name == NANO:
        folder = shipped("nano")
    elif os.path.lexists(path := Path(name).expanduser()):
        folder = path
    elif is_hub_id(name):
        folder = hub_snapshot(name, hub_files, missing_parts)
    else:
        raise IxtuneError(
            "there is no such base folder",
            where=name,
            hint=f"pass `{NANO}`, a checkpoint folder, or a hub id such as {HUB_ID}",
        )
    if not folder.is_dir():
        raise IxtuneError(
            "the base is not a folder", where=str(folder), hint="pass the folder that contains config.json"
        )
    if missing := missing_parts(folder):
        _refuse_incomplete(folder, missing)
    return folder


def _refuse_incomplete(folder: Path, missing: list[str]) -> NoReturn:
    """Raise an IxtuneError that names every missing part of `folder`."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise IxtuneError(
            "this is an adapter, not a base",
            where=str(folder),
            hint="pass the base it was trained on (`base` in its ixtune.json), or merge the adapter first",
        )
    if (folder / "adapter" / "adapter_config.json").is_file():
        raise IxtuneError(
            "this is a training run, not a base",
            where=str(folder),
            hint=f"to train on from its adapter: adapter.start_from={folder} with the base it was trained on",
        )
    raise IxtuneError(
        f"not a complete base checkpoint: missing {', '.join(missing)}",
        where=str(folder),
        hint="copy the missing files into it, or pass another folder",
    )


def _missing_tokenizer(folder: Path) -> list[str]:
    """Return the name of the tokenizer file if it is missing from `folder`."""
    return [] if (folder / _TOKENIZER).is_file() else [_TOKENIZER]


def _missing_config(folder: Path) -> list[str]:
    """Return the name of config.json if it is missing from `folder`."""
    return [] if (folder / _CONFIG).is_file() else [_CONFIG]


def _missing_parts(folder: Path) -> list[str]:
    """Return the missing parts of a checkpoint folder; with an index, every shard it names must exist."""
    missing = [name for name in ("config.json", _TOKENIZER) if not (folder / name).is_file()]
    indexes = [folder / name for name in _INDEX_FILES if (folder / name).is_file()]
    if not indexes:
        if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
            missing.append("weights (*.safetensors or *.bin)")
        return missing
    absent_by_index = [_absent_shards(index) for index in indexes]
    # one complete set is enough: a folder may contain the indexes of both forms and the shards of one
    return missing + min(absent_by_index, key=len)


def _absent_shards(index: Path) -> list[str]:
    """Return the shards that `index` names and that its folder does not contain."""
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IxtuneError(
            "the index of the weights cannot be read",
            where=str(index),
            hint="the file is damaged; download or copy it again",
        ) from error
    if outside:
        raise IxtuneError(
            f"the index of the weights names a file outside its folder: {outside[0]}",
            where=str(index),
            hint="use a checkpoint whose shards are next to its index",
        )
    return [shard for shard in shards if not (index.parent / shard).is_file()]


def hub_snapshot(hub_id: str, files: list[str], missing_parts: Callable[[Path], list[str]]) -> Path:
    """Return a snapshot folder of a hub repository: from the cache if complete, else after downloading `files`."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(hub_id, allow_patterns=files, local_files_only=True))
        if not missing_parts(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    if constants.HF_HUB_OFFLINE:
        raise IxtuneError(
            f"not a folder, and not complete in the hub cache: {hub_id}",
            where=f"HF_HUB_OFFLINE is set; cache {constants.HF_HUB_CACHE}",
            hint="unset HF_HUB_OFFLINE to download it, or pass a checkpoint folder",
        )
    try:
        return Path(snapshot_download(hub_id, allow_patterns=files))
    except GatedRepoError as error:
        raise IxtuneError(
            f"the hub requires an access grant for {hub_id}",
            hint="accept its terms on the hub, then run `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise IxtuneError(
            f"not a folder, and not a model on the hub: {hub_id}",
            hint=f"check the spelling, or pass a checkpoint folder; the released model is {HUB_ID}",
        ) from error
    except Exception as error:  # the hub library does not wrap the errors of its HTTP and transfer packages
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise IxtuneError(
            f"{hub_id} could not be downloaded: {reason}",
            hint="check the connection and retry (finished parts are kept), or pass a checkpoint folder",
        ) from error
