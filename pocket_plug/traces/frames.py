"""The frames of a recorded stack, and which of them are the user's: one looks there first when something failed.

A stack is parsed from its text, which is Python's traceback or pocket_plug's shorter form of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pocket_plug.primitives.own_code import is_users

__all__ = ["Frame", "frames_in", "users_frame"]

_FRAME = re.compile(r'^[ |]*File "(?P<file>[^"\n]*)", line (?P<line>\d+)(?:, in (?P<function>[^\n]*))?$', re.MULTILINE)


class Frame(NamedTuple):
    """A call on a stack. `is_users`: it is neither in an installed library nor in Python's. `line`: 0 if unknown."""

    file: str
    line: int
    function: str
    is_users: bool

    @property
    def place(self) -> str:
        """The file's name without its folders, and the line.

        >>> Frame("/app/shop/orders.py", 41, "charge", True).place
        'orders.py:41'
        """
        name = self.file.replace("\\", "/").rpartition("/")[2]
        return f"{name}:{self.line}" if self.line else name


def frames_in(stack: str) -> tuple[Frame, ...]:
    """The frames in the text of a stack, outermost first; none if it isn't a stack of Python.

    >>> frames_in('Traceback (most recent call last):\\n  File "/app/a.py", line 3, in charge\\nValueError: no')
    (Frame(file='/app/a.py', line=3, function='charge', is_users=True),)
    >>> frames_in('  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode')[0].is_users
    False
    """
    calls, _, last = stack.rstrip().rpartition("\n")
    return _frames(stack if 'File "' in last else calls)  # a truncated stack may end with a frame


@lru_cache(maxsize=256)
def _frames(calls: str) -> tuple[Frame, ...]:
    """The frames of a stack without its last line, the message: many stacks of a trace differ only in this line."""
    return tuple(
        Frame(found["file"], int(found["line"]), found["function"] or "", is_users(found["file"]))
        for found in _FRAME.finditer(calls)
    )


def users_frame(frames: Sequence[Frame]) -> Frame | None:
    """The user's innermost frame; None if all are in libraries.

    >>> users_frame(frames_in('  File "/app/a.py", line 3, in f\\n  File "/x/site-packages/b.py", line 9, in g')).place
    'a.py:3'
    """
    return next((frame for frame in reversed(frames) if frame.is_users), None)
