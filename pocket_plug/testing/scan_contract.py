"""Tests of names and their order, for any backend and layer: a scan yields each key once, wherever its pages begin."""

import gc
from contextlib import suppress
from itertools import count
from random import Random

import pytest

from pocket_plug.errors import CodecError, ConflictError, StoreError
from pocket_plug.store.backend import Backend, Delete, Put
from pocket_plug.store.keys import MAX_KEY_BYTES
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.interrupts import Interrupted, Interrupter
from pocket_plug.testing.scenarios import (
    LONG_KEYS,
    ODD_KEYS,
    awaited_by,
    beside,
    in_a_thread,
    interrupted,
    keys_of,
    leaves_things_behind,
    pages_of,
    scanned,
)

both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


class ScanContract:
    """The promises of `scan`, and that different names are different entries; `BackendContract` inherits it."""

    # ------------------------------------------------------------ keys
    @awaited_by("run")
    async def test_scan_gives_the_keys_in_code_point_order(self, backend: Backend) -> None:
        """The order is that of Python's `sorted`, whatever the backend's collation is."""
        await backend.write([Put(key, 0) for key in reversed(ODD_KEYS)])
        assert await keys_of(backend) == sorted(ODD_KEYS)

    @awaited_by("run")
    async def test_odd_keys_are_told_apart(self, backend: Backend) -> None:
        """Keys that differ in case, accents, pattern characters, quotes, NUL or length are different for every operation."""
        for number, key in enumerate(ODD_KEYS):
            await backend.write([Put(key, number)], {key: 0})
        versions: dict[str, int] = {}
        for number, key in enumerate(ODD_KEYS):
            entry = await backend.read(key)
            assert entry is not None
            assert entry.value == number
            versions[key] = entry.version
        assert {k: e.value for k, e in (await backend.read_many(ODD_KEYS)).items()} == {
            key: number for number, key in enumerate(ODD_KEYS)
        }
        await backend.write([], versions)
        for gone in range(len(ODD_KEYS)):
            await backend.write([Delete(ODD_KEYS[gone])])
            assert await keys_of(backend) == sorted(ODD_KEYS[gone + 1 :])

    @awaited_by("run")
    async def test_keys_may_be_as_long_as_a_backend_must_take_them(self, backend: Backend) -> None:
        """2 KiB in UTF-8, of any characters, for every operation, also beside keys that differ only in the last character."""
        names = sorted({*LONG_KEYS, *(key[:-1] for key in LONG_KEYS), *(f"{key[:-1]}\0" for key in LONG_KEYS)})
        assert {len(key.encode()) for key in LONG_KEYS} == {MAX_KEY_BYTES}
        for number, name in enumerate(names):
            await backend.write([Put(name, number)], {name: 0})
        found = await backend.read_many(names)
        assert {name: entry.value for name, entry in found.items()} == {name: n for n, name in enumerate(names)}
        assert await backend.read(LONG_KEYS[1]) == found[LONG_KEYS[1]]
        await backend.write([], {name: entry.version for name, entry in found.items()})
        assert await keys_of(backend) == names
        assert [page async for page in pages_of(backend, "", 1, reverse=True)] == [[name] for name in names[::-1]]
        for key in LONG_KEYS:
            assert await keys_of(backend, key[:-1]) == scanned(names, key[:-1])
            assert await keys_of(backend, after=key, limit=2) == scanned(names, after=key, limit=2)
        with pytest.raises(ConflictError) as caught:
            await backend.write([Delete(key) for key in LONG_KEYS], dict.fromkeys(LONG_KEYS, 0))
        assert caught.value.keys == {*LONG_KEYS}
        await backend.write([Delete(key) for key in LONG_KEYS])
        assert await keys_of(backend) == [name for name in names if name not in LONG_KEYS]

    @awaited_by("run")
    async def test_a_prefix_is_taken_literally(self, backend: Backend) -> None:
        """Scan uses the prefix as `str.startswith` does; no prefix is a pattern."""
        names = {*ODD_KEYS, *(f"{key}:{key}" for key in ODD_KEYS), *(f"user:{n}:{k}" for n in range(12) for k in "ab")}
        await backend.write([Put(name, 0) for name in names])
        for prefix in (*ODD_KEYS, "user:", "user:1", "user:10:", "nothing such"):
            assert await keys_of(backend, prefix) == sorted(name for name in names if name.startswith(prefix))

    @awaited_by("run")
    async def test_a_scan_bears_writes_in_between(self, backend: Backend) -> None:
        """Keys that exist during the whole scan are yielded once each, in order, whatever else is written meanwhile."""
        staying = [f"k:{n:04}" for n in range(600)]
        await backend.write([Put(key, 0) for key in staying])
        given: list[str] = []
        async for key in backend.scan("k:"):
            given.append(key)
            if len(given) % 50 == 0:
                await backend.write([Put(f"{key}+", 0), Put(f"{key[:-1]}", 0), Put(staying[-1], len(given))])
        assert given == sorted(set(given))
        assert set(staying) <= set(given)

    # ------------------------------------------------------------ pages
    @both_ways
    @awaited_by("run")
    async def test_a_scan_begins_after_a_key(self, backend: Backend, reverse: bool) -> None:
        """Strictly after a key, or in reverse before it; the key may be missing, or not begin with the prefix."""
        names = ["a", "b:1", "b:2", "b:4", "c"]
        await backend.write([Put(name, 0) for name in names])
        for prefix in ("", "b:", "b", "b:4", "nothing such"):
            for after in ("", "\0", "a", "a:9", "b", "b:", "b:1", "b:3", "b:4", "b:5", "c", "d", "\U0010ffff"):
                expected = scanned(names, prefix, after=after, reverse=reverse)
                assert await keys_of(backend, prefix, after=after, reverse=reverse) == expected, (prefix, after)

    @both_ways
    @awaited_by("run")
    async def test_a_limit_counts_live_keys(self, backend: Backend, clock: FakeClock, reverse: bool) -> None:
        """Expired and deleted keys in between don't count: a page is shorter than its limit only at the end."""
        lasting = {n for n in range(1000) if n % 100 == 0 or (n % 2 and n < 600)}
        await backend.write([Put(f"k:{n:04}", n, None if n in lasting else clock() + 1) for n in range(1000)])
        await backend.write([Put("a", 0), Put("z", 0)])
        await backend.write([Delete("k:0300"), Delete("k:0700")])
        clock.advance(1)
        alive = [f"k:{n:04}" for n in sorted(lasting - {300, 700})]
        for limit in (0, 1, 2, 7, 290, 308, 309, 1000, 2**70, None):
            expected = scanned(alive, reverse=reverse, limit=limit)
            assert await keys_of(backend, "k:", reverse=reverse, limit=limit) == expected

    @both_ways
    @awaited_by("run")
    async def test_pages_have_each_key_once(self, backend: Backend, reverse: bool) -> None:
        """Consecutive pages of any size have all keys in order, and only the last page isn't full."""
        names = [f"k:{n:03}" for n in range(300)]
        assert [page async for page in pages_of(backend, "k:", 10, reverse=reverse)] == []
        await backend.write([Put(name, 0) for name in ("a", *names, "z")])
        for size in (1, 7, 100, 299, 300, 301):
            pages = [page async for page in pages_of(backend, "k:", size, reverse=reverse)]
            assert [key for page in pages for key in page] == scanned(names, reverse=reverse)
            assert {len(page) for page in pages[:-1]} <= {size}

    @both_ways
    @awaited_by("run")
    async def test_a_page_of_entries_is_what_a_scan_and_a_read_give(
        self, backend: Backend, clock: FakeClock, reverse: bool
    ) -> None:
        """`read_page` returns keys in the scan's order with their entries; an expired key has no entry, or is left out."""
        names = [f"k:{n:02}" for n in range(30)]
        assert await backend.read_page("k:", limit=10) == []
        await backend.write([Put(name, {"n": name}) for name in ("a", *names, "z")])
        for after in ("", "k:10", "k:10!", "k:29"):
            for limit in (1, 7, 29, 30, 31):
                keys = await keys_of(backend, "k:", after=after, reverse=reverse, limit=limit)
                page = await backend.read_page("k:", after=after, reverse=reverse, limit=limit)
                assert [name for name, _ in page] == keys
                assert dict(page) == await backend.read_many(keys)
        assert [name for name, _ in await backend.read_page(limit=40)] == ["a", *names, "z"]
        await backend.write([Put(name, 0, clock() + 5) for name in names[:20]])
        clock.advance(5)
        page = await backend.read_page("k:", reverse=reverse, limit=30)
        assert [name for name, entry in page if entry is not None] == scanned(names[20:], reverse=reverse)

    @both_ways
    @awaited_by("run")
    async def test_pages_of_odd_keys(self, backend: Backend, reverse: bool) -> None:
        """A page can end and the next one begin after any name, also with a prefix that ends in the highest code point."""
        ends = ("", "\0", "\0\0", "!", "\U0010ffff", "\U0010ffff\U0010ffff")
        names = {f"{key}{end}" for key in ODD_KEYS for end in ends}
        await backend.write([Put(name, 0) for name in names])
        pages = [page async for page in pages_of(backend, "", 1, reverse=reverse)]
        assert [key for page in pages for key in page] == scanned(names, reverse=reverse)
        for prefix in ("a", "\0", "a\0", "\U0010ffff", "a\U0010ffff", "\U0010ffff\U0010ffff", "\ud7ff"):
            for after in ("", *scanned(names, prefix), f"{prefix}\U0010ffff!"):
                expected = scanned(names, prefix, after=after, reverse=reverse, limit=3)
                assert await keys_of(backend, prefix, after=after, reverse=reverse, limit=3) == expected
                page = await backend.read_page(prefix, after=after, reverse=reverse, limit=3)
                assert [name for name, _ in page] == expected

    @pytest.mark.parametrize("seed", range(2))
    @awaited_by("run")
    async def test_a_scan_is_as_its_model(self, backend: Backend, clock: FakeClock, seed: int) -> None:
        """After random puts, deletes and expiries, with few changes or many, each scan returns the same as `scanned`."""
        random = Random(seed)  # noqa: S311 - no secret: the test is the same each time
        letters = "ab:\0é\U0010ffff"

        def name(longest: int) -> str:
            return "".join(random.choices(letters, k=random.randint(1, longest)))

        ends: dict[str, float | None] = {}
        for _ in range(100):
            changes: list[Put | Delete] = []
            for _ in range(random.choice((0, 1, 1, 1, 2, 2, 5, 400))):
                change: Put | Delete = Put(name(4), 0, random.choice((None, clock() + 3)))
                changes.append(change if random.random() < 0.6 else Delete(change.key))
            if changes:
                await backend.write(changes)
            for change in changes:
                ends.pop(change.key, None)
                if isinstance(change, Put):
                    ends[change.key] = change.expires_at
            clock.advance(random.choice((0, 0, 1)))
            alive = [key for key, end in ends.items() if end is None or clock() < end]
            prefix, after = random.choice(("", name(2))), random.choice(("", name(3)))
            reverse, limit = random.choice((True, False)), random.choice((None, 1, 2, 10, 100))
            expected = scanned(alive, prefix, after=after, reverse=reverse, limit=limit)
            assert await keys_of(backend, prefix, after=after, reverse=reverse, limit=limit) == expected

    @both_ways
    @pytest.mark.parametrize("size", [None, 7], ids=["at once", "pages"])
    @awaited_by("run")
    async def test_pages_bear_writes_in_between(self, backend: Backend, size: int | None, reverse: bool) -> None:
        """While others add and remove names, the names that stay are yielded once each, in order; with pages and without."""
        staying = [f"k:{n:03}" for n in range(40)]
        await backend.write([Put(key, 0) for key in staying])

        async def write(n: int) -> None:
            here, there = staying[n % 40], staying[(n + 20) % 40]
            await backend.write([Put(f"{here}+{n % 3}", n), Put(f"j{n % 50}", n), Delete(f"{there}+{n % 3}")])

        async def read() -> None:
            given: list[str] = []
            if size is None:
                given = await keys_of(backend, "k:", reverse=reverse)
            else:
                async for page in pages_of(backend, "k:", size, reverse=reverse):
                    given += page
            assert given == sorted(set(given), reverse=reverse)
            assert set(staying) <= set(given)

        await beside(backend, write, read, 30)

    @leaves_things_behind
    @awaited_by("run")
    async def test_an_interrupted_scan_leaves_nothing_behind(self, backend: Backend) -> None:
        """Wherever it is interrupted, the next scan is right, also for names that were added or removed just before."""
        await backend.write([Put(f"k{n}", 0) for n in range(5)])
        await keys_of(backend)
        for place in count(1, 5):
            await backend.write([Put("k1+", 0), Delete("k3")] if place % 2 else [Delete("k1+"), Put("k3", 0)])
            expected = ["k0", "k1", "k1+", "k2", "k4"] if place % 2 else [f"k{n}" for n in range(5)]
            interrupter = Interrupter(place)
            with suppress(Interrupted, StoreError, CodecError):
                await interrupted(backend, keys_of(backend, limit=4), interrupter)
            assert await in_a_thread(backend, keys_of(backend), interrupter.where) == expected
            if not interrupter.where:
                gc.collect()  # while those warnings are ignored
                return
