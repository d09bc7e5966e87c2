"""The long-term store. An item is one entry, named by its namespace and its key.

    item:LABEL:LABEL::KEY                [value, created at, updated at, minutes to live]

No label is empty, so the empty part marks where the key begins. A search scans the items below a namespace, in order of names.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
)

from pocket_plug import ConfigError, Delete, Put, StoreScope, SyncScope, ValueTypeError, join_name, split_name

from .holder import Holder, below

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


class PocketStore(Holder, BaseStore):
    """Keeps items in a store: that of a URL, `PocketStore("sqlite:///state.db")`, or a given store, or a scope of one.

    Pass it to `compile(store=…)`. As a context manager, sync or async, it opens and closes the store of a URL. Values must have
    types that pocket_plug's codec knows; others raise UnregisteredTypeError. There is no semantic search: a `query` or an
    `index` raises NotImplementedError.

    >>> from pocket_plug import SyncStore
    >>> memories = PocketStore(SyncStore())
    >>> memories.put(("user", "ann"), "colour", {"likes": "blue"})
    >>> memories.get(("user", "ann"), "colour").value, memories.list_namespaces()
    ({'likes': 'blue'}, [('user', 'ann')])
    """

    supports_ttl = True

    def __init__(self, store: str | StoreScope | SyncScope, *, ttl: TTLConfig | None = None) -> None:
        self._hold(store)
        self._items = self._scope.scope("item")
        self.ttl_config = ttl

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return self._run(self.abatch(ops))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Do the operations; return their results in order. All reads come before the puts, which are one atomic write."""
        results: list[Result] = []
        puts: dict[str, PutOp] = {}
        for op in ops:
            result: Result = None
            if isinstance(op, PutOp):
                if op.index:
                    raise _no_semantics(f"the item with key {op.key!r:.80} can't be indexed by its fields")
                _check_put(op)
                puts[_name(op.namespace, op.key)] = op
            elif isinstance(op, GetOp):
                result = await self._get(op)
            elif isinstance(op, SearchOp | ListNamespacesOp):
                _check_page(op)
                result = await (self._search(op) if isinstance(op, SearchOp) else self._namespaces(op))
            else:
                raise ConfigError(f"a store's batch has no operation {type(op).__name__}")
            results.append(result)
        if puts:
            await self._put(puts)
        return results

    async def _put(self, puts: Mapping[str, PutOp]) -> None:
        before: dict[str, Any] = await self._items.get_many([name for name, op in puts.items() if op.value is not None])
        stack, prefix = self._items.place
        now = datetime.now(UTC)
        changes: list[Put | Delete] = []
        for name, op in puts.items():
            if op.value is None:
                changes.append(Delete(prefix + name))
                continue
            made = before[name][1] if name in before else now
            ends = None if op.ttl is None else stack.clock() + 60 * op.ttl
            changes.append(Put(prefix + name, [dict(op.value), made, now, op.ttl], ends))
        await stack.write(changes)

    async def _get(self, op: GetOp) -> Item | None:
        name = _name(op.namespace, op.key)
        row = await self._items.get(name)
        if row is None:
            return None
        await self._refresh(name, row, op.refresh_ttl)
        value, made, changed, _ = row
        return Item(value=value, key=op.key, namespace=op.namespace, created_at=made, updated_at=changed)

    async def _search(self, op: SearchOp) -> list[SearchItem]:
        if op.query:
            raise _no_semantics("a search can't have a query; leave it out, and use filter=")
        found: list[SearchItem] = []
        left = op.offset
        async for name, row in self._items.items(below(*op.namespace_prefix)):
            if len(found) == op.limit:
                break
            value, made, changed, _ = row
            if not _fits(value, op.filter or {}):
                continue
            if left:
                left -= 1
                continue
            await self._refresh(name, row, op.refresh_ttl)
            found.append(SearchItem(*_taken_apart(name), value, made, changed))
        return found

    async def _refresh(self, name: str, row: list[Any], wanted: bool) -> None:
        minutes = row[3]
        if wanted and minutes is not None:
            await self._items.touch(name, ttl=60 * minutes)

    async def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        conditions = op.match_conditions or ()
        found = {
            namespace[: op.max_depth]: None
            async for namespace in self._all_namespaces()
            if all(_matches(condition, namespace) for condition in conditions)
        }
        return list(islice(sorted(found), op.offset, op.offset + op.limit))

    async def _all_namespaces(self) -> AsyncIterator[tuple[str, ...]]:
        """Each namespace once. The items of a namespace, after the first, are skipped."""
        after = ""
        while True:
            async for name in self._items.keys(after=after, limit=1):
                namespace = _taken_apart(name)[0]
                yield namespace
                after = below(*namespace) + ";"  # ";" follows ":", so this is behind all its items
                break
            else:
                return


def _check_put(op: PutOp) -> None:
    if op.value is not None and not isinstance(op.value, Mapping):
        raise ValueTypeError(f"{op.key!r:.80}: an item's value is a dict, not a {type(op.value).__name__}")
    if op.ttl is not None and not op.ttl > 0:
        raise ConfigError(f"{op.key!r:.80}: ttl is a number of minutes above 0, not {op.ttl}; None is for ever")


def _check_page(op: SearchOp | ListNamespacesOp) -> None:
    for name, number in (("limit", op.limit), ("offset", op.offset)):
        if number < 0:
            raise ConfigError(f"{name} is a number from 0 up, not {number}")


def _name(namespace: tuple[str, ...], key: str) -> str:
    return join_name(*namespace, "", key)


def _taken_apart(name: str) -> tuple[tuple[str, ...], str]:
    *namespace, _, key = split_name(name)
    return tuple(namespace), key


def _no_semantics(what: str) -> NotImplementedError:
    return NotImplementedError(f"PocketStore has no semantic search, so {what}; LangGraph's PostgresStore has one")


def _matches(condition: MatchCondition, namespace: tuple[str, ...]) -> bool:
    path = condition.path
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", found) for wanted, found in zip(path, part, strict=True))


def _fits(value: Any, wanted: Any) -> bool:
    """Does a value match a filter: is it equal, do its fields or items match, or are all comparisons true?"""
    if isinstance(wanted, list | tuple):
        items, each = cast("tuple[list[Any], list[Any]]", (value, wanted))
        return isinstance(value, list | tuple) and len(items) == len(each) and all(map(_fits, items, each))
    if not isinstance(wanted, dict):
        return bool(value == wanted)
    fields = cast("dict[str, Any]", wanted)
    if not any(key.startswith("$") for key in fields):
        return isinstance(value, dict) and all(
            _fits(cast("dict[str, Any]", value).get(key), each) for key, each in fields.items()
        )
    if unknown := sorted(fields.keys() - _COMPARISONS.keys()):
        raise ConfigError(f"a filter has no {unknown[0]!r:.80}; it has {', '.join(_COMPARISONS)}")
    try:
        return all(_COMPARISONS[how](value, than) for how, than in fields.items())
    except TypeError:  # values such as a str and an int, or None, have no order
        return False
