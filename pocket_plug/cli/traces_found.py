"""Which traces of a file a command is about: the index of the file, opened, and what a RUN names in it."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocket_plug.errors import ConfigError, UnknownRunError, suggest

from .output import echo, progress
from .trees import plural

if TYPE_CHECKING:
    from pocket_plug.traces.index import TraceIndex
    from pocket_plug.traces.open_spans import OpenSpan
    from pocket_plug.traces.recorded import Trace
    from pocket_plug.traces.summary import RunSummary

in_file = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The trace file.  [default: .pocket_plug/traces.jsonl]",
)


LARGE = 5_000_000
"""Of a file of more bytes a terminal is shown how far it is read."""


def default_file() -> Path:
    """Where traces lie that nobody gave a place."""
    from pocket_plug.traces.recorded import DEFAULT_FILE

    return DEFAULT_FILE


@contextmanager
def opened_index(file: Path | None) -> Generator[TraceIndex]:
    """What is known of the traces in a file; says what could not be read."""
    from pocket_plug.traces.index import TraceIndex

    path = file or default_file()
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
    """An error of reading as one that names the file and the way out."""
    try:
        yield
    except FileNotFoundError:
        raise no_file(path) from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}. --file names another one") from error


def no_file(path: Path) -> UnknownRunError:
    """What to raise where there is none."""
    return UnknownRunError(f"there is no file {path}. `pocket-plug run --trace` and observe() make one")


def say_unreadable(path: Path, lines: int) -> None:
    """Say of how many lines something couldn't be read."""
    echo(f"{path}: {plural(lines, 'line')} could not be read, for being no OTLP/JSON or cut off", err=True)


def found_traces(path: Path, wanted: str | None, title: str = "RUN") -> tuple[list[Trace], list[OpenSpan]]:
    """All traces of the run that is meant, in the order in which they began, and what of them goes on."""
    from pocket_plug.traces.recorded import traces_of

    with opened_index(path) as index:
        ids = traces_of_run(index, wanted, path, title)
        spans = [*index.spans(ids)]
        going_on = index.open_spans(ids)
    if not spans:
        raise UnknownRunError(f"there is no trace {wanted} in {path}. `pocket-plug trace ls` lists the runs")
    return traces_of(spans)[::-1], going_on


def traces_of_run(index: TraceIndex, wanted: str | None, path: Path, title: str = "RUN") -> set[str]:
    """The ids of the traces of the run that is meant, or of one of its executions, or of the trace that is called so."""
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
    """The executions of the run that is meant, as they began: by its id, how that begins, or its graph; by default of the newest.

    With `#2` behind it, the second one only. Of the runs that which began last is the first. `title`: what the usage calls it.
    """
    if wanted is not None and not re.sub(r"#\d*$", "", wanted):  # of a variable that isn't set; each id begins with it
        raise click.UsageError(
            f"{title} is empty; give a run's id, or how it begins: `pocket-plug trace ls` lists them"
        )
    if not runs:
        raise UnknownRunError(f"there are no runs in {path}; `pocket-plug run --trace` and observe() trace some")
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
        raise UnknownRunError(f"run {run_id!r} has {plural(len(found), 'execution')} in {path}, and none is #{number}")
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
        raise UnknownRunError(f"{len(begun)} runs in {path} begin with {wanted!r}: {several}. Give more of the id")
    close = suggest(wanted, [*names, *dict.fromkeys(run.graph for run in runs)])
    raise UnknownRunError(
        f"there is no run {wanted!r} in {path}, nor a graph of that name.{close} `pocket-plug trace ls` lists them"
    )


def _newest(index: TraceIndex, path: Path) -> str:
    """The id of the trace that began last, in a file without runs."""
    newest = index.newest()
    if newest is None:
        raise UnknownRunError(f"there are no traces in {path}; `pocket-plug run --trace` and observe() write some")
    return newest
