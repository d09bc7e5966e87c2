"""The command line, `pocket-plug`: what it prints goes to stdout, what it has to say to stderr.

Exit codes: 0 all well, 1 a run or the user's code failed, 2 wrong usage or configuration,
3 a run waits for an answer or a time, 4 a store's server can't be reached, 130 interrupted.

A command's module is imported when the command runs, so that the help is there at once: here stand only its name and the
line that the help shows.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import IO, Any

import click

from pocket_plug.errors import (
    ConfigError,
    PocketError,
    RunSuspendedError,
    StoreUnreachableError,
    as_date,
    is_fault,
    suggest,
)
from pocket_plug.primitives.default_pocket import searching_config
from pocket_plug.primitives.terminal import escaped

from .output import echo, said_if_unwritable

COMMANDS = {
    "config": ("config", "Check a configuration file, and print its JSON Schema."),
    "doctor": ("doctor", "Check the installation: versions, configuration, plugins, stores, telemetry."),
    "graph": ("run", "Draw a graph as a Mermaid flow chart, or as an SVG."),
    "new": ("new", "Create a new plugin project."),
    "plugins": ("show", "List the installed plugins: which are used, which are not, and why."),
    "run": ("run", "Run an application or a graph."),
    "runs": ("runs", "List, resume, answer, cancel, retry and remove durable runs."),
    "stack": ("show", "Draw the configured store stacks."),
    "store": ("store", "Read, change, check, copy and back up the entries of a store."),
    "trace": ("trace", "List, show, compare and send recorded traces."),
    "worker": ("worker", "Execute submitted durable runs, and resume those whose process has died."),
}
"""Our commands: the module that has each, and the first sentence of its help."""


class Failure(click.ClickException):
    """What went wrong, in one message."""

    def show(self, file: IO[Any] | None = None) -> None:
        echo(self.message, err=True)


class Misconfigured(Failure):
    """The same for what is wrong before anything ran."""

    exit_code = 2


class Waiting(Failure):
    """Nothing went wrong: a durable run asks or sleeps, and goes on once it is answered or its time has come."""

    exit_code = 3


class Unreachable(Failure):
    """The server of a store can't be reached: it may go well at another time."""

    exit_code = 4


def _kind_of(error: PocketError) -> type[Failure]:
    if isinstance(error, StoreUnreachableError):
        return Unreachable
    return Misconfigured if isinstance(error, ConfigError) else Failure


class Commands(click.Group):
    """Our commands, then those of plugins, which are asked for theirs only where a name is none of ours."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with said_if_unwritable("stdout"):  # the help and the version are printed here
            return super().make_context(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *_commands_of_plugins()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return _commands_of_plugins().get(cmd_name)
        command: click.Command = getattr(import_module(f".{COMMANDS[cmd_name][0]}", __name__), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"No such command {name!r}.{suggest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, line) for name, (_, line) in COMMANDS.items()]
        for name, command in _commands_of_plugins().items():
            if not command.hidden:
                rows.append((name, command.get_short_help_str(limit=1_000)))  # its first sentence
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _plugins_tracebacks() if ctx.params["debug"] else nullcontext():
                return super().invoke(ctx)
        except RunSuspendedError as suspended:
            raise Waiting(_waits_for(suspended)) from suspended
        except PocketError as error:
            if ctx.params["debug"]:
                echo("".join(traceback.format_exception(error)), err=True)
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
            raise _kind_of(error)(f"{type(error).__name__}: {error}{notes}") from error
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except BaseException as error:
            if isinstance(error, OSError) and _is_of_stdout(error):
                with said_if_unwritable("stdout"):
                    raise
            if ctx.params["debug"] or not is_fault(error) or isinstance(error, SystemExit):
                raise
            from .tracebacks import user_traceback

            raise Failure(user_traceback(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pocket-plug")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Run workflows and look at their state: graphs, durable runs, stores, traces, plugins."""


def _waits_for(suspended: RunSuspendedError) -> str:
    if suspended.questions:
        return f"run {suspended.run_id!r} waits for an answer: {suspended.question}"
    if not suspended.wake_at:
        return str(suspended)
    return (
        f"run {suspended.run_id!r} sleeps until {as_date(suspended.wake_at, local=True)}; "
        "`pocket-plug worker TARGET` resumes it then, or `pocket-plug runs resume`"
    )


def _commands_of_plugins() -> dict[str, click.Command]:
    if not _may_have_plugins():
        return {}
    from pocket_plug.plugins.pocket import default_pocket

    try:
        return default_pocket().commands(taken=COMMANDS)
    except PocketError as error:  # the help must not depend on the configuration
        echo(f"commands of plugins are left out. {type(error).__name__}: {error}", err=True)
        return {}


def _may_have_plugins() -> bool:
    """Is there a plugin besides our own, which offer no commands? The metadata tell it without loading any."""
    if "pocket_plug.plugins.pocket" in sys.modules:
        return True  # a Pocket may have been given plugins in code
    from importlib.metadata import distributions

    try:
        return any(
            "[pocket_plug]" in (found.read_text("entry_points.txt") or "") and found.name != "pocket-plug"
            for found in distributions()
        )
    except Exception:  # noqa: BLE001 - anybody writes metadata; loading the plugins says what is wrong with them
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who started us (`>&-`); what is opened now would get its number
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as we run
    try:
        with _escaped_logs(), searching_config():
            code: object = cli.main(arguments, prog_name="pocket-plug", standalone_mode=False)
    except click.ClickException as error:
        message = error.message
        if isinstance(error, click.NoSuchOption):  # its own words differ from release to release
            message = f"No such option {error.option_name!r}."
            if place := _where_it_stands(error):
                message += f" {place}"  # it is no other option that is meant
            elif error.possibilities:
                message += f" Did you mean {' or '.join(map(repr, sorted(error.possibilities)))}?"
            else:
                message += " What begins with - and is no option, such as a run's id, goes behind --"
            vars(error)["possibilities"] = None
        vars(error)["message"] = escaped(message, keep="\n\t")  # click's own quote the command line
        with _as_far_as_stderr_takes_it():
            error.show()
        return error.exit_code
    except click.Abort:
        with _as_far_as_stderr_takes_it():
            echo("interrupted", err=True)
        return 130
    except BaseException as error:  # the user's: as Python prints it, but escaped
        if not is_fault(error) or isinstance(error, SystemExit):
            raise
        with _as_far_as_stderr_takes_it():
            echo("".join(traceback.format_exception(error)).rstrip(), err=True)
        return 1
    return code if isinstance(code, int) else 0


def _is_of_stdout(error: OSError) -> bool:
    """Was it raised where click prints on stdout? There it prints the help of a command, of a plugin's too."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is click.echo.__code__)
    return any(frame.f_locals["file"] is sys.stdout for frame in frames)


@contextmanager
def _as_far_as_stderr_takes_it() -> Generator[None]:
    """Within, the last words. Where stderr can't be written to there is nobody to tell that, and the exit code says the rest."""
    with suppress(OSError, click.ClickException), said_if_unwritable("stderr"):
        yield


def _where_it_stands(error: click.NoSuchOption) -> str:
    """Where an option has to stand that a command doesn't have, but a group around it; "" if none has it."""
    context = error.ctx
    around = context.parent if context is not None else None
    while context is not None and around is not None:
        if any(error.option_name in parameter.opts for parameter in around.command.params):
            return (
                f"It stands before {context.info_name}: {around.command_path} {error.option_name} … {context.info_name}"
            )
        around = around.parent
    return ""


@contextmanager
def _escaped_logs() -> Generator[None]:
    """Within, log records that Python prints because no handler is set are escaped, as all output is."""
    printing = logging.lastResort
    if printing is None:
        yield
        return
    former = printing.formatter
    printing.setFormatter(_Escaped())
    try:
        yield
    finally:
        printing.formatter = former


@contextmanager
def _plugins_tracebacks() -> Generator[None]:
    """Within, the traceback of a plugin that fails is printed where Python prints warnings, also if no handler is set."""
    details, printing = logging.getLogger("pocket_plug.plugins"), logging.lastResort
    levels = details.level, logging.WARNING if printing is None else printing.level
    details.setLevel(logging.DEBUG)
    try:
        if printing is not None:
            printing.setLevel(logging.DEBUG)
        yield
    finally:
        details.setLevel(levels[0])
        if printing is not None:
            printing.setLevel(levels[1])


class _Escaped(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record), keep="\n\t")
