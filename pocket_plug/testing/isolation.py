"""A Pocket of a test's own, so that no test uses, or is configured by, what another one has left behind."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from pocket_plug.layers import logging, metrics, tracing
from pocket_plug.plugins import pocket


@contextmanager
def fresh_pocket() -> Generator[None]:
    """Within the block the process has no default Pocket at first: the first use makes one, as in a new process.

    So it is configured by the file that `POCKET_PLUG_CONFIG` names then, if it is set. At the end it is closed, with its
    stores, and what was before is there again: the former default, and the process's settings of tracing, metrics and
    logging. Types that were registered stay so.

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
