"""The benchmark: rows of cases, measured in turn in one process, and target ratios.

No row asserts anything: figures depend on the machine, and on its other users.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from statistics import median
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
Body = Callable[[int], Any]
"""Does its work so many times; `def` or `async def`."""


@dataclass(frozen=True)
class Effort:
    """How long to measure. Of a case's samples in a round the lowest counts; of its rounds the median."""

    rounds: int = 7
    samples: int = 3
    seconds: float = 0.02
    """How long one sample takes at least; what is shorter is repeated within it."""
    budget: float = 4.0
    """After so many seconds a case has no further turn."""
    many: int = 1_000_000
    """How much work stands for a lot of it."""


QUICK = Effort(rounds=3, samples=2, seconds=0.005, budget=1.0, many=100_000)


@dataclass
class Case:
    """One contender: what it does, and its time in each round, per unit of work."""

    name: str
    body: Body
    per: int
    wall: bool
    least: list[float] = field(default_factory=list)
    spent: float = 0.0
    times: int = 1


@dataclass(frozen=True)
class Target:
    """`case` may take at most `limit` times the sum of `of`; without `of`, at most `limit`.

    With `beyond` two cases, it may also take as much more as the second takes more than the first.
    """

    case: str
    limit: float
    of: tuple[str, ...]
    beyond: tuple[str, str] | None = None

    def __str__(self) -> str:
        said = f"≤ {self.limit:g}" + (f" x {' + '.join(self.of)}" if self.of else "")
        return f"{said}, beyond what {self.beyond[1]} loses" if self.beyond else said

    def ratio(self, values: dict[str, float]) -> float:
        value = values[self.case]
        if self.beyond:
            value -= values[self.beyond[1]] - values[self.beyond[0]]
        return value / (sum(values[name] for name in self.of) if self.of else 1)


@dataclass(frozen=True)
class Result:
    """The result of a row: a value for each case, in the order of the table, and the targets."""

    row: str
    title: str
    unit: str
    values: dict[str, float]
    targets: Sequence[Target]

    def reached(self) -> list[tuple[Target, float, bool]]:
        """Each target, the result, and whether the target is met."""
        ratios = [(target, target.ratio(self.values)) for target in self.targets]
        return [(target, ratio, ratio <= target.limit) for target, ratio in ratios]

    def as_json(self) -> dict[str, Any]:
        reached = [asdict(target) | {"ratio": ratio, "met": met} for target, ratio, met in self.reached()]
        return asdict(self) | {"targets": reached}


class Bench:
    """A row while it is set up and measured. A row's function gets a Bench and names its cases."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.unit = "µs"
        self.values: dict[str, float] = {}
        self.targets: list[Target] = []
        self._cases: list[Case] = []
        self._loop = asyncio.Runner()
        self._cleanup = ExitStack()

    def case(self, name: str, work: str | Body, /, *, per: int = 1, wall: bool = False, **names: Any) -> None:
        """Measure `work`: a statement with its names, in which `i` counts up; or a function of the number of repetitions.

        It is awaited if it is async, and stands for `per` units. Measured is the CPU time of all threads, or `wall` time.
        """
        body = _compiled(work, names) if isinstance(work, str) else work
        self._cases.append(Case(name, body, per, wall))
        self.values[name] = 0.0

    def value(self, name: str, value: float) -> None:
        """A value that the row has measured itself."""
        self.values[name] = value

    def target(self, case: str, limit: float, *of: str, beyond: tuple[str, str] | None = None) -> None:
        """A target: see `Target`."""
        self.targets.append(Target(case, limit, of, beyond))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a set-up step on the event loop of the async cases."""
        return self._loop.run(coroutine)

    def enter(self, manager: Any) -> Any:
        """Enter a context manager, sync or async, until the row has been measured."""
        if not hasattr(manager, "__aenter__"):
            return self._cleanup.enter_context(manager)
        entered = self.run(manager.__aenter__())
        self._cleanup.callback(lambda: self.run(manager.__aexit__(None, None, None)))
        return entered

    def measure(self) -> None:
        """Measure the cases in turn."""
        for case in self._cases:
            self._calibrate(case)
        for _ in range(self.effort.rounds):
            gc.collect()
            for case in self._cases:
                samples: list[float] = []
                while len(samples) < self.effort.samples and case.spent < self.effort.budget:
                    samples.append(self._sample(case))
                if samples:
                    case.least.append(min(samples))
        for case in self._cases:
            self.values[case.name] = median(case.least) / (case.times * case.per) * 1e6

    def _calibrate(self, case: Case) -> None:
        """Warm up, and find out how many repetitions one sample needs. If the budget is used up by then, the
        measurement is done.
        """
        seconds = self._sample(case)
        while case.spent < self.effort.budget and (seconds := self._sample(case)) < self.effort.seconds:
            case.times = max(case.times * 2, int(case.times * self.effort.seconds / max(seconds, 1e-7)))
        if case.spent >= self.effort.budget:
            case.least.append(seconds)

    def _sample(self, case: Case) -> float:
        clock = time.perf_counter if case.wall else time.process_time
        began = time.perf_counter()
        if inspect.iscoroutinefunction(case.body):
            seconds = self.run(_timed(case.body, case.times, clock))
        else:
            started = clock()
            case.body(case.times)
            seconds = clock() - started
        case.spent += time.perf_counter() - began
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._cleanup.close()
        finally:
            self._loop.close()


async def _timed(body: Body, times: int, clock: Callable[[], float]) -> float:
    started = clock()
    await body(times)
    return clock() - started


def _compiled(statement: str, names: dict[str, Any]) -> Body:
    """The loop around a statement, as timeit makes it: without a call in between, and with its names as local variables."""
    namespace = {**names, "count": itertools.count(), "islice": itertools.islice}
    colour = "async " if "await " in statement else ""
    source = f"{colour}def body({', '.join(['times', *(f'{name}={name}' for name in namespace)])}):\n"
    exec(f"{source}  for i in islice(count, times):\n    {statement}\n", namespace)  # noqa: S102 - the benchmark's own
    body: Body = namespace["body"]
    return body


# ---------------------------------------------------------------- rows
@dataclass(frozen=True)
class Row:
    """A function that sets up the cases of one row. Its name is that of its file and of the function: `store.get`."""

    function: Callable[[Bench], None]

    @property
    def name(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"

    @property
    def title(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or self.name).partition("\n")[0]


ROWS: list[Row] = []


def row(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
    """Register a function as a row. The first line of its docstring is the heading in the table."""
    ROWS.append(Row(function))
    return function


def select(pattern: str) -> list[Row]:
    """The rows whose name contains the pattern; * stands for any text."""
    return [row for row in ROWS if fnmatch(row.name, f"*{pattern}*")]


def measure(row: Row, effort: Effort) -> Result:
    """Set up and measure a row in this process."""
    silenced = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with Bench(effort) as bench:
            row.function(bench)
            bench.measure()
    finally:
        logging.disable(silenced)
    return Result(row.name, row.title, bench.unit, bench.values, bench.targets)
