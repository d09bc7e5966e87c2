"""The promises of the waist as tests: whoever writes a backend inherits `BackendContract` and gets the whole suite.

Nothing here knows a particular backend, and nothing waits on a clock: time is the `FakeClock` that tests move.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import string
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from random import Random
from typing import TypeVar

import pytest

from pocket_plug.errors import CodecError, ConflictError, StoreClosedError, StoreError
from pocket_plug.primitives.waiting import drive, drive_inline, run_on
from pocket_plug.store.backend import PRESENT, Backend, Delete, Entry, Put
from pocket_plug.store.keys import MAX_KEY_BYTES, Key
from pocket_plug.store.sync import SyncStore
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.interrupts import Interrupted, Interrupter, under
from pocket_plug.testing.store_contract import StoreContract

T = TypeVar("T")
_ORDER = Key("order:{}")
Scenario = Callable[[Backend], Awaitable[None]]
HANGS = 30.0
"""Seconds after which something is taken for hanging; it takes no time at all where all is well."""

_LETTERS = (
    string.ascii_letters + string.digits,
    "".join(map(chr, range(128))),  # with NUL
    "".join(map(chr, range(0x10000, 0x110000, 17))),  # of four bytes in UTF-8
)


def _random_key(letters: str, size: int) -> str:
    """So many bytes of these letters, by chance, and the same each time."""
    return "".join(Random(size).choices(letters, k=size // len(letters[-1].encode())))  # noqa: S311 - no secret


ODD_KEYS = (
    "%",
    "_",
    "a%b",
    "a_b",
    "a:b",
    "axb",
    "'",
    "''; --",
    '"',
    "\\",
    "[a]",
    "*",
    "?",
    " ",
    "\t\n",
    "A",
    "a",
    "Ä",
    "ä",
    "a\u0308",
    "ß",
    "\u017f",
    "日本",
    "🙂",
    "\ud7ff",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
    "\x00",
    "a\x00b",
    "a\x00",
    "k" * 1000,
    *(_random_key(letters, 1000) for letters in _LETTERS),
)
"""Names that a pattern, a collation, a quoting or a length limit would trip over."""

LONG_KEYS = ("k" * MAX_KEY_BYTES, *(_random_key(letters, MAX_KEY_BYTES) for letters in _LETTERS))
"""Keys as long as a backend must take them; but for the first nothing makes them shorter."""


async def increment(backend: Backend, key: str, times: int) -> None:
    """Add 1 to a counter so many times, each by a write that expects what was read."""
    for _ in range(times):
        while True:
            entry = await backend.read(key)
            value, version = (entry.value, entry.version) if entry else (0, 0)
            try:
                await backend.write([Put(key, value + 1)], {key: version})
                break
            except ConflictError as conflict:
                if conflict.keys != frozenset({key}):
                    raise


@contextmanager
def hasty_threads() -> Generator[None]:
    """Let Python change from one thread to another some hundred times as often: what may come in between, does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


async def beside(
    backend: Backend, write: Callable[[int], Awaitable[object]], read: Callable[[], Awaitable[object]], times: int
) -> None:
    """Read so many times while `write(1)`, `write(2)`, … go on: in a thread, if the backend isn't bound to a loop."""
    over = threading.Event()

    async def write_on() -> None:
        n = 0
        while not over.is_set():
            await write(n := n + 1)
            for _ in range(n % 20 if backend.needs_loop else 0):  # a chance for readers that need several steps
                await asyncio.sleep(0)

    async def read_on() -> None:
        for _ in range(times):
            await read()
            await asyncio.sleep(0)

    writing = write_on() if backend.needs_loop else asyncio.to_thread(lambda: drive(write_on()))
    task = asyncio.ensure_future(writing)
    try:
        with hasty_threads():
            await read_on()
    finally:
        over.set()
        await task


async def interrupted(backend: Backend, operation: Coroutine[object, object, T], interrupter: Interrupter) -> T:
    """Do it in this thread under the interrupter: without the loop, if the backend isn't bound to one."""
    if backend.needs_loop:
        return await under(interrupter, operation)
    with interrupter:
        return drive(operation)


async def in_a_thread(backend: Backend, operation: Coroutine[object, object, T], where: str) -> T:
    """Do it in another thread, if the backend isn't bound to a loop; fail where it hangs after the interrupt at `where`."""
    if backend.needs_loop:
        return await asyncio.wait_for(operation, HANGS)
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(drive(operation)), daemon=True)
    thread.start()
    thread.join(HANGS)
    assert not thread.is_alive(), f"interrupted {where}, it lets nobody else write"
    return done[0]


async def keys_of(
    backend: Backend, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
) -> list[str]:
    """All that a scan gives."""
    return [key async for key in backend.scan(prefix, after=after, reverse=reverse, limit=limit)]


async def pages_of(backend: Backend, prefix: str, size: int, *, reverse: bool = False) -> AsyncGenerator[list[str]]:
    """All pages of so many keys, as a reader takes them who knows only the last key of the page before."""
    page = await keys_of(backend, prefix, reverse=reverse, limit=size)
    while page:
        yield page
        page = await keys_of(backend, prefix, after=page[-1], reverse=reverse, limit=size)


def scanned(
    names: Iterable[str], prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
) -> list[str]:
    """What a scan must give where these names are there, as it is told in `Backend.scan`, word by word."""
    found = sorted((name for name in names if name.startswith(prefix)), reverse=reverse)
    if after:
        found = [name for name in found if (name < after if reverse else name > after)]
    return found if limit is None else found[:limit]


CHILD_SECONDS = 60
"""How long a forked child may take before it is killed, as one that hangs."""


def works_in_a_child(use: Callable[[], Coroutine[object, object, None]]) -> bool:
    """Fork, and run it there on a new event loop: did it work, or raise StoreError? Anything else fails the test."""
    child = os.fork()
    if child == 0:
        signal.alarm(CHILD_SECONDS)
        try:
            asyncio.run(use())
            os._exit(0)
        except StoreError:
            os._exit(1)
        except BaseException:  # noqa: BLE001 - there is nobody to raise it to
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), f"the child of a fork {'hung' if code < 0 else 'failed'}: {code}"
    return code == 0


_leaves_things_behind = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited", "ignore:unclosed database:ResourceWarning"
)
"""An interrupt may come right before something is awaited, or is given back: the garbage collector ends it, with a warning."""


_both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


class BackendContract(StoreContract):
    """Inherit it, override one fixture, and every promise of `Backend` is tested.

        class TestMine(BackendContract):
            @pytest.fixture
            def make_backend(self, tmp_path):
                return lambda: Mine(tmp_path / "state")

    The fixture gives what makes a backend, not yet opened, that has nothing in it when a test begins. Where the backend
    says `survives = True`, calling it again within a test must give one over the same data, as a restart would.
    """

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """What makes the backend under test; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_backend")

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The clock that every backend of the test goes by."""
        return FakeClock()

    @pytest.fixture
    def run(self, make_backend: Callable[[], Backend], clock: FakeClock) -> Callable[[Scenario], None]:
        """Runs a scenario with an open backend, on an event loop of its own. Called again, it is a restart."""

        def run(scenario: Scenario) -> None:
            async def main() -> None:
                backend = make_backend()
                backend.clock = clock
                await backend.open()
                try:
                    await scenario(backend)
                finally:
                    await backend.close()

            asyncio.run(main())

        return run

    # ------------------------------------------------------------ values and versions
    def test_reads_back_what_was_put(self, run: Callable[[Scenario], None]) -> None:
        """An entry has the value, the version that its write gave, and no deadline where none was set."""

        async def scenario(backend: Backend) -> None:
            assert await backend.read("a") is None
            version = await backend.write([Put("a", {"n": [1, "two"]})])
            assert await backend.read("a") == Entry({"n": [1, "two"]}, version)
            assert version > 0

        run(scenario)

    def test_a_stored_none_is_not_absent(self, run: Callable[[Scenario], None]) -> None:
        """None is a value: read, read_many and scan have it, and it has a version."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("nothing", None)])
            assert await backend.read("nothing") == Entry(None, version)
            assert await backend.read_many(["nothing", "absent"]) == {"nothing": Entry(None, version)}
            assert await keys_of(backend) == ["nothing"]
            with pytest.raises(ConflictError):
                await backend.write([], {"nothing": 0})

        run(scenario)

    def test_each_write_gets_a_higher_version(self, run: Callable[[Scenario], None]) -> None:
        """Versions rise with every write; `version` is the last one given, and one write's entries share it."""

        async def scenario(backend: Backend) -> None:
            given = [await backend.write([Put("a", n), Put(f"b{n}", n)]) for n in range(5)]
            assert given == sorted(set(given))
            assert await backend.version() == given[-1]
            entries = await backend.read_many(["a", "b4", "b0"])
            assert {key: entry.version for key, entry in entries.items()} == {
                "a": given[4],
                "b4": given[4],
                "b0": given[0],
            }

        run(scenario)

    def test_what_is_whole_passes_the_check(self, run: Callable[[Scenario], None]) -> None:
        """`check` finds nothing wrong with a backend that nobody has damaged."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1), Put("b", [2], 4e9)])
            await backend.write([Delete("a"), Put("c", 3)])
            assert await backend.check() == []

        run(scenario)

    def test_compacting_changes_nothing_that_is_read(self, run: Callable[[Scenario], None]) -> None:
        """`compact` comes to an end, whatever it gives back: entries, versions and the counter are as before, writes go on."""

        async def scenario(backend: Backend) -> None:
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
                if number % 2:
                    version = await backend.write([Put("other", number)])
            assert await backend.version() == version
            assert [key async for key in backend.scan("k")] == names[190:]
            assert await backend.check() == []

        run(scenario)

    def test_versions_never_go_back(self, run: Callable[[Scenario], None]) -> None:
        """Deleting the newest entry, or all, doesn't free its number: whoever saw it would take a new one for it."""

        async def scenario(backend: Backend) -> None:
            newest = await backend.write([Put("a", 1)])
            deleted = await backend.write([Delete("a")])
            assert deleted > newest
            assert await backend.version() >= deleted
            assert await backend.write([Put("a", 2)]) > deleted

        run(scenario)

    def test_changes_are_done_in_their_order(self, run: Callable[[Scenario], None]) -> None:
        """Of two changes of one key in a write the later one stands."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1), Put("a", 2), Put("b", 1), Delete("b"), Delete("c"), Put("c", 3)])
            found = await backend.read_many(["a", "b", "c"])
            assert {key: entry.value for key, entry in found.items()} == {"a": 2, "c": 3}

        run(scenario)

    def test_delete_removes_and_may_find_nothing(self, run: Callable[[Scenario], None]) -> None:
        """A deleted key is absent everywhere; deleting an absent one is no error."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1), Put("b", 2)])
            await backend.write([Delete("a"), Delete("never there")])
            assert await backend.read("a") is None
            assert list(await backend.read_many(["a", "b"])) == ["b"]
            assert await keys_of(backend) == ["b"]
            await backend.write([], {"a": 0})

        run(scenario)

    def test_many_changes_in_one_write(self, run: Callable[[Scenario], None]) -> None:
        """A write has no limit that a batch of a thousand would meet; nor has a read of them."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put(f"n:{n:04}", n) for n in range(1000)])
            entries = await backend.read_many(f"n:{n:04}" for n in range(1000))
            assert entries == {f"n:{n:04}": Entry(n, version) for n in range(1000)}
            await backend.write([], {key: version for key in entries})

        run(scenario)

    def test_read_many_gives_what_is_there(self, run: Callable[[Scenario], None]) -> None:
        """Absent keys are left out; any iterable will do, empty ones and repeated keys too."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1), Put("b", 2)])
            assert await backend.read_many([]) == {}
            assert {k: e.value for k, e in (await backend.read_many(iter(["b", "x", "b", "a"]))).items()} == {
                "a": 1,
                "b": 2,
            }

        run(scenario)

    # ------------------------------------------------------------ expectations
    def test_expected_versions_let_a_write_through(self, run: Callable[[Scenario], None]) -> None:
        """Where each key has the version expected, 0 for an absent one, the write is done."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1)], {"a": 0, "other": 0})
            version = await backend.write([Put("a", 2)], {"a": version})
            assert await backend.read("a") == Entry(2, version)

        run(scenario)

    def test_a_conflict_names_the_keys_and_does_nothing(self, run: Callable[[Scenario], None]) -> None:
        """All or none: the keys that differ are named, no other, and no change was made, nor a version used."""

        async def scenario(backend: Backend) -> None:
            old = await backend.write([Put("a", 1), Put("b", 1)])
            new = await backend.write([Put("b", 2)])
            with pytest.raises(ConflictError) as caught:
                await backend.write(
                    [Put("a", 9), Put("c", 9), Delete("b")], {"a": old, "b": old, "gone": new, "absent": 0}
                )
            assert caught.value.keys == {"b", "gone"}
            found = await backend.read_many(["a", "b", "c"])
            assert found == {"a": Entry(1, old), "b": Entry(2, new)}
            assert await backend.version() == new

        run(scenario)

    def test_a_name_made_by_a_key_is_its_text(self, run: Callable[[Scenario], None]) -> None:
        """It is a `str` that carries a template besides. It finds what was set by the text alone, and the other way round."""

        async def scenario(backend: Backend) -> None:
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

        run(scenario)

    def test_absence_is_expected_as_0(self, run: Callable[[Scenario], None]) -> None:
        """Only one of two that both saw nothing can create a key."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", "first")], {"a": 0})
            with pytest.raises(ConflictError):
                await backend.write([Put("a", "second")], {"a": 0})
            entry = await backend.read("a")
            assert entry is not None
            assert entry.value == "first"

        run(scenario)

    def test_presence_can_be_expected(self, run: Callable[[Scenario], None], clock: FakeClock) -> None:
        """Of whatever version, in writes and in checks: a delete learns whether anything was there and never loses to a set."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1), Put("mortal", 1, clock() + 1)])
            last = await backend.write([Put("a", 2)])
            assert await backend.write([], {"a": PRESENT, "mortal": PRESENT}) == last
            await backend.write([Delete("a"), Put("b", 1)], {"a": PRESENT, "mortal": PRESENT})
            clock.advance(1)
            for changes in ([], [Put("b", 2)], [Delete("a")]):
                with pytest.raises(ConflictError) as caught:
                    await backend.write(changes, {"a": PRESENT, "b": PRESENT, "mortal": PRESENT, "never": PRESENT})
                assert caught.value.keys == {"a", "mortal", "never"}
            assert {key: entry.value for key, entry in (await backend.read_many(["a", "b", "mortal"])).items()} == {
                "b": 1
            }

        run(scenario)

    def test_an_entry_put_back_is_another_one(self, run: Callable[[Scenario], None]) -> None:
        """Who saw an entry before it was deleted and set anew, even to the same value, meets a conflict."""

        async def scenario(backend: Backend) -> None:
            seen = await backend.write([Put("a", 1)])
            await backend.write([Delete("a")])
            await backend.write([Put("a", 1)])
            with pytest.raises(ConflictError):
                await backend.write([Put("a", 2)], {"a": seen})

        run(scenario)

    def test_without_changes_it_is_a_pure_check(self, run: Callable[[Scenario], None]) -> None:
        """`write([], expect)` gives the current version or raises ConflictError; it makes no version."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1), Put("b", 2)])
            assert await backend.write([], {"a": version, "absent": 0}) == version
            assert await backend.write([]) == version
            with pytest.raises(ConflictError) as caught:
                await backend.write([], {"a": version, "b": version + 1, "absent": version})
            assert caught.value.keys == {"b", "absent"}
            assert await backend.version() == version

        run(scenario)

    # ------------------------------------------------------------ changes with a version
    def test_the_newer_version_wins_per_key(self, run: Callable[[Scenario], None]) -> None:
        """A Put with a version stands only over an older entry, and keeps the version that it came with."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", "ten", version=10), Put("b", "ten", version=10)])
            await backend.write([Put("a", "nine", version=9), Put("b", "eleven", version=11)])
            await backend.write([Put("a", "ten again", version=10)])
            assert await backend.read_many(["a", "b"]) == {"a": Entry("ten", 10), "b": Entry("eleven", 11)}

        run(scenario)

    def test_the_counter_passes_a_version_it_was_given(self, run: Callable[[Scenario], None]) -> None:
        """After a fill with version 500 the next version is above it: else the older entry would look newer."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", "filled", version=500)])
            assert await backend.version() >= 500
            version = await backend.write([Put("a", "set")])
            assert version > 500
            assert await backend.read("a") == Entry("set", version)

        run(scenario)

    def test_a_delete_with_a_version_spares_what_is_newer(self, run: Callable[[Scenario], None]) -> None:
        """It removes the version that it names and older ones."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put(key, key, version=10) for key in ("older", "same", "newer")])
            await backend.write([Delete("older", 11), Delete("same", 10), Delete("newer", 9)])
            assert await keys_of(backend) == ["newer"]

        run(scenario)

    # ------------------------------------------------------------ expiry
    def test_an_entry_is_there_until_its_deadline(self, run: Callable[[Scenario], None], clock: FakeClock) -> None:
        """It is expired as soon as `now >= expires_at`, for read, read_many and scan alike."""

        async def scenario(backend: Backend) -> None:
            deadline = clock() + 60.5
            version = await backend.write([Put("mortal", 1, deadline), Put("lasting", 2)])
            clock.advance(deadline - 0.25 - clock())
            assert await backend.read("mortal") == Entry(1, version, deadline)
            assert await keys_of(backend) == ["lasting", "mortal"]
            clock.advance(deadline - clock())
            assert await backend.read("mortal") is None
            assert list(await backend.read_many(["mortal", "lasting"])) == ["lasting"]
            assert await keys_of(backend) == ["lasting"]

        run(scenario)

    def test_an_expired_entry_is_expected_as_absent(self, run: Callable[[Scenario], None], clock: FakeClock) -> None:
        """In `expect` it counts as version 0, in checks and in writes."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1, clock() + 1)])
            clock.advance(1)
            for changes in ([], [Put("b", 1)]):
                with pytest.raises(ConflictError):
                    await backend.write(changes, {"a": version})
            await backend.write([], {"a": 0})
            renewed = await backend.write([Put("a", 2)], {"a": 0})
            assert await backend.read("a") == Entry(2, renewed)

        run(scenario)

    def test_an_expired_put_still_replaces_the_older_value(
        self, run: Callable[[Scenario], None], clock: FakeClock
    ) -> None:
        """A write that was queued past its deadline is done all the same: else the older value would come back."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", "old")])
            await backend.write([Put("a", "new", clock() - 1)])
            assert await backend.read("a") is None

        run(scenario)

    def test_a_put_sets_the_deadline_anew(self, run: Callable[[Scenario], None], clock: FakeClock) -> None:
        """Overwriting renews the deadline, or lifts it; a key once expired can be used again."""

        async def scenario(backend: Backend) -> None:
            start = clock()
            for key in ("longer", "lifted", "reused"):
                await backend.write([Put(key, "old", start + 1)])
            await backend.write([Put("longer", "new", start + 10)])
            await backend.write([Put("lifted", "new")])
            clock.advance(start + 5 - clock())
            await backend.write([Put("reused", "new")])
            # Enough writes for a backend that clears away a few expired entries with each.
            for n in range(100):
                await backend.write([Put("n", n)])
            found = await backend.read_many(["longer", "lifted", "reused"])
            assert {key: (entry.value, entry.expires_at) for key, entry in found.items()} == {
                "longer": ("new", start + 10),
                "lifted": ("new", None),
                "reused": ("new", None),
            }

        run(scenario)

    def test_expired_entries_never_hide_live_ones(self, run: Callable[[Scenario], None], clock: FakeClock) -> None:
        """However many have expired, the live ones among them are all found."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put(f"{n:04}", n, clock() + 1 if n % 3 else None) for n in range(900)])
            clock.advance(1)
            alive = [f"{n:04}" for n in range(0, 900, 3)]
            for n in range(100):
                assert await keys_of(backend) == alive[n:]
                await backend.write([Delete(alive[n])])

        run(scenario)

    # ------------------------------------------------------------ keys
    def test_scan_gives_the_keys_in_code_point_order(self, run: Callable[[Scenario], None]) -> None:
        """The order is that of Python's `sorted`, whatever the backend's own collation is."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put(key, 0) for key in reversed(ODD_KEYS)])
            assert await keys_of(backend) == sorted(ODD_KEYS)

        run(scenario)

    def test_odd_keys_are_told_apart(self, run: Callable[[Scenario], None]) -> None:
        """Case, accents, patterns, quotes, NUL, length: each key is itself, for every operation."""

        async def scenario(backend: Backend) -> None:
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

        run(scenario)

    def test_keys_may_be_as_long_as_a_backend_must_take_them(self, run: Callable[[Scenario], None]) -> None:
        """2 KiB in UTF-8, of any letters: for every operation, beside keys that differ in the last one only."""
        names = sorted({*LONG_KEYS, *(key[:-1] for key in LONG_KEYS), *(f"{key[:-1]}\0" for key in LONG_KEYS)})

        async def scenario(backend: Backend) -> None:
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

        run(scenario)

    def test_a_prefix_is_taken_literally(self, run: Callable[[Scenario], None]) -> None:
        """Scan gives what `str.startswith` says, and no prefix is a pattern."""
        names = {*ODD_KEYS, *(f"{key}:{key}" for key in ODD_KEYS), *(f"user:{n}:{k}" for n in range(12) for k in "ab")}

        async def scenario(backend: Backend) -> None:
            await backend.write([Put(name, 0) for name in names])
            for prefix in (*ODD_KEYS, "user:", "user:1", "user:10:", "nothing such"):
                assert await keys_of(backend, prefix) == sorted(name for name in names if name.startswith(prefix))

        run(scenario)

    def test_a_scan_bears_writes_in_between(self, run: Callable[[Scenario], None]) -> None:
        """Keys that are there all the while are given once each and in order, whatever else is written meanwhile."""

        async def scenario(backend: Backend) -> None:
            staying = [f"k:{n:04}" for n in range(600)]
            await backend.write([Put(key, 0) for key in staying])
            given: list[str] = []
            async for key in backend.scan("k:"):
                given.append(key)
                if len(given) % 50 == 0:
                    await backend.write([Put(f"{key}+", 0), Put(f"{key[:-1]}", 0), Put(staying[-1], len(given))])
            assert given == sorted(set(given))
            assert set(staying) <= set(given)

        run(scenario)

    # ------------------------------------------------------------ pages
    @_both_ways
    def test_a_scan_begins_after_a_key(self, run: Callable[[Scenario], None], reverse: bool) -> None:
        """Strictly after, or in reverse before, one that is there, that isn't, or that doesn't start with the prefix."""
        names = ["a", "b:1", "b:2", "b:4", "c"]

        async def scenario(backend: Backend) -> None:
            await backend.write([Put(name, 0) for name in names])
            for prefix in ("", "b:", "b", "b:4", "nothing such"):
                for after in ("", "\0", "a", "a:9", "b", "b:", "b:1", "b:3", "b:4", "b:5", "c", "d", "\U0010ffff"):
                    expected = scanned(names, prefix, after=after, reverse=reverse)
                    assert await keys_of(backend, prefix, after=after, reverse=reverse) == expected, (prefix, after)

        run(scenario)

    @_both_ways
    def test_a_limit_counts_live_keys(self, run: Callable[[Scenario], None], clock: FakeClock, reverse: bool) -> None:
        """However many have expired or were deleted in between: there are fewer only where there are no more."""

        async def scenario(backend: Backend) -> None:
            lasting = {n for n in range(1000) if n % 100 == 0 or (n % 2 and n < 600)}
            await backend.write([Put(f"k:{n:04}", n, None if n in lasting else clock() + 1) for n in range(1000)])
            await backend.write([Put("a", 0), Put("z", 0)])
            await backend.write([Delete("k:0300"), Delete("k:0700")])
            clock.advance(1)
            alive = [f"k:{n:04}" for n in sorted(lasting - {300, 700})]
            for limit in (0, 1, 2, 7, 290, 308, 309, 1000, 2**70, None):
                expected = scanned(alive, reverse=reverse, limit=limit)
                assert await keys_of(backend, "k:", reverse=reverse, limit=limit) == expected

        run(scenario)

    @_both_ways
    def test_pages_have_each_key_once(self, run: Callable[[Scenario], None], reverse: bool) -> None:
        """One after the other, pages of any size have all keys, in order, and all but the last page are full."""
        names = [f"k:{n:03}" for n in range(300)]

        async def scenario(backend: Backend) -> None:
            assert [page async for page in pages_of(backend, "k:", 10, reverse=reverse)] == []
            await backend.write([Put(name, 0) for name in ("a", *names, "z")])
            for size in (1, 7, 100, 299, 300, 301):
                pages = [page async for page in pages_of(backend, "k:", size, reverse=reverse)]
                assert [key for page in pages for key in page] == scanned(names, reverse=reverse)
                assert {len(page) for page in pages[:-1]} <= {size}

        run(scenario)

    @_both_ways
    def test_pages_of_odd_keys(self, run: Callable[[Scenario], None], reverse: bool) -> None:
        """Whatever a name is made of, a prefix that ends in the highest code point too, a page ends and begins behind it."""
        ends = ("", "\0", "\0\0", "!", "\U0010ffff", "\U0010ffff\U0010ffff")
        names = {f"{key}{end}" for key in ODD_KEYS for end in ends}

        async def scenario(backend: Backend) -> None:
            await backend.write([Put(name, 0) for name in names])
            pages = [page async for page in pages_of(backend, "", 1, reverse=reverse)]
            assert [key for page in pages for key in page] == scanned(names, reverse=reverse)
            for prefix in ("a", "\0", "a\0", "\U0010ffff", "a\U0010ffff", "\U0010ffff\U0010ffff", "\ud7ff"):
                for after in ("", *scanned(names, prefix), f"{prefix}\U0010ffff!"):
                    expected = scanned(names, prefix, after=after, reverse=reverse, limit=3)
                    assert await keys_of(backend, prefix, after=after, reverse=reverse, limit=3) == expected

        run(scenario)

    @pytest.mark.parametrize("seed", range(2))
    def test_a_scan_is_as_its_model(self, run: Callable[[Scenario], None], clock: FakeClock, seed: int) -> None:
        """Whatever was put, deleted and has expired before, few names at once or many, each scan gives what `scanned` does."""
        random = Random(seed)  # noqa: S311 - no secret: the test is the same each time
        letters = "ab:\0é\U0010ffff"

        def name(longest: int) -> str:
            return "".join(random.choices(letters, k=random.randint(1, longest)))

        async def scenario(backend: Backend) -> None:
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

        run(scenario)

    @_both_ways
    @pytest.mark.parametrize("size", [None, 7], ids=["at once", "pages"])
    def test_pages_bear_writes_in_between(
        self, run: Callable[[Scenario], None], size: int | None, reverse: bool
    ) -> None:
        """While others add and remove names, those that stay are given once each, and in order; in pages and without."""
        staying = [f"k:{n:03}" for n in range(40)]

        async def scenario(backend: Backend) -> None:
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

        run(scenario)

    @_leaves_things_behind
    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )  # of one that comes in a weakref's callback
    def test_an_interrupted_scan_leaves_nothing_behind(self, run: Callable[[Scenario], None]) -> None:
        """Wherever it is interrupted, the next one gives all names, those too that have come and gone just before."""

        async def scenario(backend: Backend) -> None:
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

        run(scenario)

    # ------------------------------------------------------------ many at once
    def test_no_increment_is_lost(self, run: Callable[[Scenario], None]) -> None:
        """Threads, tasks and several event loops count on the same keys by expectations: every one is counted."""

        async def scenario(backend: Backend) -> None:
            home = asyncio.get_running_loop()

            async def tasks(count: int, times: int) -> None:
                await asyncio.gather(*(increment(backend, f"c{n % 2}", times) for n in range(count)))

            def loop_of_its_own() -> None:
                asyncio.run(tasks(4, 5))

            def plain_thread() -> None:
                drive(tasks_in_turn())

            async def tasks_in_turn() -> None:
                await increment(backend, "c0", 10)
                await increment(backend, "c1", 10)

            def on_its_home() -> None:
                run_on(home, tasks_in_turn())

            workers = [on_its_home] if backend.needs_loop else [loop_of_its_own, plain_thread]
            await asyncio.gather(tasks(20, 3), *(asyncio.to_thread(worker) for worker in 2 * workers))
            counted = sum(entry.value for entry in (await backend.read_many(["c0", "c1"])).values())
            assert counted == 20 * 3 + 2 * (20 if backend.needs_loop else 4 * 5 + 20)

        run(scenario)

    def test_a_write_is_seen_whole_or_not_at_all(self, run: Callable[[Scenario], None]) -> None:
        """While two keys are always written together, a check of both never finds just one of them changed."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 0), Put("b", 0)])

            async def write() -> None:
                for n in range(50):
                    await backend.write([Put("a", n), Put("b", n)])

            async def check(version: int) -> None:
                for _ in range(50):
                    try:
                        await backend.write([], {"a": version, "b": version})
                    except ConflictError as conflict:
                        if conflict.keys != frozenset({"a", "b"}):
                            raise
                        seen = await backend.read("a")
                        assert seen is not None
                        version = seen.version
                    await asyncio.sleep(0)

            if backend.needs_loop:
                await asyncio.gather(write(), check(version), check(version))
            else:
                in_thread = asyncio.to_thread(lambda: asyncio.run(check(version)))
                await asyncio.gather(write(), check(version), in_thread)

        run(scenario)

    def test_a_batch_is_read_at_one_moment(self, run: Callable[[Scenario], None]) -> None:
        """`read_many` finds all of another's write or nothing of it, wherever each key lies at the moment."""
        keys = ["a", "b", "c"]

        async def scenario(backend: Backend) -> None:
            async def write(n: int) -> None:
                await backend.write([Put(key, n) if n % 4 else Delete(key) for key in keys])

            async def read() -> None:
                found = await backend.read_many([*keys, "never there"])
                assert sorted(found) == (keys if found else [])
                assert len({(entry.value, entry.version) for entry in found.values()}) <= 1

            await beside(backend, write, read, 300)

        run(scenario)

    def test_what_is_seen_of_a_write_stays_seen(self, run: Callable[[Scenario], None]) -> None:
        """Who has read one key of a write reads the other ones as that write left them, or later."""

        async def scenario(backend: Backend) -> None:
            async def write(n: int) -> None:
                await backend.write([Put("a", n), Put("b", n)])

            async def read() -> None:
                for first, second in ("ab", "ba"):
                    one, other = await backend.read(first), await backend.read(second)
                    assert one is None or (other is not None and one.value <= other.value)

            await beside(backend, write, read, 300)

        run(scenario)

    def test_nobody_writes_within_a_turn(self, run: Callable[[Scenario], None]) -> None:
        """If the backend has turns: what is read in one is still so for its write; unused, failed or cancelled, it ends."""

        async def scenario(backend: Backend) -> None:
            async def increment(times: int) -> None:
                for _ in range(times):
                    async with backend.turn(("n", "theirs")) or nullcontext():
                        found = await backend.read_many(["n", "theirs"])
                        count = found["n"].value if "n" in found else 0
                        expect = {key: found[key].version if key in found else 0 for key in ("n", "theirs")}
                        await backend.write([Put("n", count + 1)], expect)

            async def rival(times: int) -> None:
                for n in range(times):
                    await backend.write([Put("theirs", n)])
                    with suppress(ZeroDivisionError):
                        async with backend.turn(("theirs",)) or nullcontext():
                            if n % 2:
                                raise ZeroDivisionError

            if backend.turn(("n",)) is None:
                return
            workers = [increment(20), increment(20), rival(20)]
            if not backend.needs_loop:
                workers += [
                    asyncio.to_thread(lambda: drive(increment(20))),
                    asyncio.to_thread(lambda: drive(rival(20))),
                ]
            await asyncio.gather(*workers)
            for patience in range(6):
                given_up = asyncio.ensure_future(increment(20))
                for _ in range(patience):
                    await asyncio.sleep(0)
                given_up.cancel()
                await asyncio.gather(given_up, return_exceptions=True)
            entry = await backend.read("n")
            assert entry is not None
            assert entry.value >= (40 if backend.needs_loop else 60)
            await increment(1)
            assert await backend.read("n") == Entry(entry.value + 1, await backend.version())

        run(scenario)

    def test_of_two_that_expect_the_same_one_lands(self, run: Callable[[Scenario], None]) -> None:
        """Also where one of the keys that they expect was just written, and another one never."""

        async def scenario(backend: Backend) -> None:
            async def append(key: str, item: int) -> bool:
                found = await backend.read_many([key, "never there"])
                await asyncio.sleep(0)
                entry = found.get(key, Entry([], 0))
                try:
                    await backend.write([Put(key, [*entry.value, item])], {"never there": 0, key: entry.version})
                except ConflictError as conflict:
                    if conflict.keys != frozenset({key}):
                        raise
                    return False
                return True

            async def append_in_turn(item: int) -> list[bool]:
                return [await append(f"k{n}", item) for n in range(40)]

            def in_a_thread() -> list[bool]:
                return asyncio.run(append_in_turn(2))

            others = [] if backend.needs_loop else [asyncio.to_thread(in_a_thread)]
            with hasty_threads():
                told = await asyncio.gather(append_in_turn(0), append_in_turn(1), *others)
            for n in range(40):
                entry = await backend.read(f"k{n}")
                assert entry is not None
                assert sorted(entry.value) == [item for item, landed in enumerate(told) if landed[n]]

        run(scenario)

    def test_a_conflict_is_its_own_writers_only(self, run: Callable[[Scenario], None]) -> None:
        """Of many writes that are under way together, some in conflict, the others land."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("taken", 0)])
            outcomes = await asyncio.gather(
                *(backend.write([Put(f"k{n}", n)], {"taken": 0} if n % 3 == 0 else {}) for n in range(60)),
                return_exceptions=True,
            )
            assert [isinstance(outcome, ConflictError) for outcome in outcomes] == [n % 3 == 0 for n in range(60)]
            assert await keys_of(backend, "k") == sorted(f"k{n}" for n in range(60) if n % 3)

        run(scenario)

    # ------------------------------------------------------------ cancellation
    @pytest.mark.parametrize("cancels", [1, 2])
    def test_a_cancelled_write_never_lands_later(self, run: Callable[[Scenario], None], cancels: int) -> None:
        """Once the caller is told, cancelled or not, what it can read of the write stays so."""

        async def scenario(backend: Backend) -> None:
            told: dict[str, bool] = {}

            async def one(key: str, patience: int) -> None:
                writing = asyncio.ensure_future(backend.write([Put(key, 0), Put(f"{key}'", 0)]))
                for _ in range(patience):
                    await asyncio.sleep(0)
                for _ in range(cancels):
                    writing.cancel()
                    await asyncio.sleep(0)
                try:
                    await writing
                    acknowledged = True
                except asyncio.CancelledError:
                    acknowledged = False
                told[key] = await backend.read(key) is not None
                assert told[key] or not acknowledged
                assert (await backend.read(f"{key}'") is not None) == told[key]

            for turn in range(8):
                await asyncio.gather(*(one(f"{turn}.{patience}", patience) for patience in range(12)))
            await backend.write([Put("after all of them", 0)])
            await backend.flush()
            assert {key: await backend.read(key) is not None for key in told} == told

        run(scenario)

    # ------------------------------------------------------------ interrupts
    @_leaves_things_behind
    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )  # of one that comes in a weakref's callback
    def test_an_interrupted_write_is_there_as_a_whole_or_not_at_all(self, run: Callable[[Scenario], None]) -> None:
        """Wherever the exception of a signal's handler comes, one finds all of the write or nothing; and others can write."""

        async def scenario(backend: Backend) -> None:
            # a KeyboardInterrupt would end the event loop itself
            errors: list[type[BaseException]] = (
                [Interrupted] if backend.needs_loop else [Interrupted, KeyboardInterrupt]
            )
            version = await backend.write([Put("a", 0), Put("b", 0)])
            for place in count(1, 3):
                error = errors[place % len(errors)]
                writing = backend.write([Put("a", place), Delete("b"), Put("b", place)], {"a": version})
                interrupter = Interrupter(place, error)
                try:
                    await interrupted(backend, writing, interrupter)
                    landed = {place}
                except (error, StoreError, CodecError):  # a part may take it for what failed there
                    assert interrupter.where
                    landed = {0, place}
                found = await backend.read_many(["a", "b"])
                assert {entry.value for entry in found.values()} in [{value} for value in landed], interrupter.where
                assert len(found) == 2, interrupter.where
                version = await in_a_thread(backend, backend.write([Put("a", 0), Put("b", 0)]), interrupter.where)
                assert await keys_of(backend) == ["a", "b"]
                if not interrupter.where:
                    gc.collect()  # while those warnings are ignored
                    return

        run(scenario)

    @_leaves_things_behind
    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )  # of one that comes in a weakref's callback
    def test_an_interrupted_read_leaves_nothing_behind(self, run: Callable[[Scenario], None]) -> None:
        """Others can read and write, and what they have written is seen at once."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 0), Put("b", 0)])
            for place in count(1, 3):
                interrupter = Interrupter(place)
                with suppress(Interrupted, StoreError, CodecError):
                    await interrupted(backend, backend.read_many(["a", "b", "never there"]), interrupter)
                await in_a_thread(backend, backend.write([Put("a", place), Put("b", place)]), interrupter.where)
                found = await backend.read_many(["a", "b"])
                assert {key: entry.value for key, entry in found.items()} == {"a": place, "b": place}
                assert (await backend.read("a")) == found["a"], interrupter.where
                if not interrupter.where:
                    gc.collect()  # while those warnings are ignored
                    return

        run(scenario)

    @_leaves_things_behind
    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )  # of one that comes in a weakref's callback
    def test_an_interrupted_turn_ends(self, run: Callable[[Scenario], None]) -> None:
        """If the backend has turns: wherever one is interrupted, its write is there or not, and others can write soon."""

        async def scenario(backend: Backend) -> None:
            async def in_turn(value: int) -> None:
                async with backend.turn(("a",)) or nullcontext():
                    entry = await backend.read("a") or Entry(0, 0)
                    await backend.write([Put("a", value)], {"a": entry.version})

            for place in count(1, 3) if backend.turn(("a",)) is not None else ():
                interrupter = Interrupter(place)
                landed = {place}
                try:
                    await interrupted(backend, in_turn(place), interrupter)
                except (Interrupted, StoreError, CodecError):  # a part may take it for what failed there
                    landed = {0, place}
                entry = await backend.read("a") or Entry(0, 0)
                assert entry.value in landed, interrupter.where
                await in_a_thread(backend, backend.write([Put("a", 0)]), interrupter.where)
                if not interrupter.where:
                    gc.collect()  # while those warnings are ignored
                    return

        run(scenario)

    # ------------------------------------------------------------ callers of every kind
    def test_it_is_as_inline_as_it_says(self, run: Callable[[Scenario], None]) -> None:
        """What is said to be inline never suspends; what needs no loop can be driven from a thread without one."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1)])
            if backend.inline_read:
                assert drive_inline(backend.write([], {"a": version, "b": 0})) == version
                assert drive_inline(backend.read("a")) == await backend.read("a")
                assert drive_inline(backend.read_many(["a"])) == await backend.read_many(["a"])
                assert drive_inline(keys_of(backend)) == ["a"]
            if backend.inline_write:
                drive_inline(backend.write([Put("inline", 1)]))
            if not backend.needs_loop:
                drive(backend.write([Put("while this loop is blocked", 1)]))
            home = asyncio.get_running_loop()

            def from_a_thread() -> int:
                writing = backend.write([Put("from a thread", 1)])
                return run_on(home, writing) if backend.needs_loop else drive(writing)

            version = await asyncio.to_thread(from_a_thread)
            assert await backend.read("from a thread") == Entry(1, version)

        run(scenario)

    def test_any_loop_may_use_it(self, make_backend: Callable[[], Backend], clock: FakeClock) -> None:
        """Opened on a loop that has ended, it is used on twenty others in turn, on some at once, and closed on another one."""
        backend = make_backend()
        backend.clock = clock
        asyncio.run(backend.open())

        async def count() -> None:
            await increment(backend, "n", 2)
            assert await keys_of(backend) == ["n"]

        try:
            for _ in range(20):
                asyncio.run(count())
            threads = [threading.Thread(target=lambda: asyncio.run(count()), daemon=True) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(HANGS)
            counted = asyncio.run(backend.read("n"))
            assert counted is not None
            assert counted.value == 50
        finally:
            asyncio.run(backend.close())

    def test_a_hundred_threads_share_a_store(self, make_backend: Callable[[], Backend], clock: FakeClock) -> None:
        """Without a loop of theirs, by `SyncStore`: each update counts, and nobody waits for good."""
        with SyncStore(make_backend(), clock=clock) as store:

            def count() -> None:
                store.update("n", lambda n: n + 1, default=0)

            threads = [threading.Thread(target=count, daemon=True) for _ in range(100)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(HANGS)
            assert store.get("n") == 100

    # ------------------------------------------------------------ forks of the process
    if hasattr(os, "fork"):

        @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
        def test_a_forked_child_works_or_says_that_it_cant(self, run: Callable[[Scenario], None]) -> None:
            """Forked while threads or tasks write: the child sees each write whole, and reads and writes as any process
            would, or StoreError says why not; the parent loses nothing, and waits for nobody."""

            async def scenario(backend: Backend) -> None:
                home, done, written = asyncio.get_running_loop(), threading.Event(), threading.Semaphore(0)
                acknowledged = [0, 0, 0]

                async def write(n: int) -> None:
                    while not done.is_set():
                        await backend.write([Put(key, acknowledged[n] + 1) for key in (f"a{n}", f"b{n}")])
                        acknowledged[n] += 1
                        written.release()
                        if backend.needs_loop:
                            await asyncio.sleep(0)

                def writer(n: int) -> None:
                    run_on(home, write(n)) if backend.needs_loop else drive(write(n))

                async def use() -> None:
                    for n in range(3):
                        found = await backend.read_many([f"a{n}", f"b{n}"])
                        assert len({(entry.value, entry.version) for entry in found.values()}) < 2
                    await backend.read("a0")
                    await increment(backend, "by children", 1)
                    assert "by children" in await keys_of(backend)

                writing = [asyncio.ensure_future(asyncio.to_thread(writer, n)) for n in range(3)]
                try:
                    for _ in range(2):
                        assert await asyncio.to_thread(written.acquire, timeout=60)
                    worked = int(await asyncio.to_thread(works_in_a_child, use))
                    assert await asyncio.to_thread(written.acquire, timeout=60)
                    worked += works_in_a_child(use)
                finally:
                    done.set()
                await asyncio.gather(*writing)
                entries = await backend.read_many([f"{letter}{n}" for letter in "ab" for n in range(3)])
                assert {key: entry.value for key, entry in entries.items()} == {
                    f"{letter}{n}": acknowledged[n] for letter in "ab" for n in range(3) if acknowledged[n]
                }
                counted = await backend.read("by children")
                assert (counted.value if counted else 0) == (worked if backend.survives else 0)

            run(scenario)

    # ------------------------------------------------------------ opening and closing
    def test_after_close_everything_is_refused(self, run: Callable[[Scenario], None]) -> None:
        """StoreClosedError at once, never an answer that looks like missing data; closing twice is fine."""

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1)])
            await backend.close()
            await backend.close()
            uses: list[Callable[[], Coroutine[object, object, object]]] = [
                lambda: backend.read("a"),
                lambda: backend.read_many(["a"]),
                lambda: backend.write([Put("b", 1)]),
                lambda: backend.write([Put("b", 1)], {"a": 0}),
                lambda: backend.write([Delete("a")]),
                lambda: backend.write([], {"a": 0}),
                lambda: keys_of(backend),
            ]
            for use in uses:
                with pytest.raises(StoreClosedError):
                    await use()

        run(scenario)

    def test_a_write_under_way_at_close_lands_or_says_so(self, run: Callable[[Scenario], None]) -> None:
        """Each write that meets a close is either acknowledged or refused, and after a restart it shows which."""
        landed: set[str] = set()
        survives = True

        async def closing(backend: Backend) -> None:
            nonlocal survives
            survives = backend.survives
            writing = {f"k{n}": asyncio.ensure_future(backend.write([Put(f"k{n}", n)])) for n in range(30)}
            await asyncio.sleep(0)
            late = asyncio.ensure_future(backend.close())
            writing["late"] = asyncio.ensure_future(backend.write([Put("late", 0)]))
            outcomes = await asyncio.gather(*writing.values(), return_exceptions=True)
            await late
            for key, outcome in zip(writing, outcomes, strict=True):
                if isinstance(outcome, int):
                    landed.add(key)
                else:
                    assert isinstance(outcome, StoreClosedError)

        async def restarted(backend: Backend) -> None:
            assert set(await keys_of(backend)) == (landed if survives else set[str]())

        run(closing)
        run(restarted)

    def test_what_survives_is_there_after_a_restart(self, run: Callable[[Scenario], None], clock: FakeClock) -> None:
        """Entries, deadlines and the counter are as they were; where `survives` is False, nothing is there."""
        entries: dict[str, Entry] = {}
        versions: list[int] = []

        async def before(backend: Backend) -> None:
            await backend.write([Put("lasting", [1]), Put("mortal", 2, clock() + 60), Put("dead", 3, clock() + 1)])
            await backend.write([Put("deleted", 4)])
            versions.append(await backend.write([Delete("deleted")]))
            entries.update(await backend.read_many(["lasting", "mortal"]) if backend.survives else {})
            clock.advance(1)

        async def after(backend: Backend) -> None:
            assert await backend.read_many(["lasting", "mortal", "dead", "deleted"]) == entries
            if backend.survives:
                assert await backend.version() >= versions[-1]
                assert await backend.write([Put("new", 5)]) > versions[-1]
            clock.advance(59)
            assert await backend.read("mortal") is None

        run(before)
        run(after)
