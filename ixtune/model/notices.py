"""One notice of a library below that helps nobody, kept off the screen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_kernels_notice() -> Iterator[None]:
    """Import bitsandbytes inside: on some CPUs it asks for the optional package `kernels`, which would ask the hub.

    Only that line is dropped; the logger, its level and all its other messages stay as they are.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(_is_another)
    try:
        yield
    finally:
        logger.removeFilter(_is_another)


def _is_another(message: logging.LogRecord) -> bool:
    return "kernels-community" not in str(message.msg)
