"""The store that the command line names, by a URL or by a name in the configuration."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import click

from pocket_plug.plugins.config import StoreTable
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.redaction import public_url
from pocket_plug.store.backend import Backend, Tiered
from pocket_plug.store.layer import parts
from pocket_plug.store.memory import Memory
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import Store

from .output import echo

PATIENT_SECONDS = 3.0
"""After so long, a command says that it waits for its store."""


class Target:
    """The store that the command line names."""

    def __init__(self, url: str | None, name: str | None) -> None:
        if url is not None and name is not None:
            raise click.UsageError("--url and --name both name a store; give only one of them")
        self.url, self.name = url, name

    def __str__(self) -> str:
        if self.url is not None:
            return public_url(self.url)
        return "the default store" if self.name is None else f"stores.{self.name}"

    @property
    def options(self) -> str:
        """The options that name it, as in `pocket-plug store --name cache ls`; each with a space before it."""
        if self.url is not None:
            return f" --url {shlex.quote(public_url(self.url))}"
        return "" if self.name is None else f" --name {shlex.quote(self.name)}"

    def _store(self) -> Store:
        if self.url is not None:
            return Store(self.url)
        pocket = default_pocket()
        return pocket.store if self.name is None else pocket.stores[self.name]

    def _found(self, *, may_be_new: bool) -> tuple[Stack, Backend]:
        """The stack, and the backend that keeps its entries. Raises UsageError if there can be none, as in memory."""
        stack = self._store().stack
        backend = keepers(stack)[0]
        if type(backend) is Memory:
            raise click.UsageError(
                f"{self} is in memory, and each process has its own; name another store, such as "
                "--url sqlite:///state.db"
            )
        path = path_of(backend)
        if path is not None and not may_be_new and not path.exists():
            raise click.UsageError(f"{self}: there is no file {path}; give the path of a store that exists")
        if path is not None and not may_be_new and path.stat().st_size == 0:  # SQLite would take it for a new one
            raise click.UsageError(
                f"{self}: the file {path} is empty, with 0 bytes, so this is no store, or it has lost all its entries; "
                "restore a backup, or give the path of a store"
            )
        return stack, backend

    @property
    def is_on_server(self) -> bool:
        """Is the store on a server? Then a StoreError may be one of the network, and no damage."""
        return keepers(self._store().stack)[0].address is not None

    def evicts(self) -> bool:
        """Does the stack evict entries? Then missing items of lists are no damage."""
        return self._found(may_be_new=False)[0].evicts

    def refuse_another(self, title: str, stack: Stack, default: Stack) -> None:
        """Raise UsageError if a store is named but the graph has its own, another one."""
        if (self.url or self.name) is not None and not is_one_place(stack, default):
            raise click.UsageError(
                f"{title} has a store of its own, so its runs aren't in {self}; leave out --url and --name"
            )

    def make_default(self, *, may_be_new: bool = False) -> None:
        """Make it the default Pocket's store, which graphs without their own store use."""
        if self.url is None and self.name is None:
            return
        self._found(may_be_new=may_be_new)
        pocket = default_pocket()
        table = StoreTable("--url", self.url) if self.url is not None else pocket.config.stores[self.name or ""]
        pocket.config = replace(pocket.config, store=table)

    def backend(self) -> Backend:
        """The backend that keeps the entries; it isn't opened."""
        return self._found(may_be_new=False)[1]

    @asynccontextmanager
    async def opened(self, *, may_be_new: bool = False) -> AsyncGenerator[Stack]:
        """The whole stack, opened, so that its layers decode the values."""
        stack, _ = self._found(may_be_new=may_be_new)
        await self._open(stack)
        try:
            yield stack
        finally:
            await stack.close()

    async def _open(self, backend: Backend) -> None:
        """Open it, and say so if that takes long: a server that is away is tried for half a minute."""
        says = f"{self} doesn't answer yet; waiting"
        waiting = asyncio.get_running_loop().call_later(PATIENT_SECONDS, lambda: echo(says, err=True))
        try:
            await backend.open()
        finally:
            waiting.cancel()

    @asynccontextmanager
    async def opened_backend(self) -> AsyncGenerator[Backend]:
        """The backend alone, opened. Its clock is set to 0, so that expired entries are read too."""
        _, backend = self._found(may_be_new=False)
        backend.clock = lambda: 0.0
        await self._open(backend)
        try:
            yield backend
        finally:
            await backend.close()


def keepers(stack: Stack) -> list[Backend]:
    """The backends that keep the entries: the authorities of its caches, or else the end of the stack."""
    tiers = [part for part in parts(stack) if isinstance(part, Tiered)]
    return [part.authority if part.queue is None else part.queue.durable for part in tiers] or parts(stack)[-1:]


def path_of(backend: Backend) -> Path | None:
    """The file of a backend, if it has one, as SQLite does."""
    path: object = getattr(backend, "path", None)
    return Path(path) if isinstance(path, str) else None


def is_one_place(one: Stack, other: Stack) -> bool:
    """Do both keep their entries in the same place: one backend, or one file?"""
    if one is other:
        return True
    backends = (keepers(one)[0], keepers(other)[0])
    paths = [path for path in map(path_of, backends) if path is not None and path.exists()]
    return backends[0] is backends[1] or (len(paths) == 2 and paths[0].samefile(paths[1]))


by_url = click.option("--url", metavar="URL", help="The store's backend, such as sqlite:///state.db.")
by_name = click.option("--name", metavar="NAME", help="The store of [stores.NAME] in the configuration.")
