"""What a trace file says in short, in an SQLite file beside it: where each trace lies, its runs, and what each span was.

It is made of the trace file alone and read on from where it was left, so it may be lost: it is made anew where it isn't
there, is damaged, or is of another file. Where the folder can't be written to, it is in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from heapq import merge
from pathlib import Path
from typing import Self

from opentelemetry.util.types import AnyValue

from pocket_plug.primitives.files import make_file

from .figures import Figures, figures
from .open_spans import OpenSpan, open_spans
from .recorded import RecordedSpan, requests_in
from .summary import RunSummary, SpanSummary, summaries

__all__ = ["Stats", "TraceIndex"]

VERSION = 2
"""Of the tables: `pragma user_version`. An index of another version is made anew."""

HEAD = 4096
"""By so many bytes at its beginning a file is known again."""

LATEST = 2**63 - 1
"""SQLite's integers end here, and times of OTLP at twice that."""

_PLAIN = re.compile(r"[\w.:-]+", re.ASCII)
"""A text that is the same in JSON, whoever writes it: some escape what isn't ASCII, or / and <, others don't."""

_TABLES = """
drop table if exists file;
drop table if exists trace;
drop table if exists line;
drop table if exists span;
drop table if exists run;
create table file (inode integer, digest blob, read integer, unreadable integer);
create table trace (number integer primary key, trace_id text unique);
create table line (trace integer, start integer, primary key (trace, start)) without rowid;
create table span (
    trace integer, id text, parent text, start integer, end integer, failed integer, unseen_errors integer,
    retries integer, is_run integer,
    run_id text, graph text, node text, outcome text, error text, primary key (trace, id)
) without rowid;
create table run (
    trace integer, run_id text, graph text, outcome text, error text, start integer, duration integer,
    spans integer, errors integer, retries integer, trace_id text
);
create index run_start on run (start);
create index run_trace on run (trace);
create index span_error on span (error) where failed;
create index span_node on span (graph, node, start, end, failed, retries) where node is not null;
"""
"""The columns of `span` are the fields of SpanSummary, those of `run` of RunSummary, each behind the number of the trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(Figures):
    """The runs of a graph, or the visits of a node; `node` is None for the runs.

    `errors` counts the runs that didn't end well, or the visits that failed for good, `retries` how often nodes' work was tried
    again.
    """

    graph: str
    node: str | None


class TraceIndex:
    """The index of a trace file, up to date when it is opened; what goes on right now is read from beside the file.

    `advance` is called with the number of bytes read. `unreadable` counts lines as `TraceFile.unreadable` does. Close it,
    or use it as a block. Raises OSError where there is neither the file nor a run that goes on.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        advance: Callable[[int], None] = lambda more: None,
    ) -> None:
        self.unreadable = 0
        self._now = int(clock() * 1e9)
        self._open = open_spans(path, clock)
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(path.open("rb"))
            except FileNotFoundError:
                if not self._open:
                    raise
                self._file = opened.enter_context(open(os.devnull, "rb"))
            self._tables = opened.enter_context(closing(self._made(path.with_name(f"{path.name}.index"), advance)))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._opened.close()

    # ------------------------------------------------------------ making it
    def _made(self, path: Path, advance: Callable[[int], None]) -> sqlite3.Connection:
        """In the file, or in memory where that can't be used: it may be read-only, damaged, or on a full disk."""
        if self._file.name != os.devnull:
            with suppress(OSError, sqlite3.Error):
                make_file(path)
                return self._up_to_date(sqlite3.connect(path, isolation_level=None), advance)
            with suppress(OSError):
                path.unlink()  # the next one makes it anew
        return self._up_to_date(sqlite3.connect(":memory:", isolation_level=None), advance)

    def _up_to_date(self, tables: sqlite3.Connection, advance: Callable[[int], None]) -> sqlite3.Connection:
        try:
            with _transaction(tables):
                read = self._left_at(tables)
                self._read_on(tables, read, advance)
        except BaseException:
            tables.close()
            raise
        return tables

    def _left_at(self, tables: sqlite3.Connection) -> int:
        """Where to read on; at 0, and without anything in the tables, if they are of another file."""
        (version,) = tables.execute("pragma user_version").fetchone()
        row = (
            tables.execute("select inode, digest, read, unreadable from file").fetchone()
            if version == VERSION
            else None
        )
        if row is not None and tuple(row[:3]) == self._known(row[2]):
            self.unreadable = row[3]
            return int(row[2])
        for statement in _TABLES.split(";"):  # not by executescript, which would commit
            tables.execute(statement)
        tables.execute(f"pragma user_version = {VERSION}")
        self.unreadable = 0
        return 0

    def _known(self, read: int) -> tuple[int, bytes, int] | None:
        """By what the file is known again, as far as it was read; None if it is shorter."""
        status = os.fstat(self._file.fileno())
        self._file.seek(0)
        digest = hashlib.blake2b(self._file.read(min(read, HEAD)), digest_size=16).digest()
        return None if status.st_size < read else (status.st_ino, digest, read)

    def _read_on(self, tables: sqlite3.Connection, read: int, advance: Callable[[int], None]) -> None:
        touched: set[int] = set()
        start = read
        self._file.seek(start)
        cut = 0
        for line in self._file:
            requests, is_whole = requests_in(line)
            if not requests and not is_whole and not line.endswith(b"\n"):
                cut = 1  # somebody is writing it, or was killed over it
                break
            self.unreadable += not is_whole
            for _, spans in requests:
                touched |= _add(tables, read, spans)
            read += len(line)
            advance(len(line))
        for trace in touched:
            _sum_up(tables, trace)
        if read > start or not start:  # else nothing is written, which would wait for the disk
            tables.execute("delete from file")
            tables.execute("insert into file values (?, ?, ?, ?)", (*(self._known(read) or ()), self.unreadable))
        self.unreadable += cut

    # ------------------------------------------------------------ asking it
    def runs(self) -> Iterator[RunSummary]:
        """The executions of runs, that which began last first, those that go on included."""
        going_on = self._going_on()
        alive = {each.span.span_id for each in self._open if each.alive}
        live = [
            run
            for id, spans in going_on.items()
            for run in summaries(id, spans, alive, self._now, max(each.seen for each in self.going_on({id})))
        ]
        stored = (
            RunSummary(*row[1:])
            for row in self._tables.execute("select * from run order by start desc")
            if row[-1] not in going_on
        )
        live.sort(key=lambda run: run.start, reverse=True)
        return merge(stored, live, key=lambda run: run.start, reverse=True)

    def _going_on(self) -> dict[str, list[SpanSummary]]:
        """By trace, the spans of those that have open ones. One that has ended since counts as the file has it."""
        found: dict[str, dict[str, SpanSummary]] = {}
        for each in self._open:
            found.setdefault(each.span.trace_id, {})[each.span.span_id] = SpanSummary.of(each.span)
        for trace_id, spans in found.items():
            spans |= {span.id: span for span in _spans_of(self._tables, self._number(trace_id))}
        return {id: sorted(spans.values(), key=lambda span: span.start) for id, spans in found.items()}

    def _number(self, trace_id: str) -> int:
        """The number of a trace; -1 is that of none."""
        row = self._tables.execute("select number from trace where trace_id = ?", (trace_id,)).fetchone()
        return -1 if row is None else int(row[0])

    def newest(self) -> str | None:
        """The id of the trace that began last, in a file with or without runs."""
        row = self._tables.execute(
            "select trace_id from span join trace on number = trace order by start desc limit 1"
        ).fetchone()
        return None if row is None else str(row[0])

    def ended_before(self, moment: float) -> set[str]:
        """The traces of which nothing ended later, in nanoseconds since the epoch."""
        rows = self._tables.execute(
            "select trace_id from span join trace on number = trace group by trace having max(end) < ?", (moment,)
        )
        ended = {id for (id,) in rows} | {each.span.trace_id for each in self._open if each.seen < moment}
        return ended - {each.span.trace_id for each in self._open if each.seen >= moment}

    def with_error(self, kind: str) -> set[str]:
        """The traces in which something failed for good with an error of this type, named with its module or without."""
        rows = self._tables.execute(
            """select distinct trace_id from span join trace on number = trace
            where failed and (error = :kind or substr(error, -length(:kind) - 1) = '.' || :kind)""",
            {"kind": kind},
        )
        return {id for (id,) in rows}

    def with_attribute(self, name: str, value: str) -> set[str]:
        """The traces in which a span or its resource has an attribute with this value, which is compared as text."""
        found = {each.span.trace_id for each in self._open if _has(each.span, name, value)}
        key = f'"{name}"'.encode() if _PLAIN.fullmatch(name) else b""
        # a text of letters and digits, or a whole number; other numbers are written in many ways
        plain = value.encode() if value.isascii() and value.isalnum() and value not in ("inf", "nan") else b""
        self._file.seek(0)
        for line in self._file:
            if (
                key in line and plain in line
            ):  # a look at the bytes is many times faster than to decode what isn't wanted
                for _, spans in requests_in(line)[0]:
                    found |= {span.trace_id for span in spans if _has(span, name, value)}
        return found

    def spans(self, traces: Collection[str]) -> Iterator[RecordedSpan]:
        """All spans of these traces: those that go on, then those that have ended, read from where they lie."""
        yield from (each.span for each in self.going_on(traces))
        of_all = (self._tables.execute("select start from line where trace = ?", (self._number(id),)) for id in traces)
        for start in sorted({start for rows in of_all for (start,) in rows}):
            self._file.seek(start)
            for _, spans in requests_in(self._file.readline())[0]:
                yield from (span for span in spans if span.trace_id in traces)

    def going_on(self, traces: Collection[str]) -> list[OpenSpan]:
        """What of these traces goes on, or did when its process was killed."""
        return [each for each in self._open if each.span.trace_id in traces]

    def stats(self, *, graph: str | None = None, since: int = 0) -> list[Stats]:
        """Of each graph its runs, then its nodes, that which took longest in all first; what hasn't ended isn't counted.

        `since`: begun then or later, in nanoseconds since the epoch.
        """
        of: dict[tuple[str, str | None], list[tuple[int, bool, int]]] = {}
        for of_graph, node, *numbers in self._tables.execute(
            """select * from (
                select graph, null as node, duration, outcome not in ('success', 'suspended'), retries from run
                where outcome not in ('unfinished', 'interrupted') and start >= :since
                union all select graph, node, end - start, failed, retries from span
                where node is not null and start >= :since
            ) where :graph is null or graph = :graph""",
            {"since": since, "graph": graph},
        ):
            of.setdefault((of_graph, node), []).append(tuple(numbers))
        found = [
            Stats(
                **figures((took for took, _, _ in rows), sum(row[1] for row in rows), sum(row[2] for row in rows)),
                graph=of_graph,
                node=node,
            )
            for (of_graph, node), rows in of.items()
        ]
        whole = {each.graph: each.total for each in found if each.node is None}
        return sorted(
            found,
            key=lambda each: (-whole.get(each.graph, 0), each.graph, each.node is not None, -each.total, each.node),
        )


def _has(span: RecordedSpan, name: str, value: str) -> bool:
    return any(name in each and _as_text(each[name]) == value for each in (span.attributes, span.resource))


def _as_text(value: AnyValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- tables
@contextmanager
def _transaction(tables: sqlite3.Connection) -> Generator[None]:
    tables.execute("begin immediate")
    yield
    tables.execute("commit")


def _add(tables: sqlite3.Connection, start: int, spans: Sequence[RecordedSpan]) -> set[int]:
    """The spans of the line that starts there. Gives the numbers of their traces."""
    numbers: dict[str, int] = {}
    for id in {span.trace_id for span in spans}:
        tables.execute("insert or ignore into trace (trace_id) values (?)", (id,))
        (numbers[id],) = tables.execute("select number from trace where trace_id = ?", (id,)).fetchone()
    tables.executemany("insert or ignore into line values (?, ?)", [(trace, start) for trace in numbers.values()])
    tables.executemany(
        "insert or replace into span values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (numbers[span.trace_id], *short._replace(start=min(short.start, LATEST), end=min(short.end, LATEST)))
            for span in spans
            for short in [SpanSummary.of(span)]
        ],
    )
    return {*numbers.values()}


def _sum_up(tables: sqlite3.Connection, trace: int) -> None:
    """The runs of a trace, anew."""
    tables.execute("delete from run where trace = ?", (trace,))
    (trace_id,) = tables.execute("select trace_id from trace where number = ?", (trace,)).fetchone()
    tables.executemany(
        "insert into run values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(trace, *astuple(run)) for run in summaries(trace_id, _spans_of(tables, trace))],
    )


def _spans_of(tables: sqlite3.Connection, trace: int) -> list[SpanSummary]:
    rows = tables.execute("select * from span where trace = ? order by start", (trace,))
    return [SpanSummary(*row[1:]) for row in rows]
