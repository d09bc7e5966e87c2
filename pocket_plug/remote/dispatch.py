"""How items are sent to workers: a few chunks at a time. Items that are added meanwhile are queued for the next chunks.

A chunk has several items only if these are short: as many as take about `WORTH` seconds, judging by the last ones. So a long
exec is sent alone, to a free worker; a worker that dies loses few items, and no timeout passes while its item waits in a chunk.
If items take longer than the last ones did, a worker returns the items of its chunk that it hasn't begun; they are sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from copy import copy

from pocket_plug.codec import default_codec
from pocket_plug.errors import CodecError, ExecutorError, ExecutorLostError, WorkerCodeError
from pocket_plug.graph.running.workers import WorkerTimeout
from pocket_plug.primitives.failures import describe
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import Waiter, wake

from .failures import put_together
from .wire import FORMAT, Answer, Chunk, Item, Node, Report, answers_of, to_bytes

MOST = 500
"""The most items in one chunk."""
MOST_BYTES = 1 << 20
"""The most bytes of values in a chunk that has more than one item."""
WORTH = 0.1
"""Seconds of work in a full chunk."""
LEAST = 0.005
"""The least seconds of work in a chunk when the last items are shared out: to send a chunk costs an executor milliseconds."""

Submit = Callable[[bytes], "Future[bytes]"]


class Job(Waiter[Value]):
    """One item that is queued or sent. Await its result."""

    __slots__ = (
        "carrier",
        "chunk",
        "deadline",
        "goes_alone",
        "is_left",
        "key",
        "node",
        "place",
        "reports",
        "sent",
        "timeout",
        "value",
    )

    def __init__(
        self,
        node: Node,
        value: bytes,
        carrier: dict[str, str],
        key: str | None,
        timeout: float | None,
        place: str | None,
    ) -> None:
        super().__init__()
        self.node, self.value, self.carrier, self.key, self.timeout = node, value, carrier, key, timeout
        self.place = place
        self.reports: Sequence[Report] = ()
        """What it has reported with `emit` and `progress`; known with its result."""
        self.sent: Waiter[None] | None = None if timeout is None else Waiter()
        """Woken when it is sent: its timeout begins then."""
        self.deadline: float | None = None
        """By this process's monotonic clock; known once it is sent."""
        self.chunk: _Sent | None = None
        self.is_left = False
        self.goes_alone = False
        """Was it in a chunk whose workers died? Then it is sent in a chunk of its own."""


class _Sent:
    """A chunk that was sent and isn't answered yet."""

    __slots__ = ("future", "is_handed_over", "jobs", "left")

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.left = 0
        self.is_handed_over = False
        self.future: Future[bytes] | None = None


class Dispatch:
    """The queue of one executor, and the chunks that are sent. Any thread and any loop may add to it."""

    def __init__(self, title: Callable[[], str], submit: Submit, window: Callable[[], int]) -> None:
        self._title, self._submit, self._window = title, submit, window
        self._lock = new_rlock()
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        """Begin empty: at first, and in a forked child, where nobody waits for what the parent has sent."""
        self._queue: deque[Job] = deque()
        self._on_their_way: set[_Sent] = set()
        self._sender: asyncio.AbstractEventLoop | None = None  # the loop that is about to send what is queued
        self._seconds = WORTH  # for one item, on the average of the last ones; so at first a chunk has one item

    def add(self, job: Job) -> None:
        """Queue it, and send it as soon as a chunk may be sent, together with items that tasks of the same loop add now."""
        with self._lock:
            self._queue.append(job)
        self._send_from(job.loop)

    def leave(self, job: Job) -> None:
        """Nobody waits for it any more. A queued item is not sent then; a chunk that nobody waits for at all is cancelled."""
        future = None
        with self._lock:
            sent = job.chunk
            if job.is_left or sent is None or sent not in self._on_their_way:
                job.is_left = True
                return
            job.is_left = True
            sent.left += 1
            if sent.left < len(sent.jobs):
                return
            self._on_their_way.discard(sent)
            future = sent.future
        if future is not None:
            future.cancel()
        self._send_from(job.loop)  # later, once all items that are cancelled together have left

    def _send_from(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Send what may be sent, once the loop has run the tasks that are ready now: they may add items."""
        if loop is None or not loop.is_running():
            self.send_what_goes()
        elif self._sender is not loop:
            self._sender = loop
            loop.call_soon(self._send_soon, loop, 0)

    def _send_soon(self, loop: asyncio.AbstractEventLoop, seen: int) -> None:
        """Send what may be sent, unless a fan-out is starting: the queue has grown since the last call, and isn't full yet."""
        queued = len(self._queue)
        if seen < queued < self._size() * self._wanted():
            loop.call_soon(self._send_soon, loop, queued)
            return
        self._sender = None
        self.send_what_goes()

    def send_what_goes(self) -> None:
        """Send as many chunks as may be sent now."""
        while (sent := self._next()) is not None:
            self._send(sent)

    def _next(self) -> _Sent | None:
        """The next chunk, if another one may be sent and an item is queued."""
        with self._lock:
            wanted = self._wanted()
            if len(self._on_their_way) >= wanted:
                return None
            fair = max(-(-len(self._queue) // wanted), int(LEAST / self._seconds))
            jobs = self._drawn(min(fair, self._size()))
            if not jobs:
                return None
            sent = _Sent(jobs)
            for job in jobs:
                job.chunk = sent
            self._on_their_way.add(sent)
        return sent

    def _wanted(self) -> int:
        """How many chunks may be sent and unanswered: of short items twice as many as there are workers.

        So a worker has its next chunk at hand. A long item would wait there, while another worker might be free.
        """
        return max(self._window(), 1) * (2 if self._seconds < WORTH / 2 else 1)

    def _size(self) -> int:
        """The number of items in a full chunk."""
        return max(1, min(MOST, int(WORTH / self._seconds)))

    def _drawn(self, most: int) -> list[Job]:
        jobs: list[Job] = []
        size = 0
        while self._queue and len(jobs) < most:
            job = self._queue[0]
            if jobs and (job.goes_alone or size + len(job.value) > MOST_BYTES):
                break
            self._queue.popleft()
            if not job.is_left:
                jobs.append(job)
                size += len(job.value)
                if job.goes_alone:
                    break
        return jobs

    def _send(self, sent: _Sent) -> None:
        now = time.monotonic()
        nodes: dict[Node, int] = {}
        for job in sent.jobs:
            if job.timeout is not None and job.deadline is None:
                job.deadline = now + job.timeout
        items = [
            Item(
                nodes.setdefault(job.node, len(nodes)),
                job.value,
                job.carrier,
                None if job.deadline is None else job.deadline - now,
                job.key,
                job.place,
            )
            for job in sent.jobs
        ]
        wake([job.sent.give(None) for job in sent.jobs if job.sent is not None])
        try:
            sent.future = future = self._submit(to_bytes(Chunk(FORMAT, list(nodes), items)))
        except Exception as error:  # noqa: BLE001 - of an executor, which may be a plugin's; the jobs raise it
            self._over(sent, error, [])
            return
        if sent.left == len(sent.jobs):  # `leave` had no future to cancel yet
            future.cancel()
        future.add_done_callback(lambda done: self._done(sent, done))
        sent.is_handed_over = True

    # ------------------------------------------------------------ answers, in any thread
    def _done(self, sent: _Sent, future: Future[bytes]) -> None:
        if sent not in self._on_their_way:  # nobody waits for it any more
            return
        try:
            answers = answers_of(future.result())
            if not 0 < len(answers.answers) <= len(sent.jobs):
                raise CodecError(f"{len(answers.answers)} answers for {len(sent.jobs)} items")
        except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever it is, the jobs raise it
            self._over(sent, error, [])
        else:
            self._over(sent, answers.worker, answers.answers)
        if sent.is_handed_over:  # otherwise `_send` is still running, and its loop sends the next one
            self.send_what_goes()

    def _over(self, sent: _Sent, found: str | BaseException, answers: Sequence[Answer]) -> None:
        """Give each job its answer, and wake all at once. Jobs without an answer weren't begun: they are sent next.

        If workers have died, one of the items may kill them: all items of the chunk are sent again, each in a chunk of its own.
        """
        jobs, given_back = sent.jobs, list[Job]()
        if isinstance(found, str):
            jobs, given_back = jobs[: len(answers)], jobs[len(answers) :]
            for job, answer in zip(jobs, answers, strict=True):
                _take(job, answer, found)
            self._measure(answers)
        elif len(jobs) > 1 and isinstance(found, ExecutorLostError) and found.workers_died:
            jobs, given_back = [], jobs
            for job in given_back:
                job.goes_alone = True
        else:
            for job in jobs:
                job.fail(self._failure(found, job))
        with self._lock:
            self._on_their_way.discard(sent)
            self._queue.extendleft(reversed(given_back))
        wake(jobs)

    def _measure(self, answers: Sequence[Answer]) -> None:
        taken = [answer.seconds for answer in answers if answer.value is not None or answer.failure is not None]
        if taken:
            mean = sum(taken) / len(taken)
            self._seconds = max(mean, (self._seconds + mean) / 2, 1e-9)

    def _failure(self, error: BaseException, job: Job) -> Exception:
        """The error of a job whose whole chunk has failed. Each job gets its own, since each gets its own notes."""
        title = f"node {job.node.name!r}: executor {self._title()}"
        if isinstance(error, ExecutorError):
            found = copy(error)
            found.args = (f"{title}: {error}",)
            return found
        if isinstance(error, ImportError | AttributeError):
            return WorkerCodeError(
                f"{title}: a worker lacks this version of pocket_plug: {describe(error)}",
                "",
                "pocket_plug",
                "",
                describe(error),
            )
        failed = ExecutorLostError if isinstance(error, CancelledError | OSError) else ExecutorError
        found = failed(f"{title} has no answer: {describe(error)}")
        found.__cause__ = error
        return found


def _take(job: Job, answer: Answer, worker: str) -> None:
    job.reports = answer.reports
    try:
        if answer.failure is not None:
            job.fail(put_together(answer.failure, worker))
        elif answer.value is None:
            job.fail(WorkerTimeout())
        else:
            job.give(default_codec.decode(answer.value))
    except BaseException as error:  # noqa: BLE001 - a value that can't be decoded fails only this job
        job.fail(error)
