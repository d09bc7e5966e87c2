"""`store export` and `store import`: the entries of a store as JSON Lines."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import IO
from urllib.parse import unquote

import click
import msgspec

from pocket_plug.errors import CodecError, CorruptRecordError, PocketError, StoreError
from pocket_plug.primitives.lists import place_of
from pocket_plug.primitives.names import ITEMS
from pocket_plug.primitives.terminal import escaped_json
from pocket_plug.store.backend import Backend, Put
from pocket_plug.store.keys import RESERVED

from .entries import BATCH, found_entries, names_of, readable_name
from .jsonlines import entries_of, line_of
from .listed import with_items, without_items
from .output import echo, plural, progress, said_if_unwritable
from .target import Target


@click.command
@click.argument("prefix", default="", callback=readable_name)
@click.option(
    "--all", "show_all", is_flag=True, help="Include pocket_plug's own entries, whose names begin with pocket:."
)
@click.pass_obj
def export(target: Target, prefix: str, show_all: bool) -> int:
    """Print the entries whose keys begin with PREFIX as JSON Lines.

    An append-only list is one line, followed by a line for each of its items.

    Damaged records are reported and left out; the exit code is then 1.
    """
    out, on_terminal, encode = sys.stdout.buffer, sys.stdout.isatty(), msgspec.json.Encoder().encode

    async def exported() -> tuple[int, int, int]:
        number = damaged = 0
        async with target.opened() as stack:
            before = await stack.version()
            there = without_items(await names_of(stack, prefix, show_all=True))
            names = [name for name in there if show_all or not name.startswith(RESERVED)]
            with progress("exporting", 0 if on_terminal else len(names)) as advance:
                async for name, entry in with_items(stack, found_entries(stack, names)):
                    if isinstance(entry, CodecError):
                        damaged += 1
                        echo(f"left out: {entry}", err=True)
                    else:
                        number += 1
                        line = encode(line_of(name, entry))
                        with said_if_unwritable("stdout"):
                            out.write((escaped_json(line.decode()).encode() if on_terminal else line) + b"\n")
                    advance(not name.startswith(ITEMS))
            with said_if_unwritable("stdout"):
                out.flush()
            if await stack.version() != before:
                echo("the store was changed meanwhile: the export is not a consistent snapshot", err=True)
        return number, damaged, len(there) - len(names)

    number, damaged, own = asyncio.run(exported())
    left_out = f"; left out {own:,} of pocket_plug's own, such as durable runs: --all exports them too" if own else ""
    echo(f"exported {plural(number, 'entry')}{left_out}", err=True)
    return int(damaged > 0)


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--atomic", is_flag=True, help=f"Store all entries in one write, not in writes of {BATCH:,}.")
@click.option("--all", "take_all", is_flag=True, help="Import pocket_plug's own entries too.")
@click.pass_obj
def import_(target: Target, file: IO[bytes], atomic: bool, take_all: bool) -> None:
    """Store the entries of an exported FILE; - is stdin.

    Every line is checked before the first entry is stored. Existing entries are replaced. A durable run that the store has
    in another state is refused.
    """
    from pocket_plug.graph.durable.records import RUN
    from pocket_plug.graph.durable.states import STATE, WAKE

    with _readable_twice(file) as lines:
        own: set[str] = set()
        try:
            total = 0
            for put in entries_of(lines, file.name, reserved=take_all):
                total += 1
                if put.key.startswith((RUN, STATE, WAKE)):
                    own.add(put.key)
        except CorruptRecordError as error:
            raise CorruptRecordError(f"{error}; nothing was imported") from error.__cause__
        lines.seek(0)

        async def imported() -> tuple[int, int]:
            done = expired = 0
            async with target.opened(may_be_new=True) as stack:
                await _refuse_other_states(stack, own, file.name)
                now = stack.clock()
                puts: list[Put] = []
                gone: set[str] = set()
                with progress("importing", total) as advance:
                    for put in entries_of(lines, file.name, reserved=take_all):
                        if put.expires_at is not None and put.expires_at <= now:
                            expired += 1
                            gone.add(put.key)
                        elif (item := place_of(put.key)) is None or item.owner not in gone:
                            puts.append(put)
                        if len(puts) == BATCH and not atomic:
                            done += await _stored(stack, puts, done, total)
                            advance(BATCH)
                            puts = []
                    done += await _stored(stack, puts, done, total)
            return done, expired

        done, expired = asyncio.run(imported())
    left_out = f"; left out {expired:,} that had expired" if expired else ""
    echo(f"imported {plural(done, 'entry')}{left_out}", err=True)


async def _refuse_other_states(stack: Backend, own: Collection[str], file: str) -> None:
    """Raise StoreError if the store has a run of the file in another state. `own`: the file's keys of runs, states and waits.

    The keys of that state would stay, and workers would find the run again and again: `worker --once` would never end.
    """
    from pocket_plug.graph.durable.records import RUN
    from pocket_plug.graph.durable.states import STATE, WAKE

    runs = {key.removeprefix(RUN) for key in own if key.startswith(RUN)}
    for prefix in (STATE, WAKE) if runs else ():
        async for key in stack.scan(prefix):
            if (name := key.rpartition(":")[2]) in runs and key not in own:
                raise StoreError(
                    f"run {unquote(name)!r} of {file} is in the store already, in another state, and two states of a run can't "
                    "be merged; import into an empty store, or remove the run with `pocket-plug runs rm`; nothing was imported"
                )


async def _stored(stack: Backend, puts: list[Put], done: int, total: int) -> int:
    try:
        await stack.write(puts)
    except PocketError:
        echo(f"{done:,} of {total:,} are stored; the whole file can be imported again", err=True)
        raise
    return len(puts)


@contextmanager
def _readable_twice(file: IO[bytes]) -> Generator[IO[bytes]]:
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy
