"""`Executor`: what runs `exec` elsewhere. A plugin's subclass has one method to write, `submit`."""

from __future__ import annotations

import asyncio
import atexit
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from opentelemetry import baggage
from opentelemetry import context as otel_context

from pocket_plug.codec import default_codec
from pocket_plug.errors import CodecError, ExecutorError
from pocket_plug.graph.elsewhere import Address, Work
from pocket_plug.graph.following.reports import Reporter, reporter
from pocket_plug.graph.running.context import idempotency
from pocket_plug.graph.running.workers import WorkerTimeout
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import may_block
from pocket_plug.propagation import inject

from . import dispatch
from .dispatch import Dispatch, Job
from .far_side import perform
from .versions import declare, fingerprint
from .wire import Node, Report


class Executor:
    """Runs `exec` elsewhere, for all nodes that name it.

    A subclass writes `submit`, and `close` if it holds anything. It opens nothing before the first `submit`, begins anew with the
    next one after a `close`, and keeps to this:

    - `submit` may be called by any thread, also one whose event loop runs: it must not block. What it gives is a Future of
      `concurrent.futures`, which any thread may complete.
    - Work that is lost with its worker is begun again; if that is in vain, the future gets an ExecutorLostError.
    - A future that is cancelled is not begun any more; one that has begun is stopped, if that is possible.
    - In a forked child it begins anew, and leaves alone what is its parent's.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> class Beside(Executor):
    ...     pool = None
    ...     def submit(self, function, request):
    ...         self.pool = self.pool or ThreadPoolExecutor(2)
    ...         return self.pool.submit(function, request)
    ...     def close(self):
    ...         if self.pool:
    ...             self.pool.shutdown()
    ...             self.pool = None
    """

    in_process: bool = False
    """Does `exec` run in this process? Such a one overrides `perform` instead of `submit`."""
    maps_main: bool = False
    """Do its workers know the script that this process was started with, as their `__main__`?"""

    @property
    def title(self) -> str:
        """How errors and logs call it; without passwords."""
        return type(self).__name__

    @property
    def window(self) -> int:
        """How many workers there are: so many long items are on their way at a time, and twice as many chunks of short ones.

        It may change; `grown` says that it did.
        """
        return 8

    @property
    def room(self) -> int:
        """How many items of a fan-out it takes at a time: what may be on its way.

        More would only queue here, and Python's garbage collector looks through all of them again and again.
        """
        return 2 * max(self.window, 2) * dispatch.MOST

    def submit(self, function: Callable[[bytes], bytes], request: bytes) -> Future[bytes]:
        """Have a function of bytes called by a worker. `function` is a module's global, so that its name says what it is."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what is held, without waiting for what is still being worked at. It may be used again after that."""

    # ------------------------------------------------------------ derived
    def grown(self) -> None:
        """There are more workers than before: send what goes by now."""
        self._dispatch().send_what_goes()

    async def perform(self, work: Work) -> Value:
        """Have one attempt at an `exec` done, and give what it gives or raise what it raises.

        Raises WorkerTimeout once the attempt's time is over; CodecError, naming the node, for a value that can't be encoded;
        ExecutorError where it can't be done.
        """
        node = self._node(work)  # first: it declares the types that the codec then meets
        try:
            value = default_codec.encode(work.prepared)
        except CodecError as error:
            raise type(error)(f"node {work.node!r}: an argument of its exec can't be sent: {error}") from error
        queue = self._dispatch()
        carrier = inject(baggage=baggage.get_all()) if otel_context.get_current() else {}  # most often it is empty
        here = reporter.get()
        job = Job(node, value, carrier, idempotency.get(), work.timeout, None if here is None else str(here.place))
        try:
            queue.add(job)
            if work.timeout is None or job.sent is None:
                return await job
            await job.sent
            return await _in_time(job, work.timeout)
        finally:
            queue.leave(job)
            if here is not None:
                await _report(job.reports, here)

    def _dispatch(self) -> Dispatch:
        """Its queue. Made here, since a subclass need not call our `__init__`."""
        own: dict[str, Value] = self.__dict__
        if "__dispatch" not in own:
            new = Dispatch(lambda: self.title, lambda request: self.submit(perform, request), lambda: self.window)
            own.setdefault("__dispatch", new)
        return own["__dispatch"]  # type: ignore[no-any-return]  # what stands there is one

    def _node(self, work: Work) -> Node:
        """Which node it is; made once for each."""
        address = work.address
        if address is None:  # validated in a Pocket whose executor needs none
            raise ExecutorError(
                f"node {work.node!r}: the workers of executor {self.title} can't find it; assign its graph to a name of a module"
            )
        nodes: dict[Address, tuple[Value, Node]] = self.__dict__.setdefault("__nodes", {})
        known = nodes.get(address)
        if known is None or known[0] != work.function:
            declare(work.function)
            code = fingerprint(work.function)
            node = Node(work.node, address.reference, address.path, address.version, code)
            known = nodes[address] = work.function, node
        return known[1]


_to_close: weakref.WeakSet[Executor] = weakref.WeakSet()


def close_at_exit(executor: Executor) -> None:
    """Close it at the end of this process, unless it is garbage by then: what was handed to nodes belongs to no Pocket."""
    if not _to_close:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _to_close.add(executor)


def _close_all() -> None:
    for executor in list(_to_close):
        executor.close()


async def _report(reports: Sequence[Report], here: Reporter) -> None:
    """Hand on what was reported there, to whoever follows the run."""
    for each in reports:
        if each.value is None:
            here.progress(each.done, each.total)
        else:
            await here.emit(default_codec.decode(each.value))


async def _in_time(job: Job, seconds: float) -> Value:
    """What comes of a job that has been sent. Raises WorkerTimeout."""
    if may_block():
        if not job.block(seconds):
            raise WorkerTimeout
        return job.outcome()
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await job
    except TimeoutError as error:
        if limit.expired():
            raise WorkerTimeout from error
        raise
