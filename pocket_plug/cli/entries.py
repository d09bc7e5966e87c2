"""Entries of a store for the command line: reads them although some are damaged, checks names, and formats values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import contextmanager
from pprint import pformat
from typing import TypeVar

import click

from pocket_plug.codec import Sealed, default_codec, inspect_record
from pocket_plug.errors import KeyNameError
from pocket_plug.primitives.batches import batched
from pocket_plug.primitives.names import check_readable
from pocket_plug.store.backend import Backend
from pocket_plug.store.keys import RESERVED, check_name, check_prefix
from pocket_plug.store.reading import Found, read_each

BATCH = 1000
"""How many entries are read or written at once."""


@contextmanager
def sealing() -> Generator[None]:
    """Read values of unknown types in their stored form."""
    former, default_codec.seals = default_codec.seals, True
    try:
        yield
    finally:
        default_codec.seals = former


# ---------------------------------------------------------------- reading entries
NamedEntry = tuple[str, Found]


async def names_of(stack: Backend, prefix: str, show_all: bool) -> list[str]:
    return [name async for name in stack.scan(prefix) if show_all or not name.startswith(RESERVED)]


async def found_entries(stack: Backend, names: Sequence[str]) -> AsyncIterator[NamedEntry]:
    """The entries that still exist, read in batches. An entry that can't be read yields its error instead."""
    for batch in batched(names, BATCH):
        found = await read_each(stack, batch)
        for name in batch:
            if name in found:
                yield name, found[name]


G = TypeVar("G", str, tuple[str, ...])


def _refusing(check: Callable[[str], str]) -> Callable[[click.Context, click.Parameter, G], G]:
    """A click callback that refuses invalid names, for one name or several."""

    def checked(_context: click.Context, _parameter: click.Parameter, given: G) -> G:
        try:
            for name in (given,) if isinstance(given, str) else given:
                check(name)
        except KeyNameError as error:
            raise click.BadParameter(str(error)) from error
        return given

    return checked


writable_name, readable_name, removable_name = _refusing(check_name), _refusing(check_prefix), _refusing(check_readable)


# ---------------------------------------------------------------- as text
def text_of(value: object) -> str:
    """A value as a Python literal; a value of an unknown type in its stored form."""
    return pformat(inspect_record(value.record) if isinstance(value, Sealed) else value, width=100, sort_dicts=False)
