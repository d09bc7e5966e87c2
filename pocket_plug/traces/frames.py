"""The frames of a recorded stack, and which of them is the user's: where one looks first when something failed.

A stack is known by its text only, ours or that of any library in Python.
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
    """A call on a stack; `is_users` if it is of no library that is installed, and not of Python's own. `line`: 0 if not known."""

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
    """The frames in the text of a stack, outermost first; none where it is no stack of Python's.

    >>> frames_in('Traceback (most recent call last):\\n  File "/app/a.py", line 3, in charge\\nValueError: no')
    (Frame(file='/app/a.py', line=3, function='charge', is_users=True),)
    >>> frames_in('  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode')[0].is_users
    False
    """
    calls, _, last = stack.rstrip().rpartition("\n")
    return _frames(stack if 'File "' in last else calls)  # one that was cut off may end with a frame


@lru_cache(maxsize=256)
def _frames(calls: str) -> tuple[Frame, ...]:
    """Those of a stack without its last line, the message: many stacks of a trace differ in that only."""
    return tuple(
        Frame(found["file"], int(found["line"]), found["function"] or "", is_users(found["file"]))
        for found in _FRAME.finditer(calls)
    )


def users_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the user's; None where all are of libraries.

    >>> users_frame(frames_in('  File "/app/a.py", line 3, in f\\n  File "/x/site-packages/b.py", line 9, in g')).place
    'a.py:3'
    """
    return next((frame for frame in reversed(frames) if frame.is_users), None)
