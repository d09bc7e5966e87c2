"""Why none of py-key-value's stores can be a backend of pocket_plug: what a backend needs, and what each of them lacks.

This was read in the sources of py-key-value-aio 0.5.0: of `put`, of `put_many`, and of the listing of keys.
"""

from __future__ import annotations

PROTOCOL = (
    "AsyncKeyValue has no compare-and-set, so of two that change a key at once one is lost, in its transactions, updates and "
    "durable runs"
)
"""What all these stores lack, whatever database they use."""

_EACH = "put_many writes one after the other"
_UNLISTED = "keys can't be listed"
_IN_NO_ORDER = "keys are listed up to a limit, in no order"
_EVICTS = "where it has a limit, it evicts what is beyond"
_ALONE = f"{_EACH}; {_UNLISTED}"
_UNSEEN = "what is written is found later than it is answered"

SQLITE, SERVER = "sqlite:///state.db", "postgresql://user@host/database"

LACKS: dict[str, tuple[str, str]] = {
    "AerospikeStore": (f"{_EACH}; {_IN_NO_ORDER}", SERVER),
    "AzureTablesStore": (_ALONE, SERVER),
    "ChDBStore": (_ALONE, SQLITE),
    "DiskStore": (f"{_ALONE}; {_EVICTS}", SQLITE),
    "DuckDBStore": (_ALONE, SQLITE),
    "DynamoDBStore": (_ALONE, SERVER),
    "ElasticsearchStore": (f"put_many may land in part; {_UNSEEN}", SERVER),
    "FileTreeStore": (_ALONE, SQLITE),
    "FirestoreStore": (f"put_many is atomic, but expects nothing; {_UNLISTED}", SERVER),
    "KeyringStore": (_ALONE, SQLITE),
    "MemcachedStore": (f"{_ALONE}; {_EVICTS}", "redis://host/0"),
    "MemoryStore": (f"{_EACH}; {_EVICTS}", "memory://"),
    "MongoDBStore": (f"put_many may land in part; {_UNLISTED}", SERVER),
    "MultiDiskStore": (f"{_ALONE}; {_EVICTS}", SQLITE),
    "NullStore": ("it keeps nothing", "memory://"),
    "OpenSearchStore": (f"{_EACH}; {_UNSEEN}", SERVER),
    "PostgreSQLStore": (_ALONE, SERVER),
    "RedisStore": (f"put_many is atomic, but expects nothing; {_IN_NO_ORDER}", "redis://host/0"),
    "RocksDBStore": (f"put_many is atomic, but expects nothing; {_UNLISTED}", SQLITE),
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
