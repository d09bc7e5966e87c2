"""What is given on the command line as JSON, and made the type that a graph declares.

JSON that fits comes first. A graph that takes a str or a Path may be given its text as it is, without quotes.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any, get_args, get_origin, get_type_hints

import click
import msgspec

from pocket_plug.concurrency import EachStep
from pocket_plug.keys import type_name
from pocket_plug.nesting import GraphStep
from pocket_plug.plan import Step
from pocket_plug.redaction import summary
from pocket_plug.typechecks import UNIONS, checker

from .jsonlines import why_no_json


def input_of(step: Step) -> Any:
    """What a step declares to take; of a fan-out a list of what its items' node takes."""
    if isinstance(step, EachStep):
        return list[input_of(step.inner)]  # type: ignore[misc]
    return input_of(step.graph.plan.start) if isinstance(step, GraphStep) else step.input_type


def value_of(given: str | None, wanted: Any, what: str) -> Any:
    """The value that was given as `what`: JSON, `@FILE` with it, or `-` for stdin; None where nothing was.

    Raises UsageError, naming `what`, the type and what was found, for anything that is none of the type.
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
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # the first is a ValueError since msgspec 0.21
        kinds = [kind for kind in _parts(wanted) if kind is not type(None)]
        if kinds and all(kind in (str, Path, PurePath) for kind in kinds):
            return kinds[0](text)
        wish = "" if wanted is Any else f"; it is to be: {type_name(wanted)}"
        raise click.UsageError(f"{where}: {why_no_json(error)}{wish}") from error
    if not fits(value):
        raise click.UsageError(f"{where}: this is {summary(value)}; it is to be: {type_name(wanted)}")
    return value


def _read(given: str, what: str) -> tuple[str, str]:
    """The text, and how messages name it."""
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
    """The value of a JSON text as a type; raises ValueError for what is no JSON, or not of the type."""
    if hasattr(wanted, "__pydantic_validator__"):
        return _validated(wanted, text)
    try:
        return msgspec.json.decode(text, type=wanted, dec_hook=_made)
    except TypeError:  # it has no form for the type
        return _assembled(msgspec.json.decode(text), wanted)


def _assembled(value: Any, wanted: Any, place: str = "$") -> Any:
    """The value of JSON as a type, part by part where msgspec has no form for it: several classes in a union are tried."""
    parts, arguments = _parts(wanted), get_args(wanted)
    kinds = (get_origin(wanted), value.__class__)
    if len(parts) > 1:
        return _first_that_fits(value, parts, place)
    if kinds == (list, list):
        return [_assembled(item, arguments[0], f"{place}[{n}]") for n, item in enumerate(value)]
    if kinds == (dict, dict) and arguments[0] is str:
        return {key: _assembled(item, arguments[1], f"{place}[...]") for key, item in value.items()}
    try:
        return msgspec.convert(value, wanted, dec_hook=_made, str_keys=True)
    except TypeError:
        if is_dataclass(wanted) and kinds == (None, dict):
            return _object(value, wanted, place)
        if not checker(wanted)(value):
            said = f"Expected `{type_name(wanted)}`, got `{summary(value)}` - at `{place}`"
            raise ValueError(said) from None
        return value
    except ValueError as error:  # it has the place in it, below this one
        said = str(error) if "`$" in str(error) else f"{error} - at `$`"
        raise ValueError(said.replace("`$", f"`{place}")) from None


def _first_that_fits(value: Any, parts: tuple[Any, ...], place: str) -> Any:
    faults: list[str] = []
    for part in parts:
        try:
            return _assembled(value, part, place)
        except ValueError as error:
            faults.append(str(error))
    raise ValueError(" Or: ".join(dict.fromkeys(faults)))


def _object(value: dict[str, Any], wanted: Any, place: str) -> Any:
    """An object of a dataclass that has such a union in a field."""
    hints = get_type_hints(wanted)
    taken = {field.name: field for field in fields(wanted) if field.init}
    for name, field in taken.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"Object missing required field `{name}` - at `{place}`")
    try:
        return wanted(**{n: _assembled(value[n], hints[n], f"{place}.{n}") for n in taken if n in value})
    except TypeError as error:  # of a __post_init__
        raise ValueError(f"{error} - at `{place}`") from error


def _parts(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in UNIONS else (wanted,)


def _made(kind: type[Any], value: Any) -> Any:
    """What msgspec asks for where it doesn't know a class."""
    if hasattr(kind, "__pydantic_validator__"):
        return _validated(kind, msgspec.json.encode(value))
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    return value  # which is one of the class, or msgspec says that it isn't


def _validated(model: Any, text: str | bytes) -> Any:
    """An object of a model or a dataclass of pydantic's, which says what is wrong without what was given."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(model).validate_json(text)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        places = (".".join(map(str, ("$", *fault["loc"]))) for fault in faults)
        said = [f"{fault['msg']} - at `{place}`" for fault, place in zip(faults, places, strict=True)]
        raise ValueError("; ".join(said)) from None
