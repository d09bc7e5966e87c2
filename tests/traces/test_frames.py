"""Which frames of a recorded stack belong to the user."""

import pytest

from pocket_plug.traces.frames import frames_in, users_frame


@pytest.mark.parametrize(
    "file",
    [
        "/app/orders.py",
        "/home/me/lib/helpers.py",
        r"C:\shop\orders.py",
        "/home/me/pocket_plug/mine.py",
        "/run/ipykernel_7/12.py",
        "<ipython-input-3-a>",
        "/srv/python3.11/app.py",
    ],
)
def test_code_that_is_not_installed_is_the_users(file: str) -> None:
    """Wherever a project is, and in a notebook."""
    assert [frame.is_users for frame in frames_in(f'  File "{file}", line 7, in f')] == [True]


@pytest.mark.parametrize(
    "file",
    [
        "/x/.venv/lib/python3.13t/site-packages/httpx/_client.py",
        "/usr/lib/python3/dist-packages/yaml/loader.py",
        "/usr/lib/python3.11/asyncio/tasks.py",
        r"C:\Program Files\Python312\Lib\json\decoder.py",
        r"C:\x\.venv\Lib\site-packages\httpx\_client.py",
        "/src/pocket_plug/graph/visit.py",
        "/src/pocket_plug/__init__.py",
        "/src/pocket_plug/errors.py",
        "<frozen importlib._bootstrap>",
    ],
)
def test_code_of_a_library_is_not(file: str) -> None:
    """Installed, of Python's own, or pocket_plug's from a checkout."""
    assert [frame.is_users for frame in frames_in(f'  File "{file}", line 7, in f')] == [False]


def test_the_innermost_user_frame_is_where_it_failed() -> None:
    """Libraries may be below it; a cause's headline and source lines are no frames."""
    stack = """Traceback (most recent call last):
  File "/app/main.py", line 3, in main
    work()
  File "/app/orders.py", line 41, in charge
  File "/v/site-packages/httpx/_client.py", line 1, in send
ValueError: File "/app/fake.py", line 9
caused by OSError
"""
    frame = users_frame(frames_in(stack))
    assert frame is not None
    assert (frame.place, frame.function) == ("orders.py:41", "charge")


def test_frames_of_a_group_are_found() -> None:
    """Python draws a border on their left."""
    frames = frames_in('  + Exception Group Traceback (most recent call last):\n  |   File "/app/a.py", line 2, in f')
    frame = users_frame(frames)
    assert frame is not None
    assert frame.place == "a.py:2"


def test_what_is_no_stack_has_no_frame() -> None:
    """Spans of other languages may be in the same file."""
    assert frames_in("at Object.<anonymous> (/app/a.js:3:1)") == ()
    assert frames_in("") == ()


def test_without_a_user_frame_there_is_none() -> None:
    """Then the spans say where to look."""
    frames = frames_in('  File "/v/site-packages/a.py", line 1, in a\n  File "/v/site-packages/b.py", line 2, in b')
    assert len(frames) == 2
    assert users_frame(frames) is None
