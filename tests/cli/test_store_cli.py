"""`pocket-plug store`: entries of any backend are listed, read, changed, counted, and moved without loss."""

from __future__ import annotations

import base64
import enum
import errno
import io
import json
import os
import pty
import re
import shlex
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocket_plug import Ask, Graph, RunSuspendedError, SyncRuns, SyncStore, register_type
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.cli import main, transfer
from pocket_plug.codec import Codec, default_codec, is_whole, place_of
from pocket_plug.errors import StoreError, StoreUnreachableError
from pocket_plug.plugins.pocket import set_default_pocket
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Put

POCKET_PLUG = [sys.executable, "-m", "pocket_plug"]
URL = "sqlite:///state.db?durability=process"


@dataclass(frozen=True)
class Order:
    id: str
    total: Decimal


class Colour(enum.Enum):
    RED = "r"


class Pair(NamedTuple):
    left: Any
    right: Any


class Row(msgspec.Struct, frozen=True):
    cells: Any


for each in (Order, Colour, Pair, Row):
    register_type(each, tag=f"store_cli.{each.__name__}")


@dataclass(frozen=True)
class Foreign:
    """A type of another program, which this process's codec doesn't know."""

    amount: Decimal


THEIRS = Codec()
THEIRS.register(Foreign, tag="foreign")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test in a folder and with a default Pocket of its own."""
    monkeypatch.chdir(tmp_path)
    set_default_pocket(None)
    yield tmp_path
    set_default_pocket(None)


def run(*arguments: str, code: int = 0, url: str | None = URL) -> tuple[str, str]:
    """The stdout and stderr of a command."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        got = main(["store", *(("--url", url) if url else ()), *arguments])
    out.seek(0)
    text = out.read()
    assert got == code, (text, err.getvalue())
    return text, err.getvalue()


def fill(values: dict[str, Any], path: str = "state.db", **expiries: float) -> None:
    """Entries in a file, written by the backend, so with any key."""
    backend = SQLite(path, durability="process")
    drive(backend.open())
    drive(backend.write([Put(key, value, expiries.get(key)) for key, value in values.items()]))
    drive(backend.close())


def content(path: str = "state.db") -> dict[str, tuple[bytes, float | None]]:
    """The records in a file, without the binding to their place, and their expiry times."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT key, value, version, expires_at FROM entries").fetchall()
    records: dict[str, tuple[bytes, float | None]] = {}
    for key, value, version, expires_at in rows:
        assert value[0] == 1 or is_whole(value, place_of(key, version, expires_at))
        records[key] = struct.pack(">BBI", 1, value[1], zlib.crc32(value[6:], value[1])) + value[6:], expires_at
    return records


def fill_foreign(key: str, value: Any) -> bytes:
    """A record that another program wrote."""
    fill({key: None})
    record = THEIRS.encode(value)
    overwrite(key, record)
    return record


def overwrite(key: str, record: bytes) -> None:
    with closing(sqlite3.connect("state.db", isolation_level=None)) as connection:
        connection.execute("UPDATE entries SET value = ? WHERE key = ?", (record, key))


# ---------------------------------------------------------------- ls
def test_ls_lists_keys_in_order() -> None:
    """One per line, filtered by prefix, without pocket_plug's own keys unless they are asked for."""
    fill({"user:2": 1, "user:1": 1, "order": 1, "pocket:run:1": 1})
    assert run("ls")[0] == "order\nuser:1\nuser:2\n"
    assert run("ls", "user:")[0] == "user:1\nuser:2\n"
    assert run("ls", "--all")[0] == "order\npocket:run:1\nuser:1\nuser:2\n"
    assert run("ls", "nobody")[0] == ""


def test_ls_long_shows_type_size_and_time() -> None:
    """A registered type by its tag, an unknown one too; sizes are those of the records."""
    now = time.time()
    fill(
        {"a": 1, "b": Order("o", Decimal(1)), "c": [Decimal(1)]}, a=now + 5400, c=now + 91_800
    )  # half an hour until an hour less is left
    fill_foreign("d", Foreign(Decimal(2)))
    heading, *lines = run("ls", "-l")[0].splitlines()
    assert heading.split() == ["key", "type", "bytes", "ttl"]
    rows = {key: rest for key, *rest in (line.split() for line in lines)}
    assert rows["a"] == ["int", "7", rows["a"][2]]
    assert re.fullmatch(r"1h(30m|[12]?\dm|\d+s)?", rows["a"][2])
    assert rows["b"] == ["store_cli.Order", str(len(default_codec.encode(Order("o", Decimal(1)))))]
    assert rows["c"][0] == "list"
    assert rows["c"][2] == "1d1h"
    assert rows["d"] == ["foreign", str(len(THEIRS.encode(Foreign(Decimal(2)))))]


def test_ls_as_json() -> None:
    """For machines: all that is known about each entry."""
    fill({"a": (1,)}, a=4e9)
    assert json.loads(run("ls", "--json")[0]) == [
        {"key": "a", "type": "tuple", "bytes": len(default_codec.encode((1,))), "version": 1, "expires_at": 4e9}
    ]


def test_a_key_never_breaks_a_line() -> None:
    """Line breaks and escape sequences in names are escaped."""
    fill({"a\nb": 1, "c\x1b[31m": 2, "ü": 3})
    assert run("ls")[0].splitlines() == [r"a\nb", r"c\x1b[31m", "ü"]


def test_ls_ends_when_its_reader_ends() -> None:
    """`| head` is no error, and there is no traceback."""
    fill({f"{n:05}": 1 for n in range(20_000)})
    with subprocess.Popen(
        [*POCKET_PLUG, "store", "--url", URL, "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ls:
        assert ls.stdout is not None
        assert ls.stderr is not None
        assert ls.stdout.readline() == b"00000\n"
        ls.stdout.close()
        assert ls.stderr.read() == b""
    assert ls.returncode == 1


# ---------------------------------------------------------------- get and set
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("spam & eggs", "spam & eggs\n"),
        (None, "null\n"),
        ({"a": [1, 2.5], "ü": True}, '{\n  "a": [\n    1,\n    2.5\n  ],\n  "ü": true\n}\n'),
        (Decimal("1.50"), "Decimal('1.50')\n"),
        ((1, "x"), "(1, 'x')\n"),
        ({1: {2}}, "{1: {2}}\n"),
        (float("nan"), "nan\n"),
        (2**70, f"{2**70}\n"),
        (Order("o-1", Decimal("42.0")), "Order(id='o-1', total=Decimal('42.0'))\n"),
    ],
)
def test_get_shows_what_is_there(value: Any, shown: str) -> None:
    """Text unchanged, JSON if that is exact, otherwise Python's repr."""
    fill({"k": value})
    assert run("get", "k") == (shown, "")


def test_get_as_json() -> None:
    """For machines: the value, or the record with its type and a text for people."""
    fill({"a": [1], "b": Decimal("1.5")}, b=4e9)
    assert json.loads(run("get", "a", "--json")[0]) == {"key": "a", "value": [1], "version": 1, "expires_at": None}
    record = base64.b64encode(default_codec.encode(Decimal("1.5"))).decode()
    assert json.loads(run("get", "b", "--json")[0]) == {
        "key": "b",
        "type": "Decimal",
        "record": record,
        "version": 1,
        "expires_at": 4e9,
        "text": "Decimal('1.5')",
    }


def test_get_of_an_unknown_type_shows_what_is_stored() -> None:
    """Tag and state on stdout; the unknown type and the way out on stderr. Nothing of it is decoded."""
    fill_foreign("order:1", [Foreign(Decimal("2.50"))])
    out, err = run("get", "order:1")
    assert out == "[<foreign {'amount': Decimal('2.50')}>]\n"
    assert "'order:1' is shown in its stored form" in err
    assert "'foreign', which is not registered here" in err
    assert "pocket_types" in err
    shown = json.loads(run("get", "order:1", "--json")[0])
    assert (shown["type"], shown["text"]) == ("list", out.strip())


def test_get_of_nothing() -> None:
    """A missing key is an error that names it, exit code 1, nothing on stdout."""
    fill({"a": 1})
    assert run("get", "b", code=1) == (
        "",
        f"MissingKeyError: nothing at 'b' in {URL}; `pocket-plug store --url '{URL}' ls` lists the keys\n",
    )


def test_set_takes_json_or_text() -> None:
    """The value is JSON; with --text it is taken unchanged; --ttl sets its time to live."""
    run("set", "a", '{"n": [1, 2.0, null]}')
    run("set", "b", "{not json", "--text")
    run("set", "c", "18446744073709551616", "--ttl", "1h")
    run("set", "d", "-1", "--ttl", "30")
    before = time.time()
    with SyncStore(URL) as store:
        assert store.get("a") == {"n": [1, 2.0, None]}
        assert store.get("b") == "{not json"
        assert store.get("c") == 2**64
        assert store.get("d") == -1
    held = content()
    assert held["a"][1] is None
    assert held["c"][1] == pytest.approx(before + 3600, abs=60)
    assert held["d"][1] == pytest.approx(before + 30, abs=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "a", "{"], "For plain text, add --text"),
        (["set", "a", "NaN"], "VALUE is not JSON"),
        (["set", "a", "[" * 100_000], "VALUE is not JSON: it is nested too deeply"),
        (["set", "a", "\udcff"], "VALUE is not JSON"),  # a byte that isn't UTF-8
        (["set", "a", "1", "--ttl", "soon"], "'--ttl': TIME can't be 'soon'"),
        (["set", "pocket:x", "1"], "the prefix 'pocket:' is reserved"),
        *[
            ([command, "\udcff"], "has a lone surrogate, which no store can write")
            for command in ("ls", "get", "rm", "export")
        ],
        (["set", "\udcff", "1"], "has a lone surrogate"),
        (["set", "", "1"], "a key or a scope must not be empty"),
        (["rm", "pocket:x"], "the prefix 'pocket:' is reserved"),
        (["rm"], "give the keys to remove, or --prefix"),
        (["rm", "a", "--prefix", "b"], "give the keys to remove, or --prefix"),
        (["import", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_invalid_arguments_change_nothing(arguments: list[str], said: str) -> None:
    """A usage error is one message and exit code 2; no file is created."""
    out, err = run(*arguments, code=2)
    assert out == ""
    assert said in err
    assert not Path("state.db").exists()


# ---------------------------------------------------------------- rm
def test_rm_removes_and_names_missing_keys() -> None:
    """Each key is removed once; a missing one is named, and the exit code is 1."""
    fill({"a": 1, "ab": 2, "c": 3})
    assert run("rm", "a", "c", "a")[1] == "removed 2 entries\n"
    assert run("rm", "a", "ab", code=1)[1] == "nothing at 'a'\nremoved 1 entry\n"
    assert content() == {}


def test_rm_by_prefix_needs_a_yes() -> None:
    """Without --yes it prints how many would be removed; pocket_plug's own entries are never removed."""
    fill({f"user:{n}": n for n in range(2500)} | {"usher": 1, "pocket:run": 1})
    assert "2,500 entries would be removed" in run("rm", "--prefix", "user:", code=2)[1]
    assert len(content()) == 2502
    assert run("rm", "--prefix", "user:", "--yes")[1] == "removed 2,500 entries\n"
    assert run("rm", "--prefix", "", "--yes")[1] == "removed 1 entry\n"
    assert list(content()) == ["pocket:run"]


# ---------------------------------------------------------------- export and import
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=2), "CEST"), ZoneInfo("Europe/Berlin")])
atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=8)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | zones
    | st.just(Colour.RED)
)
hashables = st.recursive(
    atoms, lambda part: st.tuples(part, part) | st.frozensets(part, max_size=3) | st.builds(Row, part), max_leaves=4
)
values = st.recursive(
    hashables | st.binary(max_size=8).map(bytearray) | st.builds(Order, st.text("abc"), st.decimals(allow_nan=False)),
    lambda part: (
        st.lists(part, max_size=3)
        | st.tuples(part)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(hashables, part, max_size=3)
        | st.dictionaries(st.text("ab", max_size=3), part, max_size=3)
        | st.builds(Pair, part, part)
    ),
    max_leaves=8,
)


def exact(value: Any) -> Any:
    """Equal only if values and types are equal at every level; NaN equals NaN."""
    if isinstance(value, list | tuple):
        return type(value), [exact(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(exact(item)) for item in value)
    if isinstance(value, dict):
        return dict, [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, Row):
        return Row, exact(value.cells)
    return type(value), repr(value)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("abc:ü\n", min_size=1, max_size=4), values, min_size=1, max_size=6))
def test_every_value_survives_export_and_import(values: dict[str, Any]) -> None:
    """Any value that the codec knows has the same value and types after export and import."""
    for file in ("from.db", "to.db"):
        Path(file).unlink(missing_ok=True)
    fill(values, "from.db")
    exported, said = run("export", url="sqlite:///from.db")
    assert said == f"exported {len(values)} {'entry' if len(values) == 1 else 'entries'}\n"
    assert len(exported.splitlines()) == len(values)
    Path("all.jsonl").write_text(exported, "utf-8")
    run("import", "all.jsonl", url="sqlite:///to.db?durability=process")
    with SyncStore("sqlite:///to.db") as store:
        found = {key: store.get(key) for key in store.keys()}
    assert {key: exact(value) for key, value in found.items()} == {key: exact(value) for key, value in values.items()}


def test_an_export_is_readable_for_people() -> None:
    """JSON if that is exact, a named type if not, the deadline as absolute time: as the reference says."""
    fill({"a": {"n": [1, 2.5, "ü"]}, "b": (1, 2), "c": Order("o", Decimal(1)), "d": 2**64}, a=4e9)
    lines = [json.loads(line) for line in run("export")[0].splitlines()]
    assert lines[0] == {"key": "a", "value": {"n": [1, 2.5, "ü"]}, "expires_at": 4e9}
    assert [(line["key"], line["type"]) for line in lines[1:]] == [
        ("b", "tuple"),
        ("c", "store_cli.Order"),
        ("d", "int"),
    ]
    assert base64.b64decode(lines[1]["record"]) == default_codec.encode((1, 2))


class Full(io.RawIOBase):
    """A file on a disk that has no room left, at first."""

    room = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("number", [1, 2_000])
def test_an_export_to_a_full_disk_is_an_error_without_a_traceback(number: int) -> None:
    """Whether the disk is full at once, or when the last lines are written."""
    fill({f"k{n}": "value" for n in range(number)})
    said, disk = io.StringIO(), Full()
    with redirect_stdout(io.TextIOWrapper(io.BufferedWriter(disk))) as full, redirect_stderr(said):
        assert main(["store", "--url", URL, "export"]) == 1
        disk.room = True
        full.close()
    assert said.getvalue() == "Error: stdout can't be written to: No space left on device; the output is incomplete\n"


def test_an_unknown_type_is_moved_byte_for_byte() -> None:
    """The class and its module need not exist; the value is exported with its tag."""
    record = fill_foreign("order", {"x": [Foreign(Decimal(1)), {3, 1, 2}]})
    Path("all.jsonl").write_text(run("export")[0])
    run("import", "all.jsonl", url="sqlite:///to.db")
    assert content("to.db") == {"order": (record, None)}
    assert not default_codec.seals, "it ends with the command"


def test_deadlines_survive_export_and_import() -> None:
    """They are absolute: an entry that has expired by the time of the import is skipped, and reported."""
    fill({"a": 1, "b": 2}, a=4_000_000_000.25)
    text = run("export")[0] + '{"key": "old", "value": 1, "expires_at": 5}\n\n'
    Path("all.jsonl").write_text(text)
    said = run("import", "all.jsonl", url="sqlite:///to.db")[1]
    assert said == "imported 2 entries; left out 1 that had expired\n"
    assert content("to.db") == {
        "a": (default_codec.encode(1), 4_000_000_000.25),
        "b": (default_codec.encode(2), None),
    }


def test_a_server_that_goes_in_the_middle_of_a_check_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported once; the other entries are not read, which would take `patience` each."""
    fill({"a": 1, "b": 2, "c": 3})
    asked: list[str] = []

    async def gone(self: SQLite, key: str) -> None:
        asked.append(key)
        raise StoreUnreachableError("the server can't be reached")

    monkeypatch.setattr(SQLite, "address", ("db.example", 5432))
    monkeypatch.setattr(SQLite, "read", gone)
    out, err = run("check", code=4)
    assert (out, asked) == ("", ["a"])
    assert err == "StoreUnreachableError: the server can't be reached\n"


def test_a_server_that_refuses_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example a wrong password: an error with exit code 1, and nothing on stdout that a script could take for a finding."""

    async def refuse(self: SQLite) -> None:
        raise StoreError("the password is wrong")

    fill({"a": 1})
    monkeypatch.setattr(SQLite, "address", ("db.example", 5432))
    monkeypatch.setattr(SQLite, "open", refuse)
    assert run("check", code=1) == ("", "StoreError: the password is wrong\n")


def test_reserved_entries_are_moved_if_both_commands_say_so() -> None:
    """Without --all an export has none and says so, and an import refuses them."""
    fill({"a": 1, "pocket:run": 2})
    exported, said = run("export")
    assert "pocket:run" not in exported
    assert said == "exported 1 entry; left out 1 of pocket_plug's own, such as durable runs: --all exports them too\n"
    exported, said = run("export", "--all")
    assert said == "exported 2 entries\n"
    Path("all.jsonl").write_text(exported)
    refused = run("import", "all.jsonl", url="sqlite:///to.db", code=1)[1]
    assert "all.jsonl, line 2: 'pocket:run' is one of pocket_plug's own entries" in refused
    assert "--all" in refused
    assert not Path("to.db").exists()
    run("import", "--all", "all.jsonl", url="sqlite:///to.db")
    assert content("to.db") == content()


def test_a_run_is_not_imported_over_another_state_of_it() -> None:
    """As in a rehearsal and then the real copy: workers would find the former state again and again, and `--once` never end."""
    with SyncStore(URL) as store:
        asked = Graph(Ask[int, bool](bool, question="Really?", timeout="1h", default=False), name="asked", store=store)
        with pytest.raises(RunSuspendedError):
            asked.run_sync(1, run_id="a:1")
        Path("first.jsonl").write_text(run("export", "--all")[0])
        assert asked.resume_sync("a:1", answer=True).answer
        Path("then.jsonl").write_text(run("export", "--all")[0])
    there = "sqlite:///to.db"
    for _ in range(2):
        run("import", "--all", "first.jsonl", url=there)
    before = content("to.db")
    err = run("import", "--all", "then.jsonl", url=there, code=1)[1]
    assert err.startswith("StoreError: run 'a:1' of then.jsonl is in the store already, in another state, ")
    assert err.endswith("; nothing was imported\n")
    assert content("to.db") == before
    with SyncStore(there) as store:
        SyncRuns(store).remove("a:1")
    run("import", "--all", "then.jsonl", url=there)
    assert content("to.db") == content()


def in_base64(value: Any) -> str:
    return base64.b64encode(default_codec.encode(value)).decode()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Input data was truncated"),
        ('{"a": 1, "b": 2}', "each line is one entry"),
        ("[1]", "Expected `object`, got `array`"),
        ('{"value": 1}', "missing required field `key`"),
        ('{"key": "a"}', "an entry needs either a value or a record"),
        ('{"key": "a", "value": 1, "record": "AA=="}', "an entry needs either a value or a record"),
        (
            '{"key": "a", "value": 1, "ttl": 5}',
            '`ttl`; each line is one entry: {"key":"a","value":1}, and "expires_at" in',
        ),
        ('{"key": 1, "value": 1}', "Expected `str`, got `int` - at `$.key`"),
        ('{"key": "", "value": 1}', "a key or a scope must not be empty"),
        ('{"key": "a", "value": 1, "expires_at": "soon"}', "Expected `float | null`, got `str`"),
        ('{"key": "a", "value": NaN}', "invalid character"),
        ('{"key": "a", "value": 1, "type": "int"}', "a type is given with a record"),
        ('{"key": "a", "record": "A"}', "Invalid base64"),
        ('{"key": "a", "record": "AAAA"}', "a record has"),
        ('{"key": "a", "record": "AAAAAAAAAAAA"}', "not a record of this codec"),
        (json.dumps({"key": "a", "record": in_base64({1}), "type": "tuple"}), "'tuple', but the record holds 'set'"),
        ('{"key": "a", "value": %s}' % ("[" * 100_000), "it is nested too deeply"),
    ],
)
def test_a_malformed_line_is_refused(line: str, said: str) -> None:
    """File and line are named, exit code 1, and nothing is stored: all lines are checked first."""
    Path("bad.jsonl").write_text('{"key": "good", "value": 1}\n\n' + line + "\n")
    out, err = run("import", "bad.jsonl", code=1)
    assert out == ""
    assert err.startswith("CorruptRecordError: bad.jsonl, line 3: ")
    assert err.endswith("; nothing was imported\n")
    assert said in err
    assert not Path("state.db").exists()


def test_a_long_import_is_chunked() -> None:
    """A thousand entries per write, or with --atomic all at once, as their versions show."""
    Path("many.jsonl").write_text("".join(f'{{"key": "{n:04}", "value": {n}}}\n' for n in range(2500)))
    assert run("import", "many.jsonl")[1] == "imported 2,500 entries\n"
    run("import", "--atomic", "many.jsonl", url="sqlite:///one.db")
    for path, versions in (("state.db", [1, 2, 3]), ("one.db", [1])):
        with closing(sqlite3.connect(path)) as connection:
            assert [v for (v,) in connection.execute("SELECT DISTINCT version FROM entries ORDER BY 1")] == versions


def test_an_import_that_fails_reports_its_progress() -> None:
    """What was written stays and is counted; another import writes the rest."""
    Path("many.jsonl").write_text("".join(f'{{"key": "{n:04}", "value": {n}}}\n' for n in range(2500)))
    fill({"x": 1})
    with closing(sqlite3.connect("state.db", isolation_level=None)) as other:
        other.execute("CREATE UNIQUE INDEX room_for_one ON entries ((1)) WHERE key >= '1700'")  # "x" has taken it
        err = run("import", "many.jsonl", code=1)[1]
        assert err.splitlines()[0] == "1,000 of 2,500 are stored; the whole file can be imported again"
        assert err.splitlines()[1].startswith("StoreError: state.db")
        assert len(content()) == 1001
        other.execute("DROP INDEX room_for_one")
    run("import", "many.jsonl")
    assert len(content()) == 2501


def test_import_reads_a_pipe() -> None:
    """`export | import -` copies a store."""
    fill({"a": 1, "b": (2,)})
    shell = [*POCKET_PLUG, "store", "--url"]
    with subprocess.Popen([*shell, URL, "export"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as exporting:
        done = subprocess.run(
            [*shell, "sqlite:///to.db", "import", "-"],
            stdin=exporting.stdout,
            check=True,
            capture_output=True,
            text=True,
        )
    assert done.stderr == "imported 2 entries\n"
    assert content("to.db") == content()


def test_a_damaged_record_hides_no_other() -> None:
    """It is listed, counted, left out of an export with exit code 1, and can be removed."""
    fill({"a": 1, "b": 2, "c": 3})
    overwrite("b", b"\x01nonsense")
    assert [line.split()[:2] for line in run("ls", "-l")[0].splitlines()[1:]] == [
        ["a", "int"],
        ["b", "damaged"],
        ["c", "int"],
    ]
    out, err = run("export", code=1)
    assert [json.loads(line)["key"] for line in out.splitlines()] == ["a", "c"]
    assert re.search(r"left out: state\.db, key 'b': .*\nexported 2 entries\n", err)
    assert json.loads(run("stats", "--json")[0])["damaged"] == 1
    assert "state.db, key 'b'" in run("get", "b", code=1)[1]
    run("rm", "b")
    assert len(run("export")[0].splitlines()) == 2


def test_an_export_during_which_something_changed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't a snapshot, and the message says so."""
    fill({"a": 1})
    line_of = transfer.line_of

    def written_to_meanwhile(*arguments: Any) -> Any:
        fill({"b": 2})
        return line_of(*arguments)

    monkeypatch.setattr(transfer, "line_of", written_to_meanwhile)
    assert "the store was changed meanwhile" in run("export")[1]


def test_progress_is_shown_on_a_terminal() -> None:
    """For a long import, only on a terminal, and on stderr."""
    Path("many.jsonl").write_text("".join(f'{{"key": "{n:04}", "value": {n}}}\n' for n in range(1001)))
    ours, theirs = pty.openpty()
    command = [*POCKET_PLUG, "store", "--url", URL, "import", "many.jsonl"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment) as importing:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65_536):
                shown += data
        except OSError:  # on Linux, this means that the other end was closed
            pass
        assert importing.stdout is not None
        assert importing.stdout.read() == b""
    os.close(ours)
    assert b"importing" in shown
    assert b"100%" in shown
    assert b"imported 1,001 entries" in shown


# ---------------------------------------------------------------- stats
def test_stats_count_what_there_is() -> None:
    """Live entries with their bytes, expired entries that still exist, the version, the file."""
    values = {"a": "x" * 100, "b": Order("o", Decimal(1)), "pocket:run": 1}
    fill(values)
    fill({"old": 1, "older": 2}, old=5.0, older=4.0)
    numbers = json.loads(run("stats", "--json")[0])
    assert numbers == {
        "entries": 3,
        "bytes": sum(len(default_codec.encode(value)) for value in values.values()),
        "expired": 2,
        "damaged": 0,
        "version": 2,
        "file_bytes": numbers["file_bytes"],
    }
    assert numbers["file_bytes"] >= Path("state.db").stat().st_size >= 4096
    assert ["expired", "2"] in [line.split() for line in run("stats")[0].splitlines()]


# ---------------------------------------------------------------- check
def alter(statement: str, *parameters: Any) -> None:
    with closing(sqlite3.connect("state.db", isolation_level=None)) as connection:
        connection.execute(statement, parameters)


def test_a_store_without_damage_passes_the_check() -> None:
    """Values of other programs' types, reserved and expired entries too; the exit code is 0."""
    fill_foreign("foreign", Foreign(Decimal(1)))
    fill({"a": 1, "pocket:run": 2, "old": 3}, old=5.0)
    assert run("check") == (
        "",
        "checked 4 entries: 0 damaged, 0 faults, 1 of an older version, not bound to their keys\n",
    )
    nothing: dict[str, object] = {"damaged": [], "faults": [], "leftovers": 0}
    assert json.loads(run("check", "--json")[0]) == {"entries": 4, "unbound": 1, **nothing}


def test_the_check_lists_damaged_keys() -> None:
    """Truncated, of another key, of another version, and with a deadline that would hide it: each with the reason."""
    fill({key: key for key in ("cut", "fine", "hidden", "moved", "older")})
    alter("UPDATE entries SET value = substr(value, 1, 8) WHERE key = 'cut'")
    alter("UPDATE entries SET value = (SELECT value FROM entries WHERE key = 'fine') WHERE key = 'moved'")
    alter("UPDATE entries SET version = 0 WHERE key = 'older'")
    alter("UPDATE entries SET expires_at = 5.0 WHERE key = 'hidden'")
    out, err = run("check", code=1)
    checked, way_out = err.splitlines()
    assert checked == "checked 5 entries: 4 damaged, 0 faults"
    assert f"`pocket-plug runs --url {shlex.quote(URL)} rm RUN` removes the run" in way_out
    assert [line.partition("key ")[2].partition(":")[0] for line in out.splitlines()] == [
        "'cut'",
        "'hidden'",
        "'moved'",
        "'older'",
    ]
    found = json.loads(run("check", "--json", code=1)[0])
    assert [damaged["key"] for damaged in found["damaged"]] == ["cut", "hidden", "moved", "older"]
    assert all("checksum does not match" in damaged["error"] for damaged in found["damaged"])
    assert found["faults"] == []
    run("rm", "cut", "hidden", "moved", "older")
    run("check")


def test_the_check_finds_keys_that_the_index_lacks() -> None:
    """A flipped bit in a page of the index: a read can't find the key, and the check names it."""
    fill({"lost-key": 1, "other": 2})
    data = Path("state.db").read_bytes()
    pages = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    altered = [page.replace(b"lost-key", b"lost-kex") if page[0] == 0x0A else page for page in pages]
    assert altered != pages
    Path("state.db").write_bytes(b"".join(altered))
    out, err = run("check", code=1)
    assert "fault: key 'lost-key' is in the table but not in its index, so reads don't find it\n" in out
    assert "fault: key 'lost-kex' is in the index but not in its table" in out
    assert "damaged: state.db, key 'lost-kex': the record's checksum does not match" in out
    assert err.startswith("checked 2 entries: 1 damaged, ")


def test_the_check_finds_a_decreased_counter() -> None:
    """Otherwise a version could be given twice."""
    fill({"a": 1})
    fill({"b": 1})
    alter("UPDATE counter SET version = 1")
    assert run("check", code=1)[0] == "fault: the counter of versions is 1, but an entry has version 2\n"


def test_the_check_of_what_is_no_store() -> None:
    """Another program's file and a damaged header are faults; a missing file is a usage error."""
    run("check", code=2)
    fill({"a": 1})
    alter("PRAGMA application_id = 5")
    assert "fault: state.db is the SQLite file of another program" in run("check", code=1)[0]
    Path("state.db").write_bytes(b"no SQLite " * 1000)
    assert json.loads(run("check", "--json", code=1)[0])["faults"][0].startswith("state.db: this is not an SQLite file")


# ---------------------------------------------------------------- which store
def test_the_configured_stores_by_name() -> None:
    """[store] without a name, [stores.NAME] with one, each through its layers."""
    Path("pocket.toml").write_text("""
        [store]
        url = "sqlite:///main.db"
        layers = ["metrics"]
        [stores.pages]
        layers = ["metrics", { use = "persistence", to = "sqlite:///pages.db" }, { use = "bounding", max_entries = 10 }]
        [stores.scratch]
    """)
    run("set", "a", "1", url=None)
    run("--name", "pages", "set", "b", "2", url=None)
    assert list(content("main.db")) == ["a"]
    assert list(content("pages.db")) == ["b"]
    set_default_pocket(None)
    assert run("--name", "pages", "get", "b", url=None)[0] == "2\n"
    set_default_pocket(None)
    assert json.loads(run("--name", "pages", "stats", "--json", url=None)[0])["entries"] == 1
    for arguments, said in (
        (["--name", "scratch", "ls"], "stores.scratch is in memory"),
        (["--name", "pagse", "ls"], "there is no [stores.pagse] in pocket.toml; did you mean 'pages'?"),
        (["--name", "pages", "--url", "x", "ls"], "--url and --name both name a store"),
    ):
        assert said in run(*arguments, url=None, code=2)[1]


def test_a_layer_of_a_plugin_is_applied(install: Any) -> None:
    """Values are decoded by the configured layers when they are read, and encoded when they are written."""
    install(
        "pocket-plug-shout",
        """
        from dataclasses import replace
        from pocket_plug import Layer, hookimpl
        class Shout(Layer):
            async def read(self, key):
                entry = await self.inner.read(key)
                return entry and replace(entry, value=entry.value.lower())
            async def write(self, changes, expect={}):
                return await self.inner.write([replace(c, value=c.value.upper()) for c in changes], expect)
        @hookimpl
        def pocket_layers():
            return [Shout]
    """,
    )
    Path("pocket.toml").write_text('[store]\nurl = "sqlite:///state.db"\nlayers = ["shout"]')
    run("set", "a", "quiet", "--text", url=None)
    assert content()["a"][0] == default_codec.encode("QUIET")
    set_default_pocket(None)
    assert run("get", "a", url=None)[0] == "quiet\n"


def test_a_backend_of_a_plugin(install: Any) -> None:
    """Any scheme that a plugin registers works, and the types that it registers are known."""
    install(
        "pocket-plug-shelf",
        """
        from dataclasses import dataclass
        from pocket_plug import Memory, hookimpl
        @dataclass
        class Book:
            title: str
        class Shelf(Memory):
            async def open(self):
                await self.write([__import__("pocket_plug").Put("book", Book("Emma"))])
        @hookimpl
        def pocket_types(codec):
            codec.register(Book, tag="shelf.Book")
        @hookimpl
        def pocket_backends():
            return {"shelf": lambda url: Shelf()}
    """,
    )
    assert run("get", "book", url="shelf://")[0] == "Book(title='Emma')\n"
    assert json.loads(run("export", url="shelf://")[0])["type"] == "shelf.Book"
    assert "file_bytes" not in json.loads(run("stats", "--json", url="shelf://")[0])


@pytest.mark.parametrize("arguments", [["ls"], ["get", "a"], ["rm", "a"], ["export"], ["stats"], ["check"]])
def test_a_missing_file_is_not_created(arguments: list[str]) -> None:
    """A misspelt path is an error, exit code 2; only writes create a file. So is a file that was cut off to 0 bytes."""
    assert "there is no file state.db" in run(*arguments, code=2)[1]
    assert not Path("state.db").exists()
    Path("state.db").touch()
    assert "the file state.db is empty, with 0 bytes" in run(*arguments, code=2)[1]
    assert Path("state.db").stat().st_size == 0
    run("set", "a", "1")
    run("ls")


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("memory://", 2, "memory:// is in memory, and each process has its own"),
        ("sqlte:///x.db", 2, "Did you mean 'sqlite'?"),
        ("sqlite:///foreign.db", 1, "StoreError: foreign.db: this is not an SQLite file"),
    ],
)
def test_a_store_that_is_none(url: str, code: int, said: str) -> None:
    """A store that can't be opened is one message and an exit code, no traceback."""
    Path("foreign.db").write_text("no database " * 100)
    out, err = run("ls", url=url, code=code)
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_no_store_at_all() -> None:
    """Without a configuration the default store is in memory; the message says what to do."""
    assert "name another store, such as --url sqlite:///state.db" in run("ls", url=None, code=2)[1]
