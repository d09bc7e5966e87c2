"""Commands that use a user's module: `run` and `graph`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import click

from pocket_plug.errors import ConfigError
from pocket_plug.graph.graph import Graph
from pocket_plug.plugins.pocket import Pocket, current_default, default_pocket
from pocket_plug.primitives.signals import run_loop
from pocket_plug.primitives.signatures import signature_of

from .given import input_of, value_of
from .loading import load
from .output import as_json, echo, echo_json, echo_value, only_json

if TYPE_CHECKING:
    from pocket_plug.layers.tracing import Capture
    from pocket_plug.telemetry import Telemetry

R = TypeVar("R")

_trace_option = click.option(
    "--trace", is_flag=True, help="Trace it: into a file, and a tree on a terminal; or to where OTEL_* variables say."
)
_capture_option = click.option(
    "--capture",
    type=click.Choice(("none", "keys", "summary", "full")),
    help="What --trace records of your data: nothing, keys, also types and sizes, or also whole values.",
)


def trace_options(command: Callable[..., R]) -> Callable[..., R]:
    """The options `--trace` and `--capture` for a command, for `traced`."""
    return _trace_option(_capture_option(command))


@contextmanager
def traced(wanted: bool, capture: Capture | None, *, in_default: bool = True) -> Generator[None]:
    """Trace the block if `wanted`, and print where the trace is, also after a failed run.

    Raises ConfigError if the default Pocket doesn't trace: before the block with `in_default`, and always after it, since a
    program may set another default Pocket.
    """
    if not wanted:
        if capture is not None:
            raise click.UsageError("--capture chooses what a trace records; give --trace, too")
        yield
        return
    from pocket_plug.telemetry import observe

    if in_default:
        _check_tracing(default_pocket())
    telemetry = observe(capture=capture)
    failed = True
    try:
        with telemetry:
            yield
        if (pocket := current_default()) is not None:
            _check_tracing(pocket)
        failed = False
    finally:
        _say_where(telemetry, failed)


def _check_tracing(pocket: Pocket) -> None:
    record = pocket.plugin("tracing")
    if record.status != "active":
        raise ConfigError(f"--trace needs the plugin {record.name!r}, which {record.verdict}")


def _say_where(telemetry: Telemetry, failed: bool) -> None:
    """Print where the trace is: not on a terminal, where the tree ends with it, and not after a loss, which was reported."""
    if telemetry.file is None or telemetry.unsent or not telemetry.file.is_file() or sys.stderr.isatty():
        return
    if telemetry.run_id is not None:
        from pocket_plug.telemetry.local import where_to_look

        echo(where_to_look(telemetry.file, telemetry.run_id), err=True)
    elif not failed:
        echo(f"trace: {telemetry.file}", err=True)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.option("--input", "given", metavar="JSON", help="For a graph: its input. @FILE: from a file, -: from stdin.")
@click.option("--run-id", metavar="ID", help="For a graph: makes the run durable; the same command resumes it.")
@trace_options
@as_json
def run(
    target: str,
    arguments: tuple[str, ...],
    given: str | None,
    run_id: str | None,
    trace: bool,
    capture: Capture | None,
    as_json: bool,
) -> int:
    """Run an application or a graph.

    TARGET is a Python file or a folder (its app.py, or else its __init__.py). It defines `main`: a click command, or a
    function that takes the list of ARGS or nothing. Or it defines `graph`, which is run with --input, and its result is
    printed. TARGET:name names another object. If your program has an option with the same name as one of `run`, put it
    after `--`.

    The input is JSON, read as the input type of the graph. For a str or a Path, plain text is enough.
    """
    with only_json(as_json):
        title, found = load(target, ("main", "graph"))
    with traced(trace, capture, in_default=is_graph(found)):
        if not is_graph(found):
            for option, value in (("--input", given), ("--run-id", run_id)):
                if value is not None:
                    raise click.UsageError(f"{option} is for a graph, but {title} is not a graph")
            return _run_main(found, title, (*arguments, "--json") if as_json else arguments)
        if arguments:
            hint = "; --debug belongs before `run`" if "--debug" in arguments else ""
            if arguments[0].startswith("--url"):
                hint = "; it uses its own store (store=…), or else that of [store] in the configuration"
            raise click.UsageError(f"{title} is a graph; it takes --input, not {' '.join(arguments)}{hint}")
        with only_json(as_json):
            result = _run_graph(found, given, run_id)
        print_result(result, as_json)
        return 0


def is_graph(found: object) -> TypeGuard[Graph[Any, Any]]:
    """Is an object a graph?"""
    return isinstance(found, Graph)


def load_graph(target: str) -> tuple[str, Graph[Any, Any]]:
    """The name of a target for messages, and its graph. Raises UsageError if it isn't a graph."""
    title, found = load(target, ("graph",))
    if not is_graph(found):
        raise click.UsageError(f"{title} is {type(found).__name__}, not a Graph; name the graph: FILE:name")
    return title, found


def _run_main(main: Any, title: str, arguments: tuple[str, ...]) -> int:
    if isinstance(main, click.Command):
        code = main.main(
            list(arguments), prog_name=f"pocket-plug run {title.removesuffix(':main')}", standalone_mode=False
        )
    elif not callable(main):
        raise click.UsageError(f"{title} is {type(main).__name__}, not a graph, a function or a click command")
    elif signature_of(main).parameters:
        code = main(list(arguments))
    elif arguments:
        raise click.UsageError(f"{title} takes no arguments, but was given {' '.join(arguments)}")
    else:
        code = main()
    if inspect.iscoroutine(code):
        code = run_loop(code)
    return code if isinstance(code, int) else 0


def _run_graph(graph: Graph[Any, Any], given: str | None, run_id: str | None) -> object:
    async def in_pocket() -> object:
        async with default_pocket() as pocket:
            return await pocket.run(graph, value, run_id=run_id)

    if run_id is None and graph.plan.asks:
        raise click.UsageError(f"graph {graph.name!r} asks, so its run may wait; give it an id: --run-id ID")
    value = value_of(given, input_of(graph.plan.start), "--input")
    try:
        return run_loop(in_pocket())
    except KeyboardInterrupt:
        if run_id is not None:
            echo(f"run {run_id!r} is saved; the same command resumes it", err=True)
        raise


def print_result(result: object, as_json: bool) -> None:
    """Print the result of a graph: a str as it is, anything else as JSON."""
    if isinstance(result, str) and not as_json:
        echo_value(result)
    elif result is not None or as_json:
        echo_json(result, is_compact=as_json)


@click.command
@click.argument("target")
@click.option("--svg", "as_svg", is_flag=True, help="Print an SVG picture instead.")
@as_json
def graph(target: str, as_svg: bool, as_json: bool) -> None:
    """Draw a graph as a Mermaid flow chart, or as an SVG.

    It also prints what is wrong with the graph. TARGET is a Python file or a folder that defines `graph`; TARGET:name
    names another object.
    """
    with only_json(as_json):
        _, found = load_graph(target)
    if as_json:
        charts = {"svg": found.svg()} if as_svg else {"mermaid": found.mermaid()}
        echo_json({"name": found.name, **charts}, is_compact=True)
    elif as_svg:
        echo_value(found.svg(), nl=False)
    else:
        echo(found.mermaid())
    found.validate()
