"""The traceback of a user's error: the frames of the user's own code, without those that only lead there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException

import click

import pocket_plug

_LEADING_THERE = (
    *(f"{Path(str(module.__file__)).parent}/" for module in (pocket_plug, asyncio, click)),
    "<frozen ",  # the machinery of imports
)


def user_traceback(error: BaseException) -> str:
    """As Python prints it, without the frames of pocket_plug, asyncio and click. If there are no others, with all of them."""
    shown = TracebackException.from_exception(error)
    _shorten(shown)
    return "".join(shown.format()).rstrip()


def _shorten(shown: TracebackException) -> None:
    if own := [frame for frame in shown.stack if not frame.filename.startswith(_LEADING_THERE)]:
        shown.stack = StackSummary.from_list(list[FrameSummary | tuple[str, int, str, str | None]](own))
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if other is not None:
            _shorten(other)
