"""`store`: looks into a store and changes it, whatever its backend.

Values of types that aren't known here are shown as they are stored, and pass an export and an import byte for byte.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from pprint import pformat
from typing import IO, Any

import click
import msgspec

from pocket_plug.codec import UNBOUND, Sealed, default_codec, inspect_record, upgraded
from pocket_plug.errors import CodecError, KeyNameError, MissingKeyError, PocketError, StoreError
from pocket_plug.layers import Persistence
from pocket_plug.plugins.config import StoreTable
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.durations import seconds
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.terminal import escaped, escaped_json
from pocket_plug.store.backend import Backend, Delete, Entry, Put
from pocket_plug.store.keys import RESERVED, check_name, check_prefix
from pocket_plug.store.layer import parts
from pocket_plug.store.memory import Memory
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import Store

from .jsonlines import entries_of, is_json, line_of, type_in, why_no_json
from .output import echo, echo_json, echo_value, print_table
from .show import as_json

BATCH = 1000
"""Entries that are read or written at once; with more of them, a terminal is shown how far it is."""


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
        path = _path(backend)
        if path is not None and not may_be_new and not path.exists():
            raise click.UsageError(f"{self}: there is no file {path}")
        return stack, backend

    def make_default(self) -> None:
        """Let graphs that have no store of their own run over it."""
        if self.url is None and self.name is None:
            return
        self._found(may_be_new=False)
        pocket = default_pocket()
        table = StoreTable("--url", self.url) if self.url is not None else pocket.config.stores[self.name or ""]
        pocket.config = replace(pocket.config, store=table)

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


def _path(backend: Backend) -> Path | None:
    """The file that it lives in, if it says so as SQLite does."""
    path: object = getattr(backend, "path", None)
    return Path(path) if isinstance(path, str) else None


def is_one_place(one: Stack, other: Stack) -> bool:
    """Do both keep their entries in the same place: one backend, or one file?"""
    if one is other:
        return True
    backends = (_lasting(one), _lasting(other))
    paths = [path for path in map(_path, backends) if path is not None and path.exists()]
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


@click.group
@by_url
@by_name
@click.pass_context
def store(context: click.Context, url: str | None, name: str | None) -> None:
    """Look into a store, and change it.

    Without --url and --name it is the store of [store] in the configuration.
    """
    context.obj = Target(url, name)
    context.with_resource(sealing())


# ---------------------------------------------------------------- reading entries
Found = tuple[str, Entry | CodecError]


async def _names(stack: Backend, prefix: str, show_all: bool) -> list[str]:
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


@contextmanager
def progress(doing: str, total: int) -> Generator[Callable[[int], None]]:
    """A bar for what takes long, on a terminal. It is told of so many more that are done."""
    if total <= BATCH or not sys.stderr.isatty():
        yield lambda more: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda more: bar.advance(task, more)


def _count(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def _held_to(check: Callable[[str], str]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """What refuses names that no store can have, one or several."""

    def checked(_context: click.Context, _parameter: click.Parameter, given: Any) -> Any:
        try:
            for name in (given,) if isinstance(given, str) else given:
                check(name)
        except KeyNameError as error:
            raise click.BadParameter(str(error)) from error
        return given

    return checked


_writable, _readable = _held_to(check_name), _held_to(check_prefix)


# ---------------------------------------------------------------- ls
@store.command
@click.argument("prefix", default="", callback=_readable)
@click.option("--long", "-l", "is_long", is_flag=True, help="With type, bytes and time to live.")
@click.option("--all", "show_all", is_flag=True, help="With pocket_plug's own entries, whose names begin with pocket:.")
@as_json
@click.pass_obj
def ls(target: Target, prefix: str, is_long: bool, show_all: bool, as_json: bool) -> None:
    """List the keys that begin with PREFIX, in order."""

    async def listed() -> None:
        async with target.opened() as stack:
            if not is_long and not as_json:
                async for name in stack.scan(prefix):
                    if show_all or not name.startswith(RESERVED):
                        echo(escaped(name))
                return
            names = await _names(stack, prefix, show_all)
            found = [_facts(name, entry) async for name, entry in found_entries(stack, names)]
            if as_json:
                echo_json(found)
                return
            now = stack.clock()
            rows = [
                (each["key"], each["type"], str(each["bytes"] or ""), _left(each["expires_at"], now)) for each in found
            ]
            print_table(("key", "type", "bytes", "ttl"), rows)

    asyncio.run(listed())


def _facts(key: str, entry: Entry | CodecError) -> dict[str, Any]:
    if isinstance(entry, CodecError):
        return {"key": key, "type": "damaged", "bytes": None, "version": None, "expires_at": None}
    record = default_codec.encode(entry.value)
    return {
        "key": key,
        "type": type_in(record),
        "bytes": len(record),
        "version": entry.version,
        "expires_at": entry.expires_at,
    }


def _left(expires_at: float | None, now: float) -> str:
    """The time until then, as `--ttl` takes it."""
    if expires_at is None:
        return ""
    return in_units(expires_at - now)


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


# ---------------------------------------------------------------- get, set, rm
@store.command
@click.argument("key", callback=_readable)
@as_json
@click.pass_obj
def get(target: Target, key: str, as_json: bool) -> None:
    """Print the value at KEY.

    Text as it is, what JSON holds exactly as JSON, anything else as Python would write it.
    """

    async def found() -> Entry:
        async with target.opened() as stack:
            entry = await stack.read(key)
        if entry is None:
            raise MissingKeyError(f"nothing at {key!r} in {target}")
        return entry

    entry = asyncio.run(found())
    value = entry.value
    if isinstance(value, Sealed):
        echo(
            f"{key!r} is shown as it is stored: {value.error}. Here, the hook pocket_types of a plugin would register it.",
            err=True,
        )
    if as_json:
        facts = msgspec.to_builtins(line_of(key, entry)) | {"version": entry.version, "expires_at": entry.expires_at}
        echo_json(facts if is_json(value) else facts | {"text": text_of(value)})
    elif is_json(value) and not isinstance(value, str):
        echo_json(value)
    else:
        echo_value(value if isinstance(value, str) else text_of(value))


def text_of(value: Any) -> str:
    """As Python would write it; what is sealed as it is stored."""
    return pformat(inspect_record(value.record) if isinstance(value, Sealed) else value, width=100, sort_dicts=False)


@store.command("set", context_settings={"ignore_unknown_options": True})  # -1 is a value
@click.argument("key", callback=_writable)
@click.argument("value")
@click.option("--text", "is_text", is_flag=True, help="VALUE is the text itself, not JSON.")
@click.option("--ttl", metavar="TTL", help="How long it lasts, such as 90s or 1h30m; for ever without it.")
@click.pass_obj
def set_(target: Target, key: str, value: str, is_text: bool, ttl: str | None) -> None:
    """Store VALUE, which is JSON, at KEY."""
    stored = value if is_text else _from_json(value)
    lasts = None if ttl is None else seconds(float(ttl) if ttl.isdecimal() else ttl)

    async def put() -> None:
        async with target.opened(may_be_new=True) as stack:
            await stack.write((Put(key, stored, None if lasts is None else stack.clock() + lasts),))

    asyncio.run(put())


def _from_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise click.UsageError(f"VALUE is no JSON: {why_no_json(error)}. For a plain text add --text") from error


@store.command
@click.argument("keys", nargs=-1, metavar="[KEY]...", callback=_writable)
@click.option("--prefix", metavar="PREFIX", help="Remove all that begin with it, but for pocket_plug's own.")
@click.option("--yes", is_flag=True, help="Needed with --prefix: yes, all of them.")
@click.pass_obj
def rm(target: Target, keys: tuple[str, ...], prefix: str | None, yes: bool) -> int:
    """Remove entries. A KEY that isn't there is said, and the exit code is 1."""
    if bool(keys) == (prefix is not None):
        raise click.UsageError("give the keys to remove, or --prefix")

    async def removed() -> list[str]:
        async with target.opened() as stack:
            if prefix is None:
                there = [key for key in dict.fromkeys(keys) if await _is_there(stack, key)]
            else:
                there = await _names(stack, prefix, show_all=False)
                if not yes:
                    raise click.UsageError(f"{_count(len(there))} would be removed from {target}; to do so, add --yes")
            with progress("removing", len(there)) as advance:
                for start in range(0, len(there), BATCH):
                    batch = there[start : start + BATCH]
                    await stack.write([Delete(key) for key in batch])
                    advance(len(batch))
            return there

    there = asyncio.run(removed())
    missing = [key for key in keys if key not in there]
    for key in missing:
        echo(f"nothing at {key!r}", err=True)
    echo(f"removed {_count(len(there))}", err=True)
    return int(bool(missing))


async def _is_there(stack: Backend, key: str) -> bool:
    """Without reading it: what is damaged can be removed too."""
    async for name in stack.scan(key):
        return name == key  # of those that begin with it, it comes first
    return False


# ---------------------------------------------------------------- export and import
@store.command
@click.argument("prefix", default="", callback=_readable)
@click.option("--all", "show_all", is_flag=True, help="With pocket_plug's own entries, whose names begin with pocket:.")
@click.pass_obj
def export(target: Target, prefix: str, show_all: bool) -> int:
    """Print the entries whose keys begin with PREFIX as JSON Lines.

    What can't be read is said and left out, and the exit code is 1.
    """
    out, on_terminal, encode = sys.stdout.buffer, sys.stdout.isatty(), msgspec.json.Encoder().encode

    async def exported() -> tuple[int, int]:
        number = damaged = 0
        async with target.opened() as stack:
            before = await stack.version()
            names = await _names(stack, prefix, show_all)
            with progress("exporting", 0 if on_terminal else len(names)) as advance:
                async for name, entry in found_entries(stack, names):
                    if isinstance(entry, CodecError):
                        damaged += 1
                        echo(f"left out: {entry}", err=True)
                    else:
                        number += 1
                        line = encode(line_of(name, entry))
                        out.write((escaped_json(line.decode()).encode() if on_terminal else line) + b"\n")
                    advance(1)
            out.flush()
            if await stack.version() != before:
                echo("the store was written to meanwhile: this is not as it was at one moment", err=True)
        return number, damaged

    number, damaged = asyncio.run(exported())
    echo(f"exported {_count(number)}", err=True)
    return int(damaged > 0)


@store.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--atomic", is_flag=True, help=f"All in one write, else in writes of {BATCH:,}.")
@click.option("--all", "take_all", is_flag=True, help="Take pocket_plug's own entries too.")
@click.pass_obj
def import_(target: Target, file: IO[bytes], atomic: bool, take_all: bool) -> None:
    """Store the entries of an exported FILE; - is stdin.

    Every line is looked at before the first entry is stored. Entries that are there are replaced.
    """
    with _readable_twice(file) as lines:
        total = sum(1 for _ in entries_of(lines, file.name, reserved=take_all))
        lines.seek(0)

        async def imported() -> tuple[int, int]:
            done = expired = 0
            async with target.opened(may_be_new=True) as stack:
                now = stack.clock()
                puts: list[Put] = []
                with progress("importing", total) as advance:
                    for put in entries_of(lines, file.name, reserved=take_all):
                        if put.expires_at is not None and put.expires_at <= now:
                            expired += 1
                        else:
                            puts.append(put)
                        if len(puts) == BATCH and not atomic:
                            done += await _stored(stack, puts, done, total)
                            advance(BATCH)
                            puts = []
                    done += await _stored(stack, puts, done, total)
            return done, expired

        done, expired = asyncio.run(imported())
    left_out = f"; left out {expired:,} that had expired" if expired else ""
    echo(f"imported {_count(done)}{left_out}", err=True)


async def _stored(stack: Backend, puts: list[Put], done: int, total: int) -> int:
    try:
        await stack.write(puts)
    except PocketError:
        echo(f"{done:,} of {total:,} are stored; it may be imported again as a whole", err=True)
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


# ---------------------------------------------------------------- stats
@store.command
@as_json
@click.pass_obj
def stats(target: Target, as_json: bool) -> None:
    """Count what the backend holds.

    Bytes are those of the values' records. Expired entries are those that it has not cleared away yet.
    """

    async def counted() -> dict[str, int]:
        numbers = {"entries": 0, "bytes": 0, "expired": 0, "damaged": 0}
        now = time.time()
        async with target.opened_backend() as backend:
            numbers["version"] = await backend.version()
            names = await _names(backend, "", show_all=True)
            with progress("counting", len(names)) as advance:
                async for _, entry in found_entries(backend, names):
                    if isinstance(entry, CodecError):
                        numbers["damaged"] += 1
                    elif entry.expires_at is not None and entry.expires_at <= now:
                        numbers["expired"] += 1
                    else:
                        numbers["entries"] += 1
                        numbers["bytes"] += len(default_codec.encode(entry.value))
                    advance(1)
            if (path := _path(backend)) is not None:
                files = (path, path.with_name(f"{path.name}-wal"))
                numbers["file_bytes"] = sum(file.stat().st_size for file in files if file.exists())
        return numbers

    numbers = asyncio.run(counted())
    if as_json:
        echo_json(numbers)
    else:
        print_table(("what", "number"), [(what, str(number)) for what, number in numbers.items()])


# ---------------------------------------------------------------- check
class _Damaged(msgspec.Struct):
    key: str
    error: str


class _Checked(msgspec.Struct):
    """What `check` found."""

    entries: int = 0
    unbound: int = 0
    damaged: list[_Damaged] = []
    faults: list[str] = []


@store.command
@as_json
@click.pass_obj
def check(target: Target, as_json: bool) -> int:
    """Look for damage: in every record, and in how the backend keeps them.

    Keys whose records can't be read are listed, and what the backend finds wrong with itself. The exit code is 1 where there is
    anything of it.
    """

    async def checked() -> _Checked:
        found = _Checked()
        seen: list[str] = []
        upgraded.set(seen)
        try:
            async with target.opened_backend() as backend:
                found.faults += await backend.check()
                names = await _names(backend, "", show_all=True)
                with progress("checking", len(names)) as advance:
                    for name in names:
                        seen.clear()
                        try:
                            await backend.read(name)
                        except (CodecError, StoreError) as error:
                            found.damaged.append(_Damaged(name, str(error)))
                        found.entries += 1
                        found.unbound += UNBOUND in seen
                        advance(1)
        except StoreError as error:  # no more can be found out
            found.faults.append(str(error))
        return found

    found = asyncio.run(checked())
    if as_json:
        echo_json(found)
    else:
        for damaged in found.damaged:
            echo(f"damaged: {damaged.error}")
        for fault in found.faults:
            echo(f"fault: {fault}")
        unbound = f", {found.unbound:,} of an older version, not bound to their keys" if found.unbound else ""
        echo(
            f"checked {_count(found.entries)}: {len(found.damaged):,} damaged, {len(found.faults):,} faults{unbound}",
            err=True,
        )
    return int(bool(found.damaged or found.faults))
