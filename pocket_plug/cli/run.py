"""Commands that use a user's module: `run` and `graph`."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import click
import msgspec

from pocket_plug.graph import Graph
from pocket_plug.pocket import default_pocket

from .show import as_json
from .target import load

if TYPE_CHECKING:
    from pocket_plug.telemetry import Telemetry


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.option("--input", "input_json", metavar="JSON", help="For a graph: its input.")
@click.option("--trace", is_flag=True, help="Trace it: a tree on a terminal and a file, or as OTEL_* variables say.")
@as_json
def run(target: str, arguments: tuple[str, ...], input_json: str | None, trace: bool, as_json: bool) -> int:
    """Run an application or a graph.

    TARGET is a Python file or a folder (its app.py, else its __init__.py). It defines `main`, a click command or a
    function of the list of ARGS (or of nothing), or else `graph`, which is run with --input and whose result is
    printed. TARGET:name takes another name. Options of its own that are ours too go behind `--`.
    """
    title, found = load(target, ("main", "graph"))
    with ExitStack() as closing:
        if trace:
            from pocket_plug.telemetry import observe

            telemetry = observe()
            closing.push(partial(_say_where, telemetry))
            closing.callback(telemetry.close)
        if not _is_graph(found):
            if input_json is not None:
                raise click.UsageError(f"--input is for a graph, and {title} is none")
            return _run_main(found, title, (*arguments, "--json") if as_json else arguments)
        if arguments:
            raise click.UsageError(f"{title} is a graph; it takes --input, not {' '.join(arguments)}")
        _print_result(_run_graph(found, input_json), as_json)
        return 0


def _say_where(telemetry: Telemetry, error: type[BaseException] | None, *_: object) -> None:
    """After a run that went well, where its trace lies. On a terminal the tree ends with that."""
    if error is None and telemetry.file is not None and not sys.stderr.isatty():
        click.echo(f"trace: {telemetry.file}", err=True)


def _is_graph(found: Any) -> TypeGuard[Graph[Any, Any]]:
    return isinstance(found, Graph)


def _run_main(main: Any, title: str, arguments: tuple[str, ...]) -> int:
    if isinstance(main, click.Command):
        code = main.main(
            list(arguments), prog_name=f"pocket-plug run {title.removesuffix(':main')}", standalone_mode=False
        )
    elif not callable(main):
        raise click.UsageError(f"{title} is {type(main).__name__}, not a graph, a function or a click command")
    elif inspect.signature(main).parameters:
        code = main(list(arguments))
    elif arguments:
        raise click.UsageError(f"{title} takes no arguments, but was given {' '.join(arguments)}")
    else:
        code = main()
    if inspect.iscoroutine(code):
        code = asyncio.run(code)
    return code if isinstance(code, int) else 0


def _run_graph(graph: Graph[Any, Any], input_json: str | None) -> Any:
    async def in_pocket() -> Any:
        async with default_pocket() as pocket:
            return await pocket.run(graph, value)

    value = _input(graph, input_json)
    return asyncio.run(in_pocket())


def _input(graph: Graph[Any, Any], text: str | None) -> Any:
    """The graph's input from JSON, as the type that its first node declares."""
    if text is None:
        return None
    wanted = graph.plan.start.input_type
    try:
        return msgspec.json.decode(text, type=wanted)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--input: {error}") from error
    except TypeError:  # a type that JSON has no form for
        return json.loads(text)


def _print_result(result: Any, as_json: bool) -> None:
    if isinstance(result, str) and not as_json:
        click.echo(result)
    elif result is not None or as_json:
        document = msgspec.json.encode(result, enc_hook=str)
        click.echo(document if as_json else msgspec.json.format(document, indent=2))


@click.command
@click.argument("target")
@as_json
def graph(target: str, as_json: bool) -> None:
    """Draw a graph as a Mermaid flow chart.

    What is wrong with it is said as well. TARGET is a Python file or a folder that defines `graph`; TARGET:name takes
    another name.
    """
    title, found = load(target, ("graph",))
    if not _is_graph(found):
        raise click.UsageError(f"{title} is {type(found).__name__}, not a Graph")
    chart = found.mermaid()
    click.echo(json.dumps({"name": found.name, "mermaid": chart}) if as_json else chart)
    found.validate()
