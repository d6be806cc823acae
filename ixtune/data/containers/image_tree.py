"""Read image folders without metadata: a JSON or text file next to each image, or a folder for each class.

train/X0.jpg  train/X0.json        beside: in one folder, or in two such as SROIE's img/ and key/
img/X0.jpg    key/X0.txt
train/ok/0.png  train/crack/1.png  classes: the name of the folder is the answer
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.data.containers.image_folder import HELD_OUT, IMAGE_ENDINGS
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import listed, shown
from ixtune.data.schemas.value_paths import object_in_text
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Entry, Fault
from ixtune.errors import UsageError

_TEXTS = (".json", ".txt")


@dataclass(frozen=True, slots=True)
class Beside:
    """Images that each have a JSON or text file of the same name.

    Attributes:
        images: The folder of the images.
        texts: The folder of the JSON or text files.
        suffix: Suffix of these files: .json or .txt.
    """

    images: Path
    texts: Path
    suffix: str


def beside_in(folder: Path) -> Beside | None:
    """Return where the images of a folder have a sidecar file of the same name; None if they have none.

    Raises:
        UsageError: Several folders hold such files.
    """
    kinds = {inside: _stems(inside) for inside in (folder, *_folders(folder))}
    images = [inside for inside, stems in kinds.items() if stems["image"]]
    if len(images) != 1:
        return None
    shown_names = kinds[images[0]]["image"]
    fitting = [
        Beside(images[0], inside, suffix)
        for inside, stems in kinds.items()
        for suffix in _TEXTS
        if len(stems[suffix] & shown_names) * 2 > len(shown_names)
    ]
    # if one folder has boxes of text lines and another the fields, JSON holds the answer
    objects = [one for one in fitting if _begins_with_object(one)]
    fitting = [one for one in fitting if one in objects or one.suffix != ".json"]
    chosen = objects if len(objects) == 1 else fitting
    if len(chosen) > 1:
        raise UsageError(
            f"files named like the images are in {listed(f'{one.texts.name}/*{one.suffix}' for one in chosen)}",
            where=str(folder),
            hint="pass a folder with the images and only the files to learn from",
        )
    return chosen[0] if chosen else None


def classes_in(folder: Path) -> tuple[Path, ...]:
    """Return the folders of a folder that has no images itself and only folders of images: its classes.

    Raises:
        UsageError: They are splits, not classes.
    """
    if _stems(folder)["image"]:
        return ()
    found = tuple(inside for inside in _folders(folder) if _stems(inside)["image"])
    if len(found) < 2:
        return ()
    if any(one.name.lower() in HELD_OUT for one in found):
        return ()
    return found


def splits_in(folder: Path) -> list[Path]:
    """Return the subfolders that contain folders of images themselves: train/, validation/."""
    return [inside for inside in _folders(folder) if len(classes_in(inside)) > 1]


def beside_entries(found: Beside, root: Path) -> Iterator[Entry]:
    """Yield a row per image, ordered by name: `id`, `image`, and the fields of the JSON or `text`.

    Args:
        found: See `beside_in`.
        root: Folder that the images' paths become relative to.
    """
    names = sorted(name for name in os.listdir(found.images) if _is_image(name))
    for number, name in enumerate(names, start=1):
        stem = name.rpartition(".")[0]
        image = os.path.relpath(found.images / name, root)
        value, fault = _fields_of(found.texts / f"{stem}{found.suffix}", stem, image)
        yield Entry(number, str(found.images), Place("member", name), value=value, fault=fault, position=number)


def class_entries(folders: tuple[Path, ...], root: Path) -> Iterator[Entry]:
    """Yield a row per image: `id`, `image`, and the name of its folder as `answer`."""
    number = 0
    for folder in folders:
        for name in sorted(filter(_is_image, os.listdir(folder))):
            number += 1
            path = os.path.relpath(folder / name, root)
            value = {"id": path, "image": path, "answer": folder.name}
            yield Entry(number, str(folder), Place("member", name), value=value, position=number)


def count_images(folders: tuple[Path, ...]) -> int:
    """Return the number of images directly in some folders."""
    return sum(_is_image(name) for folder in folders for name in os.listdir(folder))


def _fields_of(path: Path, stem: str, image: str) -> tuple[dict[str, Any] | None, Fault | None]:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= limits.MAX_ENTRY_BYTES else b""
    except OSError:
        found = f"there is no {path.name} for the image"
        return None, Fault(Reason.MISSING_FIELD, found, "write it, or remove the image")
    if size > limits.MAX_ENTRY_BYTES:
        found = f"{path.name} has {size:,} bytes"
        return None, Fault(Reason.RECORD_TOO_LARGE, found, "shorten it, or remove the image")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"{shown(path.name)} holds the byte 0x{content[error.start]:02X}, which is not UTF-8"
        return None, Fault(Reason.NOT_UTF8, found, "save the text as UTF-8")
    read = object_in_text(text)
    if isinstance(read, dict):
        return {"id": stem, **read, "image": image}, None
    if path.suffix.lower() == ".json":
        return None, Fault(Reason.NOT_JSON, f"{path.name} is not a JSON object", "write an object, {...}")
    return {"id": stem, "image": image, "text": text.strip()}, None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _stems(folder: Path) -> dict[str, set[str]]:
    """Return the names of a folder's files without suffix: of images, and of each kind of text."""
    stems: dict[str, set[str]] = {"image": set(), **{suffix: set() for suffix in _TEXTS}}
    for name in os.listdir(folder):
        if name.startswith(".") or not (folder / name).is_file():
            continue
        stem, _, suffix = name.rpartition(".")
        kind = "image" if _is_image(name) else f".{suffix.lower()}"
        if kind in stems:
            stems[kind].add(stem)
    return stems


def _begins_with_object(found: Beside) -> bool:
    name = next((name for name in sorted(os.listdir(found.texts)) if name.lower().endswith(found.suffix)), None)
    if name is None:
        return False
    with open(found.texts / name, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
