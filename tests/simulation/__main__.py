"""`python -m tests.simulation SEEDS`: plays the worlds of these seeds, and prints the history of each world with a violation.

SEEDS is a number of them (`2000`: 0 to 1999), a range (`1000-2000`), or one (`=17`), whose history is printed in any case.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .planted import PLANTED
from .play import Played, first_found, play, verdict

SHOWN = 3
"""The histories of so many failing seeds are printed; of the others one line."""


def seeds_of(text: str) -> range:
    """The seeds that the argument means. Raises ValueError."""
    if text.startswith("="):
        return range(int(text[1:]), int(text[1:]) + 1)
    first, dash, last = text.partition("-")
    return range(int(first), int(last)) if dash else range(int(first))


def report(played: Played, console: Console, *, is_long: bool) -> None:
    """The violations, and the history that led to them."""
    if is_long:
        console.rule(f"seed {played.seed}")
        for line in played.history:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for violation in played.violations[: None if is_long else 1]:
        console.print(f"seed {played.seed}: {violation}", markup=False, highlight=False, soft_wrap=True)


def simulate(seeds: range, console: Console, processes: int) -> list[Played]:
    """Play them all, on all cores; returns those with violations."""
    bad: list[Played] = []
    began = time.monotonic()
    columns = (
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.0f} worlds/s, {task.fields[bad]} went wrong"),
        TimeRemainingColumn(),
    )
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=len(seeds), speed=0.0, bad=0)
        done: Iterable[Played] = pool.imap(verdict, seeds, chunksize=10)
        for count, played in enumerate(done, 1):
            if played.violations:
                bad.append(played)
                report(played, console, is_long=len(bad) <= SHOWN)
            if not console.is_terminal and not count % 1000:
                console.print(f"{count:,} of {len(seeds):,} worlds, {len(bad)} went wrong", highlight=False)
            progress.update(task, completed=count, speed=count / (time.monotonic() - began), bad=len(bad))
    seconds = time.monotonic() - began
    console.print(
        f"{len(seeds):,} worlds in {seconds:.0f} s ({len(seeds) / seconds:.0f} worlds/s on {processes} cores): "
        f"{len(bad)} went wrong",
        highlight=False,
    )
    return bad


def find_planted(seeds: range, console: Console, processes: int) -> bool:
    """Look for each planted fault, and print the seed that finds it first. Were all found?"""
    table = Table("planted fault", "first seed", "what it shows", box=None, pad_edge=False)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found = pool.starmap(first_found, [(what, seeds) for what in PLANTED], chunksize=1)
    for what, (seed, violation) in zip(PLANTED, found, strict=True):
        table.add_row(what, "not found" if seed is None else str(seed), escape(violation[:200]))
    console.print(table)
    return all(seed is not None for seed, _ in found)


def main(arguments: Sequence[str]) -> int:
    """1 if a world has a violation."""
    parser = ArgumentParser(prog="make simulate", description=__doc__.partition(":")[2].strip() if __doc__ else None)
    parser.add_argument("seeds", nargs="?", type=seeds_of)
    parser.add_argument(
        "--planted", action="store_true", help="look for each planted fault in these seeds (default 2600)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    console = Console(emoji=False)
    if given.planted:
        return not find_planted(given.seeds or range(2600), console, given.processes)
    given.seeds = given.seeds or range(2000)
    if len(given.seeds) == 1:
        played = play(given.seeds[0])
        report(played, console, is_long=True)
        return bool(played.violations)
    return bool(simulate(given.seeds, console, given.processes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
