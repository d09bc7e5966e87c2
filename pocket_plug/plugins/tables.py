"""The tables and keys of a configuration file, declared once for reading, checking and the JSON Schema.

Problems are collected with their paths in the file, so that all can be reported at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pocket_plug.errors import ConfigError, suggest
from pocket_plug.graph.retention import Prunable
from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.redaction import summary

KeyPath = tuple[str | int, ...]
"""The path of a key or item in a file: `("stores", "cache", "layers", 1, "ttl")`."""


@dataclass(frozen=True, slots=True)
class FileKey:
    """A key of a table, and its allowed values."""

    hint: Any
    """Its type, for the schema."""
    wanted: str
    """The type in the words of an error message."""
    about: str
    """Its description, which editors show."""

    @property
    def kind(self) -> type:
        """The Python type that the TOML reader returns for it."""
        return str if self.hint is str else list


ABOUT: Mapping[str, str] = {
    "store": "The default store.",
    "stores": "Named stores: [stores.NAME].",
    "executors": 'Names for executors, which nodes use by executor="NAME".',
    "plugins": "The disabled plugins, and the options of the others: [plugins.NAME].",
    "runs": "Which ended durable runs pocket-plug worker removes.",
}
"""The tables of a file."""

STORE: Mapping[str, FileKey] = {
    "url": FileKey(str, 'a string such as "sqlite:///state.db"', "Where the store keeps its entries."),
    "layers": FileKey(list[Any], "a list, outermost first", "The layers around the backend, outermost first."),
}
EXECUTOR = FileKey(str, 'a URL such as "processes://?workers=4"', "The URL of an executor.")
PLUGINS: Mapping[str, FileKey] = {
    "disable": FileKey(list[str], "a list of names", "Names of plugins that are not used."),
}
RUNS: Mapping[str, FileKey] = {
    "older": FileKey(Duration, "a duration", 'Runs that ended longer ago are removed, such as "30d".'),
    "keep": FileKey(int, "a number of runs", "How many of the newest runs of each graph and state are kept."),
    "states": FileKey(
        list[Prunable], "a list of names", "The states of runs that are removed; by default finished and cancelled."
    ),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in a file."""

    message: str
    """The message, with the file, the table and the key, and how to fix it."""
    path: KeyPath = ()
    """Its place in the file."""


class Table:
    """A table of the file, with its path. Problems are added to `problems`, and a default is used for an invalid value."""

    def __init__(self, file: str, path: KeyPath, content: Any, problems: list[Problem]) -> None:
        self.file, self.path, self.problems = file, path, problems
        name = ".".join(map(str, path))
        self.where = f"{file} [{name}]" if name else file
        self.content: Mapping[str, Any] = {}
        if isinstance(content, Mapping):
            self.content = content
        else:
            self.report(f"{self.where}: this is a table, not {summary(content)}")

    def report(self, message: str, *at: str | int) -> None:
        """Add a problem at a place within this table."""
        self.problems.append(Problem(message, (*self.path, *at)))

    def allow(self, known: Collection[str]) -> None:
        """Report unknown keys."""
        for key in self.content:
            if key not in known:
                self.report(f"{self.where}: there is no {key!r} here{alternatives(key, known)}", key)

    def table(self, key: str) -> Table:
        """The table at a key of this one; an empty one if it is missing."""
        return Table(self.file, (*self.path, key), self.content.get(key, {}), self.problems)

    def value(self, key: str, declared: FileKey, default: Any) -> Any:
        """The value of a key, or the default if it is missing or has a wrong type, which is reported."""
        value = self.content.get(key, default)
        if isinstance(value, declared.kind):
            return value
        self.report(f"{self.where}.{key} must be {declared.wanted}, not {summary(value)}", key)
        return default

    def names(self, key: str, declared: FileKey) -> tuple[str, ...]:
        """The names in the list of a key; items that aren't strings are reported."""
        names: list[Any] = self.value(key, declared, [])
        for position, name in enumerate(names):
            if not isinstance(name, str):
                self.report(f"{self.where}.{key}[{position}] must be a name, not {summary(name)}", key, position)
        return tuple(name for name in names if isinstance(name, str))

    def attempt(self, what: Any, *at: str | int) -> Any:
        """The result of a function. If it raises ConfigError, this is reported, and the result is None."""
        try:
            return what()
        except ConfigError as error:
            self.report(str(error), *at)
            return None


def alternatives(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the name that was probably meant, or else all known names.

    >>> alternatives("max_entires", ["max_entries", "ttl"])
    "; did you mean 'max_entries'?"
    """
    meant = suggest(name, known).replace(" Did", "; did")
    return meant or f"; there is: {', '.join(sorted(known)) or 'nothing'}"
