"""The cells of a notebook, as places of code. Nothing here imports IPython."""

from __future__ import annotations

import sys
from types import CodeType


def file_of(code: CodeType) -> str:
    """The file that a code is from. For a cell it is "Cell In[3]", as in IPython's tracebacks: its file doesn't exist."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    found: tuple[str, str] | None = None if shell is None else shell.compile.format_code_name(code.co_filename)
    return code.co_filename if found is None else " ".join(found)
