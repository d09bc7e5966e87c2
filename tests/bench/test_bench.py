"""The benchmark itself, on rows that need no peers. No test depends on its figures."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from .harness import ROWS, Bench, Effort, Result, Row, measure, select
from .modules import MODULES
from .table import summary, table

ROOT = Path(__file__).parents[2]
FAST = Effort(rounds=2, samples=2, seconds=0.0001)


def made(function: Callable[[Bench], None]) -> Result:
    return measure(Row(function), FAST)


def test_every_kind_of_case_is_measured() -> None:
    """Statements and functions, sync and async, by CPU or wall time, and values that the row has measured itself."""

    async def three(times: int) -> None:
        for _ in range(3 * times):
            await asyncio.sleep(0)

    def trivial(bench: Bench) -> None:
        """what little things cost

        In a row of its own.
        """
        bench.case("statement", "items.append(i)", items=[])
        bench.case("awaiting", "await sleep(0)", sleep=asyncio.sleep)
        bench.case("function", three, per=3, wall=True)
        bench.value("by hand", 7.0)

    result = made(trivial)
    assert (result.row, result.title) == ("test_bench.trivial", "what little things cost")
    assert list(result.values) == ["statement", "awaiting", "function", "by hand"]
    assert min(result.values.values()) > 0


def test_no_two_turns_of_a_statement_are_alike() -> None:
    """`i` counts on from one sample to the next; otherwise a database would get values that it has already."""
    items: list[int] = []
    made(lambda bench: bench.case("statement", "items.append(i)", items=items))
    assert items == list(range(len(items)))


def test_what_a_row_entered_is_left_on_the_loop_that_its_cases_ran_on() -> None:
    """Async context managers too, after the measurement."""
    loops: list[asyncio.AbstractEventLoop] = []

    class Resource:
        async def __aenter__(self) -> Resource:
            loops.append(asyncio.get_running_loop())
            return self

        async def use(self) -> None:
            assert loops == [asyncio.get_running_loop()]

        async def __aexit__(self, *_: object) -> None:
            loops.append(asyncio.get_running_loop())

    made(lambda bench: bench.case("used", "await resource.use()", resource=bench.enter(Resource())))
    assert len(loops) == 2
    assert loops[0] is loops[1]


def test_what_takes_longer_than_its_budget_has_no_further_turn() -> None:
    """One very slow peer does not delay the benchmark."""
    turns: list[int] = []
    row = Row(lambda bench: bench.case("slow", turns.append))
    result = measure(row, Effort(rounds=9, samples=9, seconds=0, budget=0))
    assert turns == [1]
    assert result.values["slow"] > 0


def test_what_only_the_first_time_takes_is_not_measured() -> None:
    """Imports and the like: a slow first turn does not reduce the number of repetitions of the later ones."""
    turns: list[int] = []

    def slow_at_first(times: int) -> None:
        began = time.process_time()
        while not turns and time.process_time() - began < FAST.seconds:
            pass
        turns.extend([times] * times)

    made(lambda bench: bench.case("slow at first", slow_at_first))
    assert turns[0] == 1
    assert turns[-1] > 1


def test_a_target_is_a_ratio_to_others_together_or_a_limit() -> None:
    """The table shows each case's result, and the summary the targets that were missed."""

    def targets(bench: Bench) -> None:
        for name, value in {"ours": 3.0, "theirs": 1.5, "floor": 0.5}.items():
            bench.value(name, value)
        bench.target("ours", 1.5, "theirs", "floor")
        bench.target("ours", 5, "floor")
        bench.target("floor", 0.5)
        bench.target("ours", 2, "floor", beyond=("floor", "theirs"))

    result = made(targets)
    assert [(ratio, met) for _, ratio, met in result.reached()] == [
        (1.5, True),
        (6.0, False),
        (0.5, True),
        (4.0, False),
    ]
    console = Console(file=io.StringIO(), width=200)
    console.print(table(result, framed=False))
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == [
        "case µs reached to reach",
        "ours 3.00 1.50 ≤ 1.5 x theirs + floor met",
        "6.00 ≤ 5 x floor missed",
        "4.00 ≤ 2 x floor, beyond what theirs loses missed",
        "theirs 1.50",
        "floor 0.500 ≤ 0.5 met",
    ]
    assert summary([result], ["store.set"]).splitlines() == [
        "2 of 4 targets met",
        "  missed: test_bench.targets: ours 6.00, to reach 5",
        "  missed: test_bench.targets: ours 4.00, to reach 2",
        "  not measured: store.set",
    ]


def test_rows_are_found_by_a_part_of_their_name() -> None:
    """Each has a name and a title of its own."""
    files = {module.__name__.rpartition(".")[2] for module in MODULES}
    assert {row.name.partition(".")[0] for row in ROWS} == files
    assert len({row.name for row in ROWS}) == len({row.title for row in ROWS}) == len(ROWS)
    assert [row.name for row in select("sqlite.set")] == ["sqlite.set_process", "sqlite.set_power"]
    assert [row.name for row in select("nodes.*_sync")] == ["nodes.node_sync"]


def test_a_span_is_compared_with_one_of_the_same_attributes() -> None:
    """Rows of tracing refuse other comparisons: if our spans get a new attribute, the bare spans have to get it too."""
    for name in ("node_exported", "run_of_one_node_traced"):
        command = [sys.executable, "-m", "tests.bench", "--only", f"tracing.{name}", "--quick"]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "not measured" not in answer.stdout, answer.stderr


def test_make_bench_prints_tables_and_writes_json(tmp_path: Path) -> None:
    """`python -m tests.bench`, with each row in a process of its own; plain text without a terminal."""
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tests.bench", "--only", "import_time.imported", "--quick", "--json", str(file)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1 of 1 targets met" in answer.stdout
    assert "\x1b" not in answer.stdout
    (row,) = json.loads(file.read_text("utf-8"))["rows"]
    assert row["targets"] == [{"case": "pocket_plug", "limit": 0, "of": [], "beyond": None, "ratio": 0.0, "met": True}]
