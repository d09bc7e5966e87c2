"""The store that the command line names, and its entries: what `store`, `runs` and `trace` have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from pprint import pformat
from typing import TypeVar

import click

from pocket_plug.codec import Sealed, default_codec, inspect_record
from pocket_plug.errors import CodecError, KeyNameError
from pocket_plug.layers import Persistence
from pocket_plug.plugins.config import StoreTable
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.names import check_readable
from pocket_plug.primitives.redaction import public_url
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.store.keys import RESERVED, check_name, check_prefix
from pocket_plug.store.layer import parts
from pocket_plug.store.memory import Memory
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import Store

BATCH = 1000
"""Entries that are read or written at once."""


# ---------------------------------------------------------------- which store
class Target:
    """The store that the command line names."""

    def __init__(self, url: str | None, name: str | None) -> None:
        if url is not None and name is not None:
            raise click.UsageError("--url and --name each name a store; give one of them")
        self.url, self.name = url, name

    def __str__(self) -> str:
        if self.url is not None:
            return public_url(self.url)
        return "the default store" if self.name is None else f"stores.{self.name}"

    def _store(self) -> Store:
        if self.url is not None:
            return Store(self.url)
        pocket = default_pocket()
        return pocket.store if self.name is None else pocket.stores[self.name]

    def _found(self, *, may_be_new: bool) -> tuple[Stack, Backend]:
        """The stack, and the backend where its entries last. Refused where there can be nothing."""
        stack = self._store().stack
        backend = _lasting(stack)
        if type(backend) is Memory:
            raise click.UsageError(
                f"{self} is in memory, and each process has one of its own; name another store, such as "
                "--url sqlite:///state.db"
            )
        path = path_of(backend)
        if path is not None and not may_be_new and not path.exists():
            raise click.UsageError(f"{self}: there is no file {path}; give the path of a store that exists")
        return stack, backend

    @property
    def is_on_server(self) -> bool:
        """Is it reached over a network? Then an error of the store may be one of getting there, and no damage."""
        return _lasting(self._store().stack).address is not None

    def evicts(self) -> bool:
        """Does the stack remove entries by itself? Then lists lack items, and nothing is wrong with that."""
        return self._found(may_be_new=False)[0].evicts

    def refuse_another(self, title: str, stack: Stack, default: Stack) -> None:
        """Raise UsageError where a graph has a store of its own, and so not the one that is named."""
        if (self.url or self.name) is not None and not is_one_place(stack, default):
            raise click.UsageError(
                f"{title} has a store of its own, so its runs aren't in {self}; leave out --url and --name"
            )

    def make_default(self) -> None:
        """Let graphs that have no store of their own run over it."""
        if self.url is None and self.name is None:
            return
        self._found(may_be_new=False)
        pocket = default_pocket()
        table = StoreTable("--url", self.url) if self.url is not None else pocket.config.stores[self.name or ""]
        pocket.config = replace(pocket.config, store=table)

    def backend(self) -> Backend:
        """Where its entries last, not opened."""
        return self._found(may_be_new=False)[1]

    @asynccontextmanager
    async def opened(self, *, may_be_new: bool = False) -> AsyncGenerator[Stack]:
        """The whole stack, so that what layers did to values is undone."""
        stack, _ = self._found(may_be_new=may_be_new)
        await stack.open()
        try:
            yield stack
        finally:
            await stack.close()

    @asynccontextmanager
    async def opened_backend(self) -> AsyncGenerator[Backend]:
        """The backend alone, in which nothing has expired yet."""
        _, backend = self._found(may_be_new=False)
        backend.clock = lambda: 0.0
        await backend.open()
        try:
            yield backend
        finally:
            await backend.close()


def _lasting(stack: Stack) -> Backend:
    for part in parts(stack):
        if isinstance(part, Persistence):
            return default_pocket().backend(part.to) if isinstance(part.to, str) else part.to
    return parts(stack)[-1]


def path_of(backend: Backend) -> Path | None:
    """The file that it lives in, if it says so as SQLite does."""
    path: object = getattr(backend, "path", None)
    return Path(path) if isinstance(path, str) else None


def is_one_place(one: Stack, other: Stack) -> bool:
    """Do both keep their entries in the same place: one backend, or one file?"""
    if one is other:
        return True
    backends = (_lasting(one), _lasting(other))
    paths = [path for path in map(path_of, backends) if path is not None and path.exists()]
    return backends[0] is backends[1] or (len(paths) == 2 and paths[0].samefile(paths[1]))


@contextmanager
def sealing() -> Generator[None]:
    """Values of types that aren't known here are read as they are stored."""
    former, default_codec.seals = default_codec.seals, True
    try:
        yield
    finally:
        default_codec.seals = former


by_url = click.option("--url", metavar="URL", help="The store's backend, such as sqlite:///state.db.")
by_name = click.option("--name", metavar="NAME", help="The store of [stores.NAME] in the configuration.")


# ---------------------------------------------------------------- reading entries
Found = tuple[str, Entry | CodecError]


async def names_of(stack: Backend, prefix: str, show_all: bool) -> list[str]:
    return [name async for name in stack.scan(prefix) if show_all or not name.startswith(RESERVED)]


async def found_entries(stack: Backend, names: Sequence[str]) -> AsyncIterator[Found]:
    """The entries that are still there, a batch at a time; what can't be read is its error, and keeps no other back."""
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        try:
            entries = await stack.read_many(batch)
        except CodecError:
            for name in batch:
                try:
                    entry: Entry | CodecError | None = await stack.read(name)
                except CodecError as error:
                    entry = error
                if entry is not None:
                    yield name, entry
        else:
            for name in batch:
                if name in entries:
                    yield name, entries[name]


def count(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


G = TypeVar("G", str, tuple[str, ...])


def _held_to(check: Callable[[str], str]) -> Callable[[click.Context, click.Parameter, G], G]:
    """What refuses names that no store can have, one or several."""

    def checked(_context: click.Context, _parameter: click.Parameter, given: G) -> G:
        try:
            for name in (given,) if isinstance(given, str) else given:
                check(name)
        except KeyNameError as error:
            raise click.BadParameter(str(error)) from error
        return given

    return checked


writable_name, readable_name, removable_name = _held_to(check_name), _held_to(check_prefix), _held_to(check_readable)


# ---------------------------------------------------------------- as text
def text_of(value: object) -> str:
    """As Python would write it; what is sealed as it is stored."""
    return pformat(inspect_record(value.record) if isinstance(value, Sealed) else value, width=100, sort_dicts=False)


def in_units(seconds: float) -> str:
    """A time in its two greatest units.

    >>> in_units(90_061)
    '1d1h'
    """
    rest = max(0, int(seconds))
    numbers: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number:
            numbers.append(f"{number}{unit}")
    return "".join(numbers[:2]) or "0s"
