"""Prints the output of the commands, escaped by `pocket_plug.primitives.terminal`.

Text for people is always escaped. A requested value is printed as it is, unless stdout is a terminal. JSON uses its own
escapes, so the document's meaning doesn't change.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import IO, Any, TextIO

import click

from pocket_plug.primitives.terminal import escaped, escaped_json

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_FIGURE = re.compile(r"-|([\d.,]+( ?[a-zµ]+( ?\d+ ?[a-z]+)?)?)?")
"""A number, a duration such as "30.8 ms" or "1d4h", or nothing."""
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")

NAME_WIDTH = 40
"""In a narrow terminal, the first column keeps up to this many cells, or half of the width, if the figures leave them."""
LEAST_NAME_WIDTH = 16
"""It always keeps this many."""

MANY = 1000
"""For more things than this, a terminal shows a progress bar."""


@contextmanager
def only_json(as_json: bool) -> Generator[IO[str]]:
    """With `--json`, what user code prints in the block goes to stderr, since stdout is for JSON. Yields the former stdout."""
    out: IO[str] = sys.stdout
    if not as_json:
        yield out
        return
    is_ours = sys.stdout is sys.__stdout__ and None not in (sys.stdout, sys.stderr)  # None: it is closed
    with _moved(sys.stdout) if is_ours else nullcontext(out) as former, redirect_stdout(sys.stderr):
        yield former


@contextmanager
def _moved(out: TextIO) -> Generator[IO[str]]:
    """Yield a copy of stdout; meanwhile its own descriptor is that of stderr, which processes begun in the block inherit."""
    out.flush()
    copy = open(os.dup(out.fileno()), "w", encoding=out.encoding, errors=out.errors)  # noqa: SIM115 - closed below
    os.dup2(sys.stderr.fileno(), out.fileno())
    try:
        yield copy
    finally:
        os.dup2(copy.fileno(), out.fileno())
        with suppress(OSError):  # whoever has printed to it knows
            copy.close()


def _write(
    text: str | bytes, *, nl: bool = True, err: bool = False, color: bool | None = None, file: IO[str] | None = None
) -> None:
    """Print to stdout or stderr. Raises ClickException if that fails, as on a full disk; not for a closed pipe."""
    with said_if_unwritable("stderr" if err else "stdout", file):
        click.echo(text, file, nl=nl, err=err, color=color)


@contextmanager
def said_if_unwritable(stream: str, file: IO[str] | None = None) -> Generator[None]:
    """Raise ClickException if a write to stdout or stderr fails within the block, as on a full disk; not for a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        _drop(file or getattr(sys, stream))  # a worker goes on, and its next lines must not fail too
        raise
    except OSError as error:
        _drop(file or getattr(sys, stream))
        raise click.ClickException(
            f"{stream} can't be written to: {error.strerror}; the output is incomplete"
        ) from error


def _drop(stream: IO[Any]) -> None:
    """Discard what is in the stream's buffer. Python would otherwise write it again at exit, and change the exit code."""
    with suppress(OSError, ValueError):  # the stream may not be a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print lines for people, by default on stdout."""
    _write(escaped(text, keep="\n\t"), err=err)


def echo_value(text: str, *, nl: bool = True) -> None:
    """Print a value: unchanged to a file or a pipe, escaped on a terminal."""
    if sys.stdout.isatty():
        text = escaped(text, keep="\n\t")
    is_file = hasattr(sys.stdout, "buffer")  # False for io.StringIO
    _write(text.encode(sys.stdout.encoding, "backslashreplace") if is_file else text, nl=nl)


def echo_drawn(drawn: str) -> None:
    """Print a drawing for the terminal, with colours. The texts in it must be escaped already."""
    _write(drawn, nl=False, color=True)


def echo_json(value: object, *, is_compact: bool = False, file: IO[str] | None = None) -> None:
    """Print a JSON document, by default on stdout. Values of types that JSON doesn't have are printed as text."""
    import json

    import msgspec  # here, since the help needs neither

    try:
        document = msgspec.json.encode(value, enc_hook=str)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
        document = json.dumps(msgspec.to_builtins(value, enc_hook=str)).encode()
    if not is_compact:
        document = msgspec.json.format(document, indent=2)
    text = escaped_json(document.decode())
    if (getattr(file or sys.stdout, "encoding", None) or "utf-8").lower() not in ("utf-8", "utf8"):
        text = _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)  # the encoding may lack it
    _write(text, file=file)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on a terminal, or else aligned text with one line per row, for `grep` and `awk`."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw_table(columns, rows)
        return
    widths = [max(map(_cells, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        echo("  ".join(cell + " " * (width - _cells(cell)) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(line: str) -> int:
    """How wide it is in a terminal, or in a pager behind the pipe: a Chinese character takes two cells."""
    if line.isascii():
        return len(line)
    from rich.cells import cell_len

    return cell_len(line)


def _draw_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.cells import cell_len, chop_cells
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    first, *others = table.columns
    # The name is what users type or copy, and a figure without its end is wrong: in a narrow terminal the rest is folded.
    first.no_wrap, most, room = True, max(NAME_WIDTH, console.width // 2), console.width - len(others)
    moments: list[Column] = []
    columns_of_cells = zip(*(row[1:] for row in rows), strict=True)  # of no columns, if there are no rows
    for column, head, cells in zip(others, columns[1:], columns_of_cells, strict=False):
        column.overflow = "fold"
        if all(map(_MOMENT.fullmatch, cells)):
            moments.append(column)
        elif any(cells) and all(map(_FIGURE.fullmatch, cells)):
            column.no_wrap, column.justify = True, "right"
            room -= max(map(cell_len, (head, *cells)))
    most = min(most, max(LEAST_NAME_WIDTH, room))
    first.min_width = min(max((cell_len(row[0]) for row in rows), default=0), NAME_WIDTH, most)
    names = [Text(row[0]) for row in rows]
    for name, row in zip(names, rows, strict=True):
        table.add_row(name, *map(Text, row[1:]))  # not as markup
    if Measurement.get(console, console.options.update(width=sys.maxsize), table).maximum >= console.width:
        table.padding = 0  # rather than fold more
        for name in names:  # one that would leave no room for the other columns goes on in the next line
            name.plain = "\n".join(chop_cells(name.plain, most))
        for column in moments:  # the time goes below the date
            column.width = len("2026-11-30")
    console.print(table)


def plural(number: int, word: str) -> str:
    """A number with a noun in the singular or plural.

    >>> plural(1, "retry"), plural(1200, "retry"), plural(0, "span")
    ('1 retry', '1,200 retries', '0 spans')
    """
    many = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{number:,} {word if number == 1 else many}"


def how_many_are_wrong(number: int) -> str:
    """The last line of a checking command.

    >>> how_many_are_wrong(0), how_many_are_wrong(1), how_many_are_wrong(2)
    ('nothing is wrong', '1 thing is wrong', '2 things are wrong')
    """
    return {0: "nothing is wrong", 1: "1 thing is wrong"}.get(number, f"{number} things are wrong")


@contextmanager
def progress(doing: str, total: int) -> Generator[Callable[[int], None]]:
    """A progress bar on a terminal. It yields a function: call it with the number of things done since its last call."""
    if total <= MANY or not sys.stderr.isatty():
        yield lambda more: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda more: bar.advance(task, more)


def in_units(seconds: float) -> str:
    """A duration in its two largest units.

    >>> in_units(90_061)
    '1d1h'
    """
    rest = max(0, int(seconds))
    numbers: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number:
            numbers.append(f"{number}{unit}")
    return "".join(numbers[:2]) or "0s"
