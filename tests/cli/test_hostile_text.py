"""Terminals execute escape sequences in printed text: no command prints any from data, on a terminal or into a pipe."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple, TextIO

import pytest

import pocket_plug.cli
from pocket_plug import SyncStore, hookimpl
from pocket_plug.cli import main
from pocket_plug.cli.run import print_result
from pocket_plug.plugins.pocket import Pocket, set_default_pocket
from pocket_plug.primitives.terminal import escaped, escaped_json
from pocket_plug.store.layer import Layer

DIRECTION = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ORDERS = "".join(map(chr, [*range(1, 0x20), *range(0x7F, 0xA0)])) + DIRECTION
HOSTILE = f"<\x1b[2J\x1b]0;owned\x07\x1b[38;5;201m\x9b2J[bold]b[/bold][link=http://x]l[/link]{ORDERS}ü漢>"
SHORT = "<\x1b[2J\x9b\u202e\x1b[38;5;201m\r>"
POCKET_PLUG = [sys.executable, "-m", "pocket_plug"]
URL = "sqlite:///state.db?durability=process"

APP = f"""
import pocket_plug as pp

HOSTILE = {HOSTILE!r}

@pp.node
async def say(given: str) -> str:
    return HOSTILE

@pp.node
async def pack(given: str) -> dict[str, list[str]]:
    return {{HOSTILE: [HOSTILE]}}

@pp.node
async def fail(given: str) -> str:
    error = ValueError(HOSTILE)
    error.add_note(HOSTILE)
    raise error

@pp.node
async def refuse(given: str) -> str:
    raise pp.StoreError(HOSTILE)

@pp.node
async def after(given: pp.Answered[str, int]) -> str:
    return given.input

ask = pp.Ask[str, int](int, question=lambda given: HOSTILE, name="ask")
said = pp.Graph(say, name=HOSTILE)
packed = pp.Graph(pack, name="packed")
failed = pp.Graph(fail, name="failed")
refused = pp.Graph(refuse, name="refused")
asking = pp.Graph(ask >> after, name=HOSTILE)
named = pp.Graph(say.with_options(name=HOSTILE) >> pack.with_options(name="x" + HOSTILE), name=HOSTILE)
"""


class Odd(Layer):
    """An option that accepts any text."""

    text: str = ""


class Plugin:
    """Registers a layer whose options are shown."""

    @hookimpl
    def pocket_layers(self) -> list[type[Layer]]:
        return [Odd]


class Broken:
    """A plugin that says what is missing."""

    @hookimpl
    def pocket_configure(self) -> None:
        raise ValueError(HOSTILE)


class Said(NamedTuple):
    code: int
    out: bytes
    err: bytes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program, a store and a configuration with escape sequences in their texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile_app.py").write_text(dedent(APP), "utf-8")
    (tmp_path / "lines.jsonl").write_text(json.dumps({"key": "a", "type": HOSTILE, "record": "AA=="}))
    (tmp_path / "pocket.toml").write_text(f"[store]\nurl = {json.dumps(URL)}\n")
    (tmp_path / "odd.toml").write_text(
        f"[store]\nurl = {json.dumps(URL)}\n"
        f"[stores.odd]\nlayers = [{{ use = 'odd', text = {json.dumps(SHORT)} }}]\n"
        f"[stores.bad]\nlayers = [{{ use = 'odd', {json.dumps(SHORT)} = 3 }}]\n"
    )
    with SyncStore(URL) as store:
        store.set(HOSTILE, HOSTILE)
        store.set("dict", {HOSTILE: [HOSTILE]})
        store.set("set", {HOSTILE})
    yield tmp_path
    set_default_pocket(None)
    sys.modules.pop("hostile_app", None)


COMMANDS: dict[str, list[list[str]]] = {
    "store": [
        ["store", "set", SHORT, json.dumps(HOSTILE)], ["store", "set", "a", SHORT], ["store", "ls"],
        ["store", "ls", "-l"], ["store", "ls", "--json"], ["store", "get", HOSTILE], ["store", "get", "dict"],
        ["store", "get", "set"], ["store", "get", "--json", "set"], ["store", "get", "--json", HOSTILE],
        ["store", "get", f"no{SHORT}"], ["store", "export"], ["store", "rm", f"no{SHORT}"], ["store", "rm", "--prefix", "x"],
        ["store", "import", "lines.jsonl"], ["store", "import", f"no{SHORT}"], ["store", "stats"],
        ["store", "--name", SHORT, "ls"], ["store", "--url", SHORT, "ls"], ["store", "get"],
    ],
    "run": [
        ["run", "hostile_app.py:said", "--input", '"x"'], ["run", "hostile_app.py:packed", "--input", '"x"'],
        ["run", "hostile_app.py:packed", "--input", '"x"', "--json"], ["run", "hostile_app.py:failed", "--input", '"x"'],
        ["run", "hostile_app.py:refused", "--input", '"x"'], ["--debug", "run", "hostile_app.py:refused", "--input", '"x"'],
        ["run", "hostile_app.py:said", "--input", SHORT], ["run", SHORT], ["run", f"hostile_app.py:{SHORT}"],
        ["run", "hostile_app.py:said", SHORT], ["graph", "hostile_app.py:named"], ["graph", "hostile_app.py:named", "--json"],
    ],
    "runs": [
        ["run", "hostile_app.py:asking", "--input", json.dumps(HOSTILE), "--run-id", SHORT],
        ["runs", "ls"], ["runs", "ls", "--json"], ["runs", "show", SHORT], ["runs", "show", SHORT, "--json"],
        ["runs", "answer", "hostile_app.py:asking", SHORT, SHORT], ["runs", "resume", "hostile_app.py:asking", SHORT],
        ["runs", "answer", "hostile_app.py:asking", SHORT, "3"],
        ["runs", "show", f"no{SHORT}"], ["run", "hostile_app.py:asking", "--input", '"other"', "--run-id", SHORT],
        ["runs", "rm", SHORT, f"no{SHORT}"],
    ],
    "trace": [
        ["trace", "ls"], ["trace", "ls", "--json"], ["trace", "show"], ["trace", "show", SHORT], ["trace", "show", f"{SHORT}1"],
        ["trace", "show", f"{SHORT}1", "--json"], ["trace", "show", f"{SHORT}1", "--html", "-"], ["trace", "show", f"no{SHORT}"],
        ["trace", "show", "--file", f"no{SHORT}"],
    ],
    "others": [
        ["plugins"], ["plugins", "--json"], ["stack", "odd"], ["stack", "odd", "--json"], ["stack", "bad"], ["stack"],
        ["stack", SHORT], [SHORT], [f"--{SHORT}"], ["store", SHORT], ["store", "ls", f"--{SHORT}"],
    ],
}  # fmt: skip


TRACED = [
    ["hostile_app.py:asking", "--input", '"x"', "--run-id", f"{SHORT}1"],
    ["hostile_app.py:asking", "--input", '"x"', "--run-id", f"{SHORT}2"],
    ["hostile_app.py:failed", "--input", '"x"'],
]
"""Runs whose trees are drawn, in processes of their own: tracing is a process's for good."""


@contextmanager
def terminal() -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A raw pseudo-terminal, and the bytes it has received when all writers have closed it."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs, termios.TCSANOW)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65_536):
                shown.append(data)
        except OSError:  # on Linux, this means that the other end was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()

    def all_shown() -> str:
        stream.close()
        reader.join()
        return b"".join(shown).decode()

    with open(theirs, "w", encoding="utf-8", buffering=1) as stream:
        yield stream, all_shown
    reader.join()
    os.close(ours)


def on_a_terminal(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints on a terminal."""
    with terminal() as (stream, all_shown):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            patched.setattr(sys, "stderr", stream)
            prepare(arguments)
            main(arguments)
        return all_shown()


def traced(arguments: list[str]) -> str:
    """What a traced run prints on a terminal."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_", "PYTHON"))
    }
    with terminal() as (stream, all_shown):
        subprocess.run(
            [*POCKET_PLUG, "run", *arguments, "--trace"],
            stdin=stream,
            stdout=stream,
            stderr=stream,
            env=kept,
            timeout=60,
            check=False,
        )
        return all_shown()


def prepare(arguments: list[str]) -> None:
    """The state that each command finds: a configuration with a plugin that works, and one that doesn't."""
    config = "odd.toml" if arguments[0] == "stack" else "pocket.toml"
    set_default_pocket(Pocket(config, plugins=[Plugin(), Broken()], autoload=False))


def orders_in(shown: str) -> list[str]:
    """The escape sequences in the output, except those of rich's own colours and line ends."""
    shown = re.sub(r"\x1b\[(?!38;5;201)[\d;]*m", "", shown)
    return [char for char in shown if char in {*ORDERS, "\x1b", "\u2028", "\u2029"} - {"\n", "\t"}]


def printed(arguments: list[str], capfdbinary: Any) -> Said:
    """What a command prints into pipes."""
    capfdbinary.readouterr()
    prepare(arguments)
    code = main(arguments)
    out, err = capfdbinary.readouterr()
    return Said(code, out, err)


@pytest.mark.parametrize("commands", COMMANDS)
def test_no_escape_sequence_of_data_reaches_a_terminal(
    commands: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All text of keys, values, names, questions, results, errors, notes and options is escaped, and still shown."""
    said = {"traced": "".join(traced(arguments) for arguments in TRACED)} if commands == "trace" else {}
    said |= {" ".join(arguments): on_a_terminal(arguments, monkeypatch) for arguments in COMMANDS[commands]}
    for arguments, text in said.items():
        assert orders_in(text) == [], arguments
    assert r"<\x1b[2J" in "".join(said.values())
    assert "[bold]b[/bold][link=http://x]l[/link]" in "".join(said.values()) or commands == "others"
    assert orders_in(SHORT)  # without escaping there would be some


@pytest.mark.parametrize("commands", ["store", "run", "runs", "others"])
def test_what_is_printed_into_a_pipe(commands: str, folder: Path, capfdbinary: Any) -> None:
    """Lines for people are escaped there too; a text that was asked for is unchanged; JSON means the same in either form."""
    exact = {
        tuple(["store", "get", HOSTILE]): f"{HOSTILE}\n",
        tuple(["run", "hostile_app.py:said", "--input", '"x"']): f"{HOSTILE}\n",
        ("run", "hostile_app.py:said", "--input", SHORT): f"{HOSTILE}\n",
        ("runs", "answer", "hostile_app.py:asking", SHORT, "3"): f"{HOSTILE}\n",
    }
    for arguments in COMMANDS[commands]:
        done = printed(arguments, capfdbinary)
        assert orders_in(done.err.decode()) == [], arguments
        if tuple(arguments) in exact:
            assert done.out.decode() == exact.pop(tuple(arguments))
        elif arguments == ["store", "export"]:
            lines = [json.loads(line) for line in done.out.splitlines()]
            assert {"key": HOSTILE, "value": HOSTILE} in lines
        else:
            assert orders_in(done.out.decode()) == [], arguments
            if "--json" in arguments and done.code == 0:
                json.loads(done.out)
            if arguments == ["store", "get", "--json", HOSTILE]:
                assert json.loads(done.out)["value"] == HOSTILE


def test_a_trace_that_is_watched(folder: Path, capfdbinary: Any) -> None:
    """Line by line if there is no terminal, where the tree would be redrawn."""
    traced(TRACED[0])
    watched = printed(["trace", "show", f"{SHORT}1", "--watch"], capfdbinary)
    assert r"<\x1b[2J" in watched.out.decode()
    assert orders_in((watched.out + watched.err).decode()) == []


def test_a_value_into_what_is_no_file() -> None:
    """For programs that call the command line in their own process."""
    with redirect_stdout(io.StringIO()) as out:
        print_result(HOSTILE, as_json=False)
    assert out.getvalue().startswith("<")


def test_every_control_character_is_escaped() -> None:
    """As Python writes it; all other characters stay. A JSON document still means the same."""
    for character in f"{ORDERS}\0\u2028\u2029\ud800\udfff":
        assert escaped(character) == character.encode("unicode_escape").decode()
        assert escaped(character, keep=character) == character
        assert json.loads(escaped_json(json.dumps([character], ensure_ascii=False))) == [character]
    fine = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x600)])) + "漢\u200d👩‍💻\ufeff"
    assert escaped(fine) == escaped_json(fine) == fine


def test_a_lone_surrogate_is_escaped(capfdbinary: Any) -> None:
    """A result that can't be encoded is escaped, in text and in JSON."""
    print_result("a\ud800", as_json=False)
    print_result(["a\ud800"], as_json=True)
    assert capfdbinary.readouterr().out == b'a\\ud800\n["a\\ud800"]\n'


def test_what_the_encoding_of_stdout_lacks_is_escaped(tmp_path: Path) -> None:
    """As in a legacy locale, into a pipe and on a terminal."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        store.set("漢", 1)
    command = [*POCKET_PLUG, "store", "--url", f"sqlite:///{tmp_path}/state.db", "ls"]
    in_locale = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    piped = subprocess.run(command, capture_output=True, env=in_locale, timeout=60, check=False)
    with terminal() as (stream, all_shown):
        drawn = subprocess.run(command, stdout=stream, stderr=stream, env=in_locale, timeout=60, check=False)
        shown = all_shown()
    assert (piped.returncode, drawn.returncode) == (0, 0), (piped.stderr, shown)
    assert r"\u6f22" in shown
    assert rb"\u6f22" in piped.stdout


def test_json_is_valid_in_any_encoding_of_stdout() -> None:
    """It escapes what the encoding lacks as JSON does, beyond 16 bits by two escapes."""
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    with redirect_stdout(out):
        print_result(["漢😀é"], as_json=True)
    out.seek(0)
    assert json.loads(out.read()) == ["漢😀é"]


def test_commands_print_through_one_module() -> None:
    """No command bypasses the escaping."""
    own = Path(pocket_plug.cli.__file__).parent
    for file in own.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write") or (
                file.stem == "output"
            ), f"{file.name}, line {node.lineno}"


# ---------------------------------------------------------------- other output
LOGS = f"""
import logging, sys
import structlog
from pocket_plug.telemetry import setup

class Odd:
    def __repr__(self): return {SHORT!r}

with setup(log_level="debug"):
    log = structlog.get_logger()
    log.info({SHORT!r}, text={SHORT!r}, odd=Odd(), number=3, words="a b", **{{{SHORT!r}: 1}})
    try:
        raise ValueError({SHORT!r})
    except ValueError:
        log.exception("failed")
"""


def test_events_that_are_drawn_on_a_terminal(folder: Path) -> None:
    """Log events of `setup()`, with their fields and tracebacks, are escaped on a terminal."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_", "PYTHON"))
    }
    with terminal() as (stream, all_shown):
        done = subprocess.run(
            [sys.executable, "-c", LOGS], stdin=stream, stdout=stream, stderr=stream, env=kept, timeout=60, check=False
        )
        shown = all_shown()
    assert done.returncode == 0, shown
    assert "number" in shown
    assert "Traceback" in shown
    assert shown.count(r"\x1b[2J") >= 4
    assert orders_in(shown) == []
