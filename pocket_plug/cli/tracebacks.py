"""The traceback of an error of the user's code, without the frames of libraries that lead there."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException

import click

import pocket_plug
from pocket_plug.primitives.failures import ON_WORKER

_LIBRARIES = (
    *(f"{Path(str(module.__file__)).parent}/" for module in (pocket_plug, asyncio, importlib, click)),
    "<frozen ",  # the import system, too
)


def user_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the frames of pocket_plug and of what it uses, unless there are no others."""
    shown = TracebackException.from_exception(error)
    _shorten(shown)
    return "".join(shown.format()).rstrip()


def _shorten(shown: TracebackException) -> None:
    own = [frame for frame in shown.stack if not frame.filename.startswith(_LIBRARIES)]
    notes: list[str] = getattr(shown, "__notes__", None) or []
    is_syntax = hasattr(shown, "filename")  # then the place is in the message, and the frames only lead to an import
    if own or is_syntax or any(note.startswith(ON_WORKER) for note in notes):  # that note has the frames of the worker
        shown.stack = StackSummary.from_list(list[FrameSummary | tuple[str, int, str, str | None]](own))
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if other is not None:
            _shorten(other)
