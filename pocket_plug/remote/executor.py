"""`Executor`, the base class of what runs `exec` elsewhere. A plugin's subclass has to write one method, `submit`."""

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

    A subclass writes `submit`, and `close` if it holds anything. It opens nothing before the first `submit`; after a `close` the
    next `submit` starts again. The rules:

    - `submit` must not block: any thread may call it, also one with a running event loop. It returns a Future of
      `concurrent.futures`, which any thread may complete.
    - Work whose worker dies is started again; if that fails too, the future gets an ExecutorLostError.
    - A future that is cancelled is not started. If it has started, it is stopped, if that is possible.
    - In a forked child it starts again, and doesn't touch what belongs to its parent.

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
    """Does `exec` run in this process? Then the executor overrides `perform` instead of `submit`."""
    maps_main: bool = False
    """Do its workers know the script that this process was started with, as their `__main__`?"""

    @property
    def title(self) -> str:
        """Its name in errors and logs, without passwords."""
        return type(self).__name__

    @property
    def window(self) -> int:
        """The number of workers. So many long items are sent at a time, and twice as many chunks of short ones.

        It may change: call `grown` when it has increased.
        """
        return 8

    @property
    def room(self) -> int:
        """How many items of a fan-out it takes at a time: as many as may be sent.

        More would only be queued here, and Python's garbage collector would traverse all of them again and again.
        """
        return 2 * max(self.window, 2) * dispatch.MOST

    def submit(self, function: Callable[[bytes], bytes], request: bytes) -> Future[bytes]:
        """Let a worker call `function(request)`. The function is a module's global, so its module and name identify it."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what it holds, without waiting for work in progress. It may be used again afterwards."""

    # ------------------------------------------------------------ derived
    def grown(self) -> None:
        """Call it when there are more workers than before: sends what may be sent now."""
        self._dispatch().send_what_goes()

    async def perform(self, work: Work) -> Value:
        """Let a worker make one attempt at an `exec`; return its result, or raise its error.

        Raises WorkerTimeout after the attempt's timeout; CodecError, which names the node, if a value can't be encoded; and
        ExecutorError if the attempt can't be made.
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
        """Its queue. It is made here, since a subclass need not call our `__init__`."""
        own: dict[str, Value] = self.__dict__
        if "__dispatch" not in own:
            new = Dispatch(lambda: self.title, lambda request: self.submit(perform, request), lambda: self.window)
            own.setdefault("__dispatch", new)
        return own["__dispatch"]  # type: ignore[no-any-return]  # what stands there is one

    def _node(self, work: Work) -> Node:
        """The node, as workers find it; made once for each address."""
        address = work.address
        if address is None:  # validated in a Pocket whose executor needs none
            raise ExecutorError(
                f"node {work.node!r}: the workers of executor {self.title} can't find it; assign its graph to a global of a "
                "module"
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
    """Close it at the end of this process, unless it was garbage-collected: executors that are passed to nodes have no Pocket."""
    if not _to_close:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _to_close.add(executor)


def _close_all() -> None:
    for executor in list(_to_close):
        executor.close()


async def _report(reports: Sequence[Report], here: Reporter) -> None:
    """Pass on what the exec has reported to those who follow the run."""
    for each in reports:
        if each.value is None:
            here.progress(each.done, each.total)
        else:
            await here.emit(default_codec.decode(each.value))


async def _in_time(job: Job, seconds: float) -> Value:
    """The result of a job that was sent. Raises WorkerTimeout after `seconds`."""
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
