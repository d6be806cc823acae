"""Find images that look the same though their files differ, by a perceptual hash (extra `near-duplicates`).

The hash is imagehash's `phash` of 256 bits. Measured on 16 pages of text and forms: the page as JPEG of quality 20 or
50, at half the size, at 1.3 times the size and in gray is at most 8 bits away; other pages are at least 96 bits away.
Pages of one form that differ in a few digits are 6 bits away or more, so that some of those count as the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ixtune.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

SIDE = 16
"""The hash has SIDE * SIDE bits."""

MOST_BITS = 8
"""Maximum number of differing bits for two images to count as the same."""

# of hashes at most MOST_BITS apart, one of MOST_BITS + 1 parts is equal: only those are compared
_PARTS = MOST_BITS + 1
_PART_BITS = -(-SIDE * SIDE // _PARTS)


def require_package() -> None:
    """Raise if the package for this option is not installed.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import imagehash  # noqa: F401 - looked for, not used
    except ImportError as error:
        raise UsageError(
            "imagehash, which finds near-duplicates, is not installed",
            where="--near-duplicates",
            hint='pip install "ixtune[near-duplicates]"',
        ) from error


def near_hash(image: Image.Image) -> int:
    """Return the perceptual hash of an image."""
    import imagehash

    return int(str(imagehash.phash(image, hash_size=SIDE)), 16)


@dataclass(slots=True)
class NearImages:
    """Perceptual hashes seen so far, searchable by distance."""

    _by_part: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def near(self, value: int) -> list[int]:
        """Return the hashes seen that are at most `MOST_BITS` away, in the order in which they came."""
        found: dict[int, None] = {}
        for part in self._parts(value):
            for other in self._by_part.get(part, ()):
                if (value ^ other).bit_count() <= MOST_BITS:
                    found[other] = None
        return list(found)

    def add(self, value: int) -> list[int]:
        """Add a hash; return it and the earlier hashes near it."""
        found = self.near(value)
        if value in found:
            return found
        for part in self._parts(value):
            self._by_part.setdefault(part, []).append(value)
        return [value, *found]

    @staticmethod
    def _parts(value: int) -> list[tuple[int, int]]:
        return [(at, value >> at * _PART_BITS & (1 << _PART_BITS) - 1) for at in range(_PARTS)]
