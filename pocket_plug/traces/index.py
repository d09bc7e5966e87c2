"""An index of a trace file, in an SQLite file beside it: where each trace is in the file, its runs, and a summary of each span.

The index is made from the trace file alone, and each use adds what was appended since. So it may be lost: it is made again if it
is missing, damaged, or belongs to another file. If the folder isn't writable, it is in memory.
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

VERSION = 3
"""The version of the tables, in `pragma user_version`. An index of another version is made again."""

HEAD = 4096
"""A hash of this many bytes at its beginning identifies a file."""

LATEST = 2**63 - 1
"""SQLite's largest integer; times in OTLP can be twice as large."""

_PLAIN = re.compile(r"[\w.:-]+", re.ASCII)
"""A text that all JSON encoders write in the same way: some escape non-ASCII characters, or / and <."""

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
    run_id text, graph text, node text, outcome text, error text, place text,
    is_users integer, primary key (trace, id)
) without rowid;
create table run (
    trace integer, run_id text, graph text, outcome text, error text, place text, start integer, duration integer,
    spans integer, errors integer, retries integer, trace_id text
);
create index run_start on run (start);
create index run_trace on run (trace);
create index span_error on span (error) where failed;
create index span_node on span (graph, node, start, end, failed, retries) where node is not null;
"""
"""After the number of the trace, `span` has the fields of SpanSummary as columns, and `run` those of RunSummary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(Figures):
    """Statistics of the runs of a graph, or of the visits of a node; `node` is None for runs.

    `failed` counts runs that neither succeeded nor were suspended, or visits that failed finally; `retries` counts the retries.
    """

    graph: str
    node: str | None
    failed: int


class TraceIndex:
    """The index of a trace file, brought up to date when it is opened. Open spans are read from the files beside the trace file.

    `advance` is called with the number of bytes read. `unreadable` counts lines as `TraceFile.unreadable` does. Close it, or use
    it in a `with` block. Raises OSError if there is neither the file nor an open span.
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
        """Close the index and the trace file."""
        self._opened.close()

    # ------------------------------------------------------------ updating
    def _made(self, path: Path, advance: Callable[[int], None]) -> sqlite3.Connection:
        """The tables in the file at `path`, or in memory if it can't be used: it may be read-only, damaged, or on a full disk."""
        if self._file.name != os.devnull:
            with suppress(OSError, sqlite3.Error):
                make_file(path)
                return self._up_to_date(sqlite3.Connection(path, isolation_level=None), advance)
            with suppress(OSError):
                path.unlink()  # the next process makes it again
        return self._up_to_date(sqlite3.Connection(":memory:", isolation_level=None), advance)

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
        """The position from which to read on. If the tables belong to another file, empty them and return 0."""
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
        """What identifies the file, given how far it was read; None if it is shorter."""
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
                cut = 1  # a process is writing this line, or was killed while it did
                break
            self.unreadable += not is_whole
            for _, spans in requests:
                touched |= _add(tables, read, spans)
            read += len(line)
            advance(len(line))
        for trace in touched:
            _sum_up(tables, trace)
        if read > start or not start:  # a write would wait for the disk
            tables.execute("delete from file")
            tables.execute("insert into file values (?, ?, ?, ?)", (*(self._known(read) or ()), self.unreadable))
        self.unreadable += cut

    # ------------------------------------------------------------ queries
    def runs(self) -> Iterator[RunSummary]:
        """The executions of runs, also of running ones, the newest first."""
        going_on = self._open_traces()
        alive = {each.span.span_id for each in self._open if each.alive}
        live = [
            run
            for id, spans in going_on.items()
            for run in summaries(id, spans, alive, self._now, max(each.seen for each in self.open_spans({id})))
        ]
        stored = (
            RunSummary(*row[1:])
            for row in self._tables.execute("select * from run order by start desc")
            if row[-1] not in going_on
        )
        live.sort(key=lambda run: run.start, reverse=True)
        return merge(stored, live, key=lambda run: run.start, reverse=True)

    def _open_traces(self) -> dict[str, list[SpanSummary]]:
        """All spans of the traces that have open ones, by trace id. A span that has ended since is taken from the trace file."""
        found: dict[str, dict[str, SpanSummary]] = {}
        for each in self._open:
            found.setdefault(each.span.trace_id, {})[each.span.span_id] = SpanSummary.of(each.span)
        for trace_id, spans in found.items():
            spans |= {span.id: span for span in _spans_of(self._tables, self._number(trace_id))}
        return {id: sorted(spans.values(), key=lambda span: span.start) for id, spans in found.items()}

    def _number(self, trace_id: str) -> int:
        """The number of a trace, or -1 if there is no such trace."""
        row = self._tables.execute("select number from trace where trace_id = ?", (trace_id,)).fetchone()
        return -1 if row is None else int(row[0])

    def newest(self) -> str | None:
        """The id of the trace that began last, whether it has runs or not."""
        row = self._tables.execute(
            "select trace_id from span join trace on number = trace order by start desc limit 1"
        ).fetchone()
        return None if row is None else str(row[0])

    def ended_before(self, moment: float) -> set[str]:
        """The ids of traces whose spans all ended before a moment, in nanoseconds since the epoch."""
        rows = self._tables.execute(
            "select trace_id from span join trace on number = trace group by trace having max(end) < ?", (moment,)
        )
        ended = {id for (id,) in rows} | {each.span.trace_id for each in self._open if each.seen < moment}
        return ended - {each.span.trace_id for each in self._open if each.seen >= moment}

    def with_error(self, kind: str) -> set[str]:
        """The ids of traces in which a span failed finally with an error of this type, given with or without its module."""
        rows = self._tables.execute(
            """select distinct trace_id from span join trace on number = trace
            where failed and (error = :kind or substr(error, -length(:kind) - 1) = '.' || :kind)""",
            {"kind": _unicode(kind)},
        )
        return {id for (id,) in rows}

    def with_visit(self, node: str, shortest: float) -> set[str]:
        """The ids of traces with a visit of a node of this name that has ended, and took so many nanoseconds at least."""
        rows = self._tables.execute(
            "select distinct trace_id from span join trace on number = trace where node = ? and end - start >= ?",
            (_unicode(node), shortest),
        )
        return {id for (id,) in rows}

    def with_attribute(self, name: str, value: str) -> set[str]:
        """The ids of traces in which a span or its resource has an attribute with this value, compared as text."""
        found = {each.span.trace_id for each in self._open if _has(each.span, name, value)}
        key = f'"{name}"'.encode() if _PLAIN.fullmatch(name) else b""
        # letters and digits, or an integer: other values can be written in several ways
        plain = value.encode() if value.isascii() and value.isalnum() and value not in ("inf", "nan") else b""
        self._file.seek(0)
        for line in self._file:
            if key in line and plain in line:  # searching the bytes is many times faster than decoding each line
                for _, spans in requests_in(line)[0]:
                    found |= {span.trace_id for span in spans if _has(span, name, value)}
        return found

    def spans(self, traces: Collection[str]) -> Iterator[RecordedSpan]:
        """All spans of these traces: first the open ones, then those that have ended, which are read from the trace file."""
        yield from (each.span for each in self.open_spans(traces))
        of_all = (self._tables.execute("select start from line where trace = ?", (self._number(id),)) for id in traces)
        for start in sorted({start for rows in of_all for (start,) in rows}):
            self._file.seek(start)
            for _, spans in requests_in(self._file.readline())[0]:
                yield from (span for span in spans if span.trace_id in traces)

    def open_spans(self, traces: Collection[str]) -> list[OpenSpan]:
        """The open spans of these traces, also those that were open when their process was killed."""
        return [each for each in self._open if each.span.trace_id in traces]

    def stats(self, *, graph: str | None = None, since: int = 0) -> list[Stats]:
        """For each graph the statistics of its runs, then of its nodes; by total time, the largest first. Open spans don't count.

        `since`: only runs and visits that began at this time or later, in nanoseconds since the epoch.
        """
        of: dict[tuple[str, str | None], list[tuple[int, bool, int]]] = {}
        for of_graph, node, *numbers in self._tables.execute(
            """select * from (
                select graph, null as node, duration, outcome not in ('success', 'suspended'), retries from run
                where outcome not in ('unfinished', 'interrupted') and start >= :since
                union all select ifnull(graph, ''), node, end - start, failed, retries from span
                where node is not null and start >= :since
            ) where :graph is null or graph = :graph""",
            {"since": since, "graph": None if graph is None else _unicode(graph)},
        ):
            of.setdefault((of_graph, node), []).append(tuple(numbers))
        found = [
            Stats(
                **figures((took for took, _, _ in rows), sum(row[2] for row in rows)),
                graph=of_graph,
                node=node,
                failed=sum(row[1] for row in rows),
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


def _unicode(text: str) -> str:
    """A text from the command line, which may have bytes that aren't UTF-8, as SQLite takes it; no span has any."""
    return text.encode("utf-8", "backslashreplace").decode()


def _as_text(value: AnyValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- tables
@contextmanager
def _transaction(tables: sqlite3.Connection) -> Generator[None]:
    tables.execute("begin immediate")
    yield
    tables.execute("commit")


def _add(tables: sqlite3.Connection, start: int, spans: Sequence[RecordedSpan]) -> set[int]:
    """Add the spans of the line at the position `start`. Returns the numbers of their traces."""
    numbers: dict[str, int] = {}
    for id in {span.trace_id for span in spans}:
        tables.execute("insert or ignore into trace (trace_id) values (?)", (id,))
        (numbers[id],) = tables.execute("select number from trace where trace_id = ?", (id,)).fetchone()
    tables.executemany("insert or ignore into line values (?, ?)", [(trace, start) for trace in numbers.values()])
    tables.executemany(
        "insert or replace into span values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (numbers[span.trace_id], *short._replace(start=min(short.start, LATEST), end=min(short.end, LATEST)))
            for span in spans
            for short in [SpanSummary.of(span)]
        ],
    )
    return {*numbers.values()}


def _sum_up(tables: sqlite3.Connection, trace: int) -> None:
    """Replace the rows of a trace's runs."""
    tables.execute("delete from run where trace = ?", (trace,))
    (trace_id,) = tables.execute("select trace_id from trace where number = ?", (trace,)).fetchone()
    tables.executemany(
        "insert into run values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(trace, *astuple(run)) for run in summaries(trace_id, _spans_of(tables, trace))],
    )


def _spans_of(tables: sqlite3.Connection, trace: int) -> list[SpanSummary]:
    rows = tables.execute("select * from span where trace = ? order by start", (trace,))
    return [SpanSummary(*row[1:]) for row in rows]
