"""Finds the lines of keys and items in a TOML file. `tomllib` returns values only."""

from __future__ import annotations

import re
import tomllib

from .tables import KeyPath

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_IN_ARRAY = re.compile(r"(?:[\s,]|#[^\n]*)*")
_SCALAR = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\])*"' r"|'[^']*'" r"|[^,\]}\n#]*", re.DOTALL
)
_KEY = re.compile(r"""\s*([\w-]+|"(?:\\.|[^"\\])*"|'[^']*')\s*(\.?)""")


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line, from 1 on, where each table, key and array item of a valid document begins.

    >>> lines_of('''[store]
    ... url = "memory://"
    ... layers = ["metrics",
    ...           {use = "bounding"}]''')[("store", "layers", 1, "use")]
    4
    """
    return _Walk(text).lines


class _Walk:
    """One pass over a document."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self.lines: dict[KeyPath, int] = {}
        table: KeyPath = ()
        counts: dict[KeyPath, int] = {}
        self._skip(_BLANK)
        while self._at < len(text):
            if text.startswith("[[", self._at):
                self._at += 2
                table = self._key()
                counts[table] = number = counts.get(table, -1) + 1
                table = (*table, number)
                self._note(table)
                self._at += 2
            elif text.startswith("[", self._at):
                self._at += 1
                table = self._key()
                self._note(table)
                self._at += 1
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _note(self, path: KeyPath) -> None:
        line = self._text.count("\n", 0, self._at) + 1
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        self._at = self._at if found is None else found.end()

    def _key(self) -> KeyPath:
        """Read a key, dotted or not, and the blanks around it."""
        parts: list[str] = []
        while found := _KEY.match(self._text, self._at):
            self._at = found.end()
            parts += tomllib.loads(f"{found[1]} = 1")
            if not found[2]:
                break
        return tuple(parts)

    def _pair(self, table: KeyPath) -> None:
        begin = self._at
        path = (*table, *self._key())
        end, self._at = self._at, begin
        self._note(path)
        self._at = end + 1  # after the =
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._note(path)
        opening = self._text[self._at : self._at + 1]
        if opening not in ("[", "{"):
            self._skip(_SCALAR)
            return
        self._at += 1
        number = 0
        self._skip(_IN_ARRAY)
        while self._at < len(self._text) and self._text[self._at] not in "]}":
            if opening == "[":
                self._value((*path, number))
            else:
                self._pair(path)
            number += 1
            self._skip(_IN_ARRAY)
        self._at += 1
