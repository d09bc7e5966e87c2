"""Is a file the user's, or a library's? Known by its path alone, since a recorded stack may come from another machine."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

_OURS = "|".join(sorted(re.escape(each.name) for each in files("pocket_plug").iterdir() if each.name[0] not in "_."))
_NOT_USERS = re.compile(
    r"/(?:site|dist)-packages/"  # installed
    r"|/lib/python\d\.\d+t?/|/Python\d+/Lib/"  # the standard library, the second way on Windows
    rf"|/pocket_plug/(?:__init__\.py$|(?:{_OURS})(?:/|$))"  # ours, where it is worked on
    r"|^<(?:frozen|string)\b"
)


@lru_cache(maxsize=1024)
def is_users(file: str) -> bool:
    """Is it the user's: neither of an installed library, nor of Python's own?

    >>> is_users("/app/orders.py"), is_users("/usr/lib/python3.11/json/decoder.py")
    (True, False)
    """
    return _NOT_USERS.search(file.replace("\\", "/")) is None
