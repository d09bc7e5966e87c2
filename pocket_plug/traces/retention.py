"""Limits the size and age of a trace file: removes lines from its beginning, while other processes append to it.

A process that appends holds a shared lock; one that replaces the file holds it exclusively. After a replacement, the others
notice that the file they have opened no longer has this name, and open the new one. On Windows, which has no such locks, nothing
is removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.files import private

from .recorded import requests_in

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # Windows has no flock

_END = re.compile(rb'"endTimeUnixNano":\s*"?(\d+)')


@dataclass(frozen=True, slots=True)
class TraceLimits:
    """What is kept of a trace file: at most `size` bytes, and spans no older than `age`. None means no limit.

    A file that is too large is cut to three quarters of `size`, so that it isn't cut with each batch. Raises ConfigError for
    invalid values.

    >>> print(TraceLimits(), TraceLimits(size=None, age="12h"), TraceLimits(None, None), sep="; ")
    100 MB, 30d; 12h; everything
    """

    size: int | None = 100_000_000
    age: Duration | None = "30d"

    def __post_init__(self) -> None:
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size <= 0):
            raise ConfigError(
                f"a trace file's size can't be {self.size!r:.80}; give bytes, such as 100_000_000, or None"
            )
        if self.age is not None:
            seconds(self.age, "a trace file's age")

    def __str__(self) -> str:
        size = [] if self.size is None else [f"{self.size / 1e6:g} MB"]
        return ", ".join([*size, *([] if self.age is None else [str(self.age)])]) or "everything"

    @classmethod
    def from_environment(cls) -> TraceLimits:
        """The limits of `POCKET_PLUG_TRACES_SIZE` (bytes) and `POCKET_PLUG_TRACES_AGE` ("7d"); "none" means no limit.

        Raises ConfigError for invalid values.
        """
        size, age = (os.environ.get(f"POCKET_PLUG_TRACES_{name}", "").strip() for name in ("SIZE", "AGE"))
        if size not in ("", "none") and not (size.isdecimal() and len(size) < 20):
            raise ConfigError(
                f"POCKET_PLUG_TRACES_SIZE is {size!r:.80}, which is not a number of bytes; none keeps everything"
            )
        default = cls()
        try:
            return cls(
                default.size if not size else None if size == "none" else int(size),
                default.age if not age else None if age == "none" else age,
            )
        except ConfigError as error:
            raise ConfigError(f"POCKET_PLUG_TRACES_SIZE or POCKET_PLUG_TRACES_AGE: {error}") from error


@contextmanager
def appending(path: Path) -> Generator[int]:
    """The file at this path, opened to append; nobody replaces it within the block. Raises OSError."""
    while True:
        file = private(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            _lock(file, alone=False)
            if _is_at(path, file):
                yield file
                return
        finally:
            _unlock(file)
            os.close(file)


def cut(path: Path, keep: TraceLimits, now: float) -> int:
    """Remove lines from the beginning until the limits are met; a file that is too large is cut to three quarters of its limit.

    Returns the number of bytes removed; also 0 if another process is writing or cutting. `now`: seconds since the epoch. Raises
    OSError.
    """
    with path.open("r+b") as file, suppress(BlockingIOError), _alone(path, file.fileno()):
        size = os.fstat(file.fileno()).st_size
        begin = 0
        if keep.size is not None and size > keep.size:
            file.seek(size - keep.size * 3 // 4)
            file.readline()
            begin = file.tell()
        file.seek(begin)
        if keep.age is not None:
            oldest = (now - seconds(keep.age)) * 1e9
            for line in file:
                if max(map(int, _END.findall(line)), default=0) >= oldest:
                    break
                begin += len(line)
        if begin:
            file.seek(begin)
            with _in_place_of(path) as new:
                shutil.copyfileobj(file, new)
        return begin
    return 0


def without(path: Path, traces: Collection[str]) -> int:
    """Remove the spans of some traces; returns their number. Raises OSError: BlockingIOError if another process is writing."""
    removed = 0
    with path.open("r+b") as file, _alone(path, file.fileno()), _in_place_of(path) as new:
        for line in file:
            requests = requests_in(line)[0]
            if all(span.trace_id not in traces for _, spans in requests for span in spans):
                new.write(line)
                continue
            for request, spans in requests:
                left = _without(json.loads(request), traces)
                if left["resourceSpans"]:
                    new.write(json.dumps(left, separators=(",", ":")).encode() + b"\n")
                removed += sum(span.trace_id in traces for span in spans)
    return removed


def _without(request: dict[str, Any], traces: Collection[str]) -> dict[str, Any]:
    for of_resource in request["resourceSpans"]:
        for of_scope in of_resource.get("scopeSpans", ()):
            of_scope["spans"] = [each for each in of_scope.get("spans", ()) if each["traceId"].lower() not in traces]
        of_resource["scopeSpans"] = [each for each in of_resource.get("scopeSpans", ()) if each["spans"]]
    return request | {"resourceSpans": [each for each in request["resourceSpans"] if each["scopeSpans"]]}


# ---------------------------------------------------------------- locks
def _lock(file: int, *, alone: bool) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)


def _unlock(file: int) -> None:
    """Unlock explicitly: `close` alone wouldn't, if a child that was forked meanwhile also has the file open."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


@contextmanager
def _alone(path: Path, file: int) -> Generator[None]:
    """Lock the file exclusively. Raises BlockingIOError if another process holds a lock, or has replaced the file."""
    if fcntl is None:
        raise BlockingIOError(f"{path} can't be locked on this system")
    try:
        _lock(file, alone=True)
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing to {path}") from None
    try:
        if not _is_at(path, file):
            raise BlockingIOError(f"{path} was just replaced by another process")
        yield
    finally:
        _unlock(file)


@contextmanager
def _in_place_of(path: Path) -> Generator[BinaryIO]:
    """A new file, which replaces this one atomically at the end of the block."""
    new = path.with_name(f"{path.name}.new~")
    try:
        with open(new, "wb", opener=private) as file:
            yield file
        new.replace(path)
    except BaseException:
        # Not in `finally`: after `replace` the lock excludes nobody, and this name may be another process's file.
        new.unlink(missing_ok=True)
        raise
