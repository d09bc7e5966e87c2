"""Tests of entries, versions and deadlines, for any backend and layer: the basis of all other promises."""

from __future__ import annotations

from itertools import count

import pytest

from pocket_plug.errors import ConflictError
from pocket_plug.store.backend import PRESENT, Backend, Delete, Entry, Put
from pocket_plug.store.keys import Key
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.scenarios import awaited_by, keys_of

_ORDER = Key("order:{}")


class EntryContract:
    """The promises of `read`, `read_many` and `write` to one caller; `BackendContract` inherits it."""

    # ------------------------------------------------------------ values and versions
    @awaited_by("run")
    async def test_reads_back_what_was_put(self, backend: Backend) -> None:
        """An entry has its value, the version that its write returned, and no deadline if none was set."""
        assert await backend.read("a") is None
        version = await backend.write([Put("a", {"n": [1, "two"]})])
        assert await backend.read("a") == Entry({"n": [1, "two"]}, version)
        assert version > 0

    @awaited_by("run")
    async def test_a_stored_none_is_not_absent(self, backend: Backend) -> None:
        """None is a value: read, read_many and scan return its entry, which has a version."""
        version = await backend.write([Put("nothing", None)])
        assert await backend.read("nothing") == Entry(None, version)
        assert await backend.read_many(["nothing", "absent"]) == {"nothing": Entry(None, version)}
        assert await keys_of(backend) == ["nothing"]
        with pytest.raises(ConflictError):
            await backend.write([], {"nothing": 0})

    @awaited_by("run")
    async def test_each_write_gets_a_higher_version(self, backend: Backend) -> None:
        """Versions increase with every write; `version` is the last one, and all entries of a write have the same."""
        given = [await backend.write([Put("a", n), Put(f"b{n}", n)]) for n in range(5)]
        assert given == sorted(set(given))
        assert await backend.version() == given[-1]
        entries = await backend.read_many(["a", "b4", "b0"])
        assert {key: entry.version for key, entry in entries.items()} == {
            "a": given[4],
            "b4": given[4],
            "b0": given[0],
        }

    @awaited_by("run")
    async def test_what_is_whole_passes_the_check(self, backend: Backend) -> None:
        """`check` finds nothing wrong with a backend that nobody has damaged."""
        await backend.write([Put("a", 1), Put("b", [2], 4e9)])
        await backend.write([Delete("a"), Put("c", 3)])
        assert await backend.check() == []

    @awaited_by("run")
    async def test_compacting_changes_nothing_that_is_read(self, backend: Backend) -> None:
        """Repeated calls of `compact` end, and change no entries, versions or the counter; writes meanwhile are stored."""
        names = [f"k{number:03}" for number in range(200)]
        await backend.write([Put(name, name * 500) for name in names])
        await backend.write([Delete(name) for name in names[:190]])
        before, version = await backend.read_many(names), await backend.version()
        for number in count():
            given = await backend.compact(20_000)
            assert given >= 0
            assert await backend.read_many(names) == before
            if not given:
                break
            assert number < len(names) * 10, "compact never returns 0, for a few hundred entries"
            if number % 2:
                version = await backend.write([Put("other", number)])
        assert await backend.version() == version
        assert [key async for key in backend.scan("k")] == names[190:]
        assert await backend.check() == []

    @awaited_by("run")
    async def test_versions_never_go_back(self, backend: Backend) -> None:
        """Deleting the newest entry, or all, doesn't free its version: a new entry must not look like the old one."""
        newest = await backend.write([Put("a", 1)])
        deleted = await backend.write([Delete("a")])
        assert deleted > newest
        assert await backend.version() >= deleted
        assert await backend.write([Put("a", 2)]) > deleted

    @awaited_by("run")
    async def test_changes_are_done_in_their_order(self, backend: Backend) -> None:
        """If a write changes a key twice, the later change counts."""
        await backend.write([Put("a", 1), Put("a", 2), Put("b", 1), Delete("b"), Delete("c"), Put("c", 3)])
        found = await backend.read_many(["a", "b", "c"])
        assert {key: entry.value for key, entry in found.items()} == {"a": 2, "c": 3}

    @awaited_by("run")
    async def test_delete_removes_and_may_find_nothing(self, backend: Backend) -> None:
        """A deleted key is absent for all operations; deleting an absent key is no error."""
        await backend.write([Put("a", 1), Put("b", 2)])
        await backend.write([Delete("a"), Delete("never there")])
        assert await backend.read("a") is None
        assert list(await backend.read_many(["a", "b"])) == ["b"]
        assert await keys_of(backend) == ["b"]
        await backend.write([], {"a": 0})

    @awaited_by("run")
    async def test_many_changes_in_one_write(self, backend: Backend) -> None:
        """A write may have a thousand changes, and a read a thousand keys."""
        version = await backend.write([Put(f"n:{n:04}", n) for n in range(1000)])
        entries = await backend.read_many(f"n:{n:04}" for n in range(1000))
        assert entries == {f"n:{n:04}": Entry(n, version) for n in range(1000)}
        await backend.write([], {key: version for key in entries})

    @awaited_by("run")
    async def test_read_many_gives_what_is_there(self, backend: Backend) -> None:
        """Absent keys are left out. Any iterable is allowed, also an empty one and one with repeated keys."""
        await backend.write([Put("a", 1), Put("b", 2)])
        assert await backend.read_many([]) == {}
        assert {k: e.value for k, e in (await backend.read_many(iter(["b", "x", "b", "a"]))).items()} == {
            "a": 1,
            "b": 2,
        }

    # ------------------------------------------------------------ expiry
    @awaited_by("run")
    async def test_an_entry_is_there_until_its_deadline(self, backend: Backend, clock: FakeClock) -> None:
        """It is expired when `now >= expires_at`, for read, read_many and scan."""
        deadline = clock() + 60.5
        version = await backend.write([Put("mortal", 1, deadline), Put("lasting", 2)])
        clock.advance(deadline - 0.25 - clock())
        assert await backend.read("mortal") == Entry(1, version, deadline), "by backend.clock() it isn't expired yet"
        assert await keys_of(backend) == ["lasting", "mortal"]
        clock.advance(deadline - clock())
        assert await backend.read("mortal") is None, "by backend.clock() it is expired"
        assert list(await backend.read_many(["mortal", "lasting"])) == ["lasting"]
        assert await keys_of(backend) == ["lasting"]

    @awaited_by("run")
    async def test_an_expired_put_still_replaces_the_older_value(self, backend: Backend, clock: FakeClock) -> None:
        """A write whose deadline passed in a queue is still made: otherwise the older value would come back."""
        await backend.write([Put("a", "old")])
        await backend.write([Put("a", "new", clock() - 1)])
        assert await backend.read("a") is None

    @awaited_by("run")
    async def test_a_put_sets_the_deadline_anew(self, backend: Backend, clock: FakeClock) -> None:
        """Overwriting sets a new deadline, or removes it; an expired key can be used again."""
        start = clock()
        for key in ("longer", "lifted", "reused"):
            await backend.write([Put(key, "old", start + 1)])
        await backend.write([Put("longer", "new", start + 10)])
        await backend.write([Put("lifted", "new")])
        clock.advance(start + 5 - clock())
        await backend.write([Put("reused", "new")])
        # enough writes for a backend that removes a few expired entries with each
        for n in range(100):
            await backend.write([Put("n", n)])
        found = await backend.read_many(["longer", "lifted", "reused"])
        assert {key: (entry.value, entry.expires_at) for key, entry in found.items()} == {
            "longer": ("new", start + 10),
            "lifted": ("new", None),
            "reused": ("new", None),
        }

    @awaited_by("run")
    async def test_expired_entries_never_hide_live_ones(self, backend: Backend, clock: FakeClock) -> None:
        """However many entries have expired, all live ones among them are found."""
        await backend.write([Put(f"{n:04}", n, clock() + 1 if n % 3 else None) for n in range(900)])
        clock.advance(1)
        alive = [f"{n:04}" for n in range(0, 900, 3)]
        for n in range(100):
            assert await keys_of(backend) == alive[n:]
            await backend.write([Delete(alive[n])])

    # ------------------------------------------------------------ expectations
    @awaited_by("run")
    async def test_expected_versions_let_a_write_through(self, backend: Backend) -> None:
        """If each key has its expected version, 0 for an absent key, the write is made."""
        version = await backend.write([Put("a", 1)], {"a": 0, "other": 0})
        version = await backend.write([Put("a", 2)], {"a": version})
        assert await backend.read("a") == Entry(2, version)

    @awaited_by("run")
    async def test_a_conflict_names_the_keys_and_does_nothing(self, backend: Backend) -> None:
        """All or none: the error names exactly the keys that differ; no change was made, and no version used."""
        old = await backend.write([Put("a", 1), Put("b", 1)])
        new = await backend.write([Put("b", 2)])
        with pytest.raises(ConflictError) as caught:
            await backend.write([Put("a", 9), Put("c", 9), Delete("b")], {"a": old, "b": old, "gone": new, "absent": 0})
        assert caught.value.keys == {"b", "gone"}
        for alone in (Put("a", 9), Put("c", 9), Delete("a"), Delete("b")):
            with pytest.raises(ConflictError):
                await backend.write([alone], {"b": old})
        found = await backend.read_many(["a", "b", "c"])
        assert found == {"a": Entry(1, old), "b": Entry(2, new)}
        assert await backend.version() == new

    @awaited_by("run")
    async def test_absence_is_expected_as_0(self, backend: Backend) -> None:
        """If two writers have seen no entry, only one of them can create the key."""
        await backend.write([Put("a", "first")], {"a": 0})
        with pytest.raises(ConflictError):
            await backend.write([Put("a", "second")], {"a": 0})
        entry = await backend.read("a")
        assert entry is not None
        assert entry.value == "first"

    @awaited_by("run")
    async def test_presence_can_be_expected(self, backend: Backend, clock: FakeClock) -> None:
        """PRESENT expects any version, in writes and checks: so a delete can tell if there was an entry, and never conflicts with
        a set."""
        await backend.write([Put("a", 1), Put("mortal", 1, clock() + 1)])
        last = await backend.write([Put("a", 2)])
        assert await backend.write([], {"a": PRESENT, "mortal": PRESENT}) == last
        await backend.write([Delete("a"), Put("b", 1)], {"a": PRESENT, "mortal": PRESENT})
        clock.advance(1)
        for changes in ([], [Put("b", 2)], [Delete("a")]):
            with pytest.raises(ConflictError) as caught:
                await backend.write(changes, {"a": PRESENT, "b": PRESENT, "mortal": PRESENT, "never": PRESENT})
            assert caught.value.keys == {"a", "mortal", "never"}
        assert {key: entry.value for key, entry in (await backend.read_many(["a", "b", "mortal"])).items()} == {"b": 1}

    @awaited_by("run")
    async def test_an_entry_put_back_is_another_one(self, backend: Backend) -> None:
        """An entry that was deleted and set again, even to the same value, has another version: the old one conflicts."""
        seen = await backend.write([Put("a", 1)])
        await backend.write([Delete("a")])
        await backend.write([Put("a", 1)])
        with pytest.raises(ConflictError):
            await backend.write([Put("a", 2)], {"a": seen})

    @awaited_by("run")
    async def test_without_changes_it_is_a_pure_check(self, backend: Backend) -> None:
        """`write([], expect)` returns the current version or raises ConflictError; it uses no new version."""
        version = await backend.write([Put("a", 1), Put("b", 2)])
        assert await backend.write([], {"a": version, "absent": 0}) == version
        assert await backend.write([]) == version
        with pytest.raises(ConflictError) as caught:
            await backend.write([], {"a": version, "b": version + 1, "absent": version})
        assert caught.value.keys == {"b", "absent"}
        assert await backend.version() == version

    @awaited_by("run")
    async def test_an_expired_entry_is_expected_as_absent(self, backend: Backend, clock: FakeClock) -> None:
        """`expect` compares it as version 0, in checks and in writes."""
        version = await backend.write([Put("a", 1, clock() + 1)])
        clock.advance(1)
        for changes in ([], [Put("b", 1)]):
            with pytest.raises(ConflictError):
                await backend.write(changes, {"a": version})
        await backend.write([], {"a": 0})
        renewed = await backend.write([Put("a", 2)], {"a": 0})
        assert await backend.read("a") == Entry(2, renewed)

    @awaited_by("run")
    async def test_a_name_made_by_a_key_is_its_text(self, backend: Backend) -> None:
        """Such a name is a `str` with a template. It finds entries that were set by plain text, and vice versa."""
        made = [_ORDER(number).full_name() for number in range(3)]
        plain = [str(name) for name in made]
        assert {type(name) for name in plain} == {str} != {type(name) for name in made}
        version = await backend.write([Put(made[0], 1), Put(plain[1], 1)], {made[0]: 0})
        version = await backend.write([Put(made[0], 2)], {made[0]: version})
        assert await backend.read(made[0]) == await backend.read(plain[0]) == Entry(2, version)
        assert {*await backend.read_many(made)} == {*plain[:2]}
        assert [key async for key in backend.scan(made[0][:-1])] == plain[:2]
        with pytest.raises(ConflictError) as caught:
            await backend.write([Delete(made[1])], {made[1]: 0, made[2]: 1})
        assert {(type(key), key) for key in caught.value.keys} == {(str, key) for key in plain[1:]}
        await backend.write([Delete(made[1])])
        assert await backend.read(plain[1]) is None

    # ------------------------------------------------------------ changes with a version
    @awaited_by("run")
    async def test_the_newer_version_wins_per_key(self, backend: Backend) -> None:
        """A Put with a version replaces only an older entry, and keeps its version."""
        await backend.write([Put("a", "ten", version=10), Put("b", "ten", version=10)])
        await backend.write([Put("a", "nine", version=9), Put("b", "eleven", version=11)])
        await backend.write([Put("a", "ten again", version=10)])
        assert await backend.read_many(["a", "b"]) == {"a": Entry("ten", 10), "b": Entry("eleven", 11)}

    @awaited_by("run")
    async def test_the_counter_passes_a_version_it_was_given(self, backend: Backend) -> None:
        """After a Put with version 500, the next version is higher: otherwise the older entry would look newer."""
        await backend.write([Put("a", "filled", version=500)])
        assert await backend.version() >= 500
        version = await backend.write([Put("a", "set")])
        assert version > 500
        assert await backend.read("a") == Entry("set", version)

    @awaited_by("run")
    async def test_a_delete_with_a_version_spares_what_is_newer(self, backend: Backend) -> None:
        """It removes entries of its version and older ones."""
        await backend.write([Put(key, key, version=10) for key in ("older", "same", "newer")])
        await backend.write([Delete("older", 11), Delete("same", 10), Delete("newer", 9)])
        assert await keys_of(backend) == ["newer"]
