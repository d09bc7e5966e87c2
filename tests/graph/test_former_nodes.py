"""In a notebook, a graph is run that has nodes of before: the cells of its nodes were changed and run again, its own was not."""

from __future__ import annotations

import asyncio
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CELL = """
import pocket_plug as pp

@pp.node
def plus(n: int) -> int:
    return n + 1

class Twice(pp.Node[int, int]):
    def exec(self, n: int) -> int:
        return 2 * n

@pp.node.post
def keep(store: pp.SyncWriter, n: int) -> int:
    return n
"""
GRAPHS = """
twice = Twice()
graph = pp.Graph(plus >> twice >> keep, name="sums")
outer = pp.Graph(pp.each(graph), name="outer")
"""


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace of `__main__` in a notebook in which both cells have run."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    shell = SimpleNamespace(execution_count=1, compile=SimpleNamespace(format_code_name=lambda name: None))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    exec(compile(CELL + GRAPHS, "cell 1", "exec"), vars(main))  # noqa: S102 - as a notebook does
    return vars(main)


def warned(cells: dict[str, Any], run: str) -> list[str]:
    """What the next cell, which runs a graph, warns of; each warning is about the cell's own line."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and (shell := ipython.get_ipython()) is not None:
        shell.execution_count += 1
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        exec(compile(run, "last cell", "exec"), cells)  # noqa: S102
    assert {each.filename for each in found} <= {"last cell"}
    return [str(each.message) for each in found]


RUNS = ("graph.run_sync(1)", "outer.run_sync([1])")


def test_a_former_node_is_named_once_with_its_new_place(cells: dict[str, Any]) -> None:
    """Functions and classes, also in a nested graph; the graph that was run is the one to make again."""
    changed = CELL.replace("n + 1", "n + 2").replace("2 * n", "3 * n")
    exec(compile(changed, "cell 2", "exec"), cells)  # noqa: S102
    for name, run in zip(("sums", "outer"), RUNS, strict=True):
        assert warned(cells, run) == [
            f"graph {name!r} still has the former node 'plus'; it was defined again in cell 2, line 4. Run the cell again that "
            "makes the graph",
            f"graph {name!r} still has the former node 'twice'; it was defined again in cell 2, line 9. Run the cell again that "
            "makes the graph",
        ]
    exec(compile(GRAPHS, "cell 3", "exec"), cells)  # noqa: S102
    assert [warned(cells, run) for run in RUNS] == [[], []]


def test_an_awaited_run_and_a_stream_warn_too(cells: dict[str, Any]) -> None:
    """The warning's line is that of the call."""
    exec(compile(CELL.replace("return n\n", "return -n\n"), "cell 2", "exec"), cells)  # noqa: S102
    cells["asyncio"] = asyncio
    for way in ("await graph.run(1)", "async for _ in graph.stream(1):\n        pass"):
        found = warned(cells, f"async def main():\n    {way}\nasyncio.run(main())")
        assert [text.partition(";")[0] for text in found] == ["graph 'sums' still has the former node 'keep'"]


def test_each_cell_is_told_once(cells: dict[str, Any]) -> None:
    """A cell may make many runs, and looking takes as long as a short run."""
    assert warned(cells, RUNS[0]) == []
    exec(CELL.replace("n + 1", "n + 2"), cells)  # noqa: S102
    for _ in range(2):
        assert len(warned(cells, f"{RUNS[0]}; {RUNS[0]}")) == 1


def test_a_program_that_imports_ipython_is_no_notebook(cells: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may import it: a run without a shell looks at nothing."""
    exec(CELL.replace("n + 1", "n + 2"), cells)  # noqa: S102
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert warned(cells, RUNS[0]) == []


def test_the_same_code_is_no_other_node(cells: dict[str, Any]) -> None:
    """A cell that has run again, or whose lines were moved. A name that has something else by now is no node either."""
    exec(compile(f"# moved\n{CELL}", "cell 2", "exec"), cells)  # noqa: S102
    cells["Twice"] = 7
    assert [warned(cells, run) for run in RUNS] == [[], []]


def test_a_program_gets_no_warning(cells: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are given twice on purpose there, and the check takes time."""
    monkeypatch.delitem(sys.modules, "IPython")
    exec(CELL.replace("n + 1", "n + 2"), cells)  # noqa: S102
    assert [warned(cells, run) for run in RUNS] == [[], []]
