"""Serve the page and its files: those of the folder `page`, and the style that all pages of ixtune share."""

from __future__ import annotations

import mimetypes
from functools import cache
from importlib.resources import files

from fastapi.responses import Response
from starlette.exceptions import HTTPException

_HEADERS = {
    # requests go to this server only; images are those that the user chose
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cache-Control": "no-cache",
}
_SHARED = ("page.css",)


async def index() -> Response:
    """Return the page."""
    return _response("index.html")


async def file(name: str) -> Response:
    """Return a file of the page by its name."""
    return _response(name)


def _response(name: str) -> Response:
    content = _contents().get(name)
    if content is None:
        raise HTTPException(404)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(content, media_type=kind, headers=_HEADERS)


@cache
def _contents() -> dict[str, bytes]:
    """Return all files by name; a request can name no other."""
    own = {one.name: one.read_bytes() for one in files("ixtune.serving").joinpath("page").iterdir() if one.is_file()}
    shared = files("ixtune.pages").joinpath("templates")
    return {name: shared.joinpath(name).read_bytes() for name in _SHARED} | own
