"""The file that one backend has opened: is it still there, may this process use it, and has it locked it?

Data that is written into a file that was deleted or moved is lost with its last connection. So each write checks the file,
and reads do so now and then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import monotonic

from pocket_plug.errors import StoreBusyError, StoreClosedError, StoreError

from .files import Folder, Identity, Ownership, identity_of, is_at

LOOK_EVERY = 0.05
"""Reads check at most once in so many seconds whether the file is still in its place. A write checks each time, and with
`durability=process` it checks the log as rarely."""

LOGS = ("-wal", "-shm")
"""The ends of the names of the log and of its index, in which SQLite's connections see what the others have written."""

_forbidden: set[Identity | None] = set()
"""Files that the parent used at a fork. They can't be opened here: SQLite would take the parent's locks for its own."""


class OpenedFile:
    """The file at `path`. `power`: must an acknowledged write survive a crash of the machine?"""

    def __init__(self, path: str, power: bool) -> None:
        self.path = path
        self.power = power
        self.absolute = Path(path).absolute()
        """Its absolute path, also after a later chdir."""
        self.is_open = False
        """True from `Connections.open` to `Writer.close`, which then still writes what is queued."""
        self.look_next = 0.0
        """When a read has to `look` again, by `monotonic`."""
        self._name, self._resolved = str(self.absolute), ""
        self._identity: Identity | None = None
        self._logs: Mapping[str, Identity | None] = {}  # by the ends of their names; none while no connection is open
        self._look_at_logs_next = 0.0
        self._folder: Folder | None = None  # with `power` only
        self._ownership: Ownership | None = None

    # ------------------------------------------------------------ where it is
    def know(self) -> None:
        """Note the file that is at the path now, and its logs, as those that are opened."""
        resolved = self.absolute.resolve()
        self._identity, self._resolved, self._logs = identity_of(self._name), str(resolved), {}
        self.know_logs()
        is_linked = resolved != self.absolute  # a link may lead elsewhere while this folder stays as it is
        self._folder = Folder(str(resolved.parent)) if self.power and not is_linked else None

    def know_logs(self) -> None:
        """Note the log and its index, unless they are known. Called at once when a connection has opened them (`open_logs`): if
        they are deleted then, the next write has to notice it.
        """
        if not self._logs:
            self._logs = {end: identity_of(self._resolved + end) for end in LOGS}

    def look(self) -> None:
        """Raise StoreClosedError if the file isn't in its place any more, or isn't the one that was opened."""
        if not is_at(self._name, self._identity):
            raise self._moved(self.path) if self.is_open else self.not_open()
        self.look_next = monotonic() + LOOK_EVERY

    def look_with_logs(self) -> None:
        """The same, and for the log and its index. Called in a transaction, since otherwise its write could be lost."""
        if self._folder is not None and self._folder.is_as_known():
            return
        self.look()
        if self.power or self.look_next >= self._look_at_logs_next:
            for end, known in self._logs.items():
                if not is_at(self._resolved + end, known):
                    raise self._moved(self.path + end)
            self._look_at_logs_next = self.look_next + LOOK_EVERY
        if self._folder is not None:
            self._folder.know()

    def drop_logs(self) -> None:
        """After all connections were closed: forget the log, and remove it if SQLite has left it there.

        SQLite leaves it if the file was moved away, and would later take it for the log of another file in that place.
        """
        logs, self._logs = self._logs, {}
        if logs and not is_at(self._name, self._identity) and is_at(self._resolved + "-wal", logs.get("-wal")):
            for end in LOGS:
                Path(self._resolved + end).unlink(missing_ok=True)

    def _moved(self, what: str) -> StoreClosedError:
        moved = StoreClosedError(
            f"{what} was deleted, moved or replaced while it was open, so nothing can be stored there, and entries that "
            "were stored may be lost; put the right file in its place, close this store, and open it again"
        )
        moved.loggable = str(moved)
        return moved

    # ------------------------------------------------------------ may it be used
    def not_open(self) -> StoreClosedError:
        """The error for a use while it isn't open."""
        if _forbidden and self._identity in _forbidden:
            return self._forked_in_use()
        return StoreClosedError(
            f"{self.path} is not open: it was closed, or not opened yet. Open it by `store.open()` (with `await` for a Store), "
            "or for a block by `with store:` or `async with store:`. A graph opens its store at its first run, but not again "
            "after a close"
        )

    def check_connectable(self) -> None:
        """Raise StoreClosedError if no connection may be opened: to a forbidden file, or to one that is gone."""
        if _forbidden and identity_of(self._name) in _forbidden:
            raise self._forked_in_use()
        if self.is_open:
            self.look()

    def forbid(self) -> None:
        """In a child that was forked in the middle of a use: never open the file here again."""
        _forbidden.add((self._identity if self.is_open else None) or identity_of(self._name))
        self.is_open = False

    def _forked_in_use(self) -> StoreClosedError:
        return StoreClosedError(
            f"{self.path}: this process was forked while this file was in use, so SQLite would treat the parent's locks as "
            "its own here; fork while the store is not in use, or start a new process"
        )

    # ------------------------------------------------------------ the exclusive lock
    @property
    def is_owned(self) -> bool:
        """Has this backend locked it exclusively?"""
        return self._ownership is not None

    def own(self) -> None:
        """Lock an empty file beside this one, `state.db-owner`. The caller makes sure that no fork comes in between."""
        try:
            self._ownership = Ownership(f"{self.absolute.resolve()}-owner")
        except BlockingIOError:
            raise StoreBusyError(
                f"{self.path} is locked by another store with persistence mode='behind', in this process or another one; close "
                "the other store, or share it"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path}: it can't be locked: {error}") from error

    def disown(self) -> None:
        """Unlock it."""
        if self._ownership is not None:
            self._ownership.release()
            self._ownership = None

    def leave(self) -> None:
        """In a forked child: the parent keeps the lock."""
        if self._ownership is not None:
            self._ownership.leave()
            self._ownership = None
