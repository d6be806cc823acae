"""The fonts the nano base is trained on: what these Debian packages install, less what it must never see."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FOLDER = Path("/usr/share/fonts")
PACKAGES = (
    "fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-freefont-ttf fonts-open-sans fonts-noto-core "
    "fonts-firacode fonts-inconsolata fonts-crosextra-carlito fonts-ebgaramond fonts-cantarell "
    "fonts-linuxlibertine fonts-hack fonts-urw-base35 fonts-texgyre fonts-quicksand fonts-croscore fonts-comfortaa"
)
# File names begin with one of these. Lato, Caladea, Manrope, Roboto and the Source families are absent on purpose:
# the demo's sheets are set in them, and the base must not have seen them.
FAMILIES = (
    "DejaVuSans DejaVuSerif Liberation FreeMono FreeSans FreeSerif OpenSans NotoSans- NotoSerif- NotoSansMono- "
    "FiraCode Inconsolata Carlito EBGaramond12 Cantarell LinLibertine_R LinLibertine_RB LinBiolinum_R Hack- "
    "NimbusSans NimbusRoman NimbusMonoPS P052 C059 URWBookman URWGothic texgyre Quicksand Arimo Tinos Cousine "
    "Comfortaa"
).split()
# Two families kept out of training, to measure the card on.
UNSEEN = ("Carlito", "Tinos")
_SKIP = ("Math", "Initials", "Chorus", "Keyboard", "Condensed-Extra", "ExtraLight", "Thin", "chorus", "math", "PS-")


def find(unseen: bool = False) -> list[Path]:
    """The font files, sorted by name; `unseen` gives the families kept out of training.

    Raises:
        SystemExit: fewer than 40 files were found, so the result would not be this base.
    """
    files = sorted(
        (p for p in FOLDER.rglob("*") if p.suffix in (".ttf", ".otf") and p.name.startswith(tuple(FAMILIES))),
        key=lambda p: p.name,
    )
    files = [p for p in files if not any(word in p.name for word in _SKIP)]
    if len(files) < 40:
        raise SystemExit(f"only {len(files)} fonts under {FOLDER}: apt-get install {PACKAGES}")
    return [p for p in files if p.name.startswith(UNSEEN) == unseen]


@lru_cache(maxsize=2048)
def load(path: str, size: int) -> ImageFont.FreeTypeFont:
    """One font at a size in pixels, without kerning, so that advances add up."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=400_000)
def advance(path: str, size: int, character: str) -> float:
    """Width of one character in pixels."""
    return load(path, size).getlength(character)
