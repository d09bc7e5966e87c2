"""Finds the traces that a command is about: opens the index of a trace file, and resolves RUN."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocket_plug.errors import ConfigError, UnknownRunError, suggest

from .output import echo, plural, progress

if TYPE_CHECKING:
    from pocket_plug.traces.index import TraceIndex
    from pocket_plug.traces.open_spans import OpenSpan
    from pocket_plug.traces.recorded import Trace
    from pocket_plug.traces.summary import RunSummary


def _or_default(_context: click.Context, _parameter: click.Parameter, given: Path | None) -> Path:
    from pocket_plug.traces.recorded import DEFAULT_FILE  # here, since the help doesn't need it

    return given or DEFAULT_FILE


in_file = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    callback=_or_default,
    help="The trace file.  [default: .pocket_plug/traces.jsonl]",
)


LARGE = 5_000_000
"""For a file of more bytes, a terminal shows the progress of reading."""


@contextmanager
def opened_index(path: Path) -> Generator[TraceIndex]:
    """The index of a trace file; says how many lines could not be read."""
    from pocket_plug.traces.index import TraceIndex

    with readable(path):
        size = path.stat().st_size if path.exists() else 0
        with progress("reading", size if size > LARGE else 0) as advance:
            index = TraceIndex(path, advance=advance)
    with index:
        if index.unreadable:
            say_unreadable(path, index.unreadable)
        yield index


@contextmanager
def readable(path: Path) -> Generator[None]:
    """Raise errors of reading as errors that name the file and what to do."""
    try:
        yield
    except FileNotFoundError:
        raise no_file(path) from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; name another file") from error


def no_file(path: Path) -> ConfigError:
    """The error for a missing trace file."""
    return ConfigError(
        f"there is no file {path}. `pocket-plug run --trace` and observe() create one; or name another file"
    )


def say_unreadable(path: Path, lines: int) -> None:
    """Say how many lines could not be read."""
    echo(f"{path}: {plural(lines, 'line')} could not be read: not OTLP/JSON, or incomplete", err=True)


def found_traces(path: Path, wanted: str | None, title: str = "RUN") -> tuple[list[Trace], list[OpenSpan]]:
    """All traces of the wanted run, ordered by start, and their open spans."""
    from pocket_plug.traces.recorded import traces_of

    with opened_index(path) as index:
        ids = traces_of_run(index, wanted, path, title)
        spans = [*index.spans(ids)]
        still_open = index.open_spans(ids)
    if not spans:
        raise UnknownRunError(f"there is no trace {wanted} in {path}. `pocket-plug trace ls` lists the runs")
    return traces_of(spans)[::-1], still_open


def traces_of_run(index: TraceIndex, wanted: str | None, path: Path, title: str = "RUN") -> set[str]:
    """The trace ids of the wanted run, or of the wanted execution, or the wanted trace id itself."""
    runs = [*index.runs()]
    if wanted is None and not runs:
        return {_newest(index, path)}
    if wanted is not None and is_trace_id(wanted) and wanted not in {run.run_id for run in runs}:
        return {wanted}
    return {run.trace_id for run in executions(runs, wanted, path, title)}


def is_trace_id(text: str) -> bool:
    """Does it look like the id of a trace?"""
    return len(text) == 32 and all(char in "0123456789abcdef" for char in text)


def executions(runs: Sequence[RunSummary], wanted: str | None, path: Path, title: str = "RUN") -> list[RunSummary]:
    """The executions of the wanted run, ordered by start. `wanted`: its id, the first characters of it, or the name of its
    graph; None: the newest run.

    A `#2` at the end means only the second execution. `runs` are sorted, the newest first. `title`: the argument's name.
    """
    if wanted is not None and not re.sub(r"#\d*$", "", wanted):  # as by an unset shell variable; each id begins with ""
        raise click.UsageError(
            f"{title} is empty; give a run's id, or its first characters: `pocket-plug trace ls` lists the runs"
        )
    if not runs:
        raise UnknownRunError(f"there are no runs in {path}; `pocket-plug run --trace` and observe() record runs")
    if wanted is None:
        wanted = runs[0].run_id
    name, mark, number = wanted.rpartition("#")
    if not (mark and number.isdecimal()) or wanted in {run.run_id for run in runs}:
        name, number = wanted, ""
    run_id = _run_id(runs, name, path)
    found = [run for run in reversed(runs) if run.run_id == run_id]
    if not number:
        return found
    if not 0 < int(number) <= len(found):
        raise UnknownRunError(f"run {run_id!r} has {plural(len(found), 'execution')} in {path}, but no #{number}")
    return [found[int(number) - 1]]


def _run_id(runs: Sequence[RunSummary], wanted: str, path: Path) -> str:
    names = dict.fromkeys(run.run_id for run in runs)
    begun = [name for name in names if name.startswith(wanted)]
    if wanted in names:
        return wanted
    if newest := [run.run_id for run in runs if run.graph == wanted]:
        return newest[0]
    if len(begun) == 1:
        return begun[0]
    if begun:
        several = ", ".join(begun[:5]) + (", …" if len(begun) > 5 else "")
        raise UnknownRunError(
            f"{len(begun)} runs in {path} begin with {wanted!r}: {several}. Give more characters of the id"
        )
    close = suggest(wanted, [*names, *dict.fromkeys(run.graph for run in runs)])
    raise UnknownRunError(
        f"there is no run {wanted!r} in {path}, nor a graph with this name.{close} `pocket-plug trace ls` lists the runs"
    )


def _newest(index: TraceIndex, path: Path) -> str:
    """The id of the newest trace, for a file without runs."""
    newest = index.newest()
    if newest is None:
        raise UnknownRunError(f"there are no traces in {path}; `pocket-plug run --trace` and observe() write traces")
    return newest
