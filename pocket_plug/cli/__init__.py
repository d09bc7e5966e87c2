"""The command line, `pocket-plug`: results go to stdout, messages to stderr.

Exit codes: 0 success; 1 a run or the user's code failed, what was named doesn't exist, or a check found something wrong; 2 wrong
usage or configuration; 3 a run waits for an answer or a time; 4 a store's server can't be reached; 130 interrupted.

A command's module is imported when the command runs, so that the help is fast: this module has only the name of each command
and the line that the help shows.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from io import TextIOWrapper
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
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.terminal import escaped

from .output import echo, said_if_unwritable

COMMANDS = {
    "config": ("config", "Check a configuration file, and print its JSON Schema."),
    "doctor": ("doctor", "Check the installation: versions, configuration, plugins, stores, telemetry."),
    "graph": ("run", "Draw a graph as a Mermaid flow chart, or as an SVG."),
    "new": ("new", "Create a new plugin project."),
    "plugins": ("show", "List the installed plugins: which are used, which are not, and why."),
    "run": ("run", "Run an application or a graph."),
    "runs": ("runs", "Submit, list, count, resume, answer, cancel, retry and remove durable runs."),
    "stack": ("show", "Draw the configured store stacks."),
    "store": ("store", "Read, change, check, copy and back up the entries of a store."),
    "trace": ("trace", "List, show, compare and send recorded traces."),
    "worker": ("worker", "Execute submitted durable runs, and resume those whose process has died."),
}
"""The built-in commands: the module of each, and the first sentence of its help."""


class Failure(click.ClickException):
    """An error: its message, without a traceback, and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        echo(self.message, err=True)


class Misconfigured(Failure):
    """An error of usage or configuration, before anything ran."""

    exit_code = 2


class Waiting(Failure):
    """No error: a durable run waits for an answer or a time, and can be resumed then."""

    exit_code = 3


class Unreachable(Failure):
    """A store's server can't be reached: the same command may succeed later."""

    exit_code = 4


def _kind_of(error: PocketError) -> type[Failure]:
    if isinstance(error, StoreUnreachableError):
        return Unreachable
    return Misconfigured if isinstance(error, ConfigError) else Failure


class Commands(click.Group):
    """The built-in commands, then those of plugins. Plugins are loaded only for the help and for a name that isn't built in."""

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
        which = f" --question {shlex.quote(suspended.question_id)}" if len(suspended.questions) > 1 else ""
        answer = f"pocket-plug runs answer TARGET {shlex.quote(suspended.run_id)} ANSWER{which}"
        return f"run {suspended.run_id!r} waits for an answer: {suspended.question}\n`{answer}` answers it"
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
    """Is a plugin installed that isn't built in? Built-in ones have no commands. Reads metadata and loads no plugin."""
    if "pocket_plug.plugins.pocket" in sys.modules:
        return True  # a Pocket may have been given plugins in code
    from importlib.metadata import distributions

    try:
        return any(
            "[pocket_plug]" in (found.read_text("entry_points.txt") or "") and found.name != "pocket-plug"
            for found in distributions()
        )
    except Exception:  # noqa: BLE001 - metadata may be broken; loading the plugins reports it
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller (`>&-`); the next opened file would get its number
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
    _die_of_sigterm_as_first_process()
    try:
        with _escaped_logs(), _any_text_on_stdout(), searching_config():
            code: object = cli.main(arguments, prog_name="pocket-plug", standalone_mode=False)
    except click.ClickException as error:
        message = error.message
        if isinstance(error, click.NoSuchOption):  # click's own text differs from release to release
            message = f"No such option {error.option_name!r}."
            if place := _where_it_stands(error):
                message += f" {place}"  # the option exists, at another place
            elif error.possibilities:
                message += f" Did you mean {' or '.join(map(repr, sorted(error.possibilities)))}?"
            else:
                message += " An argument that begins with -, such as a run's id, must come after --"
            vars(error)["possibilities"] = None
        vars(error)["message"] = escaped(message, keep="\n\t")  # click's messages quote the command line
        with _ignoring_closed_stderr():
            error.show()
        return error.exit_code
    except click.Abort:
        with _ignoring_closed_stderr():
            echo("interrupted", err=True)
        return 130
    except BaseException as error:  # an error of the user's code: as Python prints it, but escaped
        if not is_fault(error) or isinstance(error, SystemExit):
            raise
        with _ignoring_closed_stderr():
            echo("".join(traceback.format_exception(error)).rstrip(), err=True)
        return 1
    return code if isinstance(code, int) else 0


def _die_of_sigterm_as_first_process() -> None:
    """In a container the command is process 1, for which the kernel drops each signal that has no handler: `docker stop` would
    wait for its whole grace period.
    """
    is_first = os.getpid() == 1 and threading.current_thread() is threading.main_thread()
    if is_first and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        from pocket_plug.primitives.signals import die  # here, since it imports asyncio

        signal.signal(signal.SIGTERM, die)


def _is_of_stdout(error: OSError) -> bool:
    """Was it raised while click printed to stdout, as it does for the help of a command?"""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is click.echo.__code__)
    return any(frame.f_locals["file"] is sys.stdout for frame in frames)


@contextmanager
def _ignoring_closed_stderr() -> Generator[None]:
    """Ignore that stderr can't be written to: nobody could read a message about it, and the exit code reports the failure."""
    with suppress(OSError, click.ClickException), said_if_unwritable("stderr"):
        yield


def _where_it_stands(error: click.NoSuchOption) -> str:
    """For an option of a group that was given to its command: a sentence that says where it belongs; "" if no group has it."""
    context = error.ctx
    around = context.parent if context is not None else None
    while context is not None and around is not None:
        if any(error.option_name in parameter.opts for parameter in around.command.params):
            return f"It belongs before {context.info_name}: {around.command_path} {error.option_name} … {context.info_name}"
        around = around.parent
    return ""


@contextmanager
def _escaped_logs() -> Generator[None]:
    """Escape log records that Python prints because no handler is set: all output is escaped, and has no passwords of URLs."""
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
def _any_text_on_stdout() -> Generator[None]:
    """Let stdout escape characters that its encoding lacks, as stderr does: in a Latin-1 locale, printing others would raise."""
    out = sys.stdout
    if not isinstance(out, TextIOWrapper):
        yield
        return
    former = out.errors
    out.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(ValueError, OSError):  # it was closed, or can't be written to, which was reported
            out.reconfigure(errors=former)


@contextmanager
def _plugins_tracebacks() -> Generator[None]:
    """Print tracebacks of failing plugins, also if no log handler is set."""
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
        said = public_url(super().format(record))  # OpenTelemetry logs the whole URL of its endpoint
        return escaped(said, keep="\n\t")
