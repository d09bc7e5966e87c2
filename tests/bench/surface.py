"""All operations of a store, with few names and with many: none may cost more for names that it doesn't touch."""

from __future__ import annotations

from collections.abc import Callable

from pocket_plug import SyncStore

from .harness import Bench, row
from .sqlite import folder

FEW = 1_000
BEYOND = 10_000
"""Names that an operation may make anew, beside those that are there before."""


def filled(store: SyncStore, number: int) -> SyncStore:
    for start in range(0, number, 10_000):
        store.set_many({f"name:{n:07}": n for n in range(start, min(start + 10_000, number))})
    store.set_many({f"few:{n}": n for n in range(10)})
    return store


def set_expecting(store: SyncStore, number: int) -> None:
    entry = store.entry("few:0")
    assert entry is not None
    store.set("few:0", number, expect=entry.version)


def delete_prefix(store: SyncStore, number: int) -> None:
    store.set_many({"gone:1": number, "gone:2": number})
    assert store.delete_prefix("gone:") == 2


REORDERS = "set of two, then delete_prefix"
"""Puts names in and takes them out again between scans: in memory, a list of all names is moved by one place for each."""


def cases(bench: Bench, open_store: Callable[[int], SyncStore], *, growing: str | None = None) -> None:
    """Each operation at both sizes; the larger may cost a little more, as a deeper tree does, except for `growing`."""
    many = max(FEW, bench.effort.many)
    operations = {
        "has": "store.has('few:1')",
        "get_many of 10": "store.get_many(names)",
        "entry": "store.entry('few:1')",
        "entry, then set with expect=": "set_expecting(store, i)",
        "add, of a name that is there": "store.add('few:1', i)",
        f"add, of {BEYOND:,} names by turns, and pop": "store.add(f'new:{i % beyond}', i); store.pop(f'new:{i % beyond}')",
        "update with ttl=": "store.update('few:2', lambda n: i, ttl=60)",
        "touch": "store.touch('few:3', ttl=60 + i % 7)",
        "keys of a prefix of 10": "list(store.keys('few:'))",
        "items of a prefix of 10": "dict(store.items('few:'))",
        "count of a prefix of 10": "store.count('few:')",
        REORDERS: "delete_prefix(store, i)",
    }
    names = [f"few:{n}" for n in range(10)]
    for size in (FEW, many):
        store = filled(open_store(size), size)
        for name, work in operations.items():
            bench.case(
                f"{name}; {size:,}",
                work,
                store=store,
                names=names,
                beyond=BEYOND,
                set_expecting=set_expecting,
                delete_prefix=delete_prefix,
            )
    for name in [name for name in operations if name != growing]:
        bench.target(f"{name}; {many:,}", 1.3, f"{name}; {FEW:,}")


@row
def in_memory(bench: Bench) -> None:
    """every operation on a store in memory of so many names"""
    cases(bench, lambda _: bench.enter(SyncStore()), growing=REORDERS)


@row
def in_sqlite(bench: Bench) -> None:
    """every operation on a store in SQLite of so many names, durability=process"""
    at = folder(bench)
    cases(bench, lambda size: bench.enter(SyncStore(f"sqlite:///{at}/{size}.db?durability=process")))
