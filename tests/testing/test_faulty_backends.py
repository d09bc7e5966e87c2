"""The contract's messages for a backend with a fault: the first test that fails points to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = """
import time
import pytest
from pocket_plug import Delete, Memory
from pocket_plug.testing.contracts import BackendContract


class Expired(Memory):
    async def read(self, key):
        clock, self.clock = self.clock, lambda: 0.0
        try:
            return await super().read(key)
        finally:
            self.clock = clock


class Generous(Memory):
    async def compact(self, size):
        return 1


class OwnClock(Memory):
    clock = property(lambda self: time.time, lambda self, given: None)


class Unordered(Memory):
    async def scan(self, prefix="", **page):
        for key in sorted([key async for key in super().scan(prefix, **page)], key=str.casefold):
            yield key


class Stale(Memory):
    def __init__(self):
        super().__init__()
        self.seen = {}

    async def read(self, key):
        if key not in self.seen:
            self.seen[key] = await super().read(key)
        return self.seen[key]


class Backwards(Memory):
    async def version(self):
        entries = await self.read_many([key async for key in self.scan()])
        return max([entry.version for entry in entries.values()], default=0)


class Lost(Memory):
    async def write(self, changes, expect={}):
        await super().write([], expect)
        return await super().write(changes)


class Deaf(Memory):
    async def write(self, changes, expect={}):
        return await super().write(changes, {} if changes else expect)


class DeafToDeletes(Memory):
    async def write(self, changes, expect={}):
        return await super().write(changes, {} if {*map(type, changes)} == {Delete} else expect)


class Torn(Memory):
    async def write(self, changes, expect={}):
        version = await super().write(changes[:1], expect)
        for change in changes[1:]:
            version = await super().write([change])
        return version
"""

FIRST = {
    "Expired": "test_an_entry_is_there_until_its_deadline",
    "Generous": "test_compacting_changes_nothing_that_is_read",
    "OwnClock": "test_an_entry_is_there_until_its_deadline",
    "Unordered": "test_scan_gives_the_keys_in_code_point_order",
    "Stale": "test_reads_back_what_was_put",
    "Backwards": "test_versions_never_go_back",
    "Lost": "test_a_write_comes_between_no_two_steps_of_another",
    "Deaf": "test_a_conflict_names_the_keys_and_does_nothing",
    "DeafToDeletes": "test_a_conflict_names_the_keys_and_does_nothing",
    "Torn": "test_each_write_gets_a_higher_version",
}
"""Which promise each of them breaks."""


def output_of(folder: Path, *options: str) -> str:
    """pytest's output for the tests in a folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    # In CI pytest's summary repeats the whole message of each failure.
    surroundings = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")}
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False).stdout


def test_the_first_test_that_fails_is_that_of_the_broken_guarantee(tmp_path: Path) -> None:
    """Not a test that depends on it, such as those of lists: one fault fails many."""
    tests = "\n".join(
        f"class Test{name}(BackendContract):\n    @pytest.fixture\n    def make_backend(self):\n        return {name}\n"
        for name in FIRST
    )
    (tmp_path / "test_faults.py").write_text(f"{BACKENDS}\n{tests}")
    said = output_of(tmp_path, "--tb=no", "-k", "not forked")
    failed = [line.split("::")[1:] for line in said.splitlines() if line.startswith("FAILED")]
    first = dict((kind.removeprefix("Test"), test.split()[0]) for kind, test in reversed(failed))
    assert first == FIRST, said


ONE_WAY = """
import pytest
from pocket_plug import Memory
from pocket_plug.testing.contracts import BackendContract


class OneWay(Memory):
    async def scan(self, prefix="", *, after="", reverse=False, limit=None):
        async for key in super().scan(prefix, after=after, limit=limit):
            yield key


class TestOneWay(BackendContract):
    @pytest.fixture
    def make_backend(self):
        return OneWay
"""


def test_pages_that_do_not_go_on_are_an_error(tmp_path: Path) -> None:
    """Whoever asks for the page after a key would go round for ever."""
    (tmp_path / "test_one_way.py").write_text(ONE_WAY)
    said = output_of(tmp_path, "-k", "pages_have_each_key_once or pages_of_odd_keys")
    assert said.count("AssertionError: a page that doesn't continue after 'k:0") == 1
    assert "2 failed, 2 passed" in said


UNSHARED = """
import pytest
from pocket_plug.testing.shared_contract import SharedBackendContract


class TestUnshared(SharedBackendContract):
    @pytest.fixture
    def url(self):
        return "memory://"
"""


def test_data_that_is_not_shared_is_an_error(tmp_path: Path) -> None:
    """If each opener has data of its own, no caller may wait for another's write."""
    (tmp_path / "test_unshared.py").write_text(UNSHARED)
    said = output_of(tmp_path, "--tb=no", "-k", "acknowledged or rise_whoever or dies_in_a_write")
    assert "test_what_one_has_acknowledged_all_see" in said
    assert "4 failed" in said


SHARED = """
import asyncio
import pytest
from pocket_plug import Delete, Put
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.testing.shared_contract import SharedBackendContract

cache = {}


class Cached(SQLite):
    async def read(self, key):
        entry = cache.get((self.path, key)) or await super().read(key)
        if entry is not None and entry.expires_at is None:
            cache[self.path, key] = entry
        return entry

    async def write(self, changes, expect={}):
        version = await super().write(changes, expect)
        for change in changes:
            cache.pop((self.path, change.key), None)
        return version


class Reopened(SQLite):
    has_written = False

    async def write(self, changes, expect={}):
        self.has_written = self.has_written or bool(changes)
        return await super().write(changes, expect)

    async def scan(self, prefix="", **page):
        clock = self.clock
        if not self.has_written:
            self.clock = lambda: 0.0
        async for key in super().scan(prefix, **page):
            yield key
        self.clock = clock


class Leaky(SQLite):
    last = ()

    async def write(self, changes, expect={}):
        version = await super().write(changes, expect)
        self.last = [Delete(change.key) for change in changes if isinstance(change, Put)] or self.last
        return version

    async def close(self):
        last, self.last = self.last, ()
        if last:
            await super().write(last)
        await super().close()


openers = set()


class Exclusive(SQLite):
    async def open(self):
        if self.path in openers:
            raise RuntimeError("it is open already")
        openers.add(self.path)
        await asyncio.sleep(0)
        await super().open()
        openers.discard(self.path)


def contract(kind):
    class Test(SharedBackendContract):
        @pytest.fixture
        def url(self, tmp_path):
            return f"sqlite:///{tmp_path}/state.db?durability=process"

        @pytest.fixture
        def make_backend(self, tmp_path):
            return lambda: kind(f"{tmp_path}/state.db", durability="process")

    return Test


TestCached, TestReopened, TestLeaky, TestExclusive = map(contract, (Cached, Reopened, Leaky, Exclusive))
"""


def test_a_fault_of_shared_data_has_its_own_test(tmp_path: Path) -> None:
    """A cache that hides what other processes write, expired entries that come back, a write that `close` loses, an `open` for
    one opener at a time."""
    (tmp_path / "test_shared.py").write_text(SHARED)
    said = output_of(
        tmp_path, "--tb=no", "-k", "(Cached and another_process_has) or survives or (Exclusive and at_once)"
    )
    failed = {tuple(line.split("::")[1:]) for line in said.splitlines() if line.startswith("FAILED")}
    assert {(kind.removeprefix("Test"), test.split()[0]) for kind, test in failed} == {
        ("Cached", "test_what_another_process_has_acknowledged_all_see"),
        ("Reopened", "test_what_survives_is_there_after_a_restart"),
        ("Leaky", "test_what_survives_is_there_after_a_restart"),
        ("Exclusive", "test_several_may_open_it_at_once"),
    }, said


HANGING = """
import os
import threading
import pytest
from pocket_plug import Memory
from pocket_plug.testing import scenarios
from pocket_plug.testing.contracts import BackendContract

scenarios.CHILD_SECONDS = 1


class Hanging(Memory):
    async def read_many(self, keys):
        if os.getpid() != PARENT:
            wait_for_ever()
        return await super().read_many(keys)


def wait_for_ever():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


PARENT = os.getpid()


class TestHanging(BackendContract):
    @pytest.fixture
    def make_backend(self):
        return Hanging
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_that_hangs_says_where(tmp_path: Path) -> None:
    """Otherwise nobody knows which lock it was."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    said = output_of(tmp_path, "-k", "forked")
    assert "a forked child hung; its traceback is on stderr" in said
    assert "in wait_for_ever" in said
