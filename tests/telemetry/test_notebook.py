"""In a notebook: a tree below the cell, whatever number of runs it starts, and our objects as pictures and tables."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbclient
import nbformat
import pytest
from rich.text import Text

from pocket_plug import Ask, Graph, Pocket, RunSuspendedError, Sleep, SyncStore, node
from pocket_plug.errors import PocketError
from pocket_plug.graph.runs import SyncRuns
from pocket_plug.hookspecs import PluginRecord
from pocket_plug.layers import Persistence
from pocket_plug.plugins.shown import Plugins
from pocket_plug.telemetry import notebook
from pocket_plug.telemetry.notebook import NotebookTree, notebook_shell
from pocket_plug.testing.clock import FakeClock

HOSTILE = "<script>alert(1)</script>\x1b[2J"

CELLS = {
    "one run": """
import pocket_plug as pp

telemetry = pp.observe(file="traces.jsonl")

@pp.node
def one(x: int) -> int:
    return x + 1

graph = pp.Graph(one >> one.with_options(name="two"), name="<b>calc")
store = pp.SyncStore(layers=["metrics"])
store.set("secret", "hunter2")
graph.run_sync(1)
""",
    "many runs": "for number in range(200):\n    graph.run_sync(number)",
    "in its loop": "await graph.run(1)",
    "in a thread": "import asyncio; await asyncio.to_thread(graph.run_sync, 1)",
    "a graph": "graph",
    "a store": "store",
    "plugins": "pp.Pocket().plugins",
    "a failed run": """
@pp.node
def broken(x: int) -> float:
    return helper(x)

def helper(x):
    return 1 / x

await pp.Graph(pp.each(broken), name="broken").run([0])
""",
    "a collected error": """
raise (await pp.Graph(pp.each(broken, errors="collect")).run([0]))[0]
""",
    "a store that is not open": "await pp.Store('sqlite:///state.db').get('a')",
    "closed": "telemetry.close(); graph.run_sync(1)",
}
FAIL = ("a failed run", "a collected error", "a store that is not open")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each cell, in a real kernel."""
    folder = tmp_path_factory.mktemp("notebook")
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()])
    for name, cell in zip(CELLS, made.cells, strict=True):
        cell.metadata["tags"] = ["raises-exception"] if name in FAIL else []
    with pytest.MonkeyPatch.context() as patched:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patched.setenv(name, str(folder / name.lower()))
        nbclient.execute(made, cwd=str(folder), timeout=60, kernel_name="python3")
    return {name: list(cell.outputs) for name, cell in zip(CELLS, made.cells, strict=True)}


def drawn(outputs: list[Any]) -> list[Any]:
    """The displayed outputs of a cell, except its result."""
    return [output.data for output in outputs if output.output_type == "display_data"]


def test_a_run_is_a_tree_below_its_cell(cells: dict[str, list[Any]]) -> None:
    """As text and as HTML, in the notebook's loop and in threads too."""
    for name in ("one run", "in its loop", "in a thread"):
        (tree,) = drawn(cells[name])
        assert "run <b>calc" in tree["text/plain"]
        assert "└─ node two" in tree["text/plain"]
        assert "run &lt;b&gt;calc" in tree["text/html"]
        assert "trace: traces.jsonl · open it: pocket-plug trace show" in tree["text/plain"]
    assert all(output.output_type != "stream" for outputs in cells.values() for output in outputs)


def traceback(outputs: list[Any]) -> list[str]:
    """The lines of a cell's traceback, without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(outputs[-1].traceback)).splitlines()


def test_a_traceback_leads_from_the_cell_to_the_users_code(cells: dict[str, list[Any]]) -> None:
    """Between them, and in a store, IPython leaves out our frames; an error's last frame is always shown."""
    shown = traceback(cells["a failed run"])
    assert [line for line in shown if line.startswith(("Cell In", "File"))] == [
        "Cell In[8], line 8",
        "Cell In[8], line 3, in broken(x)",
        "Cell In[8], line 6, in helper(x)",
    ]
    assert shown[-2:] == [
        "ZeroDivisionError: division by zero",
        "at node 'broken', in item 0 of node 'each_broken' of graph 'broken' (visit 1)",
    ]
    of_item = [line for line in traceback(cells["a collected error"]) if line.startswith(("Cell In", "File"))]
    assert of_item == [
        "Cell In[9], line 1",
        "Cell In[8], line 3, in broken(x)",
        "Cell In[8], line 6, in helper(x)",
    ]
    of_store = [line for line in traceback(cells["a store that is not open"]) if line.startswith(("Cell In", "File"))]
    assert of_store[0] == "Cell In[10], line 1"
    assert len(of_store) == 2


def test_a_place_in_a_cell_has_the_number_of_the_cell(cells: dict[str, list[Any]]) -> None:
    """IPython gives a cell a file name that exists nowhere."""
    (tree,) = drawn(cells["a failed run"])
    assert "exec broken ✗ ZeroDivisionError Cell In[8]:6" in tree["text/plain"]


def test_many_runs_are_one_output(cells: dict[str, list[Any]]) -> None:
    """The last ones, and the number of earlier ones; nothing is missing when the cell ends."""
    (tree,) = drawn(cells["many runs"])
    assert tree["text/plain"].startswith(f"… {200 - notebook.SHOWN} earlier traces of this cell\n")
    assert tree["text/plain"].count("run <b>calc") == notebook.SHOWN


def test_our_objects_are_pictures_and_tables(cells: dict[str, list[Any]]) -> None:
    """In addition to their `repr`, and without any value of an entry."""
    shown = {name: cells[name][-1].data["text/html"] for name in ("a graph", "a store", "plugins")}
    assert shown["a graph"].startswith("<svg")
    assert "Metrics" in shown["a store"]
    assert "pocket-plug 0.2" in shown["plugins"]
    assert cells["a store"][-1].data["text/plain"].startswith("SyncStore(")
    assert "hunter2" not in json.dumps(cells["a store"])


def test_a_closed_telemetry_draws_no_more(cells: dict[str, list[Any]]) -> None:
    """The notebook keeps no reference to it."""
    assert drawn(cells["closed"]) == []


# ---------------------------------------------------------------- how often
class Shell:
    """A notebook's shell, as far as it is used."""

    def __init__(self) -> None:
        self.execution_count = 1
        self.kernel = object()
        self.ends: list[Callable[[object], None]] = []
        self.shown: list[tuple[str, str, str]] = []
        self.display_pub = SimpleNamespace(publish=self.note)
        self.events = SimpleNamespace(
            register=lambda event, function: self.ends.append(function),
            unregister=lambda event, function: self.ends.remove(function),
        )

    def note(self, data: Any, *, metadata: Any, transient: Any, update: bool) -> None:
        assert metadata == {}
        self.shown.append(("changed" if update else "new", transient["display_id"][-1], data["text/plain"]))

    def end_cell(self) -> None:
        for each in self.ends:
            each(None)
        self.execution_count += 1


@pytest.fixture
def displayed(tree: tuple[Shell, NotebookTree, list[float]]) -> list[tuple[str, str, str]]:
    """The outputs: how, where, and the text."""
    return tree[0].shown


@pytest.fixture
def tree() -> tuple[Shell, NotebookTree, list[float]]:
    shell, now = Shell(), [0.0]
    return shell, NotebookTree(shell, lambda root: "", lambda: now[0]), now


def test_an_output_is_updated_a_few_times_a_second(
    tree: tuple[Shell, NotebookTree, list[float]], displayed: list[tuple[str, str, str]]
) -> None:
    """The first trace at once, others at the next update, and the rest when the cell ends; the next cell has its own output."""
    shell, drawing, now = tree
    drawing._show([Text("a")], "where")
    assert displayed == [("new", "1", "a\nwhere")]
    drawing._show([Text("b")], "where")
    assert len(displayed) == 1
    now[0] += notebook.INTERVAL
    drawing._show([Text("c")], "where")
    assert displayed[1:] == [("changed", "1", "a\nb\nc\nwhere")]
    drawing._show([Text("d")], "where")
    shell.end_cell()
    assert displayed[2:] == [("changed", "1", "… 1 earlier traces of this cell\nb\nc\nd\nwhere")]
    shell.end_cell()
    assert len(displayed) == 3
    drawing._show([Text("e")], "where")
    assert displayed[3:] == [("new", "3", "e\nwhere")]
    drawing._show([Text("f")], "where")
    drawing.shutdown()
    assert displayed[4:] == [("changed", "3", "e\nf\nwhere")]
    assert shell.ends == []


def test_a_trace_that_ends_between_two_cells_is_shown(
    tree: tuple[Shell, NotebookTree, list[float]], displayed: list[tuple[str, str, str]]
) -> None:
    """A trace of a thread that continues is shown below its cell, before the next cell starts its own output."""
    shell, drawing, _ = tree
    drawing._show([Text("a")], "where")
    drawing._show([Text("b")], "where")
    shell.execution_count += 1
    drawing._show([Text("c")], "where")
    assert [how for how, _, _ in displayed] == ["new", "changed", "new"]
    assert displayed[1][2] == "a\nb\nwhere"


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal gets the tree as text."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None)))
    assert notebook_shell() is None
    shell = Shell()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert notebook_shell() is shell
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook_shell() is None


# ---------------------------------------------------------------- what is shown
class Tags(HTMLParser):
    """The tags that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style", "scope"}


TABLE = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_names_are_text_and_values_are_not_shown(tmp_path: Path) -> None:
    """Of graphs, runs, scopes, files and plugins; a run shows neither its input nor an exception's message."""

    @node(name=HOSTILE)
    def fail(value: str) -> str:
        raise ValueError(value)

    with SyncStore(layers=[Persistence(to=f"sqlite:///{tmp_path}/<script>.db")]) as store:
        graph = Graph(fail, name=HOSTILE, store=store)
        with pytest.raises(ValueError, match="hunter2"):
            graph.run_sync("hunter2", run_id=HOSTILE)
        runs = SyncRuns(store)
        record = PluginRecord(HOSTILE, HOSTILE, HOSTILE, status="failed", reason=HOSTILE)
        shown = [
            store.scope(HOSTILE)._repr_html_(),
            runs._repr_html_() or "",
            runs.list()._repr_html_(),
            runs.get(HOSTILE)._repr_html_(),
            Plugins([record])._repr_html_(),
            notebook._html([Text("<script>"), Text("<b>", style="red")], HOSTILE),
        ]
    for html in shown:
        assert Tags(html).tags <= TABLE | {"pre", "span"}
        assert "&lt;script&gt;" in html
        assert "\x1b" not in html
        assert "hunter2" not in html
    assert "ValueError at" in shown[1]


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (Sleep("1h", name="ok"), "until 2001-09-09 02:46:40"),
        (Ask(bool, question="hunter2?", name="ok"), "asks at ok#1"),
    ],
)
def test_a_run_shows_where_it_is_and_why_it_does_not_continue(tmp_path: Path, work: Any, why: str) -> None:
    """Alone and among others; a question by its id."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db", clock=FakeClock()) as store:
        with pytest.raises(RunSuspendedError):
            Graph(work, name="shop", store=store).run_sync("x", run_id="r")
        run, page = SyncRuns(store).get("r"), SyncRuns(store).list()
    for shown in (run._repr_html_(), page._repr_html_()):
        cells = re.findall(r">([^<>]+)</t[dh]>", shown)
        assert {"suspended", "shop", "ok", "2001-09-09 01:46:40", why} <= set(cells)
        assert "hunter2" not in shown


def test_showing_runs_opens_nothing_and_never_fails(tmp_path: Path) -> None:
    """A store that is not open, or closed, is shown by its `repr`."""
    store = SyncStore(f"sqlite:///{tmp_path}/state.db")
    runs = SyncRuns(store)
    assert runs._repr_html_() is None
    assert not (tmp_path / "state.db").exists()
    with store:
        assert "<table>" in (runs._repr_html_() or "")
    assert runs._repr_html_() is None
    with pytest.raises(PocketError):
        runs.list()


def test_secrets_of_a_url_are_not_in_a_table() -> None:
    """As in its `repr`."""
    store = SyncStore("postgresql://user:hunter2@db.example/state")
    assert "hunter2" not in store._repr_html_()
    assert "db.example" in store._repr_html_()


def test_a_pocket_is_shown_as_its_plugins() -> None:
    """A row for each, and its records are a tuple as before."""
    pocket = Pocket(autoload=False)
    assert len(re.findall("<tr>", pocket._repr_html_())) == len(pocket.plugins) + 1
    assert pocket.plugins == tuple(pocket.plugins)
