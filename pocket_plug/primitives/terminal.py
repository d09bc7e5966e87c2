"""Escapes text for a terminal, so that nothing in it is taken for a command: keys, values and messages may come from anywhere.

An escape sequence moves the cursor, retitles the window, writes to the clipboard or hides what follows; a mark of direction
(bidirectional control) shows a line in another order than it is stored in.
"""

from __future__ import annotations

import re
from typing import TextIO

_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, and those beyond ASCII that some terminals take for an escape
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks of direction
    "\u2028\u2029"  # some terminals end a line at these
    "\ud800-\udfff]"  # lone surrogates, which can't be encoded
)


def is_terminal(file: TextIO | None) -> bool:
    """Is the file a terminal? A service's `sys.stderr` may be None, closed, or an object of a framework.

    >>> is_terminal(None)
    False
    """
    try:
        return file is not None and file.isatty()
    except (AttributeError, ValueError):
        return False


def escaped(text: str, keep: str = "") -> str:
    r"""The text with each control character and mark of direction escaped as Python does, except those to `keep`.

    >>> print(escaped("a\x1b[2Jb\u202e\n"))
    a\x1b[2Jb\u202e\n
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), text)


def escaped_json(document: str) -> str:
    r"""The same for a JSON document, whose strings keep their values.

    >>> print(escaped_json('{"a": "\u009b"}'))
    {"a": "\u009b"}
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", document)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
