"""`store`: shows and changes the entries of a store, with any backend.

Values of unknown types are shown in their stored form, and exported and imported without change.
"""

from __future__ import annotations

import asyncio
import time

import click
import msgspec

from pocket_plug.codec import UNBOUND, Sealed, default_codec, upgraded
from pocket_plug.errors import CodecError, MissingKeyError, StoreError
from pocket_plug.primitives.batches import batched
from pocket_plug.primitives.lists import ListHead
from pocket_plug.primitives.terminal import escaped
from pocket_plug.store.backend import Backend, Delete, Entry, Put
from pocket_plug.store.keys import RESERVED
from pocket_plug.store.lists import item_pages, lists_at

from .backup import backup
from .durations import duration
from .entries import (
    BATCH,
    found_entries,
    names_of,
    readable_name,
    removable_name,
    sealing,
    text_of,
    writable_name,
)
from .given import TakesNumbers
from .jsonlines import is_json, line_of, type_in, why_no_json
from .listed import faults_of, is_list, remove_items
from .output import as_json, echo, echo_json, echo_value, in_units, plural, print_table, progress
from .target import Target, by_name, by_url, path_of
from .transfer import export, import_


@click.group
@by_url
@by_name
@click.pass_context
def store(context: click.Context, url: str | None, name: str | None) -> None:
    """Read, change, check, copy and back up the entries of a store.

    It is the store of [store] in the configuration, unless --url or --name names another one.
    """
    context.obj = Target(url, name)
    context.with_resource(sealing())


store.add_command(backup)
store.add_command(export)
store.add_command(import_)


# ---------------------------------------------------------------- ls
@store.command
@click.argument("prefix", default="", callback=readable_name)
@click.option("--long", "-l", "is_long", is_flag=True, help="Also show type, bytes and TTL.")
@click.option(
    "--all", "show_all", is_flag=True, help="Include pocket_plug's own entries, whose names begin with pocket:."
)
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
            names = await names_of(stack, prefix, show_all)
            found = [_facts(name, entry) async for name, entry in found_entries(stack, names)]
            if as_json:
                echo_json(found)
                return
            now = stack.clock()
            rows = [(each.key, _kind(each), str(each.bytes or ""), _left(each.expires_at, now)) for each in found]
            print_table(("key", "type", "bytes", "ttl"), rows)

    asyncio.run(listed())


class _Listed(msgspec.Struct):
    """An entry as `ls` shows it."""

    key: str
    type: str
    bytes: int | None = None
    version: int | None = None
    expires_at: float | None = None
    length: int | msgspec.UnsetType = msgspec.UNSET
    """The number of items of an append-only list."""


def _facts(key: str, entry: Entry | CodecError) -> _Listed:
    if isinstance(entry, CodecError):
        return _Listed(key, "damaged")
    record = default_codec.encode(entry.value)
    length = entry.value.length if is_list(entry) else msgspec.UNSET
    return _Listed(key, type_in(record), len(record), entry.version, entry.expires_at, length)


def _kind(listed: _Listed) -> str:
    """The type, and for an append-only list also its length."""
    if listed.length is msgspec.UNSET:
        return listed.type
    return f"{listed.type} of {listed.length:,}"


def _left(expires_at: float | None, now: float) -> str:
    """The time until an entry expires, in the form that `--ttl` takes."""
    if expires_at is None:
        return ""
    return in_units(expires_at - now)


# ---------------------------------------------------------------- get, set, rm
@store.command
@click.argument("key", callback=readable_name)
@as_json
@click.pass_obj
def get(target: Target, key: str, as_json: bool) -> None:
    """Print the value at KEY.

    Text is printed as it is, values that JSON can represent exactly as JSON, and other values as Python literals. For an
    append-only list, each item is printed, the oldest first; with --json its length.
    """

    async def found() -> Entry:
        async with target.opened() as stack:
            entry = await stack.read(key)
            if entry is None:
                listing = f"`pocket-plug store{target.options} ls`"
                raise MissingKeyError(f"nothing at {key!r} in {target}; {listing} lists the keys")
            if is_list(entry) and not as_json:
                async for page in item_pages(stack, key, key):
                    for item in page:
                        _show(item)
        return entry

    entry = asyncio.run(found())
    value = entry.value
    if isinstance(value, Sealed):
        echo(
            f"{key!r} is shown in its stored form: {value.error}. For the command line, register the type by the hook "
            "pocket_types of a plugin.",
            err=True,
        )
    if as_json:
        facts = msgspec.to_builtins(line_of(key, entry)) | {"version": entry.version, "expires_at": entry.expires_at}
        if is_list(entry):
            echo_json(facts | {"length": entry.value.length})
        else:
            echo_json(facts if is_json(value) else facts | {"text": text_of(value)})
    elif not is_list(entry):
        _show(value)


def _show(value: object) -> None:
    if is_json(value) and not isinstance(value, str):
        echo_json(value)
    else:
        echo_value(value if isinstance(value, str) else text_of(value))


@store.command("set", cls=TakesNumbers)  # -1 is a value
@click.argument("key", callback=writable_name)
@click.argument("value")
@click.option("--text", "is_text", is_flag=True, help="VALUE is plain text, not JSON.")
@click.option(
    "--ttl", type=duration, metavar="TIME", help="How long the entry is kept, such as 90s or 1h30m.  [default: forever]"
)
@click.pass_obj
def set_(target: Target, key: str, value: str, is_text: bool, ttl: float | None) -> None:
    """Store VALUE at KEY. VALUE is JSON."""
    stored = value if is_text else _from_json(value)

    async def put() -> None:
        async with target.opened(may_be_new=True) as stack:
            await stack.write((Put(key, stored, None if ttl is None else stack.clock() + ttl),))

    asyncio.run(put())


def _from_json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise click.UsageError(f"VALUE is not JSON: {why_no_json(error)}. For plain text, add --text") from error


@store.command
@click.argument("keys", nargs=-1, metavar="[KEY]...", callback=removable_name)
@click.option("--prefix", metavar="PREFIX", help="Remove all keys that begin with PREFIX, except pocket_plug's own.")
@click.option("--yes", is_flag=True, help="Needed with --prefix: confirms that all these keys are removed.")
@click.pass_obj
def rm(target: Target, keys: tuple[str, ...], prefix: str | None, yes: bool) -> int:
    """Remove entries. If a KEY doesn't exist, that is reported, and the exit code is 1."""
    if bool(keys) == (prefix is not None):
        raise click.UsageError("give the keys to remove, or --prefix")

    async def removed() -> list[str]:
        async with target.opened() as stack:
            if prefix is None:
                there = [key for key in dict.fromkeys(keys) if await _is_there(stack, key)]
            else:
                there = await names_of(stack, prefix, show_all=False)
                if not yes:
                    raise click.UsageError(
                        f"{plural(len(there), 'entry')} would be removed from {target}; to do so, add --yes"
                    )
            with progress("removing", len(there)) as advance:
                for batch in batched(there, BATCH):
                    heads = await lists_at(stack, batch)
                    await stack.write([Delete(key) for key in batch])
                    await remove_items(stack, heads)
                    advance(len(batch))
            return there

    there = asyncio.run(removed())
    missing = [key for key in keys if key not in there]
    for key in missing:
        echo(f"nothing at {key!r}", err=True)
    echo(f"removed {plural(len(there), 'entry')}", err=True)
    return int(bool(missing))


async def _is_there(stack: Backend, key: str) -> bool:
    """Does a key exist? Doesn't read its value, so that damaged entries can be removed too."""
    async for name in stack.scan(key, limit=1):
        return name == key  # the key itself comes before others that begin with it
    return False


# ---------------------------------------------------------------- stats
@store.command
@as_json
@click.pass_obj
def stats(target: Target, as_json: bool) -> None:
    """Count the entries of a store, and their bytes.

    The bytes are those of the stored records. Expired entries are those that the backend has not removed yet.
    """

    async def counted() -> dict[str, int]:
        numbers = {"entries": 0, "bytes": 0, "expired": 0, "damaged": 0}
        now = time.time()
        async with target.opened_backend() as backend:
            numbers["version"] = await backend.version()
            names = await names_of(backend, "", show_all=True)
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
            if (path := path_of(backend)) is not None:
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
    """The result of `check`."""

    entries: int = 0
    unbound: int = 0
    damaged: list[_Damaged] = []
    faults: list[str] = []
    leftovers: int = 0
    """The number of items of append-only lists that no longer exist."""


@store.command
@as_json
@click.pass_obj
def check(target: Target, as_json: bool) -> int:
    """Check every record and the backend for damage.

    It lists keys whose records can't be read, append-only lists with missing items, and what the backend finds wrong with
    its own data structures. The exit code is 1 if there is any damage.
    """

    async def checked() -> _Checked:
        found = _Checked()
        seen: list[str] = []
        heads: dict[str, ListHead] = {}
        upgraded.set(seen)
        try:
            async with target.opened_backend() as backend:
                found.faults += await backend.check()
                names = await names_of(backend, "", show_all=True)
                with progress("checking", len(names)) as advance:
                    for name in names:
                        seen.clear()
                        try:
                            entry = await backend.read(name)
                            if entry is not None and is_list(entry):
                                heads[name] = entry.value
                        except (CodecError, StoreError) as error:
                            if isinstance(error, StoreError) and target.is_on_server:
                                raise  # an unreachable server doesn't mean that entries are damaged
                            found.damaged.append(_Damaged(name, str(error)))
                        found.entries += 1
                        found.unbound += UNBOUND in seen
                        advance(1)
                faults, found.leftovers = await faults_of(backend, heads, names)
                found.faults += [] if target.evicts() else faults
        except StoreError as error:  # nothing more can be checked
            if target.is_on_server:
                raise
            found.faults.append(str(error))
        return found

    found = asyncio.run(checked())
    if as_json:
        echo_json(found)
    else:
        _print_checked(found, target)
    return int(bool(found.damaged or found.faults))


def _print_checked(found: _Checked, target: Target) -> None:
    """The damage, and a summary with the way out."""
    for damaged in found.damaged:
        echo(f"damaged: {damaged.error}")
    for fault in found.faults:
        echo(f"fault: {fault}")
    unbound = f", {found.unbound:,} of an older version, not bound to their keys" if found.unbound else ""
    if found.leftovers:
        echo(f"{plural(found.leftovers, 'entry')} of lists that no longer exist: later appends remove them", err=True)
    entries, faults = plural(found.entries, "entry"), plural(len(found.faults), "fault")
    echo(f"checked {entries}: {len(found.damaged):,} damaged, {faults}{unbound}", err=True)
    if found.damaged:
        echo(
            f"a backup may have them undamaged; `pocket-plug store{target.options} rm KEY` removes an entry. If its key "
            f"begins with pocket:run, `pocket-plug runs{target.options} rm RUN` removes the run, whose id is in the key",
            err=True,
        )
