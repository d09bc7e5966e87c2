"""Reads inputs and answers from the command line: JSON, converted to the type that a graph declares.

If the type is str or Path, a text that isn't JSON of this type is taken as it is, so it needs no quotes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path, PurePath
from types import GenericAlias
from typing import Any, cast

import click
import msgspec

from pocket_plug.graph.kinds.ask import choices
from pocket_plug.graph.kinds.each import EachStep
from pocket_plug.graph.kinds.nesting import GraphStep
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import checker, type_name, union_members

from .jsonlines import why_no_json


class TakesNumbers(click.Command):
    """A command with an argument that may be a negative number, such as -1, which click would refuse as an unknown option."""

    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse other unknown options: they would be taken for arguments."""
        names = [name for parameter in self.get_params(ctx) for name in parameter.opts]
        for given in takewhile("--".__ne__, args):
            name = given.partition("=")[0]
            if name.startswith("--") and name not in names:
                raise click.NoSuchOption(name, possibilities=get_close_matches(name, names), ctx=ctx)
        return super().parse_args(ctx, args)


def input_of(step: Step) -> Any:
    """The declared type of a step's input; for a fan-out, a list of its node's inputs; for branches, what all of them take."""
    if step.branches:
        return next((input_of(branch) for branch in step.branches if branch.input_type == step.input_type), Any)
    if isinstance(step, EachStep):
        return GenericAlias(list, (input_of(step.inner),))
    return input_of(step.graph.plan.start) if isinstance(step, GraphStep) else step.input_type


def value_of(given: str | None, wanted: Any, what: str) -> Any:
    """The value of the argument or option `what`: JSON, `@FILE` for a file with JSON, or `-` for stdin. `given` may be None.

    Raises UsageError, with `what`, the type and what was found, if the value is not of the type.
    """
    fits = checker(wanted)
    if given is None:
        if not fits(None):
            raise click.UsageError(
                f"the graph takes {type_name(wanted)}; give it by {what}, as JSON, @FILE, or - for stdin"
            )
        return None
    text, where = _read(given, what)
    try:
        value = _decoded(text, wanted)
    except (
        msgspec.MsgspecError,
        ValueError,
        RecursionError,
    ) as error:  # since msgspec 0.21 MsgspecError is a ValueError
        kinds = [kind for kind in union_members(wanted) if kind is not type(None)]
        if kinds and all(kind in (str, Path, PurePath) for kind in kinds):
            return kinds[0](text)
        why = why_no_json(_first_fault(text, error))
        raise click.UsageError(f"{where}: {why}; give {_in_words(wanted)}") from error
    if not fits(value):
        raise click.UsageError(f"{where}: found {summary(value)}; give {_in_words(wanted)}")
    return value


def _first_fault(text: str, error: Exception) -> Exception:
    """The error of invalid JSON if the text is invalid: `error` may be about a wrong type at an earlier place."""
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as first:
        return first
    return error


def _in_words(wanted: Any) -> str:
    """What can be given: a type's name, or its values if it has only a few."""
    if wanted is Any:
        return "JSON"
    values = choices(wanted)
    words = [type_name(wanted)] if values is None else [msgspec.json.encode(each).decode() for each in values]
    return f"{' or '.join(words)}, as JSON"


def _read(given: str, what: str) -> tuple[str, str]:
    """The text, and its name in messages."""
    where, content = what, given.encode("utf-8", "surrogateescape")
    try:
        if given == "-":
            where, content = f"{what} from stdin", sys.stdin.buffer.read()
        elif given.startswith("@"):
            where, content = f"{what} from {given[1:]}", Path(given[1:]).read_bytes()
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        raise click.UsageError(f"{what}: the file {given[1:]!r} can't be read: {error}") from error
    try:
        return content.decode(), where
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from None


def _decoded(text: str, wanted: Any) -> Any:
    """The value of a JSON text, converted to a type. Raises ValueError if it isn't JSON or not of the type."""
    if hasattr(wanted, "__pydantic_validator__"):
        return _validated(wanted, text)
    try:
        value = msgspec.json.decode(text, type=wanted, dec_hook=_made)
        _refuse_unknown_fields(msgspec.json.decode(text), value, "$")
        return value
    except TypeError:  # msgspec doesn't support the type, or a union of several classes
        if len(union_members(wanted)) == 1:
            return msgspec.json.decode(text)
    faults: list[str] = []
    for part in union_members(wanted):
        try:
            return _decoded(text, part)
        except (msgspec.MsgspecError, ValueError) as error:
            faults.append(str(error))
    raise ValueError(" Or: ".join(dict.fromkeys(faults)))


def _refuse_unknown_fields(given: Any, made: Any, place: str) -> None:
    """Raise ValueError for a field that a dataclass doesn't have. msgspec leaves it out, so a misspelt one would do nothing."""
    pairs: Iterable[tuple[str, Any, Any]] = ()
    if is_dataclass(made) and not hasattr(made, "__pydantic_validator__"):
        names = [field.name for field in fields(made)]
        for name in given:
            if name not in names:
                raise ValueError(f"{type(made).__name__} has no field {name!r}, only {', '.join(names)} - at `{place}`")
        pairs = ((f".{name}", value, getattr(made, name)) for name, value in given.items())
    elif isinstance(given, dict) and isinstance(made, dict):
        values = cast("Mapping[str, Any]", given).values()
        kept = cast("Mapping[Any, Any]", made).values()  # in the same order; two keys may be the same once converted
        pairs = (("[...]", *pair) for pair in zip(values, kept, strict=False))
    elif isinstance(given, list) and isinstance(made, list | tuple):
        items = zip(cast("Sequence[Any]", given), cast("Sequence[Any]", made), strict=False)
        pairs = ((f"[{number}]", *pair) for number, pair in enumerate(items))
    for step, value, item in pairs:
        _refuse_unknown_fields(value, item, place + step)


def _made(kind: type[Any], value: Any) -> Any:
    """Make an object of a class that msgspec doesn't know; msgspec calls it."""
    if hasattr(kind, "__pydantic_validator__"):
        return _validated(kind, msgspec.json.encode(value))
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    return value  # msgspec raises if it is not of the class


def _validated(model: Any, text: str | bytes) -> Any:
    """An object of a pydantic model or dataclass. Its errors don't quote the input."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(model).validate_json(text)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        places = (".".join(map(str, ("$", *fault["loc"]))) for fault in faults)
        said = [f"{fault['msg']} - at `{place}`" for fault, place in zip(faults, places, strict=True)]
        raise ValueError("; ".join(said)) from None
