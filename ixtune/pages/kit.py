"""Render a page from templates that escape every value, under a policy that lets no foreign script run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MAX_TEXT = 2000
"""Maximum characters shown of one text from the data, so that a page with a thousand records opens on a phone."""
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def render(package: str, template: str, *, style: tuple[str, ...], script: tuple[str, ...], **values: Any) -> str:
    """Return a whole page as HTML.

    Its content security policy allows its own style and script and images inside the page, and no request.

    Args:
        package: Package whose folder `templates` holds the template and may hold styles and scripts.
        template: A template that extends `document.html`.
        style: Names of CSS files in `package` or in this one, in order.
        script: Names of JavaScript files, run after the page is read.
        **values: Values for the template.
    """
    css, code = ("\n".join(_source(package, name) for name in names) for names in (style, script))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(css)}; script-src {_hash(code)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment(package).get_template(template)
    return page.render(policy=policy, style=Markup(css), script=Markup(code), **values)  # noqa: S704 - files of ours


@cache
def environment(package: str) -> Environment:
    """Return the templates of a package and of this one; values are escaped, and a missing one is an error."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__package__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"cut": cut, "line": line, "compact": compact, "px": "{:.1f}".format, "thousands": "{:,}".format}
    return found


def cut(value: object, limit: int = MAX_TEXT) -> str:
    """Return a value as text of at most `limit` characters and a count of what was left out."""
    words = str(value)
    return words if len(words) <= limit else f"{words[:limit]}… ({len(words) - limit:,} more characters)"


def line(value: object, limit: int) -> str:
    """Return a value on one line, cut with an ellipsis."""
    words = " ".join(str(value)[: 4 * limit].split())
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def compact(value: float) -> str:
    """Return a number in at most five characters: 950, 1.2k, 34M."""
    for size, unit in _UNITS:
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _source(package: str, name: str) -> str:
    """Return a file of the package's `templates`, or of ours."""
    for owner in (package, __package__):
        path = files(owner).joinpath("templates", name)
        if path.is_file():
            return path.read_text("utf-8")
    raise FileNotFoundError(name)


def _hash(content: str) -> str:
    """Return an inline element's name in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
