"""The tables and keys of a configuration file: declared once, for reading a file, for checking it and for its JSON Schema.

What is wrong is noted with its path in the file, so that all of it can be told at once.
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
"""Where something stands in a file: `("stores", "cache", "layers", 1, "ttl")`."""


@dataclass(frozen=True, slots=True)
class FileKey:
    """A key of a table, and what may stand there."""

    hint: Any
    """Its type, for the schema."""
    wanted: str
    """The same in the words of an error."""
    about: str
    """What it is for: editors show it."""

    @property
    def kind(self) -> type:
        """What TOML makes of it."""
        return str if self.hint is str else list


ABOUT: Mapping[str, str] = {
    "store": "The default store.",
    "stores": "Named stores: [stores.NAME].",
    "executors": 'Names for executors, which nodes take by executor="NAME".',
    "plugins": "Which plugins are not used, and the options of those that are: [plugins.NAME].",
    "runs": "Which ended durable runs pocket-plug worker removes.",
}
"""The tables of a file."""

STORE: Mapping[str, FileKey] = {
    "url": FileKey(str, 'a string such as "sqlite:///state.db"', "Where the store keeps its entries."),
    "layers": FileKey(list[Any], "a list, outermost first", "The layers around it, outermost first."),
}
EXECUTOR = FileKey(str, 'a URL such as "processes://?workers=4"', "The URL of an executor.")
PLUGINS: Mapping[str, FileKey] = {
    "disable": FileKey(list[str], "a list of names", "Names of plugins that are not used."),
}
RUNS: Mapping[str, FileKey] = {
    "older": FileKey(Duration, "a duration", 'Runs that ended so long ago are removed, such as "30d".'),
    "keep": FileKey(int, "a number of runs", "But the newest so many of each graph and state are kept."),
    "states": FileKey(
        list[Prunable], "a list of names", "The states whose runs are removed; without it finished and cancelled."
    ),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong in a file."""

    message: str
    """What is wrong, with the file, the table and the key, and the way out."""
    path: KeyPath = ()
    """Where it stands."""


class Table:
    """A table of the file, which knows where it stands. What is wrong is added to `problems`, and a default stands for it."""

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
        """Note what is wrong at a place within this table."""
        self.problems.append(Problem(message, (*self.path, *at)))

    def allow(self, known: Collection[str]) -> None:
        """Note the keys that there are and that mean nothing."""
        for key in self.content:
            if key not in known:
                self.report(f"{self.where}: there is no {key!r} here{alternatives(key, known)}", key)

    def table(self, key: str) -> Table:
        """The table within this one; an empty one if it isn't there."""
        return Table(self.file, (*self.path, key), self.content.get(key, {}), self.problems)

    def value(self, key: str, declared: FileKey, default: Any) -> Any:
        """What stands at a key."""
        value = self.content.get(key, default)
        if isinstance(value, declared.kind):
            return value
        self.report(f"{self.where}.{key} must be {declared.wanted}, not {summary(value)}", key)
        return default

    def names(self, key: str, declared: FileKey) -> tuple[str, ...]:
        """The names in the list at a key."""
        names: list[Any] = self.value(key, declared, [])
        for position, name in enumerate(names):
            if not isinstance(name, str):
                self.report(f"{self.where}.{key}[{position}] must be a name, not {summary(name)}", key, position)
        return tuple(name for name in names if isinstance(name, str))

    def attempt(self, what: Any, *at: str | int) -> Any:
        """What a function gives; a ConfigError that it raises is noted, and None stands for it."""
        try:
            return what()
        except ConfigError as error:
            self.report(str(error), *at)
            return None


def alternatives(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: what was meant, else what there is.

    >>> alternatives("max_entires", ["max_entries", "ttl"])
    "; did you mean 'max_entries'?"
    """
    meant = suggest(name, known).replace(" Did", "; did")
    return meant or f"; there is: {', '.join(sorted(known)) or 'nothing'}"
