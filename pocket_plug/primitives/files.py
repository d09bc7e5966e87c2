"""Finds files, and creates files and folders that only their owner may use: modes 0600 and 0700.

A relative path in a configuration is relative to the folder of that file, every other one to the current folder.
Existing files keep their modes, and the umask can only remove more rights. SQLite gives the files that it puts beside a
database the database's own mode.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

_folder: ContextVar[Path | None] = ContextVar("pocket_plug.folder", default=None)


@contextmanager
def relative_to(folder: Path | None) -> Generator[None]:
    """Within the block, relative paths are relative to a folder; None: to the current one."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def located(path: str) -> str:
    """A path as backends open it and show it.

    >>> with relative_to(Path("/srv/shop")):
    ...     located("state.db"), located("/var/lib/state.db")
    ('/srv/shop/state.db', '/var/lib/state.db')
    >>> located("state.db")
    'state.db'
    """
    folder = _folder.get()
    return path if folder is None or folder == Path.cwd() else str(folder / path)


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, if there is none. Raises OSError if that fails."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(0o700, exist_ok=True)


def make_file(path: Path) -> None:
    """Create an empty file if there is none, without opening it. Raises OSError if that fails.

    Closing a file that SQLite has open too would release SQLite's locks: POSIX keeps them by process, not by descriptor.
    """
    target = os.path.realpath(path)  # the target of a link may be missing
    with suppress(FileExistsError):
        try:
            os.mknod(target, 0o600)
        except FileExistsError:
            raise
        except (AttributeError, OSError):  # Windows has no mknod; macOS and some file systems refuse it
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: only the owner may use a file that it creates.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, open(f"{folder}/page.html", "w", opener=private) as file:
    ...     print(oct(os.fstat(file.fileno()).st_mode)[-3:])
    600
    """
    return os.open(path, flags, 0o600)
