"""`runs cancel`, `runs retry` and `runs rm`: change the records of runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import click

from pocket_plug.cli.output import as_json, echo, echo_json
from pocket_plug.cli.target import Target
from pocket_plug.errors import CorruptRecordError, RunBusyError, RunStateError, UnknownRunError
from pocket_plug.graph.durable import keys_of
from pocket_plug.graph.runs import RunInfo, Runs
from pocket_plug.primitives.terminal import escaped

from .facts import facts_of, print_state, say_how_to_resume, with_runs


@click.command
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@as_json
@click.pass_obj
def cancel(target: Target, run_ids: tuple[str, ...], as_json: bool) -> int:
    """End runs; they can't be resumed after that. Their nodes' writes are kept.

    A process that executes such a run notices this at its next commit, or within a third of its lease. If a RUN can't be
    cancelled, that is reported, and the exit code is 1.
    """
    changed, refused = _change(target, run_ids, Runs.cancel, as_json)
    if not as_json and any(run.is_ending for run in changed):
        echo(
            "ending: a process executes it, and notices this at its next commit, or within a third of its lease; if the process "
            "is gone, a worker ends the run",
            err=True,
        )
    return int(refused)


@click.command
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@as_json
@click.pass_obj
def retry(target: Target, run_ids: tuple[str, ...], as_json: bool) -> int:
    """Retry runs that have failed or stalled: they become pending.

    `pocket-plug worker TARGET` then resumes them. Without a worker, use `resume`. If a RUN can't be retried, that is
    reported, and the exit code is 1.
    """
    changed, refused = _change(target, run_ids, Runs.retry, as_json)
    if changed and not as_json:
        say_how_to_resume()
    return int(refused)


def _change(
    target: Target, run_ids: Sequence[str], operation: Callable[[Runs, str], Awaitable[RunInfo]], as_json: bool
) -> tuple[list[RunInfo], bool]:
    """Apply an operation to each run, and print the run's new state. Returns the changed runs, and whether any refused it."""

    async def changed(runs: Runs) -> None:
        for run_id in run_ids:
            try:
                run = await operation(runs, run_id)
            except (RunStateError, UnknownRunError, CorruptRecordError) as error:  # of this run only: others go on
                refused.append(error)
                echo(escaped(f"{type(error).__name__}: {error}"), err=True)
                continue
            if not as_json:
                print_state(run, as_json=False)
            found.append(run)

    found: list[RunInfo] = []
    refused: list[Exception] = []
    try:
        with_runs(target, changed)
    finally:
        if as_json:
            echo_json([facts_of(each) for each in found])
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
