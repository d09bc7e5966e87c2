"""`runs`: submits, lists, counts, shows, resumes, answers, cancels, retries and removes durable runs.

The commands use `Runs`, and need no types of the program; only `submit`, `resume`, `answer` and `check` load the graph.
"""

from __future__ import annotations

import click

from pocket_plug.cli.target import Target, by_name, by_url

from .change import cancel, retry, rm
from .check import check
from .listing import count, ls
from .prune import prune
from .resume import answer, resume
from .show import show
from .submit import submit


@click.group
@by_url
@by_name
@click.pass_context
def runs(context: click.Context, url: str | None, name: str | None) -> None:
    """Submit, list, count, resume, answer, cancel, retry and remove durable runs.

    The store is that of [store] in the configuration, unless --url or --name names another one.
    """
    context.obj = Target(url, name)


for command in (answer, cancel, check, count, ls, prune, resume, retry, rm, show, submit):
    runs.add_command(command)
