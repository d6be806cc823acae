"""manifest.json of a prepared set: what it was made from, by which versions, with which options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ixtune.data.text.template import TEMPLATE_VERSION
from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json
from ixtune.layout import LAYOUT_VERSION

FORMAT = 2
"""Raised when the columns or the manifest change."""

MANIFEST = "manifest.json"
KIND = "ixtune prepared set"
SPLIT_KIND = "ixtune prepared split"
"""Of the folder around a training and a validation set."""


OVER_LENGTH = ("reject", "lower")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The choices that decide what a prepared set holds; equal input and options give equal bytes.

    Attributes:
        hd_num: The most crops an image may fill, where source and record say nothing; None if all sources do.
        upscale: Enlarge small images until they fill their crops, as the reference does.
        corrections: Departures from the reference in opening images, see `pixels.Corrections`.
        max_tokens: Most tokens of a record, image tokens included.
        over_length: What happens to a longer record: `reject`, or `lower` the hd_num of its images until it fits.
        verify: Decode every image, not only its header.
        embed_images: Copy all images into the set.
        val_fraction: Share of the records that become a validation set.
        seed: Of the draws by weight and of the split.
    """

    hd_num: int | None = None
    upscale: bool = True
    corrections: tuple[str, ...] = ()
    max_tokens: int | None = None
    over_length: str = "reject"
    verify: bool = False
    embed_images: bool = False
    val_fraction: float = 0.0
    seed: int = 0


def options_of(manifest: Mapping[str, Any]) -> Options:
    """The options that a manifest records."""
    given = manifest["options"]
    return Options(**{**given, "corrections": tuple(given["corrections"])})


def roots_of(manifest: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    """The folders that images' paths are relative to; `.` is the set's own."""
    return tuple(folder / root for root in manifest["image_roots"])


def write_manifest(folder: Path, options: Options, content: Mapping[str, Any], kind: str = KIND) -> None:
    """Write manifest.json: `content`, and what it takes to tell whether a later ixtune may read the set."""
    from ixtune import __version__

    versions = {
        "kind": kind,
        "format": FORMAT,
        "ixtune_version": __version__,
        "layout_version": LAYOUT_VERSION,
        "template_version": TEMPLATE_VERSION,
        "options": asdict(options),
    }
    atomic_write_json(folder / MANIFEST, versions | dict(content))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
        IxtuneError: It cannot be read, or is of another kind or format.
    """
    hint = "prepare the data again with this ixtune"
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        kind, version = manifest["kind"], manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise IxtuneError("the manifest cannot be read", where=str(path), hint=hint) from error
    if kind != KIND or version != FORMAT:
        raise IxtuneError(
            f"the manifest is of kind {kind!r}, format {version}; needed is {KIND!r}, format {FORMAT}",
            where=str(path),
            hint=hint,
        )
    try:
        options_of(manifest)
        roots_of(manifest, path.parent)
        int(manifest["records"]["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise IxtuneError(f"the manifest is damaged: {error}", where=str(path), hint=hint) from error
    return manifest


def check_compatible(manifest: Mapping[str, Any], tokenizer_sha256: str) -> None:
    """Refuse a set whose tokens or layouts are not those that this ixtune would make for this tokenizer.

    Raises:
        IxtuneError: Tokenizer, template or layout differ; each difference with both values.
    """
    wanted = {
        "tokenizer_sha256": tokenizer_sha256,
        "template_version": TEMPLATE_VERSION,
        "layout_version": LAYOUT_VERSION,
    }
    notes = [
        f"{key}: the set has {manifest.get(key)}, needed is {value}"
        for key, value in wanted.items()
        if manifest.get(key) != value
    ]
    if notes:
        raise IxtuneError(
            "the set was prepared for another tokenizer or by another ixtune",
            where=", ".join(str(source.get("path")) for source in manifest.get("sources", [])) or None,
            hint="prepare it again with --base set to the base that is used now",
            notes=notes,
        )
