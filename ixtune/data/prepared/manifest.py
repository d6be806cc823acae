"""Read and write manifest.json of a prepared set: its sources, versions and options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ixtune.data.images.content_hash import hash_of_file
from ixtune.data.text.template import TEMPLATE_VERSION
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD, Member, member_named, member_of, require_same
from ixtune.files import atomic_write_json
from ixtune.layout import LAYOUT_VERSION

FORMAT = 3
"""Format version; it increases when the columns or the manifest change so that an older ixtune cannot read the set.

3: every image has `content` (hash of its file's bytes), `bytes` and `name`; image roots are stored relative to the set.
"""

READABLE_FORMATS = (2, 3)
"""Formats that can be loaded. In format 2 images have no content hash, and image roots are absolute paths."""

MANIFEST = "manifest.json"
KIND = "ixtune prepared set"
SPLIT_KIND = "ixtune prepared split"
"""Kind of the manifest in a folder that contains a training and a validation set."""


OVER_LENGTH = ("reject", "lower")
PAGES = ("one", "all")
_OF_MEMBER = ("model", "layout_rule")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Options that determine the content of a prepared set; equal input and options give equal bytes.

    Attributes:
        hd_num: Maximum number of crops per image, unless source or record has its own; None if all sources have one.
        upscale: Enlarge small images until they fill their crops, as the reference does.
        corrections: Deviations from how the reference opens images, see `pixels.Corrections`.
        max_tokens: Maximum number of tokens per record, image tokens included.
        over_length: Action for a longer record: `reject`, or `lower` the hd_num of its images until it fits.
        verify: Decode every image, not only its header.
        embed_images: Copy all images into the set.
        val_fraction: Fraction of the records to put in a validation set.
        seed: Random seed for weighted sampling and for the split.
        pages: Use of a multi-page TIFF that a record names without a page: `all` pages, or `one`, which rejects it.
        dpi: Resolution of PDF pages; None for the one that fills their layouts.
        exclude: Prepared sets whose images must not appear in any record.
        near_duplicates: Count images that look the same as one image in the split and for `exclude`.
        model: The member of the family that the set is prepared for.
        layout_rule: Its layout rule for images.
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
    pages: str = "one"
    dpi: int | None = None
    exclude: tuple[str, ...] = ()
    near_duplicates: bool = False
    model: str = FOUR_KHD.name
    layout_rule: str = FOUR_KHD.rule.name

    @property
    def member(self) -> Member:
        """The model with its layout rule."""
        return member_named(self.model, self.layout_rule)


def options_of(manifest: Mapping[str, Any]) -> PrepareOptions:
    """Return the options stored in a manifest."""
    given = manifest["options"]
    tuples = {name: tuple(given.get(name, ())) for name in ("corrections", "exclude")}
    return PrepareOptions(**{**given, **tuples})


@dataclass(frozen=True, slots=True)
class Example:
    """An image by which an image root is recognized: its path below the root, its size in bytes, its content hash."""

    path: str
    size: int
    content: str


def describe_root(root: Path, folder: Path, example: Example | None) -> dict[str, Any]:
    """Return the manifest entry of an image root, which is still found after set and images moved together.

    Args:
        root: The image root, absolute.
        folder: The prepared set.
        example: An image below the root; None if no record shows one.
    """
    own = folder.resolve()
    # folders with only / in common do not move together
    related = len(Path(os.path.commonpath([root, own])).parts) > 1
    relative = Path(os.path.relpath(root, own)).as_posix() if related else None
    described: dict[str, Any] = {"absolute": str(root), "relative": relative, "example": None}
    if example is not None:
        described |= {"example": example.path, "example_bytes": example.size, "example_content": example.content}
    return described


def roots_of(manifest: Mapping[str, Any], folder: Path, image_root: Path | None = None) -> tuple[Path, ...]:
    """Return the folders that the paths of images are relative to; the first is the set's own.

    A root is looked for relative to the set first, then where it was at preparation: the first place that has the
    root's example image with its recorded content is taken, or else the first that has a file of its name.

    Args:
        manifest: Manifest of the set.
        folder: The set.
        image_root: Where the images are now. It replaces the set's image root; of several roots, the folder that they
            have in common.
    """
    own, *others = manifest["image_roots"]
    if image_root is not None and others:
        old = [_absolute(root) for root in others]
        common = os.path.commonpath(old)
        return (folder / own, *(image_root / os.path.relpath(path, common) for path in old))
    return (folder / own, *(_current(root, folder) for root in others))


def _absolute(root: str | Mapping[str, str]) -> str:
    return root if isinstance(root, str) else root["absolute"]


def moved_roots(manifest: Mapping[str, Any], roots: Sequence[Path]) -> set[int]:
    """Return the indices of the image roots that moved since preparation and may now contain other files.

    Args:
        manifest: Manifest of the set.
        roots: The current roots, see `roots_of`.
    """
    given = list(enumerate(zip(manifest["image_roots"], roots, strict=True)))
    return {at for at, (root, now) in given[1:] if os.path.realpath(now) != _absolute(root)}


def _current(root: str | Mapping[str, Any], folder: Path) -> Path:
    """Return the current location of an image root."""
    if isinstance(root, str):  # format 2
        return folder / root
    places = [Path(str(root["absolute"]))]
    if root["relative"] is not None:
        places.insert(0, Path(os.path.normpath(folder.resolve() / root["relative"])))
    here = [place for place in dict.fromkeys(places) if (place / (root["example"] or ".")).exists()]
    if len(here) > 1 and root.get("example_content"):  # a folder with the same names may be there by chance
        here = [place for place in here if _is_example(place, root)] or here
    return here[0] if here else places[-1]


def _is_example(place: Path, root: Mapping[str, Any]) -> bool:
    file = place / root["example"]
    try:
        return bool(file.stat().st_size == root["example_bytes"]) and hash_of_file(file) == root["example_content"]
    except OSError:
        return False


def write_manifest(folder: Path, options: PrepareOptions, content: Mapping[str, Any], kind: str = KIND) -> None:
    """Write manifest.json: `content`, and the versions that tell a later ixtune whether it can read the set."""
    from ixtune import __version__

    versions = {
        "kind": kind,
        "format": FORMAT,
        "ixtune_version": __version__,
        "layout_version": LAYOUT_VERSION,
        "template_version": TEMPLATE_VERSION,
        "options": {name: value for name, value in asdict(options).items() if name not in _OF_MEMBER}
        | options.member.record(),
    }
    atomic_write_json(folder / MANIFEST, versions | dict(content))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a prepared set.

    Raises:
        IxtuneError: It cannot be read, or is of another kind or format.
    """
    hint = "prepare the data again with this ixtune"
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        kind, version = manifest["kind"], manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise IxtuneError("the manifest cannot be read", where=str(path), hint=hint) from error
    if kind != KIND or version not in READABLE_FORMATS:
        raise IxtuneError(
            f"the manifest is of kind {kind!r}, format {version}; expected {KIND!r}, format "
            f"{' or '.join(map(str, READABLE_FORMATS))}",
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


def check_compatible(manifest: Mapping[str, Any], tokenizer_sha256: str, member: Member) -> None:
    """Raise if the tokens or layouts of a set differ from those that this ixtune computes for this base.

    Raises:
        IxtuneError: Tokenizer, template, layout or model differ; each difference with both values.
    """
    where = ", ".join(str(source.get("path")) for source in manifest.get("sources", [])) or None
    hint = "prepare it again with --base set to the base in use"
    require_same(member_of(manifest.get("options", {})), member, "the set", where, hint)
    wanted = {
        "tokenizer_sha256": tokenizer_sha256,
        "template_version": TEMPLATE_VERSION,
        "layout_version": LAYOUT_VERSION,
    }
    notes = [
        f"{key}: the set has {manifest.get(key)}, expected {value}"
        for key, value in wanted.items()
        if manifest.get(key) != value
    ]
    if notes:
        raise IxtuneError(
            "the set was prepared for another tokenizer or by another ixtune",
            where=where,
            hint=hint,
            notes=notes,
        )
