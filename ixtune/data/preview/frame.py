"""The frame of a page that needs nothing but itself, and the style and scripts that such pages share."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files


def shared(*names: str) -> str:
    """The content of files beside this one, one behind the other."""
    return "\n".join(files(__package__).joinpath(name).read_text("utf-8") for name in names)


def document(title: str, sections: Iterable[str], style: str, script: str) -> str:
    """A whole page whose policy lets no script run but its own, and no address be asked.

    Args:
        title: HTML already.
        sections: HTML already; everything from data in it escaped.
        style: All of its CSS.
        script: All of its JavaScript, run when the page is there.
    """
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _hash(content: str) -> str:
    """How a content policy names an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
