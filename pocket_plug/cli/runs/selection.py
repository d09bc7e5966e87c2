"""Which runs a command is about: the options that `ls`, `count`, `cancel` and `retry` share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from pocket_plug.graph.runs import RunInfo, Runs, RunState

T = TypeVar("T")
PAGE = 1000
"""How many runs are read at once."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Runs in one of `states`, or in any state if it is empty. The other fields are None where they don't matter."""

    states: tuple[RunState, ...]
    graph: str | None
    node: str | None
    error: str | None

    @property
    def is_given(self) -> bool:
        """Has the user said anything of which runs?"""
        return bool(self.states) or (self.graph, self.node, self.error) != (None, None, None)

    async def each(self, runs: Runs, states: Sequence[RunState], most: int = PAGE) -> AsyncGenerator[RunInfo]:
        """The selected runs in these states, the newest first. The caller takes `most` of them: no more are read if all fit."""
        after: str | None = None
        all_fit = (self.node, self.error) == (None, None)
        page_size = most if all_fit else max(most, PAGE)
        while True:
            page = await runs.list(state=states, graph=self.graph, limit=page_size, after=after)
            for run in page.runs:
                if self.node in (None, run.node) and (self.error is None or self.error in error_names(run)):
                    yield run
            if (after := page.after) is None:
                return


def error_names(run: RunInfo) -> Sequence[str]:
    """The class of the error with which a run has failed, with its module and without; nothing for other runs."""
    if run.state != "failed" or run.failure is None:
        return ()
    return run.failure.type, run.failure.type.rpartition(".")[2]


def selecting(states: Sequence[RunState]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command the options that select runs in these states. It is called with a `selection`."""

    def decorated(command: Callable[..., T]) -> Callable[..., T]:
        @wraps(command)
        def selected(
            *args: Any,
            states: tuple[RunState, ...],
            graph: str | None,
            node: str | None,
            error: str | None,
            **options: Any,
        ) -> T:
            return command(*args, selection=Selection(states, graph, node, error), **options)

        choice = click.Choice(states)
        for option in (
            click.option(
                "--error", metavar="TYPE", help="Only runs that have failed with this error, such as TimeoutError."
            ),
            click.option(
                "--node", metavar="NAME", help="Only runs whose next node is this one, such as charge or outer/inner."
            ),
            click.option("--graph", metavar="NAME", help="Only runs of this graph."),
            click.option(
                "--state", "states", type=choice, multiple=True, help="Only runs in this state; may be repeated."
            ),
        ):
            option(selected)
        return selected

    return decorated
