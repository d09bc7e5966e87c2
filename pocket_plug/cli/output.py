"""Everything that the commands print, escaped by `pocket_plug.primitives.terminal`.

Text for people is always escaped. A value that was asked for is printed as it is, unless stdout is a terminal. In JSON the
escapes are JSON's own, so the document means the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import click

from pocket_plug.primitives.terminal import escaped, escaped_json

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")

NAME_WIDTH = 40
"""Columns that a thing's name is left in a narrow terminal, if it needs as many."""

MANY = 1000
"""Of more things than that, a terminal is shown how far it is."""


def _write(text: str | bytes, *, nl: bool = True, err: bool = False, color: bool | None = None) -> None:
    """To stdout or stderr. Where it can't be written, as on a full disk, that is said; a closed pipe is none of that."""
    with said_if_unwritable("stderr" if err else "stdout"):
        click.echo(text, nl=nl, err=err, color=color)


@contextmanager
def said_if_unwritable(stream: str) -> Generator[None]:
    """Within, what is written to stdout or stderr. Where it can't be, as on a full disk, that is a ClickException."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop(getattr(sys, stream))
        raise click.ClickException(
            f"{stream} can't be written to: {error.strerror}; the output is incomplete"
        ) from error


def _drop(stream: IO[Any]) -> None:
    """What is still in its buffer goes nowhere. Else Python would try again at the end, and have its own exit code for that."""
    with suppress(OSError, ValueError):  # it may be no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print lines for people, by default on stdout."""
    _write(escaped(text, keep="\n\t"), err=err)


def echo_value(text: str, *, nl: bool = True) -> None:
    """Print a value: what it is, byte for byte, into a file or a pipe; escaped on a terminal."""
    if sys.stdout.isatty():
        text = escaped(text, keep="\n\t")
    is_file = hasattr(sys.stdout, "buffer")  # which io.StringIO, say, is not
    _write(text.encode(sys.stdout.encoding, "backslashreplace") if is_file else text, nl=nl)


def echo_drawn(drawn: str) -> None:
    """Print a drawing for the terminal, with colours. The texts in it must be escaped already."""
    _write(drawn, nl=False, color=True)


def echo_json(value: object, *, is_compact: bool = False) -> None:
    """Print a JSON document. Values of types that JSON doesn't have are printed as text."""
    import json

    import msgspec  # here, since the help needs neither

    try:
        document = msgspec.json.encode(value, enc_hook=str)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
        document = json.dumps(msgspec.to_builtins(value, enc_hook=str)).encode()
    if not is_compact:
        document = msgspec.json.format(document, indent=2)
    _write(escaped_json(document.decode()))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal; else aligned text, a line a row, that `grep` and `awk` can use."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        first = table.columns[0]  # what one types to name the thing: in a narrow terminal the other columns are cut
        first.no_wrap, first.min_width = True, min(max((len(row[0]) for row in rows), default=0), NAME_WIDTH)
        for row in rows:
            table.add_row(*map(Text, row))  # not as markup
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def how_many_are_wrong(number: int) -> str:
    """The last line of a check.

    >>> how_many_are_wrong(0), how_many_are_wrong(1), how_many_are_wrong(2)
    ('nothing is wrong', '1 thing is wrong', '2 things are wrong')
    """
    return {0: "nothing is wrong", 1: "1 thing is wrong"}.get(number, f"{number} things are wrong")


@contextmanager
def progress(doing: str, total: int) -> Generator[Callable[[int], None]]:
    """A progress bar on a terminal. Call what it yields with the number of things that were done since."""
    if total <= MANY or not sys.stderr.isatty():
        yield lambda more: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda more: bar.advance(task, more)


def in_units(seconds: float) -> str:
    """A time in its two greatest units.

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
