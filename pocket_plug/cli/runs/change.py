"""`runs cancel`, `runs retry` and `runs rm`: change the records of runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import click

from pocket_plug.cli.output import as_json, echo, echo_json, plural, progress
from pocket_plug.cli.target import Target
from pocket_plug.errors import CorruptRecordError, RunBusyError, RunStateError, UnknownRunError
from pocket_plug.graph.durable.records import keys_of
from pocket_plug.graph.runs import OPEN, RunInfo, Runs, RunState
from pocket_plug.primitives.terminal import escaped

from .facts import facts_of, print_state, say_how_to_resume, with_runs
from .listing import print_list, say_that_there_are_none
from .selection import Selection, selecting


def _of_runs(states: Sequence[RunState]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The arguments of `cancel` and `retry`: runs by their ids, or all runs in one of these states that options select."""

    def decorated(command: Callable[..., int]) -> Callable[..., int]:
        dry_run = click.option("--dry-run", is_flag=True, help="Change nothing; list the selected runs.")
        ids = click.argument("run_ids", nargs=-1, metavar="[RUN...]")
        return ids(selecting(states)(dry_run(as_json(click.pass_obj(command)))))

    return decorated


@click.command
@_of_runs(OPEN)
def cancel(target: Target, run_ids: tuple[str, ...], selection: Selection, dry_run: bool, as_json: bool) -> int:
    """End runs; they can't be resumed after that. Their nodes' writes are kept.

    Give RUNs, or select open runs by --state, --graph, --node and --error: all of them are cancelled.

    A process that executes such a run notices this at its next commit, or within a third of its lease. If a RUN can't be
    cancelled, that is reported, and the exit code is 1.
    """
    ids = _chosen(target, run_ids, selection, OPEN, dry_run, as_json)
    if ids is None:
        return 0
    changed, refused = _change(target, ids, Runs.cancel, as_json, "" if run_ids else "cancelled")
    if not as_json and any(run.is_ending for run in changed):
        echo(
            "ending: a process executes it, and notices this at its next commit, or within a third of its lease; if the process "
            "is gone, a worker ends the run",
            err=True,
        )
    return int(refused)


RETRIABLE: tuple[RunState, ...] = ("failed", "stalled")


@click.command
@_of_runs(RETRIABLE)
def retry(target: Target, run_ids: tuple[str, ...], selection: Selection, dry_run: bool, as_json: bool) -> int:
    """Retry runs that have failed or stalled: they become pending.

    Give RUNs, or select failed and stalled runs by --state, --graph, --node and --error: all of them are retried.

    `pocket-plug worker TARGET` then resumes them. Without a worker, use `resume`. If a RUN can't be retried, that is
    reported, and the exit code is 1.
    """
    ids = _chosen(target, run_ids, selection, RETRIABLE, dry_run, as_json)
    if ids is None:
        return 0
    changed, refused = _change(target, ids, Runs.retry, as_json, "" if run_ids else "retried")
    if changed and not as_json:
        say_how_to_resume()
    return int(refused)


def _chosen(
    target: Target,
    run_ids: Sequence[str],
    selection: Selection,
    states: Sequence[RunState],
    dry_run: bool,
    as_json: bool,
) -> Sequence[str] | None:
    """The ids of the runs to change. None if nothing is to be changed; then the selected runs are listed."""
    if run_ids and (selection.is_given or dry_run):
        raise click.UsageError("give RUNs, or select them by --state, --graph, --node and --error; not both")
    if not run_ids and not selection.is_given:
        raise click.UsageError("give RUNs, or select them by --state, --graph, --node or --error")
    if run_ids:
        return run_ids

    async def selected(runs: Runs) -> list[RunInfo]:
        return [run async for run in selection.each(runs, selection.states or states) if not run.is_ending]

    found, now = with_runs(target, selected)
    if found and not dry_run:
        return [run.run_id for run in found]
    if dry_run or as_json:
        print_list(found, now, as_json)
    if not found:
        say_that_there_are_none(target, selection)
    return None


def _change(
    target: Target,
    run_ids: Sequence[str],
    operation: Callable[[Runs, str], Awaitable[RunInfo]],
    as_json: bool,
    done: str,
) -> tuple[list[RunInfo], bool]:
    """Apply an operation to each run. Returns the changed runs, and whether any refused it.

    Prints the new state of each run, or only how many are `done`, if that isn't empty.
    """

    async def changed(runs: Runs) -> None:
        with progress("runs", len(run_ids) if done else 0) as advance:
            for run_id in run_ids:
                advance(1)
                try:
                    run = await operation(runs, run_id)
                except (RunStateError, UnknownRunError, CorruptRecordError) as error:  # of this run only: others go on
                    refused.append(error)
                    echo(escaped(f"{type(error).__name__}: {error}"), err=True)
                    continue
                if not (as_json or done):
                    print_state(run, as_json=False)
                found.append(run)

    found: list[RunInfo] = []
    refused: list[Exception] = []
    try:
        with_runs(target, changed)
    finally:
        if as_json:
            echo_json([facts_of(each) for each in found])
        elif done:
            echo(f"{done} {plural(len(found), 'run')}")
    return found, bool(refused)


@click.command
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@click.option("--force", is_flag=True, help="Remove running ones too; their processes can write nothing more.")
@click.pass_obj
def rm(target: Target, run_ids: tuple[str, ...], force: bool) -> int:
    """Remove runs; their ids are free again. If a RUN doesn't exist, that is reported, and the exit code is 1."""
    for run_id in run_ids:
        keys_of(run_id)

    async def removed(runs: Runs) -> list[str]:
        return [each for each in dict.fromkeys(run_ids) if not await runs.remove(each, force=force)]

    try:
        missing, _ = with_runs(target, removed)
    except RunBusyError as error:
        raise click.ClickException(str(error).replace("use force=True", "add --force")) from error
    for run_id in missing:
        echo(f"there is no run {run_id!r} in {target}; `pocket-plug runs{target.options} ls` lists the runs", err=True)
    return int(bool(missing))
