"""A signal that arrives just before the main thread blocks in C: its handler is called all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOTED = """
import ctypes, functools, os, signal, sys, threading
from multiprocessing import Semaphore
from pocket_plug.primitives.noted_signals import insist

def note(number):
    release.acquire()
    ctypes.pythonapi.PyErr_SetInterruptEx(number)  # what Python does when a signal comes, and no more: nothing is interrupted

def wait(number):
    '''The signal comes when this thread waits for the semaphore: the other one runs when it has released the GIL for that.'''
    sys.setswitchinterval(1000)
    threading.Thread(target=note, args=(number,), daemon=True).start()
    release.release()
    forever.acquire()

def end(number, frame):
    signal.signal(number, signal.SIG_IGN)
    print("began", flush=True)
    os._exit(0)

release, forever = threading.Semaphore(0), Semaphore(0)
"""


def run(code: str, timeout: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", NOTED + code], text=True, capture_output=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("handler", ["end", "functools.wraps(end)(lambda *given: end(*given))"])
def test_a_pending_signal_is_sent_again(handler: str) -> None:
    """Until its handler is called, which may be wrapped."""
    code = f"""
signal.signal(signal.SIGTERM, {handler})
insist(signal.SIGTERM, end)
wait(signal.SIGTERM)
"""
    assert run(code) == "began\n"


def test_another_handler_is_called_once() -> None:
    """Only our own handler gets its signal again."""
    code = """
from pocket_plug.primitives import noted_signals

asked, came = threading.Semaphore(0), []
noted_signals.time.sleep = lambda seconds: asked.release()
insist(signal.SIGTERM, end)
signal.signal(signal.SIGTERM, lambda *_: came.append("came"))
for _ in range(2):
    signal.raise_signal(signal.SIGTERM)
    asked.acquire()
print(came)
"""
    assert run(code) == "['came', 'came']\n"


def test_a_forked_child_sends_its_parent_nothing() -> None:
    """The child's signals aren't sent to the parent, and the child repeats its own signals too."""
    code = """
insist(signal.SIGTERM, end)
if (child := os.fork()) == 0:
    if signal.set_wakeup_fd(-1) != -1: os._exit(1)
    signal.signal(signal.SIGTERM, end)
    insist(signal.SIGTERM, end)
    wait(signal.SIGTERM)
print(os.waitpid(child, 0)[1], signal.set_wakeup_fd(-1) != -1)
"""
    assert run(code) == "began\n0 True\n"


def test_an_existing_wakeup_fd_still_works() -> None:
    """For example asyncio's loop, also one that is started later. In a child, asyncio itself gives it up since Python 3.12."""
    code = """
import socket

def other():
    pair = socket.socketpair()
    for each in pair: each.setblocking(False)
    return pair

first, second = other(), other()
signal.set_wakeup_fd(first[0].fileno())
insist(signal.SIGTERM, end)
print(signal.set_wakeup_fd(-1) == first[0].fileno())
insist(signal.SIGTERM, end)
signal.set_wakeup_fd(second[0].fileno())
kept = second[0].fileno() if sys.version_info < (3, 12) else -1
if (child := os.fork()) == 0:
    os._exit(signal.set_wakeup_fd(-1) != kept)
print(os.waitpid(child, 0)[1])
"""
    assert run(code) == "True\n0\n"
