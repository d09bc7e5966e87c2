"""The compress layer: values come back unchanged, whichever algorithm compressed them; nothing is
decompressed beyond the limit.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import tracemalloc
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard
from pocket_plug_compress import Compress, Compressed

from pocket_plug import (
    ConfigError,
    CorruptRecordError,
    Entry,
    Memory,
    Put,
    Store,
    StoreError,
    SyncStore,
    UnknownTypeError,
    UnregisteredTypeError,
    register_type,
)
from pocket_plug.codec import Codec, default_codec
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.testing.layer_contract import LayerContract

LARGE = {"text": "state " * 1_000, "numbers": list(range(1_000)), "pair": (1, {2.5})}
NOISE = random.Random(1).randbytes(5_000)


def stored(backend: Memory, key: str) -> object:
    """What the backend has stored."""
    entry = asyncio.run(backend.read(key))
    assert entry is not None
    return entry.value


def pair(**options) -> tuple[SyncStore, Memory]:
    """A store, and the backend below the layer."""
    backend = Memory()
    return SyncStore(backend, layers=[Compress(**options)]), backend


class TestContract(LayerContract):
    """The layer passes the backend contract, even if it compresses every value."""

    def recipe(self) -> Compress:
        return Compress(min_bytes=1)


@pytest.fixture
def no_zstandard(monkeypatch):
    """As on a machine without zstandard."""
    monkeypatch.setitem(sys.modules, "zstandard", None)


# ---------------------------------------------------------------- round trips
@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
@pytest.mark.parametrize("level", [None, 1, 9])
def test_large_values_are_compressed(algorithm, level):
    """A large value is stored compressed, smaller than its record, and is read back equal."""
    store, backend = pair(algorithm=algorithm, level=level)
    store.set("k", LARGE)
    found = stored(backend, "k")
    assert isinstance(found, Compressed)
    assert (found.algorithm, found.size) == (algorithm, len(default_codec.encode(LARGE)))
    assert len(found.data) < found.size / 2
    assert store.get("k") == LARGE
    assert store.get_many(["k", "absent"]) == {"k": LARGE}


@pytest.mark.parametrize("value", [None, True, 1, 2.5, "short", b"short", [1, 2], NOISE, "x" * 300], ids=repr)
def test_values_that_do_not_shrink_are_stored_uncompressed(value):
    """Small values, and values that compression wouldn't make smaller, are stored uncompressed."""
    store, backend = pair()
    store.set("k", value)
    assert stored(backend, "k") is value
    assert store.get("k") == value


def test_min_bytes_is_the_records_size():
    """`min_bytes` is compared with the size of the encoded record."""
    size = len(default_codec.encode("x" * 500))
    for min_bytes, kind in ((size, Compressed), (size + 1, str)):
        store, backend = pair(min_bytes=min_bytes)
        store.set("k", "x" * 500)
        assert type(stored(backend, "k")) is kind


def test_a_users_own_marker_comes_back():
    """If a user stores a Compressed object, it is read back like any other value."""
    store, _ = pair()
    mine = Compressed("zlib", 3, b"abc")
    store.set("k", mine)
    assert store.get("k") == mine


@pytest.mark.parametrize(("wrote", "reads"), [("zlib", "zstd"), ("zstd", "zlib")])
def test_reads_what_the_other_wrote(wrote, reads):
    """The algorithm may change between programs: each record says which algorithm compressed it."""
    backend = Memory()
    SyncStore(backend, layers=[Compress(algorithm=wrote)]).set("k", LARGE)
    assert SyncStore(backend, layers=[Compress(algorithm=reads)]).get("k") == LARGE


def test_reads_what_was_there_before():
    """Values that were written without the layer can be read with it."""
    backend = Memory()
    SyncStore(backend).set("k", LARGE)
    assert SyncStore(backend, layers=[Compress()]).get("k") is LARGE


def test_all_that_a_store_does():
    """Transactions, updates and deadlines work through the layer: version and expiry of an entry are unchanged."""
    store, backend = pair()
    store.set("k", LARGE, ttl=60)
    assert store.update("k", lambda value: {**value, "more": 1}) == {**LARGE, "more": 1}
    assert store.ttl("k") is not None
    with store.transaction() as tx:
        tx.set("k", {**tx.get("k"), "more": 2})
    assert store.get("k")["more"] == 2
    assert isinstance(stored(backend, "k"), Compressed)


def test_over_sqlite(tmp_path):
    """Over a file, another program with the layer can read the stored values."""
    url = f"sqlite:///{tmp_path}/state.db"
    with SyncStore(url, layers=["compress"]) as store:
        store.set("k", LARGE)
    with SyncStore(url, layers=["compress"]) as store:
        assert store.get("k") == LARGE


def test_many_threads_and_tasks():
    """Concurrent use is safe: each caller gets its own value back."""

    async def main() -> None:
        store = Store(layers=[Compress()])

        async def one(number: int) -> None:
            await store.set(f"k{number}", [number] * 2_000)
            assert await store.get(f"k{number}") == [number] * 2_000

        def in_thread(number: int) -> None:
            store.sync.set(f"t{number}", [number] * 2_000)
            assert store.sync.get(f"t{number}") == [number] * 2_000

        await asyncio.gather(*map(one, range(50)), *(asyncio.to_thread(in_thread, number) for number in range(20)))

    asyncio.run(main())


# ---------------------------------------------------------------- without zstandard
@pytest.mark.usefixtures("no_zstandard")
def test_without_zstandard():
    """Without zstandard the layer uses zlib. A value that was compressed by zstd is an error that says what to install, never a
    miss.
    """
    store, backend = pair()
    store.set("k", LARGE)
    assert stored(backend, "k").algorithm == "zlib"  # type: ignore[attr-defined]
    asyncio.run(backend.write([Put("z", Compressed("zstd", 3, b"abc"))]))
    with pytest.raises(
        StoreError, match=r"'z' was compressed by zstd, and zstandard is not installed.*pip install"
    ) as raised:
        store.get("z")
    assert raised.value.loggable is not None, "so that the log of a worker says it too"
    with pytest.raises(ConfigError, match=r"algorithm 'zstd' needs zstandard; do: pip install"):
        pair(algorithm="zstd")


def test_with_zstandard():
    """If zstandard is installed, "auto" uses it."""
    store, backend = pair()
    store.set("k", LARGE)
    assert stored(backend, "k").algorithm == "zstd"  # type: ignore[attr-defined]


# ---------------------------------------------------------------- damage and malice
RECORD = default_codec.encode(LARGE)


@pytest.mark.parametrize(
    "found",
    [
        Compressed("zlib", len(RECORD), zlib.compress(RECORD)[:-1]),
        Compressed("zlib", len(RECORD) - 1, zlib.compress(RECORD)),
        Compressed("zlib", len(RECORD) + 1, zlib.compress(RECORD)),
        Compressed("zlib", len(RECORD), b"garbage"),
        Compressed("zstd", len(RECORD) + 1, zstandard.compress(RECORD)),
        Compressed("zstd", len(RECORD), zstandard.compress(RECORD)[:-1]),
        Compressed("zstd", len(RECORD), b"garbage"),
        Compressed("zlib", 3, zlib.compress(b"abc")),
        Compressed("zlib", -1, zlib.compress(RECORD)),
        Compressed("zlib", default_codec.max_bytes + 1, zlib.compress(RECORD)),
        Compressed("zstd", 100, zstandard.compress(bytes(1_000_000))),
        Compressed("zlib", 100, zlib.compress(bytes(1_000_000))),
        Compressed("zlib", cast(Any, "100"), b"text"),
        Compressed("zstd", 100, cast(Any, "text")),
        Compressed(cast(Any, ["zlib"]), 100, b"text"),
    ],
    ids=lambda found: f"{found.algorithm}-{found.size}-{len(found.data)}",
)
def test_damage_is_an_error(found):
    """Data that is truncated, has another size, is garbage or a bomb: always an error, never another value or a miss."""
    store, backend = pair()
    asyncio.run(backend.write([Put("k", found)]))
    with pytest.raises(CorruptRecordError):
        store.get("k")


def test_a_bomb_is_not_unpacked():
    """A decompression bomb is decompressed no further than to the size that its record claims."""
    bomb = zlib.compress(bytes(50_000_000), 9)
    store, backend = pair()
    asyncio.run(backend.write([Put("k", Compressed("zlib", 1_000, bomb))]))

    def peak() -> int:
        tracemalloc.start()
        try:
            with pytest.raises(CorruptRecordError, match="'k' is damaged"):
                store.get("k")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # All threads are counted; what others allocate by chance isn't there each time.
    assert min(peak() for _ in range(5)) < 2_000_000


def test_unknown_algorithm():
    """If a later version has compressed a value by an unknown algorithm, the error names it and says what to upgrade."""
    store, backend = pair()
    asyncio.run(backend.write([Put("k", Compressed("lzma", 3, b"abc"))]))
    with pytest.raises(StoreError, match=r"'k' was compressed by 'lzma', which this version can't read; upgrade"):
        store.get("k")


# ---------------------------------------------------------------- options and types
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "lz4"}, "'algorithm' must be one of 'auto', 'zlib', 'zstd', not 'lz4'"),
        ({"algorithm": "zlib", "level": 10}, "zlib has the levels 1 to 9, not 10"),
        ({"algorithm": "zstd", "level": 0}, "zstd has the levels 1 to 22, not 0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    """Invalid options are refused when the stack is built; the error says what is allowed."""
    with pytest.raises(ConfigError, match=message):
        pair(**options)


def test_unregistered_type():
    """A value that the codec doesn't know is refused at set, naming the key."""

    class Session: ...

    store, _ = pair()
    with pytest.raises(UnregisteredTypeError, match="key 'k': "):
        store.set("k", [Session()] * 500)


@dataclass
class Page:
    text: str


register_type(Page, tag="test_compress.Page")


def test_registered_type():
    """A registered class comes back as an object of it."""
    store, _ = pair()
    store.set("k", Page("x" * 5_000))
    assert store.get("k") == Page("x" * 5_000)


def test_a_type_that_is_not_registered_here_is_named_with_its_key():
    """The error names the key, as a backend's error does for an uncompressed value, so that it can be found in a whole store."""
    elsewhere = Codec()
    elsewhere.register(Page, tag="elsewhere.Page")
    record = elsewhere.encode(Page("x"))
    store, backend = pair()
    asyncio.run(backend.write([Put("k", Compressed("zlib", len(record), zlib.compress(record)))]))
    with pytest.raises(UnknownTypeError, match=r"key 'k': .* type 'elsewhere\.Page'"):
        store.get("k")


def test_a_layer_outside_sees_values():
    """A layer outside never sees a Compressed; a layer inside never sees a large value."""
    from pocket_plug import Layer

    seen: list[object] = []

    class Watching(Layer):
        async def read(self, key: str) -> Entry | None:
            entry = await self.inner.read(key)
            seen.append(entry and entry.value)
            return entry

    with SyncStore(layers=[Watching(), Compress()]) as store:
        store.set("k", LARGE)
        assert store.get_many(["k"]) == {"k": LARGE}
    assert seen == [LARGE]


# ---------------------------------------------------------------- as a plugin
def test_found_by_its_entry_point():
    """The installed plugin is listed, and usable by name with checked options."""
    pocket = Pocket(required=["compress"])
    record = pocket.plugin("compress")
    assert (record.distribution, record.origin, record.hooks) == (
        "pocket-plug-compress",
        "entry point",
        ("pocket_layers",),
    )
    assert repr(pocket.layer({"use": "compress", "min_bytes": 10})) == "Compress(min_bytes=10)"
    with pytest.raises(ConfigError, match="compress's option 'algorithm' must be "):
        pocket.layer({"use": "compress", "algorithm": "lz4"})


def test_readme():
    """What the README shows works."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(snippet, {})  # noqa: S102
