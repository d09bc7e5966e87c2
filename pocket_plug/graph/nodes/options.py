"""The options of nodes and graphs, and their checks, which run when a node or a graph is made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, cast

from pocket_plug.errors import ConfigError, suggest
from pocket_plug.graph.elsewhere import Elsewhere
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.observing.views import Carrier
from pocket_plug.graph.upgrades import Upgrade
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.names import check_scope
from pocket_plug.primitives.redaction import found, public_url
from pocket_plug.primitives.values import SpanAttributes
from pocket_plug.store.keys import Key, check_name
from pocket_plug.store.store import StoreScope
from pocket_plug.store.sync import SyncScope

from .retry import Retry

Traced = bool | SpanAttributes
"""Does a node have spans? A mapping means yes, and holds more attributes for the node's own span."""
Isolation = Literal["default", "serializable"]
Keys = Sequence[Key[Any]]
"""The keys that a node declares to read or to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of a node, given as class keywords or by `with_options`."""

    name: str = ""
    retry: Retry | None = None
    timeout: float | None = None
    reads: tuple[Key[Any], ...] = ()
    writes: tuple[Key[Any], ...] = ()
    trace: Traced = True
    isolation: Isolation = "default"
    executor: Elsewhere | None = None

    def changed(self, takes: Collection[str], /, **given: Any) -> Options:
        """A copy with the given options that are not None, checked, and converted from what users write.

        `takes` are the options that the node accepts. Raises ConfigError for an invalid value, TypeError for something that is no
        Key and for an unknown option; the message names the option.
        """
        check_options("a node", given.keys() - ALL_OPTIONS, ALL_OPTIONS)
        given = {name: value for name, value in given.items() if value is not None}
        name = given.get("name", self.name or "node")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a node's name can't be {found(name)}; give a text that is not empty")
        for option in given:
            if option not in takes:
                raise ConfigError(
                    f"node {name!r} takes no {option}: its options are {', '.join(sorted(takes))}; the others "
                    "are for nodes with an exec of their own"
                )
        if not isinstance(retry := given.get("retry"), Retry | None):
            raise ConfigError(f"node {name!r}: retry can't be {found(retry)}; give a Retry, such as Retry(attempts=3)")
        if "timeout" in given:
            given["timeout"] = seconds(given["timeout"], f"timeout of node {name!r}")
        for option in ("reads", "writes"):
            if option in given:
                given[option] = _keys(option, given[option])
        executor = given.get("executor")
        if executor == "" or not (executor is None or isinstance(executor, str) or hasattr(executor, "perform")):
            raise ConfigError(
                f"node {name!r}: executor can't be {found(executor)}; give a name such as 'processes', a URL, or an Executor"
            )
        if given.get("isolation", "default") not in ("default", "serializable"):
            raise ConfigError(f"isolation={given['isolation']!r}: give 'default' or 'serializable'")
        if "trace" in given:
            given["trace"] = _traced(name, given["trace"])
        return replace(self, **given)


class NodeOptions(TypedDict, total=False):
    """The options of a node besides its name, for type checkers."""

    retry: Retry | None
    timeout: Duration | None
    reads: Keys | None
    writes: Keys | None
    trace: Traced | None
    isolation: Isolation | None
    executor: Elsewhere | None


class GraphOptions(TypedDict, total=False):
    """The options of a graph, for type checkers."""

    store: StoreScope | SyncScope | None
    name: str
    scope: str | Key[Any] | None
    max_steps: int
    max_depth: int
    clean_up_grace: Duration
    keep_finished: Duration | None
    timeout: Duration | None
    version: int
    upgrade: Mapping[int, Upgrade] | None


class ResumeOptions(TypedDict, total=False):
    """The options of `resume` besides the answer, for type checkers."""

    pocket: RunHost | None
    allow_changed: bool
    takeover: bool
    store: StoreScope | SyncScope | None
    traceparent: Carrier | None


def check_options(owner: str, unknown: Collection[str], known: Collection[str]) -> None:
    """Raise TypeError for an unknown option, with a suggestion, or else with the options that there are."""
    if unknown:
        meant = suggest(min(unknown), known)
        way_out = f".{meant}" if meant else f"; it has: {', '.join(sorted(known))}"
        raise TypeError(f"{owner} has no option {min(unknown)!r}{way_out}")


ALL_OPTIONS = frozenset(each.name for each in fields(Options))


def _traced(node: str, given: Any) -> Traced:
    """Check the option `trace`, and return it. A mapping is copied, since the caller may change it. Raises ConfigError."""
    if isinstance(given, bool):
        return given
    if not issubclass(type(given), Mapping):
        raise ConfigError(
            f"node {node!r}: trace can't be {found(given)}; give True, False, or a mapping of attributes for its span"
        )
    attributes: dict[Any, Any] = dict(given)
    for name, value in attributes.items():
        if not isinstance(name, str) or not name or name.startswith("pocket_plug."):
            raise ConfigError(
                f"node {node!r}: trace has the name {found(name)}; an attribute's name must be a text that doesn't begin with "
                "'pocket_plug.'"
            )
        if not isinstance(value, str | bool | int | float):
            raise ConfigError(
                f"node {node!r} has {found(value)} in trace, for {name!r:.80}: an attribute must be a str, a bool, an int or "
                "a float"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(
                f"node {node!r} has an int in trace, for {name!r:.80}, that doesn't fit into OTLP's 64 bits"
            )
    return attributes


def _keys(option: str, given: Any) -> tuple[Key[Any], ...]:
    if not isinstance(given, list | tuple | set | frozenset):
        raise TypeError(f"{option} can't be {found(given)}; give a tuple of Keys, such as (Key('user:{{}}', User),)")
    keys = tuple(cast("Iterable[Any]", given))
    for key in keys:
        if not isinstance(key, Key):
            raise TypeError(f"{option} has {found(key)}; give Keys, such as Key('user:{{}}', User)")
    return keys


def check_place(graph: str, store: object, scope: str | Key[Any] | None) -> None:
    """Check a graph's store and scope. Raises ConfigError if `store` is no store, KeyNameError if `scope` is no valid name."""
    if not (store is None or isinstance(store, StoreScope | SyncScope)):
        hint = f"Store({public_url(store)!r:.80})" if isinstance(store, str) else "a Store or a SyncStore"
        raise ConfigError(f"graph {graph!r}: store can't be {type(store).__name__}; give {hint}")
    if scope is not None:
        name = check_name(str(scope) if isinstance(scope, Key) else scope)
        check_scope(name if store is None else store.place[1] + name)


def check_count(given: Any, option: str) -> int:
    """Return a whole number from 1 up. Raises ConfigError for anything else; the message names the option."""
    if given.__class__ is not int or given < 1:
        raise ConfigError(f"{option} can't be {found(given)}; give a whole number from 1 up")
    return int(given)
