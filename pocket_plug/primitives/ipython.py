"""What is different in IPython, so in a notebook: which frames its tracebacks show, and what a cell is called.

Nothing here imports IPython.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType

_OURS = f"{Path(__file__).parents[1]}{os.sep}"


def hide_own_frames(error: BaseException | None = None) -> None:
    """Let IPython leave out our frames: of twenty-five between a cell and a node none helps, and printing them takes a second.

    These are the frames of the callers, and those of the error's traceback and of its causes. IPython leaves out a frame that has
    a true local variable `__tracebackhide__`.
    """
    if "IPython" not in sys.modules:
        return
    frame = sys._getframe(1)
    frames = [frame]
    while frame.f_back is not None:
        frames.append(frame := frame.f_back)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    for frame in frames:
        if frame.f_code.co_filename.startswith(_OURS):
            frame.f_locals["__tracebackhide__"] = True


def file_of(code: CodeType) -> str:
    """The file that a code is from. For a cell it is "Cell In[3]", as in IPython's tracebacks: its file doesn't exist."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    found: tuple[str, str] | None = None if shell is None else shell.compile.format_code_name(code.co_filename)
    return code.co_filename if found is None else " ".join(found)
