"""Suppress a library notice that does not help users."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_kernels_notice() -> Iterator[None]:
    """Import bitsandbytes inside this context: on some CPUs it recommends the package `kernels`, which queries the hub.

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
