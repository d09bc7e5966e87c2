"""What backends over a network share: a client per event loop, attempts with deadlines, tokens for writes."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest

from pocket_plug.backends.network import Attempt, PerLoop, Retrying, Slots, Token, check_store
from pocket_plug.errors import (
    AnswerLostError,
    ConfigError,
    ConflictError,
    StoreClosedError,
    StoreError,
    StoreUnreachableError,
)
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.scenarios import works_in_a_child


class Client:
    """Belongs to the event loop that made it, and notes where it was closed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed_on: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        await asyncio.sleep(0)
        assert self.closed_on is None
        self.closed_on = asyncio.get_running_loop()

    @property
    def is_closed_at_home(self) -> bool:
        return self.closed_on is self.loop


class Clients:
    """A PerLoop, and all clients that it has made."""

    def __init__(self) -> None:
        self.made: list[Client] = []
        self.per_loop = PerLoop(self._make, Client.close)

    def _make(self) -> Client:
        client = Client()
        self.made.append(client)
        return client

    async def use(self) -> Client:
        """The client of the running loop."""
        client = self.per_loop.here()
        assert client.loop is asyncio.get_running_loop()
        await asyncio.sleep(0)
        assert self.per_loop.here() is client
        return client


# ---------------------------------------------------------------- a client for each loop
def test_each_loop_has_its_own_client_and_takes_it_along() -> None:
    """Twenty runs over one instance: each has a client of its own, closed on its own loop at the loop's end; nothing is left."""
    clients = Clients()
    for _ in range(20):
        asyncio.run(clients.use())
    assert len(clients.made) == 20
    assert all(client.is_closed_at_home for client in clients.made)
    gc.collect()  # an unclosed one would be a warning, hence an error


def test_loops_in_threads_have_clients_of_their_own() -> None:
    """Loops that run at the same time share no client, and each closes its own."""
    clients, together = Clients(), threading.Barrier(8)

    async def use() -> None:
        await clients.use()
        together.wait(60)  # all have a client, and no loop has ended
        await clients.use()

    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(client.loop) for client in clients.made}) == len(clients.made) == 8
    assert all(client.is_closed_at_home for client in clients.made)


def test_close_closes_each_client_on_its_own_loop() -> None:
    """Called on one loop while another runs: both clients are closed when it returns, each on its own loop."""
    clients, ready, over = Clients(), threading.Event(), threading.Event()

    async def other() -> None:
        await clients.use()
        ready.set()
        await asyncio.to_thread(over.wait, 60)

    async def main() -> None:
        await clients.use()
        await asyncio.to_thread(ready.wait, 60)
        await clients.per_loop.close()
        assert [client.is_closed_at_home for client in clients.made] == [True, True]
        await clients.per_loop.close()

    thread = threading.Thread(target=lambda: asyncio.run(other()))
    thread.start()
    try:
        asyncio.run(main())
    finally:
        over.set()
        thread.join()


def test_close_of_a_loop_that_stands_still_waits_for_its_end() -> None:
    """A loop that isn't running now closes its client when it ends; `close` doesn't wait for that."""
    clients = Clients()
    with asyncio.Runner() as runner:
        runner.run(clients.use())
        asyncio.run(clients.per_loop.close())
        assert clients.made[0].closed_on is None
    assert clients.made[0].is_closed_at_home


def test_close_waits_for_a_blocked_loop_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is blocked, perhaps by the caller of `close`, can't close its client yet: it does so when it continues."""
    monkeypatch.setattr("pocket_plug.backends.network.LONGEST_CLOSE", 0.05)
    clients = Clients()

    async def main() -> None:
        await clients.use()
        closing = threading.Thread(target=lambda: asyncio.run(clients.per_loop.close()))
        closing.start()
        closing.join()  # while this loop is blocked
        assert clients.made[0].closed_on is None
        with pytest.raises(StoreClosedError):
            clients.per_loop.here()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert clients.made[0].is_closed_at_home


def test_after_close_there_is_no_client() -> None:
    """StoreClosedError on every loop, old or new."""
    clients = Clients()

    async def main() -> None:
        await clients.use()
        await clients.per_loop.close()
        with pytest.raises(StoreClosedError):
            clients.per_loop.here()

    async def later() -> None:
        with pytest.raises(StoreClosedError):
            clients.per_loop.here()

    asyncio.run(main())
    asyncio.run(later())
    assert len(clients.made) == 1


def test_a_cancelled_close_is_completed() -> None:
    """The client is closed all the same, and only once."""
    clients = Clients()

    async def main() -> None:
        client = await clients.use()
        closing = asyncio.ensure_future(clients.per_loop.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        await clients.per_loop.close()
        while client.closed_on is None:
            await asyncio.sleep(0)

    asyncio.run(main())


def test_a_loop_that_is_closed_without_an_end_is_forgotten() -> None:
    """`loop.close()` alone gives no chance to close the client; the next loop's client drops it."""
    clients = Clients()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(clients.use())
    loop.close()
    asyncio.run(clients.use())
    assert clients.per_loop._lives == {}  # nothing else shows it


def test_without_a_loop_there_is_no_client() -> None:
    """It is a bug of the backend, with asyncio's own error."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        Clients().per_loop.here()


def test_what_make_raises_is_raised() -> None:
    """Each time: a failed attempt leaves nothing behind."""

    def make() -> Client:
        raise StoreError("no address")

    per_loop = PerLoop(make, Client.close)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(StoreError, match="no address"):
                per_loop.here()

    asyncio.run(main())


class Stream:
    """A connection of asyncio to a server, with sockets that a forked child would share."""

    def __init__(self, ours: socket.socket) -> None:
        self._ours = ours
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self._ours)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_leaves_the_parents_client_alone() -> None:
    """The child makes a client of its own; the parent's connection still works after the child has ended."""
    pairs = [socket.socketpair(), socket.socketpair()]
    free = [ours for ours, _ in reversed(pairs)]
    streams = PerLoop(lambda: Stream(free.pop()), Stream.close)

    async def use(theirs: socket.socket) -> None:
        stream = streams.here()
        if not hasattr(stream, "writer"):
            await stream.connect()
        theirs.sendall(b"hello\n")
        assert await stream.reader.readline() == b"hello\n"

    async def main() -> None:
        await use(pairs[0][1])
        assert works_in_a_child(lambda: use(pairs[1][1]))
        await asyncio.wait_for(use(pairs[0][1]), 60)  # still registered with epoll
        await streams.close()

    asyncio.run(main())
    for pair in pairs:
        for end in pair:
            end.close()


# ---------------------------------------------------------------- attempts
class LostError(Exception):
    """What a driver raises if its connection is lost."""


def retrying(
    clock: FakeClock, *, timeout: float = 5.0, patience: float = 30.0, attempts: int | None = None
) -> Retrying:
    """With pauses that advance the clock."""

    async def pause(seconds: float) -> None:
        clock.advance(seconds)

    return Retrying("redis at cache:6379", (LostError,), timeout, patience, attempts, now=clock, pause=pause)


def failing(times: int, error: Exception, *, sent: bool = False) -> Callable[[Attempt], Awaitable[int]]:
    """An attempt that fails this often; returns the number of the attempt that succeeds."""

    async def attempt(this: Attempt) -> int:
        this.sent = sent
        if this.number <= times:
            raise error
        return this.number

    return attempt


def test_a_lost_connection_is_tried_again() -> None:
    """Until it works; attempts are numbered from 1 on."""
    assert asyncio.run(retrying(FakeClock())(failing(3, LostError()))) == 4


def test_other_errors_are_raised_at_once() -> None:
    """A refusal is an answer, so there is no retry."""
    seen: list[int] = []

    async def attempt(this: Attempt) -> None:
        seen.append(this.number)
        raise ConflictError(["k"])

    with pytest.raises(ConflictError):
        asyncio.run(retrying(FakeClock())(attempt))
    assert seen == [1]


def test_patience_ends_and_the_error_names_the_server_and_no_password() -> None:
    """The error says which server, for how long, how many attempts, and the last error; passwords in the driver's message are
    masked.
    """
    clock = FakeClock()
    before = clock()
    with pytest.raises(StoreUnreachableError) as caught:
        asyncio.run(retrying(clock, patience=8)(failing(10**9, LostError("redis://app:hunter2@cache refused"))))
    text = str(caught.value)
    assert not isinstance(caught.value, AnswerLostError)
    assert "redis at cache:6379 can't be reached, and could not for 8 s" in text
    assert "LostError: redis://app:***@cache refused" in text
    assert clock() - before < 8
    assert isinstance(caught.value.__cause__, LostError)


def test_a_patience_of_hours_ends_like_any_other() -> None:
    """After thousands of attempts; the pauses between them have long reached their bound."""
    clock = FakeClock()
    assert asyncio.run(retrying(clock, patience=86_400)(failing(3_000, LostError()))) == 3_001
    with pytest.raises(StoreUnreachableError, match="could not for 3600 s"):
        asyncio.run(retrying(clock, patience=3_600)(failing(10**9, LostError())))


def test_a_few_attempts_end_before_the_patience() -> None:
    """For a caller that only checks whether the server is reachable: the error of the last attempt is raised, and what it waited
    for.
    """
    clock = FakeClock()
    with pytest.raises(StoreUnreachableError, match=r"redis at cache:6379 can't be reached \(2 attempts; .*refused\)"):
        asyncio.run(retrying(clock, patience=8, attempts=2)(failing(10**9, LostError("refused"))))


def test_a_write_with_an_unknown_outcome_says_so() -> None:
    """AnswerLostError, also if later attempts failed before they sent it."""

    async def attempt(this: Attempt) -> None:
        this.sent = this.number == 1
        raise LostError

    with pytest.raises(AnswerLostError, match="whether it was committed is not known"):
        asyncio.run(retrying(FakeClock()).write(attempt))


def test_at_the_deadline_the_socket_is_cut_before_the_attempt_is_cancelled() -> None:
    """A driver that sends a cancellation to its server would wait for it. The next attempt then works."""
    story: list[str] = []

    async def attempt(this: Attempt) -> int:
        this.cut = lambda: story.append("cut")
        if this.number > 1:
            return this.number
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            story.append("cancelled")
            raise LostError from None  # as a driver may raise it
        raise AssertionError

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert await Retrying("s", (LostError,), timeout=5)(attempt) == 2
        assert task.cancelling() == 0
        assert story == ["cut", "cancelled"]

    run_virtual(main())


def test_all_attempts_together_end_with_the_patience() -> None:
    """If a server never answers, each attempt takes `timeout`, and the last one the time that is left of `patience`."""
    numbers: list[int] = []

    async def attempt(this: Attempt) -> None:
        numbers.append(this.number)
        await asyncio.Event().wait()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(StoreError, match="no answer within"):
            await Retrying("s", (), timeout=5, patience=12, now=loop.time)(attempt)
        assert 10 < loop.time() - began <= 12
        assert numbers == [1, 2, 3]

    run_virtual(main())


def test_a_cancellation_of_the_caller_is_no_lost_connection() -> None:
    """The cancellation ends the operation and is raised, also if the deadline comes while the driver is still ending."""

    async def attempt(this: Attempt) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()  # it tells the server, which doesn't answer

    async def main() -> None:
        reading = asyncio.ensure_future(Retrying("s", (LostError,), timeout=5)(attempt))
        await asyncio.sleep(1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    run_virtual(main())


def test_a_cancelled_write_is_completed() -> None:
    """The caller is notified once the outcome is known; a second cancellation changes nothing."""
    landed: list[bool] = []

    async def attempt(this: Attempt) -> int:
        await asyncio.sleep(1)
        landed.append(True)
        return 7

    async def main() -> None:
        writing = asyncio.ensure_future(Retrying("s", ()).write(attempt))
        for _ in range(2):
            await asyncio.sleep(0.1)
            writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert landed == [True]

    run_virtual(main())


# ---------------------------------------------------------------- tokens
def test_a_slot_gives_its_writes_rising_numbers() -> None:
    """Consecutive writes share a slot; concurrent writes don't."""
    slots = Slots()
    with slots.token() as first, slots.token() as beside:
        assert beside.slot != first.slot
    with slots.token() as again:
        pass
    assert {first.sequence, beside.sequence} == {1}
    assert again == Token(first.slot, 2)


def test_a_conflict_keeps_its_slot_and_an_unknown_outcome_gives_it_up() -> None:
    """After a conflict the next write gets the next number in the slot; after a lost answer the slot is never used again."""
    slots = Slots()
    with pytest.raises(ConflictError), slots.token() as refused:
        raise ConflictError(["k"])
    with pytest.raises(AnswerLostError), slots.token() as lost:
        raise AnswerLostError("?")
    assert lost == Token(refused.slot, 2)
    with slots.token() as anew:
        assert anew.slot != lost.slot
        assert anew.sequence == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_has_slots_of_its_own() -> None:
    """Otherwise both would write under one slot, and the server would take one process's write for the other's."""
    slots = Slots()
    with slots.token() as ours:
        pass
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        with slots.token() as theirs:
            os.write(ends[1], theirs.slot.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(ends[0], 100).decode() not in ("", ours.slot)
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("name", ["", "a b", "{tag}", "a:b", "-x", "x" * 41, "ü", "a\n"])
def test_a_data_sets_name_has_plain_characters(name: str) -> None:
    """It becomes part of keys and schema names on the server."""
    check_store("redis", "main.2_b-C")
    with pytest.raises(ConfigError, match="redis: store is"):
        check_store("redis", name)
