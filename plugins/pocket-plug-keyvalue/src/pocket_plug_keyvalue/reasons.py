"""Why none of py-key-value's stores can be a backend of pocket_plug: what a backend needs, and what each of them lacks.

This was read in the sources of py-key-value-aio 0.5.0: of `put`, of `put_many`, and of the listing of keys.
"""

from __future__ import annotations

PROTOCOL = (
    "AsyncKeyValue has no compare-and-set: if two programs change a key at the same time, one change is lost, so transactions, "
    "updates and durable runs can't work"
)
"""What all these stores lack, whatever database they use."""

_EACH = "put_many is not atomic: it writes one key after the other"
_UNLISTED = "keys can't be listed"
_IN_NO_ORDER = "keys are listed up to a limit, and not in order"
_EVICTS = "if it has a size limit, it evicts entries"
_ALONE = f"{_EACH}; {_UNLISTED}"
_UNSEEN = "a listing shows a write only some time after it was acknowledged"

SQLITE, SERVER = "sqlite:///state.db", "postgresql://user@host/database"

LACKS: dict[str, tuple[str, str]] = {
    "AerospikeStore": (f"{_EACH}; {_IN_NO_ORDER}", SERVER),
    "AzureTablesStore": (_ALONE, SERVER),
    "ChDBStore": (_ALONE, SQLITE),
    "DiskStore": (f"{_ALONE}; {_EVICTS}", SQLITE),
    "DuckDBStore": (_ALONE, SQLITE),
    "DynamoDBStore": (_ALONE, SERVER),
    "ElasticsearchStore": (f"put_many is not atomic: a part of it may be written; {_UNSEEN}", SERVER),
    "FileTreeStore": (_ALONE, SQLITE),
    "FirestoreStore": (f"put_many is atomic, but can't compare versions; {_UNLISTED}", SERVER),
    "KeyringStore": (_ALONE, SQLITE),
    "MemcachedStore": (f"{_ALONE}; {_EVICTS}", "redis://host/0"),
    "MemoryStore": (f"{_EACH}; {_EVICTS}", "memory://"),
    "MongoDBStore": (f"put_many is not atomic: a part of it may be written; {_UNLISTED}", SERVER),
    "MultiDiskStore": (f"{_ALONE}; {_EVICTS}", SQLITE),
    "NullStore": ("it stores nothing", "memory://"),
    "OpenSearchStore": (f"{_EACH}; {_UNSEEN}", SERVER),
    "PostgreSQLStore": (_ALONE, SERVER),
    "RedisStore": (f"put_many is atomic, but can't compare versions; {_IN_NO_ORDER}", "redis://host/0"),
    "RocksDBStore": (f"put_many is atomic, but can't compare versions; {_UNLISTED}", SQLITE),
    "S3Store": (_ALONE, SERVER),
    "SimpleStore": (f"{_EACH}; {_IN_NO_ORDER}", "memory://"),
    "ValkeyStore": (_ALONE, "redis://host/0"),
    "VaultStore": (_ALONE, SERVER),
    "WindowsRegistryStore": (_ALONE, SQLITE),
}
"""What else a store lacks, and the URL of a pocket_plug backend that uses the same database or a similar one."""


def reason_against(store: object) -> str:
    """The message why this store can't be a backend, and what to use instead."""
    lacks, instead = LACKS.get(type(store).__name__, ("", SQLITE))
    besides = f"; besides, {lacks}" if lacks else ""
    return f'{PROTOCOL}{besides}. Use Store("{instead}"); KeyValue(store) is an AsyncKeyValue over it'
