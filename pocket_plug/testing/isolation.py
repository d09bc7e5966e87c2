"""A new default Pocket for a test, so that no test is affected by what another one has set up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from pocket_plug.layers import logging, metrics, tracing
from pocket_plug.plugins import pocket


@contextmanager
def fresh_pocket() -> Generator[None]:
    """The block begins without a default Pocket: the first use makes one, as in a new process.

    That Pocket is configured by the file that `POCKET_PLUG_CONFIG` names, if it is set. At the end of the block, it is closed
    with its stores, and the former default Pocket and the process's settings of tracing, metrics and logging are restored.
    Types that were registered stay registered.

    >>> from pocket_plug.plugins.pocket import default_pocket
    >>> before = default_pocket()
    >>> with fresh_pocket():
    ...     default_pocket() is before
    False
    >>> default_pocket() is before
    True
    """
    former = pocket.current_default()
    traced, measured, logged = tracing.configure(), metrics.configure(), logging.configure()
    pocket.set_default_pocket(None)
    try:
        yield
    finally:
        made = pocket.current_default()
        pocket.set_default_pocket(former)
        try:
            if made is not None and made is not former:
                made.__exit__()
        finally:
            tracing.use(traced)
            metrics.configure(**_all_of(measured))
            logging.configure(**_all_of(logged))


def _all_of(settings: Any) -> Any:
    return {field.name: getattr(settings, field.name) for field in fields(settings)}
