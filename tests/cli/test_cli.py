"""`pocket-plug`: results on stdout, one clear message on stderr, and a reliable exit code."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from rich.cells import cell_len

from pocket_plug import telemetry
from pocket_plug.cli import main
from pocket_plug.cli.output import print_table
from pocket_plug.plugins.pocket import Pocket, set_default_pocket

POCKET_PLUG = [sys.executable, "-m", "pocket_plug"]

ORDERS = """
    from dataclasses import dataclass
    import pocket_plug as pp

    @dataclass
    class Order:
        id: str
        total: float

    class Charge(pp.Node[Order, Order]):
        declined = pp.Action[str]()
        def post(self, store, order, prepared, result):
            return self.declined("too much") if order.total > 1000 else order

    @pp.node
    def receipt(order: Order) -> str:
        return f"{order.id}: paid {order.total}"

    @pp.node
    def apologise(reason: str) -> str:
        return f"sorry, {reason}"

    charge = Charge()
    graph = pp.Graph(charge >> receipt, charge.declined >> apologise, name="orders")
    broken = pp.Graph(charge >> receipt, name="broken")
    @pp.node
    def same(order: Order) -> Order:
        return order
    echo = pp.Graph(same, name="echo")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test has a folder of its own."""
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def write(path: str, source: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(dedent(source))
    return path


# ---------------------------------------------------------------- plugins
def test_plugins_as_text(capsys):
    """In a pipe it prints a line for each plugin under a heading, without colour or frames."""
    assert main(["plugins"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "status", "from", "hooks", "reason"]
    assert "bounding" in [line.split()[0] for line in lines]
    assert not set("".join(lines)) & set("\x1b│─")


def test_plugins_as_json(install, capsys):
    """For machines: all that is known about each plugin; for a broken one the reason."""
    install("pocket-plug-bad", "import no_such_module")
    assert main(["plugins", "--json"]) == 0
    plugins = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert plugins["bad"] == {
        "name": "bad",
        "distribution": "pocket-plug-bad",
        "version": "1.0",
        "origin": "entry point",
        "hooks": [],
        "status": "failed",
        "reason": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert plugins["bounding"]["hooks"] == ["pocket_layers"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("pocket.toml", "[stor", "ConfigError: pocket.toml is not valid TOML"),
        ("pocket.toml", "[plugins.bounding]\nx = 1", "this plugin takes no options"),
    ],
)
def test_plugins_whatever_the_configuration(capsys, file, text, said):
    """The command that reports mistakes works with any broken configuration, and reports it."""
    write(file, text)
    assert main(["plugins", "--json"]) == 0
    out, err = capsys.readouterr()
    assert said in err
    assert "bounding" in [each["name"] for each in json.loads(out)]


def test_plugins_whatever_the_environment(capsys, monkeypatch):
    """An invalid switch in the environment doesn't keep it from working either."""
    monkeypatch.setenv("POCKET_PLUG_AUTOLOAD", "perhaps")
    assert main(["plugins"]) == 0
    out, err = capsys.readouterr()
    assert "POCKET_PLUG_AUTOLOAD must be 0 or 1" in err
    assert "bounding" in out


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environment}
    with subprocess.Popen([*POCKET_PLUG, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65_536):
                shown += data
        except OSError:  # on Linux, this means that the other end was closed
            pass
    os.close(ours)
    return shown.decode()


def test_plugins_on_a_terminal():
    """On a terminal it is a table with highlighting; NO_COLOR removes the colours."""
    shown = on_a_terminal("plugins")
    assert "─" in shown
    assert "bounding" in shown
    assert "\x1b[3" not in on_a_terminal("plugins", NO_COLOR="1")


def test_a_table_for_a_narrow_terminal(monkeypatch, capsys):
    """A table that is too wide has less space between its columns, and cuts no word that fits then."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    columns = ("run", "graph", "outcome", "started", "took", "spans", "errors", "retries")
    print_table(
        columns, [("0ef89404eda000000001", "orders", "success", "2026-11-29 22:05:33", "1.2 ms", "5", "0", "0")]
    )
    assert " 2026-11-29 " in capsys.readouterr().out


@pytest.mark.parametrize("long", ["tenant-acme/order-2026-11-30/3f2b8c1e-5d4a-4f6b-9a7e-1c2d3e4f5a6b", "x" * 200])
def test_a_long_name_leaves_room_for_the_other_columns(long, monkeypatch, capsys):
    """It is folded, and complete: one run with a long id hides neither the states nor the errors of all."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    columns = ("run", "state", "graph", "node", "age", "steps", "why")
    print_table(columns, [(long, "failed", "orders", "charge", "2h3m", "4", "closed"), ("b", "pending", *[""] * 5)])
    head, _, *lines = re.sub("\x1b\\[\\d*m", "", capsys.readouterr().out).splitlines()
    assert head.split() == list(columns)
    assert lines[0].split()[1:] == ["failed", "orders", "charge", "2h3m", "4", "closed"]
    assert "".join(line[:40].strip() for line in lines) == f"{long}b"


def test_a_narrow_table_keeps_figures_dates_and_words(monkeypatch, capsys):
    """Figures are to the right and complete, a time goes below its date, a long word is folded: nothing is cut off."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    name = "node a_very_long_name_of_a_node_that_explains_what_it_does"
    figures = ("1,200", "0", "17", "30.8 ms", "40.0 ms", "4 min 2 s", "163.5 ms")
    print_table(
        ("span", "count", "errors", "retries", "p50", "p95", "max", "in all"),
        [(name, *figures), ("b", *"12", *[""] * 5)],
    )
    shown = re.sub("\x1b\\[\\d*m", "", capsys.readouterr().out)
    head, _, *lines = shown.splitlines()
    assert lines[0].split(maxsplit=2)[2] == "1,200      0      17 30.8 ms 40.0 ms 4 min 2 s 163.5 ms"
    assert head.endswith("in all")
    assert lines[-1].index("1") == lines[0].index("1,200") + 4

    trace_id, error = "50b0a61488cd17d3d6eeec27839b4099", "✗ failure: ExtremelySpecialConnectionError orders.py:29"
    print_table(("run", "outcome", "started", "trace"), [("注文" * 30, error, "2026-11-29 22:05:33", trace_id)])
    shown = re.sub("\x1b\\[\\d*m", "", capsys.readouterr().out)
    assert "…" not in shown
    assert " 2026-11-29 " in shown
    assert max(map(cell_len, shown.splitlines())) <= 80
    assert shown.count("注文") == 30


def test_columns_of_wide_characters_are_aligned_in_a_pipe(capsys):
    """As a pager shows them: such a character takes two cells."""
    print_table(("run", "state"), [("注文-7", "failed"), ("order-5", "finished"), ("naïve", "failed")])
    lines = capsys.readouterr().out.splitlines()
    assert {cell_len(line[: max(line.find(" f"), line.find(" s"))]) for line in lines} == {8}


def test_the_doctor_on_a_narrow_terminal():
    """A long line goes on below its text, so that each verdict stands alone."""
    verdict = re.compile(r"  (ok|note|wrong) ")
    shown = on_a_terminal("doctor", COLUMNS="60", NO_COLOR="1", TERM="dumb").splitlines()
    below = [line for line in shown if line.startswith(" ") and not verdict.match(line)]
    assert below
    assert all(line.startswith(" " * 9) for line in below), below


# ---------------------------------------------------------------- stack
STACKS = """
    [store]
    url = "sqlite:///${STATE}/state.db"
    layers = ["tracing", { use = "bounding", max_entries = 10, durable = true }]
    [stores.cache]
    layers = [{ use = "bounding", ttl = "5m" }]
"""


def test_stack_is_drawn(capsys, monkeypatch, tmp_path):
    """Outermost first, with the options as written: variables by name, so no secret is shown."""
    monkeypatch.setenv("STATE", str(tmp_path))
    write("pocket.toml", STACKS)
    assert main(["stack"]) == 0
    assert capsys.readouterr().out == dedent("""\
        store  (pocket.toml [store])
          tracing
          bounding  max_entries=10, durable=True
          sqlite:///${STATE}/state.db
        stores.cache  (pocket.toml [stores.cache])
          bounding  ttl='5m'
          memory://
    """)
    assert main(["stack", "cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "store": "cache",
            "configuration": "pocket.toml",
            "url": "memory://",
            "layers": [{"name": "bounding", "options": {"ttl": "5m"}}],
        }
    ]


def test_stack_without_configuration(capsys):
    """Without a configuration it is the default store in memory, and the output says that there is no configuration."""
    assert main(["stack"]) == 0
    assert capsys.readouterr() == (
        "store\n  memory://\n",
        "configuration: none, neither in this folder nor above it\n",
    )


def test_without_configuration_a_named_stack_says_how_to_write_one(capsys, folder):
    """It says that no file was read, where one is looked for, and the line that makes the store."""
    assert main(["stack", "orders"]) == 2
    said = capsys.readouterr().err
    assert "no configuration file was read" in said
    assert "pocket.toml, or pyproject.toml with [tool.pocket_plug], in this folder or above it" in said
    (line,) = re.findall(r"in a pocket.toml is enough: (.+)", said)
    write("pocket.toml", line)
    set_default_pocket(None)
    assert main(["stack", "orders"]) == 0
    assert "sqlite:///" in capsys.readouterr().out


def test_stack_says_which_configuration_it_took(capsys, monkeypatch, folder):
    """The nearest one, in the current folder or above; or the one that the environment names, wherever it is."""
    write("pocket.toml", "[store]\nlayers = ['tracing']")
    write("other.toml", "")
    (folder / "a" / "b").mkdir(parents=True)
    for where, named, said in (
        (folder, "", "pocket.toml"),
        (folder / "a" / "b", "", str(folder / "pocket.toml")),
        (folder / "a", "../other.toml", "../other.toml"),
    ):
        monkeypatch.chdir(where)
        monkeypatch.setenv("POCKET_PLUG_CONFIG", named)
        set_default_pocket(None)
        assert main(["stack"]) == 0
        out, err = capsys.readouterr()
        assert err == f"configuration: {said}\n"
        assert out.startswith(f"store  ({said} [store])\n")


def test_a_relative_path_is_relative_to_the_configurations_folder(capsys, monkeypatch, folder):
    """Not to the folder in which the command is called: that would silently create another database. Layers' paths too."""
    write(
        "pocket.toml", "[store]\nurl='sqlite:///a.db'\n[stores.far]\nlayers=[{use='persistence', to='sqlite:///b.db'}]"
    )
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    assert main(["store", "set", "key", "1"]) == main(["store", "--name", "far", "set", "key", "2"]) == 0
    assert list((folder / "below").iterdir()) == []
    assert {file.name for file in folder.glob("*.db")} == {"a.db", "b.db"}
    set_default_pocket(None)
    assert main(["store", "get", "key"]) == 0
    assert capsys.readouterr().out.strip() == "1"
    with Pocket("../pocket.toml") as pocket:  # also in a program's own Pocket
        assert pocket.store.sync.get("key") == 1


def test_an_application_has_the_configuration_of_the_command_line(capsys, monkeypatch, folder):
    """A target of `pocket-plug run` uses the default Pocket, with the configuration that the command has found; elsewhere there
    is none.
    """
    write("pocket.toml", "[stores.cache]\n")
    app = write(
        "below/app.py",
        """
        from pocket_plug.plugins import default_pocket
        def main():
            print(list(default_pocket().stores))
        """,
    )
    monkeypatch.chdir(folder / "below")
    assert main(["run", "app.py"]) == 0
    assert capsys.readouterr().out == "['cache']\n"
    set_default_pocket(None)
    code = f"import runpy; runpy.run_path({str(folder / app)!r})['main']()"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert plain.stdout == "[]\n"


def test_stack_hides_passwords(capsys, install):
    """A password in a URL is not shown."""
    install(
        "pocket-plug-net",
        """
        from pocket_plug.hookspecs import hookimpl
        from pocket_plug.store.memory import Memory
        @hookimpl
        def pocket_backends():
            return {"net": lambda url: Memory()}
    """,
    )
    write("pocket.toml", "[store]\nurl = 'net://me:secret@host/0'")
    assert main(["stack"]) == 0
    assert "net://me:***@host/0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("[store]\nlayers = ['bonding']", [], "there is no layer 'bonding'; did you mean 'bounding'?"),
        ("[stores.a]\n", ["b"], "there is no [stores.b] in pocket.toml"),
        ("[store]\nurl = '${NOT_SET_ANYWHERE}'", [], "the environment variable 'NOT_SET_ANYWHERE' is not set"),
        ("[", [], "pocket.toml is not valid TOML"),
    ],
)
def test_an_invalid_stack_is_an_error(capsys, text, arguments, message):
    """A stack that can't be built is one message on stderr, nothing on stdout, and exit code 2."""
    write("pocket.toml", text)
    assert main(["stack", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


# ---------------------------------------------------------------- graph
def test_graph_as_mermaid(capsys):
    """The graph as a Mermaid chart, and as JSON with its name."""
    write("flow.py", ORDERS)
    assert main(["graph", "flow.py"]) == 0
    chart = capsys.readouterr().out
    assert chart.startswith("flowchart")
    assert "receipt" in chart
    assert main(["graph", "flow.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "orders", "mermaid": chart.rstrip("\n")}


def test_graph_with_faults(capsys):
    """An invalid graph is drawn, then every fault is reported, with exit code 1."""
    write("flow.py", ORDERS)
    assert main(["graph", "flow.py:broken"]) == 1
    out, err = capsys.readouterr()
    assert "flowchart" in out
    assert "GraphError: graph 'broken' can't run:\n  - node" in err


# ---------------------------------------------------------------- run: a graph
def test_run_a_graph(capsys):
    """A graph is run with --input, converted to the type that its first node declares, and its result is printed."""
    write("flow.py", ORDERS)
    assert main(["run", "flow.py", "--input", '{"id": "o-1", "total": 42}']) == 0
    assert capsys.readouterr().out == "o-1: paid 42.0\n"
    assert main(["run", "flow.py:echo", "--input", '{"id": "o-1", "total": 42}', "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "o-1", "total": 42.0}


def test_what_a_graph_prints_is_no_part_of_its_json(capsys):
    """It goes to stderr with --json, also what its module prints; otherwise to stdout, as in any program."""
    write(
        "flow.py",
        """
        import pocket_plug as pp
        print("imported")
        @pp.node
        async def here(n: int) -> int:
            print("in the loop")
            return n
        @pp.node(timeout="60s")
        def there(n: int) -> int:
            print("in a thread")
            return n
        graph = pp.Graph(here >> there, name="flow")
    """,
    )
    assert main(["run", "flow.py", "--input", "7", "--json"]) == 0
    assert capsys.readouterr() == ("7\n", "imported\nin the loop\nin a thread\n")
    assert main(["run", "flow.py", "--input", "7"]) == 0
    assert capsys.readouterr() == ("in the loop\nin a thread\n7\n", "")
    del sys.modules["flow"]
    assert main(["graph", "flow.py", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["name"], err) == ("flow", "imported\n")


def test_what_other_processes_print_is_no_part_of_the_json():
    """An executor's workers, and programs that a node starts, inherit stdout: with --json it leads to stderr for them."""
    write(
        "flow.py",
        """
        import subprocess, sys
        import pocket_plug as pp
        @pp.node
        async def here(n: int) -> int:
            subprocess.run([sys.executable, "-c", "print('a program')"], check=True)
            return n
        @pp.node(executor="processes")
        def there(n: int) -> int:
            print("in a worker")
            return n
        graph = pp.Graph(here >> there, name="flow")
    """,
    )
    ran = subprocess.run([*POCKET_PLUG, "run", "flow.py", "--input", "7", "--json"], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("7\n", "a program\nin a worker\n", 0)
    ran = subprocess.run([*POCKET_PLUG, "run", "flow.py", "--input", "7"], capture_output=True, text=True)
    assert (sorted(ran.stdout.splitlines()), ran.stderr) == (["7", "a program", "in a worker"], "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", '{"id": "o-1", "total": "x"}'], "--input: Expected `float`, got `str` - at `$.total`"),
        (["--input", "{"], "--input: Input data was truncated"),
        (["extra"], "flow.py:graph is a graph; it takes --input, not extra"),
        (["--url", "sqlite:///a.db"], "not --url sqlite:///a.db; it uses its own store (store=…)"),
        (["--debug"], "it takes --input, not --debug; --debug belongs before `run`"),
    ],
)
def test_input_that_does_not_fit(capsys, arguments, message):
    """Input of another type, invalid JSON, or arguments that a graph can't use: a usage error, exit code 2."""
    write("flow.py", ORDERS)
    assert main(["run", "flow.py", *arguments]) == 2
    assert message in capsys.readouterr().err


INPUTS = """
    from dataclasses import dataclass
    from pathlib import Path
    from enum import Enum
    from typing import Any, Literal
    import msgspec, pydantic
    import pocket_plug as pp
    @dataclass
    class Place:
        id: str
        where: Path
    class Colour(Enum):
        RED, BLUE = 1, 2
    class Point(msgspec.Struct):
        x: int
    class Model(pydantic.BaseModel):
        n: int = pydantic.Field(gt=0)
        name: str = "-"
    class Other(pydantic.BaseModel):
        z: str
    @pydantic.dataclasses.dataclass
    class Checked:
        n: int = pydantic.Field(gt=0)
    @dataclass
    class Places:
        all: list[Place]
        limit: int | None = None
    def shown(kind):
        def show(given):
            return repr(given)
        show.__annotations__ = {"given": kind, "return": str}
        return pp.Graph(pp.node(show))
    place, point, model, other, checked = shown(Place), shown(Point), shown(Model), shown(Model | Other), shown(Checked)
    path, text, number, perhaps, anything = shown(Path), shown(str), shown(int), shown(int | None), shown(Any)
    texts, sure, size, colour = shown(list[str]), shown(bool), shown(Literal["small", "large"]), shown(Colour)
    several, one_of, mixed, places = shown(list[Model]), shown(Place | Point), shown(str | int), shown(Places)
    either, at = shown(Places | Place), shown(dict[str, tuple[Place, ...]])
    def double(n: int) -> int:
        return 2 * n
    fan = pp.Graph(pp.each(pp.node(double)))
    nested = pp.Graph(fan)
    branches = pp.Graph(pp.gather(shown(Any).with_options(name="other"), place))
    lists = pp.Graph(pp.gather(pp.each(pp.node(double)), shown(list[int])))
"""


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("place", '{"id": "a", "where": "/x"}', "Place(id='a', where=PosixPath('/x'))"),
        ("either", '{"id": "a", "where": "/x"}', "Place(id='a', where=PosixPath('/x'))"),
        ("point", '{"x": 1}', "Point(x=1)"),
        ("model", '{"n": 1, "name": "a"}', "Model(n=1, name='a')"),
        ("other", '{"z": "a"}', "Other(z='a')"),
        ("checked", '{"n": 1}', "Checked(n=1)"),
        ("several", '[{"n": 1}]', "[Model(n=1, name='-')]"),
        ("one_of", '{"x": 1}', "Point(x=1)"),
        ("path", "/etc/motd", "PosixPath('/etc/motd')"),
        ("path", '"/etc/motd"', "PosixPath('/etc/motd')"),
        ("text", "hello", "'hello'"),
        ("text", "5", "'5'"),
        ("text", '"5"', "'5'"),
        ("perhaps", None, "None"),
        ("perhaps", "5", "5"),
        ("anything", '{"a": [1]}', "{'a': [1]}"),
        ("anything", None, "None"),
        ("mixed", '"5"', "'5'"),
        ("fan", "[1, 2]", "[\n  2,\n  4\n]"),
        ("nested", "[1]", "[\n  2\n]"),
        (
            "branches",
            '{"id": "a", "where": "/x"}',
            '[\n  "%s",\n  "%s"\n]' % (("Place(id='a', where=PosixPath('/x'))",) * 2),
        ),
        ("lists", "[1]", '[\n  [\n    2\n  ],\n  "[1]"\n]'),
    ],
)
def test_input_is_converted_to_the_graphs_type(capsys, name, given, shown):
    """Models, dataclasses, Structs and paths, nested and in unions too; for a str or a Path plain text is accepted."""
    write("inputs.py", INPUTS)
    assert main(["run", f"inputs.py:{name}", *(() if given is None else ("--input", given))]) == 0
    assert capsys.readouterr().out == f"{shown}\n"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("number", None, "the graph takes int; give it by --input, as JSON, @FILE, or - for stdin"),
        ("fan", None, "the graph takes list[int]; give it by --input"),
        ("number", "hello", "--input: JSON is malformed: invalid character (byte 0); give int, as JSON"),
        ("anything", "{", "--input: Input data was truncated; give JSON\n"),
        ("number", '"x"', "--input: Expected `int`, got `str`; give int, as JSON\n"),
        ("model", '{"n": -4711}', "--input: Input should be greater than 0 - at `$.n`; give Model, as JSON"),
        ("checked", '{"n": -4711}', "--input: Input should be greater than 0 - at `$.n`"),
        ("several", '[{"n": -4711}]', "--input: Input should be greater than 0 - at `$.n` - at `$[0]`"),
        ("other", "{}", "Field required - at `$.n` Or: Field required - at `$.z`"),
        ("place", '{"id": "a", "where": 5}', "Expected `Path`, got `int` - at `$.where`; give Place, as JSON"),
        ("places", '{"all": [], "limt": 5}', "Places has no field 'limt', only all, limit - at `$`; give Places"),
        (
            "places",
            '{"all": [{"id": "a", "where": "b", "n": 1}]}',
            "Place has no field 'n', only id, where - at `$.all[0]`",
        ),
        ("at", '{"x": [{"id": "a", "where": "b", "n": 1}]}', "Place has no field 'n', only id, where - at `$[...][0]`"),
        ("fan", '[1, "x"]', "Expected `int`, got `str` - at `$[1]`"),
        ("mixed", "hello", "JSON is malformed"),
        ("texts", "[1", "--input: Input data was truncated; give list[str], as JSON"),
        ("sure", "yes", "--input: JSON is malformed: invalid character (byte 0); give true or false, as JSON"),
        ("size", "big", 'give "small" or "large", as JSON'),
        ("size", '"big"', 'give "small" or "large", as JSON'),
        ("colour", "3", "give 1 or 2, as JSON"),
        ("model", "@nowhere.json", "--input: the file 'nowhere.json' can't be read: "),
        ("model", "@.", "--input: the file '.' can't be read: "),
        ("model", "@latin.json", "--input from latin.json is not UTF-8: invalid start byte at byte 0"),
        ("model", "@other.json", "--input from other.json: Field required - at `$.n`"),
        ("number", "\udcff", "--input is not UTF-8"),
    ],
)
def test_input_that_the_graph_cannot_take(capsys, name, given, message):
    """Usage error, exit code 2: it names the source of the input, the mistake and the type; a model's values are not quoted."""
    write("inputs.py", INPUTS)
    write("other.json", '{"z": 1}')
    Path("latin.json").write_bytes(b"\xff")
    assert main(["run", f"inputs.py:{name}", *(() if given is None else ("--input", given))]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "4711" not in err


def test_input_from_a_file_and_from_stdin(capsys, monkeypatch):
    """`@FILE` and `-`, as JSON, or for a str as plain text."""
    write("inputs.py", INPUTS)
    write("given.json", '{"n": 3}')
    write("page.txt", "three words here")
    assert main(["run", "inputs.py:model", "--input", "@given.json"]) == 0
    assert main(["run", "inputs.py:text", "--input", "@page.txt"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"n": 4}')))
    assert main(["run", "inputs.py:model", "--input", "-"]) == 0
    shown = ["Model(n=3, name='-')", "'three words here'", "Model(n=4, name='-')"]
    assert capsys.readouterr().out.splitlines() == shown


def test_run_with_the_configured_stores(capsys):
    """While a graph runs, the stores of the configuration are open, and its nodes can use them by name."""
    write("pocket.toml", "[stores.state]\nurl = 'sqlite:///state.db'")
    write(
        "flow.py",
        """
        import pocket_plug as pp
        from pocket_plug.plugins.pocket import default_pocket
        @pp.node
        async def count(start: int) -> int:
            return await default_pocket().stores["state"].update("n", lambda n: n + 1, default=start)
        graph = pp.Graph(count)
    """,
    )
    for expected in ("6\n", "7\n"):
        assert main(["run", "flow.py", "--input", "5"]) == 0
        assert capsys.readouterr().out == expected
        set_default_pocket(None)


# ---------------------------------------------------------------- run: an application
def test_run_a_click_command(capsys):
    """`main` may be a click command: it gets the remaining arguments, its own options too, and --json with them."""
    write(
        "tool.py",
        """
        import click
        @click.command
        @click.argument("name")
        @click.option("--loud", is_flag=True)
        @click.option("--json", "as_json", is_flag=True)
        def main(name, loud, as_json):
            click.echo(f"{name} {loud} {as_json}")
            return 3
    """,
    )
    assert main(["run", "tool.py", "ann", "--loud", "--json"]) == 3
    assert capsys.readouterr().out == "ann True True\n"
    assert main(["run", "tool.py", "--", "--help"]) == 0
    assert "Usage: pocket-plug run tool.py [OPTIONS] NAME" in capsys.readouterr().out
    assert main(["run", "tool.py", "--sideways"]) == 2
    assert re.search(r"No such option:? '?--sideways", capsys.readouterr().err)  # click 8.1 has no quotes


def test_run_a_function(capsys):
    """`main` may be a function of the list of arguments or of none, also `async def`; an int is the exit code."""
    write("one.py", "def main(arguments):\n    print(arguments)\n    return len(arguments)")
    write("two.py", "async def main():\n    print('two')")
    assert main(["run", "one.py", "a", "-b"]) == 2
    assert main(["run", "two.py"]) == 0
    assert capsys.readouterr().out == "['a', '-b']\ntwo\n"
    assert main(["run", "two.py", "a"]) == 2
    assert "two.py:main takes no arguments, but was given a" in capsys.readouterr().err
    assert main(["run", "two.py", "--input", "1"]) == 2
    assert "--input is for a graph, but two.py:main is not a graph" in capsys.readouterr().err


def test_run_a_folder(capsys):
    """A folder means its app.py, or else its __init__.py; in a package relative imports work."""
    write("census/__init__.py", "")
    write("census/words.py", "WORD = 'relative'")
    write("census/app.py", "from .words import WORD\ndef main():\n    print(WORD)")
    write("plain/app.py", "import helper\ndef main():\n    print(helper.WORD)")
    write("plain/helper.py", "WORD = 'beside it'")
    write("single/__init__.py", "def main():\n    print(__name__)")
    for target in ("census", "census/app.py", "plain/", "single"):
        assert main(["run", target]) == 0
    assert capsys.readouterr().out == "relative\nrelative\nbeside it\nsingle\n"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "nowhere.py",
            "there is no file or folder nowhere.py; give the path of a Python file, or of a folder with app.py\n",
        ),
        ("app:graph", "there is no file or folder app; did you mean app.py:graph?"),
        ("below.app", "there is no file or folder below.app; did you mean below/app.py?"),
        ("x" * 5000, "can't be the path of a file: File name too long"),
        ("empty", "the folder empty has neither app.py nor __init__.py; give the path of a Python file in it"),
        ("notes.txt", "notes.txt is not a Python file; its name must end in .py\n"),
        ("book.ipynb", "must end in .py; `jupyter nbconvert --to script book.ipynb` makes one\n"),
        ("nothing.py", "nothing.py defines nothing named main or graph; name an object: nothing.py:name"),
        ("named.py", "named.py defines nothing named main or graph; name an object: named.py:shop or named.py:other\n"),
        ("named.py:nosuch", "named.py has no 'nosuch'; its graphs are shop, other.\n"),
        ("nothing.py:grap", "nothing.py has no 'grap'. Did you mean 'graph_'?"),
        ("nothing.py:graph_", "nothing.py:graph_ is int, not a graph, a function or a click command"),
        ("json.py", "can't be imported as 'json', which is"),
    ],
)
def test_an_invalid_target_is_a_usage_error(capsys, target, message):
    """The message uses the user's terms, with exit code 2."""
    Path("empty").mkdir()
    write("notes.txt", "")
    write("book.ipynb", "")
    write("json.py", "")
    write("nothing.py", "graph_ = 3")
    write("named.py", "import pocket_plug as pp\nshop = other = pp.Graph(pp.Sleep(1))")
    write("app.py", "")
    write("below/app.py", "")
    assert main(["run", target]) == 2
    assert message in capsys.readouterr().err


def test_a_file_without_a_graph(capsys):
    """`graph` and `worker` look for a graph only."""
    write("nothing.py", "")
    write("named.py", "import pocket_plug as pp\nshop = pp.Graph(pp.Sleep(1))")
    assert main(["graph", "nothing.py"]) == 2
    assert "nothing.py defines nothing named graph; name an object: nothing.py:name" in capsys.readouterr().err
    assert main(["worker", "named.py"]) == 2
    assert "named.py defines nothing named graph; name an object: named.py:shop\n" in capsys.readouterr().err


def test_trace(capsys, monkeypatch):
    """--trace observes the run, and the trace is complete when the command returns, also after an error."""
    write("flow.py", ORDERS)
    log: list[str] = []

    Path("traces.jsonl").write_text("")

    class Handle:
        file, run_id, unsent = Path("traces.jsonl"), "r-1", 0

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            log.append("closed")

    def observe(capture: str | None) -> Handle:
        log.append("observing")
        return Handle()

    monkeypatch.setattr(telemetry, "observe", observe)
    assert main(["run", "flow.py", "--trace", "--input", '{"id": "o-1", "total": 1}']) == 0
    assert main(["run", "flow.py", "--trace", "--input", "3"]) == 2
    assert log == ["observing", "closed"] * 2
    opening = "trace: traces.jsonl · open it: pocket-plug trace show r-1 --open --file traces.jsonl"
    assert opening in capsys.readouterr().err.splitlines()
    monkeypatch.setattr(Handle, "run_id", None)
    assert main(["run", "flow.py", "--trace", "--input", '{"id": "o-1", "total": 1}']) == 0
    said = capsys.readouterr().err.splitlines()
    assert "trace: traces.jsonl" in said, "without a run there is nothing to open"
    for unsent in (0, 5):  # a file that was never made, and a file on a full disk
        monkeypatch.setattr(Handle, "unsent", unsent)
        Path("traces.jsonl").unlink(missing_ok=True) if not unsent else Path("traces.jsonl").write_text("")
        assert main(["run", "flow.py", "--trace", "--input", '{"id": "o-1", "total": 1}']) == 0
        assert "trace:" not in capsys.readouterr().err, "what couldn't be written isn't pointed to"


# ---------------------------------------------------------------- errors
FAILING = """
    from pocket_plug import StoreError
    def main(arguments):
        raise StoreError("the disk is full") if not arguments else ValueError("a bug")
"""


def test_an_error_is_one_message(capsys):
    """An error of pocket_plug is one message without a traceback and exit code 1; --debug shows the traceback."""
    write("failing.py", FAILING)
    assert main(["run", "failing.py"]) == 1
    assert capsys.readouterr().err == "StoreError: the disk is full\n"
    assert main(["--debug", "run", "failing.py"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_a_users_module_is_a_short_traceback(capsys):
    """It shows the module alone, not what imports it."""
    write("broken.py", "graph = 1 / 0")
    assert main(["run", "broken.py"]) == 1
    first, frame, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", "ZeroDivisionError: division by zero")
    assert "broken.py" in frame


def test_a_program_that_python_cannot_read_is_shown_as_python_shows_it(capsys):
    """As of a notebook that was saved as a script, with an `await` outside of functions: no frames of what imports it."""
    write("broken.py", "await 1")
    assert main(["run", "broken.py"]) == 1
    err = capsys.readouterr().err
    head, place, _ = err.partition(f'  File "{Path("broken.py").resolve()}", line 1\n')
    assert place
    assert "importlib/_bootstrap" not in head  # another test may have installed an import hook, which has a frame there
    assert "pocket_plug/" not in head
    assert err.endswith("SyntaxError: 'await' outside function\n")


def test_an_error_on_a_worker_is_a_short_traceback(capsys):
    """The user's frames are in the note that the worker has added; here there are none."""
    write(
        "far.py",
        """
        import pocket_plug as pp

        @pp.node(executor="processes")
        def find(n: int) -> float:
            return 1 / n

        graph = pp.Graph(find, name="orders")
        """,
    )
    assert main(["run", "far.py", "--input", "0"]) == 1
    raised, _, there = capsys.readouterr().err.partition("on worker ")
    assert raised.endswith("ZeroDivisionError: division by zero\n")
    assert "File" not in raised
    assert "far.py" in there


def test_a_users_error_is_a_short_traceback(capsys):
    """The user's own frames, the cause too, with the note of where in the run it comes from; --debug shows all frames."""
    write(
        "shop.py",
        """
        import pocket_plug as pp

        def parse(n):
            try:
                return 1 / n
            except ZeroDivisionError as error:
                raise LookupError("no such order") from error

        @pp.node
        async def find(n: int) -> float:
            return parse(n)

        graph = pp.Graph(pp.each(find), name="orders")

        def main():
            raise KeyError("x")
        """,
    )
    assert main(["run", "shop.py:graph", "--input", "[1, 0]"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split('"')[1] for line in err.splitlines() if line.startswith("  File")] == [
        str(Path("shop.py").resolve())
    ] * 3
    assert "ZeroDivisionError: division by zero\n\nThe above exception was the direct cause of" in err
    assert err.endswith(
        "LookupError: no such order\nat node 'find', in item 1 of node 'each_find' of graph 'orders' (visit 1)\n"
    )
    assert main(["run", "shop.py:main"]) == 1
    assert capsys.readouterr().err.count("  File") == 1
    done = subprocess.run(
        [*POCKET_PLUG, "--debug", "run", "shop.py:graph", "--input", "[0]"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pocket_plug/graph/" in done.stderr
    assert "at node 'find', in item 0" in done.stderr


def test_a_bug_keeps_its_traceback():
    """An exception of the user's code is a bug in it: its traceback is shown, exit code 1."""
    write("failing.py", FAILING)
    result = subprocess.run([*POCKET_PLUG, "run", "failing.py", "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("ValueError: a bug")


def test_interrupt():
    """Ctrl-C ends a run with exit code 130 and no traceback."""
    write(
        "waiting.py",
        """
        import asyncio
        async def main():
            print("waiting", flush=True)
            await asyncio.Event().wait()
    """,
    )
    command = [*POCKET_PLUG, "run", "waiting.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "waiting\n"
        run.send_signal(signal.SIGINT)
        _, err = run.communicate()
    assert run.returncode == 130
    assert err.strip() == "interrupted"


def test_an_interrupted_durable_run_is_resumed_by_the_same_command():
    """The message says so: a user who presses Ctrl-C may think that everything is lost."""
    write(
        "long.py",
        """
        import asyncio
        import os
        from pocket_plug import Graph, Store, node

        @node
        async def count(n: int) -> int:
            print("counting", flush=True)
            return n + 1

        @node
        async def wait(n: int) -> int:
            if not os.path.exists("go-on"):
                print("waiting", flush=True)
                await asyncio.Event().wait()
            return n

        graph = Graph(count >> wait, store=Store("sqlite:///long.db"))
    """,
    )
    command = [*POCKET_PLUG, "run", "long.py", "--input", "1", "--run-id", "first"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert [run.stdout.readline() for _ in range(2)] == ["counting\n", "waiting\n"]
        run.send_signal(signal.SIGINT)
        _, err = run.communicate()
    assert (run.returncode, err.split("\n\n")) == (
        130,
        ["run 'first' is saved; the same command resumes it", "interrupted\n"],
    )
    write("go-on", "")
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2\n"


def test_usage(capsys):
    """An unknown command or option is usage: exit code 2."""
    assert main(["frobnicate"]) == 2
    assert main(["plugins", "--frobnicate"]) == 2
    assert "No such command 'frobnicate'.\n" in capsys.readouterr().err
    assert main(["plugin"]) == 2
    assert "No such command 'plugin'. Did you mean 'plugins'?" in capsys.readouterr().err
    assert main(["runs", "ls", "--url", "sqlite:///a.db"]) == 2
    assert "No such option '--url'. It belongs before ls: pocket-plug runs --url … ls" in capsys.readouterr().err
    assert main(["runs", "answer", "--url", "sqlite:///a.db", "app.py", "r", "-1"]) == 2
    assert "It belongs before answer: pocket-plug runs --url … answer" in capsys.readouterr().err
    assert main(["store", "set", "limit", "-1", "--tll", "1h"]) == 2
    assert "No such option '--tll'. Did you mean '--ttl'?" in capsys.readouterr().err
    assert main(["store", "ls", "--debug"]) == 2
    assert "It belongs before ls: pocket-plug --debug … ls" in capsys.readouterr().err


def test_help_whatever_the_configuration(capsys):
    """The help works with any broken configuration."""
    write("pocket.toml", "[")
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert "plugins" in out
    assert "commands of plugins are left out. ConfigError: pocket.toml is not valid TOML" in err


# ---------------------------------------------------------------- commands of plugins
GREETING = '''
    import click
    from pocket_plug.hookspecs import hookimpl

    @click.command
    def greet():
        """Greet whoever reads this, in as many words as it takes. Then it ends."""
        click.echo("hello")

    @click.command("plugins")
    def ours():
        click.echo("not ours")

    @hookimpl
    def pocket_commands():
        return [greet, ours]
'''


def test_command_of_a_plugin(install, capsys, caplog):
    """A plugin's command works like a built-in one; if it has the name of a built-in one, it is reported, and the built-in one is
    kept.
    """
    install("pocket-plug-greet", GREETING)
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert main(["--help"]) == 0
    assert "Greet whoever reads this, in as many words as it takes." in " ".join(capsys.readouterr().out.split())
    assert main(["gret"]) == 2
    assert "Did you mean 'greet'?" in capsys.readouterr().err
    assert main(["plugins"]) == 0
    assert "not ours" not in capsys.readouterr().out
    said = [record.getMessage() for record in caplog.records if "'greet'" in record.getMessage()]
    assert said == [
        "plugin 'greet' (pocket-plug-greet 1.0) failed at pocket_commands: pocket-plug has a built-in command "
        "'plugins' (logged once; later failures are only counted)"
    ]


def test_failing_commands_of_a_plugin(install, capsys, caplog):
    """A plugin with a failing hook is reported; the other commands work."""
    install("pocket-plug-greet", GREETING.replace("return [greet, ours]", "raise RuntimeError('boom')"))
    assert main(["greet"]) == 2
    assert main(["plugins"]) == 0
    assert "plugin 'greet' (pocket-plug-greet 1.0) failed at pocket_commands: RuntimeError: boom" in caplog.text


@pytest.mark.parametrize(
    "command", ["graph app.py --svg", "plugins", "--help", "--version", "runs --help", "runs ls --help"]
)
@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        (
            'ulimit -f 0; exec "$@" > out',
            1,
            "Error: stdout can't be written to: File too large; the output is incomplete",
        ),
        ('exec "$@" >&-', 0, ""),
    ],
    ids=["full", "closed"],
)
def test_a_failure_to_print_is_reported(tmp_path: Path, command: str, shell: str, code: int, said: str) -> None:
    """A full disk is an error without a traceback; if the reader has closed stdout, there is no error."""
    (tmp_path / "app.py").write_text(
        "import pocket_plug as pp\n@pp.node\ndef work(x: str) -> str:\n    return x\ngraph = pp.Graph(work)\n"
    )
    program = "import sys; from pocket_plug.cli import main; sys.exit(main())"
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", program, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_exit_code_is_right_although_the_error_can_not_be_printed(tmp_path: Path) -> None:
    """With a full disk under stderr a usage error still has exit code 2, and nothing of it goes to stdout."""
    program = "import sys; from pocket_plug.cli import main; sys.exit(main())"
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@" 2> err', "sh", sys.executable, "-c", program, "no-command"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
