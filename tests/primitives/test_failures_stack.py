"""The recorded stack of an exception: short, and with the most useful frame."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pocket_plug.primitives.failures import MAX_BYTES, MAX_FRAMES, stack_of
from pocket_plug.remote.failures import put_together, taken_apart
from pocket_plug.traces.frames import frames_in, users_frame


def calls_of(file: str, depth: int, inner: Callable[[], Any]) -> Callable[[], Any]:
    """A function in a file that calls itself several times, and then another function."""
    space: dict[str, Any] = {"inner": inner}
    code = "def call(left):\n    return call(left - 1) if left > 1 else inner()\n"
    exec(compile(code, file, "exec"), space)  # noqa: S102 - a file that isn't there, on purpose
    return partial(space["call"], depth)


def stack_from(run: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - whatever its message is
        run()
    return stack_of(caught.value, lambda error: None)


def fails() -> None:
    raise ValueError


LIBRARY = "/x/.venv/lib/python3.12/site-packages/slow/net.py"


def test_a_short_stack_is_kept_whole() -> None:
    """Unchanged."""
    stack = stack_from(calls_of("/app/orders.py", 3, fails))
    assert [frame.file for frame in frames_in(stack)].count("/app/orders.py") == 3
    assert "more]" not in stack


@pytest.mark.parametrize("depth", [20, 500])
def test_of_a_deep_stack_the_users_frame_is_kept(depth: int) -> None:
    """Even if a library has called itself many times below it; the number of omitted frames is shown."""
    space: dict[str, Any] = {}
    exec(compile("def fail():\n    raise ValueError\n", LIBRARY, "exec"), space)  # noqa: S102 - as above
    stack = stack_from(calls_of("/app/orders.py", 2, calls_of(LIBRARY, depth, space["fail"])))
    frames = frames_in(stack)
    assert len(frames) == MAX_FRAMES + 1
    assert frames[0].file == "/app/orders.py"
    assert users_frame(frames) == frames[0]
    assert stack.splitlines()[2] == f"  [{depth - MAX_FRAMES + 1} more]"


def test_the_frames_of_a_worker_are_the_innermost() -> None:
    """For an exception from another process, whose frames in this process are only of libraries; without its message."""
    with pytest.raises(ValueError, match="secret") as far:
        calls_of("/app/orders.py", 2, calls_of(LIBRARY, 20, fails_with_a_message))()
    near = put_together(taken_apart(far.value), "far:1")
    stack = stack_of(near, lambda error: None)
    assert [frame.function for frame in frames_in(stack)][-1] == "fails_with_a_message"
    assert "secret" not in stack


def fails_with_a_message() -> None:
    raise ValueError('secret\n  File "secret", line 3, in secret')


@pytest.mark.parametrize("file", ["/app/orders.py", LIBRARY], ids=["users", "library's"])
def test_with_long_paths_outer_frames_are_omitted(file: str) -> None:
    """The stack has a maximum size, and the last frames are the most useful."""
    folders = "/deep" * 80
    stack = stack_from(calls_of("/app/orders.py", 2, calls_of(folders + file, 40, fails)))
    assert len(stack.encode()) <= MAX_BYTES
    assert stack.splitlines()[-1] == "ValueError"
    frames = frames_in(stack)
    assert frames[-1].function == "fails"
    assert 4 < len(frames) < MAX_FRAMES
