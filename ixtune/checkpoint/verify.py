"""Verify a base folder: names, shapes and dtypes of all tensors, and all known hashes.

`open_checkpoint` stops at the first problem; this continues and reports all of them. Needs torch to read
`.bin` headers, but not transformers, and reads no byte of the weights unless hashes are requested.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.checkpoint.convert import hash_of
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.member import completed
from ixtune.checkpoint.safetensors_file import TensorInfo
from ixtune.checkpoint.shards import open_checkpoint, open_file
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.tensor_shapes import tensor_shapes
from ixtune.errors import IxtuneError
from ixtune.family import ANY_TITLE

TOKENIZER_FILE = "tokenizer.model"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_KINDS = ("internlmxcomposer2", "internlm2")  # model_type in config.json, and in the original's configuration class
_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Verification:
    """Findings of a verification.

    Attributes:
        folder: The folder that was verified.
        sizes: Sizes from its config.json.
        tensors: Tensors found.
        expected: Tensors the network has.
        nbytes: Bytes of the tensors found.
        dtypes: dtype -> tensors stored in it.
        shards: Weights files, in order.
        identity: Identity of the base; None if it is incomplete.
        file_sha256: Hash of every file that was read.
        compared: File -> source of the known hash.
        missing: Tensors and files that should be there, with their shape and, where an index says so, their shard.
        extra: Tensors the network does not have.
        misshapen: Tensors of another shape than config.json requires.
        other_dtype: Tensors of another dtype than config.json names.
        damaged: Files that cannot be read, or do not agree with their index.
        altered: Files with another hash than the known one.
    """

    folder: Path
    sizes: Sizes
    tensors: int
    expected: int
    nbytes: int
    dtypes: dict[str, int]
    shards: tuple[str, ...]
    identity: str | None
    file_sha256: dict[str, str]
    compared: dict[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]
    other_dtype: tuple[str, ...]
    damaged: tuple[str, ...]
    altered: tuple[str, ...]

    @property
    def findings(self) -> dict[str, tuple[str, ...]]:
        """Return everything that is wrong, by kind; empty if the base is intact."""
        kinds = {
            "damaged": self.damaged,
            "altered": self.altered,
            "missing": self.missing,
            "not part of the model": self.extra,
            "wrong shape": self.misshapen,
            "another dtype": self.other_dtype,
        }
        return {kind: lines for kind, lines in kinds.items() if lines}

    @property
    def form(self) -> str:
        """Return the name of the model this should be."""
        return form_of(self.sizes)


def form_of(sizes: Sizes) -> str:
    """Return the name of the model that has these sizes."""
    form = "the released 7B" if sizes.is_released else "a model of the same form in other sizes"
    return f"{form} ({sizes.member.title})" if sizes.member.record() else form


def verify(folder: Path, *, hashes: bool = True, advance: Callable[[int], None] | None = None) -> Verification:
    """Compare a base folder with its config.json.

    Args:
        folder: A base in the original form.
        hashes: Whether to hash every file, and compare the hashes that are known.
        advance: Receives the number of bytes hashed.

    Raises:
        IxtuneError: There is no such folder, or its config.json is not one of this architecture.
    """
    config = read_config_json(folder)
    if "quantization_config" in config:
        raise IxtuneError(
            "this model is stored in 4 bits; it is not a 16-bit base",
            where=str(folder),
            hint="if ixtune exported it, check it with `ixtune export --check`",
        )
    sizes = Sizes.from_config_json(config)
    expected = tensor_shapes(sizes)
    found, places, damaged = _survey(folder)
    missing = [f"{name} {list(shape)}{_of(places, name)}" for name, shape in expected.items() if name not in found]
    if not (folder / TOKENIZER_FILE).is_file():
        missing.append(f"the file {TOKENIZER_FILE}")
    known = known_hashes(folder, sizes)
    for name, (_, source) in known.items():
        if name != TOKENIZER_FILE and not (folder / name).exists():
            missing.append(f"the file {name}, which {source} lists")
    identity = None
    if not (damaged or missing):
        identity = base_identity(open_checkpoint(folder))
    names = sorted({info.shard for info in found.values()})
    present = {name for name in (*names, *known, TOKENIZER_FILE) if (folder / name).is_file()}
    file_sha256 = {name: hash_of(folder / name, advance) for name in sorted(present)} if hashes else {}
    declared = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    return Verification(
        folder=folder,
        sizes=sizes,
        tensors=len(found),
        expected=len(expected),
        nbytes=sum(info.nbytes for info in found.values()),
        dtypes=_count(info.dtype for info in found.values()),
        shards=tuple(names),
        identity=identity,
        file_sha256=file_sha256,
        compared={name: known[name][1] for name in file_sha256 if name in known},
        missing=tuple(missing),
        extra=tuple(f"{name} {list(info.shape)}" for name, info in found.items() if name not in expected),
        misshapen=tuple(
            f"{name} is {list(info.shape)}, config.json requires {list(expected[name])}"
            for name, info in found.items()
            if name in expected and tuple(info.shape) != expected[name]
        ),
        other_dtype=tuple(
            f"{name} is {_named(info.dtype)}, config.json says {declared}"
            for name, info in found.items()
            if name in expected and _named(info.dtype) != declared
        ),
        damaged=tuple(damaged),
        altered=tuple(
            f"{name} has the SHA-256 {file_sha256[name]}, but {source} says {sha256}"
            for name, (sha256, source) in known.items()
            if name in file_sha256 and file_sha256[name] != sha256
        ),
    )


def read_config_json(folder: Path) -> dict[str, Any]:
    """Read a base's config.json and complete it from the tensors.

    Raises:
        IxtuneError: It cannot be read, is of another architecture, or contradicts the tensors.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise IxtuneError(
            "there is no config.json: this is not the folder of a base",
            where=str(folder),
            hint="pass the folder of a checkpoint; for an adapter, use `ixtune inspect`",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
        Sizes.from_config_json(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IxtuneError(
            f"config.json cannot be read: {error}",
            where=str(path),
            hint="the file is damaged; download or copy it again",
        ) from error
    if kind not in _KINDS:
        raise IxtuneError(
            f"this is a {kind!r} checkpoint, not {ANY_TITLE}",
            where=str(path),
            hint="pass the folder of such a checkpoint (model_type internlmxcomposer2), or `nano`",
        )
    return completed(config, folder)


def known_hashes(folder: Path, sizes: Sizes) -> dict[str, tuple[str, str]]:
    """Return the SHA-256 and its source for each file with a known hash.

    Sources are a report of ixtune in the folder, the name under which the hub cache stores a large file, and the
    released tokenizer.
    """
    known: dict[str, tuple[str, str]] = {}
    if sizes.is_released and (sha256 := sizes.member.tokenizer_sha256):
        known[TOKENIZER_FILE] = (sha256, "the released model")
    for file in folder.iterdir():
        stored = file.resolve()
        if file.is_symlink() and stored.parent.name == "blobs" and len(stored.name) == _SHA256_DIGITS:
            known[file.name] = (stored.name, "the hub's cache")
    for report in sorted(folder.glob("*_report.json")):
        try:
            recorded = json.loads(report.read_text(encoding="utf-8")).get("file_sha256", {})
            plain = {str(name): str(sha256) for name, sha256 in recorded.items() if Path(name).name == name}
        except (OSError, ValueError, AttributeError):
            continue  # a report of another command
        known |= {name: (sha256, report.name) for name, sha256 in plain.items()}
    return known


def _survey(folder: Path) -> tuple[dict[str, TensorInfo], dict[str, str], list[str]]:
    """Return the tensors that are found, the shard that an index gives for each name, and the damaged files."""
    try:
        whole = open_checkpoint(folder)
        return dict(whole.by_name), {}, []
    except IxtuneError as error:
        first = error
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    places: dict[str, str] = {}
    if index is not None:
        try:
            places = dict(json.loads(index.read_bytes())["weight_map"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}, {}, [str(first)]
    shards = sorted({name for name in places.values() if isinstance(name, str) and Path(name).name == name})
    found: dict[str, TensorInfo] = {}
    damaged = []
    for shard in shards:
        if not (folder / shard).is_file():
            damaged.append(f"{shard} is missing; {index.name if index else 'the index'} places tensors in it")
            continue
        try:
            found |= open_file(folder / shard).by_name
        except IxtuneError as error:
            damaged.append(str(error))
    return found, places, damaged or [str(first)]


def _of(places: dict[str, str], name: str) -> str:
    return f" of {places[name]}" if name in places else ""


def _named(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _count(dtypes: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for dtype in dtypes:
        counts[_named(dtype)] = counts.get(_named(dtype), 0) + 1
    return counts
