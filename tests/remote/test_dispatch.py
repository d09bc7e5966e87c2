"""How items are sent to workers: the sizes of chunks, how many are under way, and what happens to items that are cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import pytest

from pocket_plug import CodecError, ExecutorError, ExecutorLostError, PocketError, WorkerCodeError
from pocket_plug.codec import default_codec
from pocket_plug.graph.elsewhere import Address, Work
from pocket_plug.remote import Executor, dispatch, far_side, perform
from pocket_plug.remote.dispatch import Dispatch
from pocket_plug.remote.wire import FORMAT, Answer, Answers, Chunk, Item, Node, answers_of, chunk_of, to_bytes
from pocket_plug.testing.executor_graphs import half

WORK = half.functions["exec"]
AT = Address("pocket_plug.testing.executor_graphs:half")


class Manual(Executor):
    """Submitted requests wait until the test answers them."""

    window = 2

    def __init__(self) -> None:
        self.sent: list[tuple[Chunk, Future[bytes]]] = []

    def submit(self, function: Callable[[bytes], bytes], request: bytes) -> Future[bytes]:
        future: Future[bytes] = Future()
        self.sent.append((chunk_of(request), future))
        return future

    def sizes(self) -> list[int]:
        return [len(chunk.items) for chunk, _ in self.sent]

    def answer(self, position: int, seconds: float) -> None:
        """Each item gets its own value as its result."""
        chunk, future = self.sent[position]
        future.set_result(to_bytes(Answers("far:1", [Answer(item.value, None, seconds) for item in chunk.items])))

    def answer_all(self, seconds: float) -> None:
        """One after the other, also requests that are sent meanwhile."""
        position = 0
        while position < len(self.sent):
            if not self.sent[position][1].done():
                self.answer(position, seconds)
            position += 1


def work(value: object, seconds: float | None = None) -> Work:
    return Work("half", WORK, False, value, AT, seconds)


async def begun(executor: Executor, values: list[Any], seconds: float | None = None) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(executor.perform(work(value, seconds))) for value in values]
    await sent()
    return tasks


async def sent() -> None:
    """Let the present tasks take a step, and send what they add."""
    for _ in range(4):
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(in_time())


def test_chunks_grow_if_items_are_short() -> None:
    """At first one item per chunk; then as many as take a tenth of a second, at most 500, and a fair share of the queue."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(5000)])
        assert executor.sizes() == [1, 1]
        executor.answer(0, 0.02)
        assert executor.sizes() == [1, 1, 1]  # the average is 0.06 by now
        executor.answer(1, 0.02)
        assert executor.sizes()[3:] == [2, 2, 2]  # 0.04: short, so twice as many are under way
        for position in range(2, 14):
            executor.answer(position, 0.000_001)
        assert executor.sizes()[-1] == dispatch.MOST
        executor.answer_all(0.000_001)
        assert await asyncio.gather(*tasks) == [*range(5000)]
        assert max(executor.sizes()) == dispatch.MOST
        assert executor.sizes()[-1] < dispatch.MOST  # the last ones are shared

    run(main())


def test_more_workers_get_items_at_once() -> None:
    """Not only when one of the former workers has answered."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(5)])
        assert executor.sizes() == [1, 1]
        executor.window = 4
        executor.grown()
        assert executor.sizes() == [1, 1, 1, 1]
        executor.answer_all(0.1)
        assert await asyncio.gather(*tasks) == [*range(5)]

    run(main())


def test_a_long_item_makes_the_next_chunk_small_at_once() -> None:
    """A longer item counts with its own duration, not with the average."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(1000)])
        for position in range(6):
            executor.answer(position, 0.000_001)
        assert executor.sizes()[-1] > 10
        for position in (6, 7, 8, 9):  # by then as many are under way as there are workers
            executor.answer(position, 0.1)
        assert executor.sizes()[-2:] == [1, 1]
        assert len([future for _, future in executor.sent if not future.done()]) == 2
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    run(main())


def test_items_that_start_together_are_sent_together() -> None:
    """A fan-out starts its items one after the other: nothing is sent while more are coming, up to what fills all chunks."""

    async def main() -> None:
        executor = Manual()
        first = await begun(executor, [*range(20)])
        executor.answer_all(0.001)
        await asyncio.wait(first)
        before = len(executor.sent)
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(30):
            tasks.append(asyncio.create_task(executor.perform(work(1))))
            await asyncio.sleep(0)
        assert executor.sizes()[before:] == []
        await sent()
        assert executor.sizes()[before:] == [8, 6, 4, 4]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    run(main())


def test_items_that_a_worker_returns_are_sent_again() -> None:
    """First, in their order, with what is left of their time; items that nobody waits for are not sent."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(1000)], seconds=1000)
        for position in range(6):
            executor.answer(position, 0.000_001)
        chunk, future = executor.sent[6]
        count, before = len(chunk.items), len(executor.sent)
        assert count > 5
        place = sum(executor.sizes()[:6])
        tasks[place + 3].cancel()
        await asyncio.wait([tasks[place + 3]])
        future.set_result(to_bytes(Answers("far:1", [Answer(item.value, None, 10.0) for item in chunk.items[:2]])))
        assert await asyncio.gather(*tasks[place : place + 2]) == [place, place + 1]
        executor.answer_all(10.0)
        again = [item for later, _ in executor.sent[before:] for item in later.items][: count - 3]
        given_back = [chunk.items[2], *chunk.items[4:]]
        assert [item.value for item in again] == [item.value for item in given_back]
        for item, before_ in zip(again, given_back, strict=True):
            assert item.seconds is not None
            assert before_.seconds is not None
            assert 900 < item.seconds < before_.seconds
        await asyncio.wait(tasks)

    run(main())


def test_a_worker_returns_items_that_it_has_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has worked long enough at a chunk; the first item is always executed."""
    request = to_bytes(
        Chunk(FORMAT, [Node("half", "no_such_module:graph", ("half",), 1, "")], [Item(0, b"", {}, None, None)] * 3)
    )
    monkeypatch.setattr(far_side, "ENOUGH", 1000.0)
    assert len(answers_of(perform(request)).answers) == 3
    monkeypatch.setattr(far_side, "ENOUGH", 0.0)
    assert len(answers_of(perform(request)).answers) == 1


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_a_worker_s_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    """A timeout is measured by each side's own monotonic clock: the machines' clocks may differ by hours."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    node = Node("half", f"{AT.reference}", (), 1, "0.0:")
    for seconds, is_done in ((60.0, True), (0.0, False), (-1.0, False)):
        answers = perform(to_bytes(Chunk(FORMAT, [node], [Item(0, default_codec.encode(4), {}, seconds, None)])))
        assert (answers_of(answers).answers[0].value is not None) == is_done


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "not a request of this version"),
        (b"\xff", "not a request of this version"),
        (to_bytes(Answers("far:1", [])), "not a request of this version"),
        (to_bytes(Chunk(FORMAT + 1, [], [])), f"in format {FORMAT + 1}; this version of pocket_plug knows {FORMAT}"),
    ],
    ids=["empty", "odd", "an answer", "a later format"],
)
def test_a_worker_refuses_an_invalid_request(message: bytes, says: str) -> None:
    """It may have another version of pocket_plug than whoever asks."""
    with pytest.raises(CodecError, match=says):
        perform(message)


def test_large_values_are_sent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of several items has a maximum number of bytes."""
    monkeypatch.setattr(dispatch, "MOST_BYTES", 1000)

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, ["x" * 600] * 20)
        for position in range(20):
            executor.answer(position, 0.000_001)
        assert set(executor.sizes()) == {1}
        await asyncio.gather(*tasks)

    run(main())


def test_cancelled_items_are_not_sent_and_chunks_are_cancelled() -> None:
    """Queued items are dropped; a chunk is cancelled once all of its items are, and makes room."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(10)])
        for task in tasks[2:9]:
            task.cancel()
        await asyncio.wait(tasks[2:9])
        assert executor.sizes() == [1, 1]
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert executor.sent[0][1].cancelled()
        await sent()
        assert executor.sizes() == [1, 1, 1]
        executor.answer(1, 0.1)
        executor.answer(2, 0.1)
        assert await asyncio.gather(tasks[1], tasks[9]) == [1, 9]

    run(main())


def test_a_cancelled_run_sends_no_items_meanwhile() -> None:
    """Though its items are cancelled one after the other."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(100)])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await sent()
        assert executor.sizes() == [1, 1]

    run(main())


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ExecutorLostError("all gone"), ExecutorLostError, "node 'half': executor Manual: all gone"),
        (OSError("refused"), ExecutorLostError, "node 'half': executor Manual has no answer: OSError: refused"),
        (ModuleNotFoundError("no pocket_plug"), WorkerCodeError, "lacks this version of pocket_plug"),
        (RuntimeError("odd"), ExecutorError, "has no answer: RuntimeError: odd"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_item_of_a_failed_chunk_has_an_error_of_its_own(
    error: Exception, kind: type[PocketError], said: str
) -> None:
    """With the node and the executor; each may get notes of its own."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(100)])
        for position in range(6):
            executor.answer(position, 0.000_001)
        assert executor.sizes()[-1] > 10
        while left := [future for _, future in executor.sent if not future.done()]:
            left[0].set_exception(error)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [each for each in found if isinstance(each, BaseException)]
        assert errors
        assert len({id(each) for each in errors}) == len(errors)
        assert all(type(each) is kind and said in str(each) for each in errors)

    run(main())


@pytest.mark.parametrize("seconds", [0.000_001, 0.04], ids=["many", "two"])
def test_an_item_that_kills_its_workers_fails_alone(seconds: float) -> None:
    """Not with the others of its chunk: they are sent again, each alone."""

    async def main() -> None:
        executor = Manual()
        tasks = await begun(executor, [*range(100)])
        for position in range(6):
            executor.answer(position, seconds)
        dead = ExecutorLostError("died", workers_died=True)
        (deadly, *others) = executor.sent[6][0].items
        assert (len(others) == 1) == (seconds == 0.04)
        position = 6
        while position < len(executor.sent):
            chunk, future = executor.sent[position]
            if deadly in chunk.items:
                future.set_exception(dead)
            elif not future.done():
                executor.answer(position, 0.000_001)
            position += 1
        found = await asyncio.gather(*tasks, return_exceptions=True)
        (error,) = [each for each in found if isinstance(each, BaseException)]
        assert isinstance(error, ExecutorLostError)
        assert error.workers_died
        assert "node 'half': executor Manual: died" in str(error)
        assert executor.sizes().count(1) >= 1 + len(others)

    run(main())


def test_an_executor_that_refuses_fails_each_item_without_nesting() -> None:
    """For any number of items: at once, or by a future that has failed already."""

    class Refusing(Executor):
        def submit(self, function: object, request: bytes) -> Future[bytes]:
            if len(chunk_of(request).items) % 2:
                raise ExecutorLostError("closed")
            future: Future[bytes] = Future()
            future.set_exception(ExecutorLostError("closed"))
            return future

    async def main() -> None:
        tasks = await begun(Refusing(), [*range(3000)])
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in found} == {ExecutorLostError}

    run(main())


TWO = to_bytes(Answers("far:1", [Answer(b""), Answer(b"")]))


@pytest.mark.parametrize(
    "answer", [b"", b"\xff", to_bytes(Answers("far:1", [])), TWO], ids=["empty", "odd", "too few", "too many"]
)
def test_an_invalid_answer_is_an_error(answer: bytes) -> None:
    """It names the executor, and its cause says what is wrong with the answer."""

    async def main() -> None:
        executor = Manual()
        (task,) = await begun(executor, [1])
        executor.sent[0][1].set_result(answer)
        with pytest.raises(ExecutorError, match="executor Manual has no answer: ") as caught:
            await task
        assert isinstance(caught.value.__cause__, CodecError)

    run(main())


def test_the_timeout_starts_when_an_item_is_sent() -> None:
    """An item in the queue doesn't time out yet; the request has the time in which it may be begun."""

    async def main() -> None:
        executor = Manual()
        first = await begun(executor, [1, 2])
        (queued,) = await begun(executor, [3], seconds=0.001)
        await asyncio.sleep(0.01)  # longer than its timeout
        assert not queued.done()
        executor.answer(0, 0.1)
        assert executor.sent[2][0].items[0].seconds is not None
        executor.answer(2, 0.1)
        executor.answer(1, 0.1)
        assert await asyncio.gather(*first) == [1, 2]
        assert await asyncio.gather(queued, return_exceptions=True)

    run(main())


# ---------------------------------------------------------------- garbage
def test_a_caller_may_be_garbage_collected_while_the_queue_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-C, when nobody can await it any more: its coroutine is closed, and its item is cancelled."""
    executor, drawn = Manual(), Dispatch._drawn

    def collecting(queue: Dispatch, most: int) -> list[dispatch.Job]:
        gc.collect()
        return drawn(queue, most)

    async def main() -> None:
        waiting = executor.perform(work(1))
        waiting.send(None)
        await sent()
        circle: list[object] = [waiting]
        circle.append(circle)
        del waiting, circle
        monkeypatch.setattr(Dispatch, "_drawn", collecting)
        tasks = await begun(executor, [2])
        assert executor.sent[0][1].cancelled()
        executor.answer(1, 1)
        assert await asyncio.gather(*tasks) == [2]

    caller = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    caller.start()
    caller.join(60)
    assert not caller.is_alive()
