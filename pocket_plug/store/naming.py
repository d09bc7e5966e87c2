"""Joins parts to names, and splits names into parts: with one escaping, for the values of a `Key` and for `join_name`.

In a part, "%" is written `%25` and ":" is written `%3A`. A name whose first part is a value never begins with the reserved
prefix: it begins with `%70ocket` then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import final

from pocket_plug.errors import KeyNameError, suggest
from pocket_plug.primitives.names import RESERVED, NamePart, check_length, check_name, check_prefix, part_of_name

_PLACEHOLDER = re.compile(r"\{(\w*)(\??)\}")
_ESCAPED = re.compile("%([0-9A-F]{2})")
_SCOPE = RESERVED[:-1]
_UNRESERVED = f"%{ord(_SCOPE[0]):02X}"


def join_name(*parts: NamePart) -> str:
    """The name with these parts, each a str, int, UUID, date or Enum with any content: no two lists of parts make the same name.

    A part may be empty, the name may not. Raises KeyNameError for a name that can't be used.

    >>> join_name("user", "a:b", 7), join_name("pocket", "x"), split_name("user:a%3Ab:7")
    ('user:a%3Ab:7', '%70ocket:x', ('user', 'a:b', '7'))
    """
    texts = [part for part in parts if type(part) is str]
    if len(texts) == len(parts) and "%" not in (name := ":".join(texts)) and name.count(":") < len(parts):
        return check_name(_unreserved(name))  # no part needs escaping
    name = ":".join([part_of_name(part, None, may_be_empty=True) for part in parts])
    return check_name(_unreserved(name))


def split_name(name: str) -> tuple[str, ...]:
    """The parts, as text, from which `join_name` made a name. Raises KeyNameError for a name that it can't have made."""
    parts = tuple(check_prefix(name, "a name").split(":"))
    if "%" in name:
        parts = tuple(map(_unescaped, parts))
        made = join_name(*parts)
    else:  # no part needed escaping
        made = check_length(_unreserved(name))
    if not name or made != name:
        raise KeyNameError(f"{name!r:.80} was not made by join_name; split it by the rule that joined it")
    return parts


@final
class Template:
    """A name with placeholders in it; a placeholder is written `{}` or `{name}`, and `{?}` or `{name?}` where it may be empty."""

    __slots__ = ("_backwards", "_begin", "_rest", "names", "placeholders", "text")

    def __init__(self, text: str) -> None:
        self.text = check_name(text)
        found = _PLACEHOLDER.split(text)
        literals, self.names = found[::3], tuple(found[1::3])
        self.placeholders = len(self.names)
        """How many there are."""
        if any("{" in literal or "}" in literal for literal in literals):
            raise KeyNameError(
                f"Key({text!r:.80}) has a brace that isn't part of a placeholder; a placeholder is written {{}} or {{name}}, "
                "with a ? before the } if it may be empty, and filled by KEY(value)"
            )
        self._begin = literals[0]
        self._rest = [(mark == "?", literal) for mark, literal in zip(found[2::3], literals[1:], strict=True)]
        """Of each placeholder: may it be empty, and the text after it."""
        self._backwards: re.Pattern[str] | None = None  # most templates are only filled

    def in_order(self, values: Sequence[object], named: Mapping[str, object]) -> tuple[object, ...]:
        """The values in the order of the placeholders. Raises KeyNameError if they are too few or too many."""
        if unknown := sorted(named.keys() - set(self.names)):
            raise KeyNameError(
                f"Key({self.text!r}) has no placeholder {{{unknown[0]}}}.{suggest(unknown[0], self.names)}"
            )
        free = sum(name not in named for name in self.names)
        if free != len(values):
            besides = f" besides {', '.join(named)}" if named else ""
            raise KeyNameError(f"Key({self.text!r}) takes {free} value(s){besides}, not {len(values)}")
        rest = iter(values)
        return tuple(named[name] if name in named else next(rest) for name in self.names)

    def filled(self, values: Sequence[object]) -> str:
        """The name with a value in each placeholder."""
        name = self._begin
        for position, (may_be_empty, literal) in enumerate(self._rest):
            name += part_of_name(values[position], self.text, may_be_empty=may_be_empty) + literal
        return check_name(name if self._begin else _unreserved(name))

    def matched(self, name: str) -> re.Match[str] | None:
        """A match of the reversed name, whose groups are the texts in the placeholders, escaped and reversed; None if the
        template doesn't make such names.

        The first text is as long as possible, then the second, and so on. So the name is read from its end, and each text ends at
        the next literal part: forwards, all ways would be tried, and a name can be made so that this takes hours.
        """
        if self._backwards is None:
            self._backwards = self._reader()
        return self._backwards.fullmatch(name[::-1])

    def _reader(self) -> re.Pattern[str]:
        texts = [f"[^:]{'*' if may_be_empty else '+'}" for may_be_empty, _ in self._rest]
        literals = [re.escape(literal[::-1]) for literal in (self._begin, *(literal for _, literal in self._rest))]
        pattern = literals.pop()
        while len(texts) > 1:
            pattern += f"(?>({texts.pop()}?){literals.pop()})"
        return re.compile(pattern + (f"({texts[0]}){literals[0]}" if texts else ""))

    def values(self, name: str) -> tuple[str, ...] | None:
        """The values, as text, with which the template makes this name; None if there are none."""
        match = self.matched(name)
        if match is None:
            return None
        values = tuple([_unescaped(text[::-1]) for text in reversed(match.groups())])
        try:
            return values if self.filled(values) == name else None
        except KeyNameError:  # the name is too long, for example
            return None


def _unreserved(name: str) -> str:
    """The name; if it is reserved, or is the reserved scope itself, with its first letter escaped."""
    return _UNRESERVED + name[1:] if name.startswith(RESERVED) or name == _SCOPE else name


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "%" in text else text
