"""The output of the census: a progress bar while it runs, a report in two formats, and a table at its end."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pocket_plug import hookimpl
from pocket_plug.hookspecs import NodeCall, Observer, Run

from .facts import Facts, Summary, Total


class Progress:
    """A plugin that observes the census and moves a progress bar, if stdout is a terminal."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            transient=True,
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("looking around", total=None)

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer | None:
        """The run of the whole census sets the bar's total; each run of a survey is one step."""
        return Observer(run=self._advance) if run.graph == "survey" else Observer(run=self._show, node=self._begin)

    @contextmanager
    def _show(self, run: Run) -> Generator[None]:
        with self._bar if self._bar.console.is_terminal else nullcontext():
            yield

    @contextmanager
    def _begin(self, call: NodeCall) -> Generator[None]:
        yield
        if call.name == "find" and isinstance(call.output, Sized):
            self._bar.update(self._task, total=len(call.output), description="surveying")

    @contextmanager
    def _advance(self, run: Run) -> Generator[None]:
        yield
        self._bar.advance(self._task)


def write(summary: Summary, folder: Path) -> Summary:
    """Write the report to a folder, as census.md and census.json."""
    folder.mkdir(exist_ok=True)
    (folder / "census.json").write_text(json.dumps(asdict(summary), indent=1), "utf-8")
    (folder / "census.md").write_text("\n".join(_markdown(summary)) + "\n", "utf-8")
    return summary


def _markdown(summary: Summary) -> Iterator[str]:
    total = summary.total
    yield f"# {total.distributions} distributions, {decimal(total.bytes)} in {total.files} files\n"
    yield "| licence | distributions | size |\n|---|---:|---:|"
    for licence, part in _largest_first(summary):
        yield f"| {_cell(licence)} | {part.distributions} | {decimal(part.bytes)} |"
    yield "\n| distribution | version | licence | files | size | requires | missing |\n|---|---|---|---:|---:|---:|---|"
    for facts in summary.records:
        missing = ", ".join(summary.missing.get(facts.found.name, ()))
        yield (
            f"| {facts.found.name} | {_cell(facts.found.version)} | {_cell(facts.licence)} | {facts.files} "
            f"| {decimal(facts.bytes)} | {len(facts.requires)} | {_cell(missing)} |"
        )
    if faulty := _faulty(summary):
        yield "\n## Not read whole\n"
        for facts in faulty:
            yield f"- {facts.found.name}: {' '.join('; '.join(facts.faults).split())}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _faulty(summary: Summary) -> list[Facts]:
    return [facts for facts in summary.records if facts.faults]


def _largest_first(summary: Summary) -> list[tuple[str, Total]]:
    return sorted(
        ((name, part) for name, part in summary.licences.items() if part.distributions),
        key=lambda each: (-each[1].bytes, each[0]),
    )


def show(summary: Summary, as_json: bool) -> None:
    """Print the totals to stdout: as a table on a terminal, as plain lines in a pipe, or as JSON."""
    if as_json:
        print(
            json.dumps(
                {
                    "total": asdict(summary.total),
                    "missing": summary.missing,
                    "faults": {facts.found.name: facts.faults for facts in _faulty(summary)},
                    "licences": {name: asdict(part) for name, part in _largest_first(summary)},
                }
            )
        )
        return
    console, total = Console(), summary.total
    rows = [(name, str(part.distributions), decimal(part.bytes)) for name, part in _largest_first(summary)]
    if console.is_terminal:
        table = Table("licence", *_right("distributions", "size"), title="the distributions around this Python")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        print("\n".join("\t".join(row) for row in rows))
    print(
        f"{total.distributions} distributions, {total.files} files, {decimal(total.bytes)}; "
        f"{len(summary.missing)} lack something that they require"
    )
    if faulty := _faulty(summary):
        print(f"not read whole: {', '.join(facts.found.name for facts in faulty)}")
    print("report: .pocket_plug/census.md, .pocket_plug/census.json")


def _right(*titles: str) -> Iterator[Any]:
    from rich.table import Column

    return (Column(title, justify="right") for title in titles)
