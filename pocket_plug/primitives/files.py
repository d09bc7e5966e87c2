"""Where files are, and that those that we make are their owner's alone: 0600, and folders 0700.

A relative path in a configuration counts from the folder of that file, every other one from the current folder.
Those that exist stay as they are, and the umask can only take more away. SQLite gives the files that it puts beside a
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
    """Within the block relative paths count from a folder; None: from the current one."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def located(path: str) -> str:
    """A path as backends are to open it, and to show it.

    >>> with relative_to(Path("/srv/shop")):
    ...     located("state.db"), located("/var/lib/state.db")
    ('/srv/shop/state.db', '/var/lib/state.db')
    >>> located("state.db")
    'state.db'
    """
    folder = _folder.get()
    return path if folder is None or folder == Path.cwd() else str(folder / path)


def make_folder(folder: Path) -> None:
    """Make a folder where there is none, and those above it. Raises OSError where that can't be."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(0o700, exist_ok=True)


def make_file(path: Path) -> None:
    """Make an empty file where there is none, without opening it. Raises OSError where that can't be.

    Whoever closes a file that SQLite has open too, takes SQLite's locks away: POSIX keeps them by process, not by descriptor.
    """
    target = os.path.realpath(path)  # what a link leads to may be missing
    with suppress(FileExistsError):
        try:
            os.mknod(target, 0o600)
        except FileExistsError:
            raise
        except (AttributeError, OSError):  # Windows has none, macOS and some file systems allow it to nobody
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: what it makes is the owner's.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, open(f"{folder}/page.html", "w", opener=private) as file:
    ...     print(oct(os.fstat(file.fileno()).st_mode)[-3:])
    600
    """
    return os.open(path, flags, 0o600)
