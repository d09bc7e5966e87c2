"""The registry: which classes a codec knows beside the built-in ones, under which tag, and how their records are upgraded.

Nothing is imported by a name in data: a tag that is not registered is an error.
"""

from __future__ import annotations

import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pocket_plug.errors import CodecError, UnknownTypeError, UnregisteredTypeError
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import declared_before, defined_again
from pocket_plug.primitives.values import Value

from .adapters import KNOWN, WITH_FUNCTIONS, TypeAdapter, adapter_of, advice, hints_of, libraries, parts_of
from .wire import BUILT_IN, to_msgpack, type_of

Upgrade = Callable[[Value], Value]
"""Converts the state of one version of a type to that of the next."""

upgraded: ContextVar[list[str] | None] = ContextVar("upgraded", default=None)
"""Set it to a list: each object that is upgraded while a record is read in this context adds its tag. A record that is not
bound to its place, as older versions have written them, adds `UNBOUND`."""

UNBOUND = "an unbound record"

WRITTEN_BY: Mapping[str, str] = {
    "pocket_plug_compress.Compressed": "pocket-plug-compress",
    "pocket_plug_encryption.Encrypted": "pocket-plug-encryption",
}
"""What layers of ours in other distributions store: the tag, and the distribution."""


@dataclass(frozen=True, slots=True)
class Registered:
    """One registered type."""

    type: type
    tag: str
    version: int
    adapter: TypeAdapter
    upgrade: Mapping[int, Upgrade]
    head: bytes
    """A record is an array of tag, version and state; this is all of it but the state."""


class Registry:
    """The types that a codec knows. The `declared` ones are registered when they are first needed."""

    def __init__(self, declared: Sequence[Value] = ()) -> None:
        self.types: dict[type, Registered] = {}
        self.tags: dict[str, Registered] = {}
        self._declared = declared
        self._adopted = 0
        self._libraries: set[str] = set()
        self._lock = new_rlock()

    def register(
        self, cls: type, adapter: TypeAdapter, tag: str | None, version: int, upgrade: Mapping[int, Upgrade]
    ) -> None:
        """Register a class, or register it again. Raises CodecError if the tag is another class's, or an upgrade is invalid."""
        if version < 1:
            raise CodecError(f"{name_of(cls)}: version must be 1 or more, not {version}")
        if wrong := [step for step in upgrade if not 1 <= step < version]:
            raise CodecError(
                f"{name_of(cls)}: upgrade has {', '.join(map(repr, wrong))}; its keys must be versions from 1 up and below "
                f"{version}, the registered one (version=…)"
            )
        tag = tag or adapter.tag or cls.__qualname__
        head = b"\x93" + to_msgpack(tag) + to_msgpack(version)
        with self._lock:
            held = self.tags.get(tag)
            if held is not None and name_of(held.type) != name_of(cls):
                raise CodecError(
                    f"tag {tag!r} is already used by {name_of(held.type)}, so {name_of(cls)} needs another tag: "
                    f"register_type({cls.__name__}, tag=…)"
                )
            for former in tuple(
                entry for entry in self.types.values() if entry.tag == tag and entry.adapter.shape != adapter.shape
            ):
                del self.types[former.type]
            self.types[cls] = self.tags[tag] = Registered(cls, tag, version, adapter, upgrade, head)

    def entry(self, cls: type) -> Registered | None:
        """The registration of exactly this class."""
        entry = self.types.get(cls)
        if entry is None:
            self._adopt()
            entry = self.types.get(cls)
        return entry

    def tagged(self, tag: Any) -> Registered:
        """The registration with a tag. Raises UnknownTypeError if there is none."""
        if self._adopted != len(self._declared):  # a class of that tag may have been defined anew
            self._adopt()
        entry = self.tags.get(tag)
        if entry is None:
            self._adopt()
            entry = self.tags.get(tag)
        if entry is None:
            raise UnknownTypeError(
                f"the record holds an object of type {tag!r:.80}, which is not registered here; {_way_out(tag)}"
            )
        return entry

    def _adopt(self) -> None:
        """Register the types that were declared since last time, the classes of their fields, and those of new libraries.

        A class whose tag is taken is left out: it is an error when that class is used, not when any other is. Callers
        look again afterwards even if there was nothing new: another thread may have registered it meanwhile.
        """
        with self._lock:
            declared = len(self._declared)
            queue = deque(self._declared[self._adopted : declared])
            known = {__name__: KNOWN} | {library.__name__: library.KNOWN for library in libraries()}
            queue.extend(each for library, types in known.items() if library not in self._libraries for each in types)
            self._adopt_all(queue)
            # set last: if it was interrupted before, it is done again
            self._adopted, self._libraries = declared, {*known}

    def _adopt_all(self, queue: deque[Any]) -> None:
        seen: dict[int, Any] = {}  # by id: a hint need not be hashable, and may contain itself
        while queue:
            part = queue.popleft()
            if id(part) not in seen:
                seen[id(part)] = part
                queue.extend(parts_of(part))
                if isinstance(part, type) and part not in BUILT_IN:
                    queue.extend(self._adopted_with(part))

    def _adopted_with(self, cls: type) -> Iterable[Any]:
        """Register a class unless its tag is another's; returns the hints of its fields if it is registered now."""
        if cls not in self.types and (adapter := adapter_of(cls)) is not None:
            held = self.tags.get(adapter.tag or cls.__qualname__)
            if held is None or name_of(held.type) == name_of(cls):
                self.register(cls, adapter, None, 1, {})
        return hints_of(cls) if cls in self.types or typing.is_typeddict(cls) else ()

    def require(self, cls: type) -> Registered:
        """The registration of exactly this class. Raises UnregisteredTypeError, with the way out."""
        entry = self.entry(cls)
        if entry is None:
            raise UnregisteredTypeError(self._way_out(cls))
        return entry

    def _way_out(self, cls: type) -> str:
        """Why objects of a class can't be encoded, and what to do."""
        held = self.tags.get(cls.__qualname__)
        if held is None:
            if adapter_of(cls) is None:
                return advice(cls) or (
                    f"{name_of(cls)} is not registered; call {WITH_FUNCTIONS.replace('…', cls.__name__, 1)}"
                )
            return (
                f"{name_of(cls)} is not registered; call register_type({cls.__name__}), "
                f'or declare it: Key("…", {cls.__name__})'
            )
        if name_of(held.type) == name_of(cls):
            return f"{defined_again(cls, held.type)}; create the object again"
        return (
            f"{name_of(cls)} is not registered, and its tag {held.tag!r} is already used by {name_of(held.type)}; "
            f"give it another tag: register_type({cls.__name__}, tag=…)"
        )


def state_of(entry: Registered, value: Value) -> Value:
    """The state of an object, as a value that the codec knows."""
    try:
        return entry.adapter.encode(value)
    except RecursionError:  # nested too deeply, which the caller reports
        raise
    except Exception as error:
        raise CodecError(f"encoding a {name_of(entry.type)} failed{_text(error)}") from error


def object_of(entry: Registered, state: Value) -> Value:
    """The object of a state."""
    try:
        return entry.adapter.decode(state)
    except Exception as error:
        raise CodecError(
            f"decoding a {name_of(entry.type)} from a record of type {entry.tag!r} failed{_text(error)}"
            f"{declared_before(entry.type)}"
        ) from error


def upgraded_state(entry: Registered, version: int, state: Value) -> Value:
    """The state of an older version, upgraded to today's step by step."""
    if version > entry.version:
        raise CodecError(
            f"the record holds version {version} of type {entry.tag!r}; {name_of(entry.type)} is registered "
            f"as version {entry.version}, so a newer program wrote it"
        )
    for step in range(version, entry.version):
        if step not in entry.upgrade:
            raise CodecError(
                f"the record holds version {version} of type {entry.tag!r}; {name_of(entry.type)} is registered as "
                f"version {entry.version}, but no function upgrades version {step} to {step + 1}; "
                f"give register_type({entry.type.__name__}, …, upgrade={{{step}: …}})"
            )
        try:
            state = entry.upgrade[step](state)
            if entry.adapter.names and type_of(state) is not dict:
                raise CodecError(f"it returned {summary(state)}, not the dict of the fields")
        except Exception as error:
            raise CodecError(
                f"upgrading a {name_of(entry.type)} from version {step} to {step + 1} failed{_text(error)}"
            ) from error
    if (seen := upgraded.get()) is not None:
        seen.append(entry.tag)
    return state


def _way_out(tag: Any) -> str:
    """How a tag becomes known. Recommends nothing to install that the tag itself names: anybody may have forged it."""
    if (distribution := WRITTEN_BY.get(tag)) is not None:
        return f"a layer wrote it; do: pip install {distribution}, and name the layer in the store's layers"
    if str(tag).startswith("numpy."):
        return "import numpy; if that fails, do: pip install 'pocket-plug[numpy]'"
    return f"import the module that declares it, or call register_type(…, tag={tag!r:.80})"


def _text(error: Exception) -> str:
    """What failed. An error that isn't ours is named by its type only, as it may quote the value; it is the cause of ours."""
    return f": {error}" if isinstance(error, CodecError) else f" with {type(error).__name__}"


def name_of(cls: type) -> str:
    """A class in messages."""
    return f"{cls.__module__}.{cls.__qualname__}"
