"""What type checkers infer for nodes and graphs. Nothing here runs: mypy and pyright, both strict, are the test."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never, assert_type

from pocket_plug import (
    END,
    Action,
    Answered,
    Ask,
    Asked,
    Chain,
    Emitted,
    Finished,
    Graph,
    ItemDone,
    Key,
    Next,
    Node,
    NodeEntered,
    NodeLeft,
    NodePlace,
    NodeRetried,
    PassedNode,
    Pocket,
    Progressed,
    Retry,
    RunCheck,
    RunEvent,
    RunExecution,
    RunFailure,
    RunHistory,
    RunInfo,
    RunOwner,
    RunPage,
    RunPosition,
    RunQuestion,
    Runs,
    RunState,
    RunStream,
    RunSuspendedError,
    RunValue,
    Store,
    StoreReader,
    StoreWriter,
    Suspended,
    SyncReader,
    SyncRuns,
    SyncStore,
    SyncWriter,
    Worker,
    WorkerReport,
    current_run_id,
    each,
    emit,
    fan_out,
    gather,
    idempotency_key,
    node,
    progress,
)
from pocket_plug.executors import Processes, Threads
from pocket_plug.graph.nodes.chain import Out
from pocket_plug.graph.nodes.node_functions import AsyncPostNode, FunctionNode, SyncPostNode
from pocket_plug.remote import Executor
from pocket_plug.testing.nodes import NodeResult, run_node_sync


@dataclass(frozen=True)
class Order:
    id: str


@dataclass(frozen=True)
class Receipt:
    order: Order


TOTAL = Key("total", float)


# ---------------------------------------------------------------- functions as nodes
def reported(report: WorkerReport) -> None:
    assert_type(report.run_id, str)
    assert_type(report.error, Exception | None)


@node
async def price(order: Order) -> float:
    return 1.0


@node
def render(amount: float) -> str:
    return str(amount)


@node(name="flaky", retry=Retry(attempts=5, delay="500ms", on=(OSError,)), timeout=30)
async def fetch(url: str) -> bytes:
    return b""


@node(trace=False)
def measure(page: bytes) -> int:
    return len(page)


@node
async def measured(url: str) -> int:
    return len(url)


@node.post
async def keep(store: StoreWriter, amount: float) -> float:
    return await store.update(TOTAL, lambda total: total + amount, default=0.0)


@node.post
def keep_sync(store: SyncWriter, amount: float) -> float:
    return store.update(TOTAL, lambda total: total + amount, default=0.0)


@node.post
async def keep_or_leave(store: StoreWriter, order: Order) -> Receipt | Next[str]:
    return Receipt(order) if order.id else END("nothing")


@node.post
def keep_or_leave_sync(store: SyncWriter, order: Order) -> Receipt | Next[str]:
    return Receipt(order) if order.id else END("nothing")


@node.post
async def always_leave(store: StoreWriter, order: Order) -> Next[Order]:
    return Next("elsewhere", order)


@node.post(name="declared", reads=[TOTAL], writes=[TOTAL])
async def declared(store: StoreWriter, order: Order) -> Receipt:
    return Receipt(order)


async def load(store: StoreReader, order: Order) -> float:
    return await store.get(TOTAL, 0.0)


async def think(total: float) -> int:
    return round(total)


async def save(store: StoreWriter, order: Order, total: float, rounded: int) -> Receipt:
    return Receipt(order)


def load_sync(store: SyncReader, order: Order) -> float:
    return store.get(TOTAL, 0.0)


def think_sync(total: float) -> int:
    return round(total)


def save_sync(store: SyncWriter, order: Order, total: float, rounded: int) -> Receipt:
    return Receipt(order)


def retries() -> None:
    Retry(attempts=2, on=[OSError, ValueError], delay="200ms", max_delay="1m")
    Retry(on=TimeoutError)
    Retry(on={OSError})
    Retry(on=lambda error: error.status == 429)
    Retry(on=busy)


def busy(error: OSError) -> bool:
    return error.errno == 16


def function_nodes() -> None:
    assert_type(price, FunctionNode[Order, float, Coroutine[Any, Any, float]])
    assert_type(render, FunctionNode[float, str, str])
    assert_type(fetch, FunctionNode[str, bytes, Coroutine[Any, Any, bytes]])
    assert_type(measure, FunctionNode[bytes, int, int])
    assert_type(keep, AsyncPostNode[float, float])
    assert_type(keep_sync, SyncPostNode[float, float])
    assert_type(keep_or_leave, AsyncPostNode[Order, Receipt])
    assert_type(keep_or_leave_sync, SyncPostNode[Order, Receipt])
    assert_type(always_leave, AsyncPostNode[Order, Any])
    assert_type(declared, AsyncPostNode[Order, Receipt])
    assert_type(node.of(prep=load, exec=think, post=save), Node[Order, Receipt, int])
    assert_type(node.of(prep=load, exec=think, name="rounded", timeout="5s"), Node[Order, int])
    assert_type(node.of(prep=load_sync, exec=think_sync, post=save_sync), Node[Order, Receipt, int])
    assert_type(node.of(prep=load_sync, exec=think_sync), Node[Order, int])


async def called_as_functions(store: Store) -> None:
    assert_type(await price(Order("1")), float)
    assert_type(await keep(store, 1.0), Any)
    assert_type(keep_sync(store.sync, 1.0), Any)
    assert_type(render(1.0), str)
    assert_type(await fetch("/"), bytes)
    assert_type(measure(b""), int)


# ---------------------------------------------------------------- classes as nodes
class Charge(Node[Order, Receipt, int], retry=Retry(attempts=3), timeout=30, reads=(TOTAL,), writes=(TOTAL,)):
    """Its exec returns another type than its output; it has async and def phases."""

    declined = Action[str]()
    again = Action[Order]("another name")

    async def prep(self, store: StoreReader, order: Order) -> float:
        return await store.require(TOTAL)

    def exec(self, total: float) -> int:
        return round(total)

    async def fallback(self, total: float, error: Exception) -> int:
        return 0

    async def post(
        self, store: StoreWriter, order: Order, total: float, rounded: int
    ) -> Receipt | Next[str] | Next[Order]:
        if rounded:
            return self.declined("too much")
        return self.again(order) if total else Receipt(order)

    async def on_success(self, store: StoreWriter, output: Receipt) -> None: ...
    def on_failure(self, store: SyncWriter, error: BaseException) -> None: ...
    async def on_complete(self, store: StoreWriter) -> None: ...


@dataclass
class Configured(Node[Order, Order], name="configured", timeout="1m"):
    """The options of a node and the fields of a dataclass stay apart."""

    timeout: int
    name: str = "mine"

    def exec(self, order: Order) -> Order:
        return order


@node
def apologise(reason: str) -> str:
    return reason


@node
def file(receipt: Receipt) -> str:
    return receipt.order.id


charge = Charge()


def class_nodes() -> None:
    assert_type(Configured(timeout=5).name, str)
    assert_type(charge.with_options(name="other", retry=Retry(attempts=1)), Charge)
    assert_type(Charge.declined, Action[str])
    assert_type(charge.declined, Out[Order, str])
    assert_type(Charge.declined("no"), Next[str])
    assert_type(charge.on("anything"), Out[Order, Any])
    assert_type(charge.on(Charge.declined), Out[Order, str])
    assert_type(END("over"), Next[Any])
    assert_type(Next("anywhere", 7), Next[int])


# ---------------------------------------------------------------- chains and graphs
def chains() -> None:
    assert_type(price >> render, Chain[Order, str, float | str])
    assert_type(price >> keep >> render, Chain[Order, str, float | str])
    assert_type(price >> (keep >> render), Chain[Order, str, float | str])
    assert_type((price >> keep) >> (keep >> render), Chain[Order, str, float | str])
    assert_type(charge >> file, Chain[Order, str, Receipt | str])
    assert_type(charge.declined >> apologise, Chain[Order, str, str])
    assert_type(charge.again >> charge >> file, Chain[Order, str, Receipt | str])
    assert_type(charge.on(Charge.again) >> charge, Chain[Order, Receipt, Receipt])
    assert_type(charge.on("anything") >> price, Chain[Order, float, float])


class Count(Node[int, str]):
    again = Action[int]()


@node
def start(n: int) -> int:
    return n


@node
def end(text: str) -> bytes:
    return text.encode()


@node
def quick(n: int) -> bytes:
    return bytes(n)


@node
def nothing(n: int) -> None:
    return None


count = Count()


def loops() -> None:
    """A branch may lead back to any node of the first chain; otherwise its end is an end of the graph."""
    to_the_first: Graph[int, bytes] = Graph(start >> count >> end, count.again >> start)
    assert_type(to_the_first, Graph[int, bytes])
    assert_type(Graph(start >> count >> end, count.again >> start), Graph[int, bytes])
    assert_type(Graph(start >> count >> end, count.again >> count, name="middle"), Graph[int, bytes])
    assert_type(Graph(count >> end, count.again >> start >> count), Graph[int, bytes])
    assert_type(Graph(start >> (count >> end), count.again >> start, count.on("fast") >> quick), Graph[int, bytes])
    assert_type(Graph(count, count.again >> count), Graph[int, str])
    known: Chain[int, bytes] = start >> count >> end
    assert_type(Graph(count, count.again >> count).replace(count=count), Graph[int, str])
    assert_type(run_node_sync(count, 1), NodeResult[str])

    annotated: Graph[int, bytes] = Graph(known, count.again >> start)
    assert_type(annotated, Graph[int, bytes])
    two_ends: Graph[int, bytes | None] = Graph(start >> count >> end, count.again >> start, count.on("no") >> nothing)
    assert_type(two_ends, Graph[int, bytes | None])


async def graphs(store: Store, sync: SyncStore) -> None:
    one = Graph(price)
    assert_type(one, Graph[Order, float])
    assert_type(await one.run(Order("1")), float)
    assert_type(one.run_sync(Order("1")), float)

    chain = Graph(price >> render, store=sync, name="chain", scope="a part", max_steps=10, clean_up_grace="1s")
    assert_type(chain, Graph[Order, str])
    branched = Graph(
        charge >> file,
        charge.declined >> apologise,
        charge.again >> charge >> file,
        store=store,
        name="orders",
    )
    assert_type(branched, Graph[Order, str])
    assert_type(await branched.run(Order("1")), str)

    nested = Graph(one >> render)
    assert_type(await nested.run(Order("1")), str)
    async with Pocket(plugins=[object()]) as pocket:
        assert_type(await pocket.run(nested, Order("1")), str)
        assert_type(await nested.run(Order("1"), pocket=pocket), str)
        assert_type(pocket.store, Store)
        assert_type(pocket.stores["cache"], Store)


class Beside(Executor):
    def submit(self, function: Callable[[bytes], bytes], request: bytes) -> Future[bytes]:
        raise NotImplementedError


class Elsewhere(Node[Order, Order], executor=Threads(), retry=Retry()):
    def exec(self, prepared: Order) -> Order:
        return prepared


async def many(store: Store) -> None:
    assert_type(each(fetch), Node[Iterable[str], list[bytes], Any])
    assert_type(each(fetch, concurrency=5, errors="raise"), Node[Iterable[str], list[bytes], Any])
    assert_type(each(fetch, errors="collect"), Node[Iterable[str], list[bytes | Exception], Any])
    assert_type(each(fetch, name="pages"), Node[Iterable[str], list[bytes], Any])
    assert_type(each(charge), Node[Iterable[Order], list[Receipt], Any])
    assert_type(await fan_out(fetch, ["/"]), list[bytes])
    assert_type(await Graph(each(fetch), name="f").run(["/"]), list[bytes])
    assert_type(await Graph(each(fetch, errors="collect")).run(["/"]), list[bytes | Exception])
    assert_type(await fan_out(charge, iter([Order("1")]), concurrency=5, store=store), list[Receipt])
    assert_type(await fan_out(fetch, ["/"], errors="collect"), list[bytes | Exception])

    assert_type(each(fetch, executor="processes"), Node[Iterable[str], list[bytes], Any])
    assert_type(each(fetch, errors="collect", executor=Processes(2)), Node[Iterable[str], list[bytes | Exception], Any])
    assert_type(await fan_out(fetch, ["/"], executor="dask://scheduler:8786"), list[bytes])
    assert_type(await Graph(charge.with_options(executor=Beside())).run(Order("1")), Receipt)

    @node(executor="processes://?workers=2")
    def heavy(n: int) -> str:
        return str(n)

    assert_type(await Graph(heavy).run(1), str)

    @node
    def total(sizes: list[int]) -> int:
        return sum(sizes)

    crawl = Graph(each(fetch) >> each(measure) >> total)
    assert_type(await crawl.run(["/", "/about"]), int)
    assert_type(await crawl.run(f"/{n}" for n in range(9)), int)


async def branches() -> None:
    assert_type(gather(fetch, measured), Node[str, tuple[bytes, int], Any])
    assert_type(gather(fetch, fetch >> measure, name="both"), Node[str, tuple[bytes, int], Any])
    assert_type(gather(fetch, Graph(fetch >> measure), measured), Node[str, tuple[bytes, int, int], Any])
    assert_type(gather(fetch, fetch, fetch, fetch, fetch, fetch), Node[str, tuple[bytes, ...], Any])
    assert_type(gather(*[fetch, fetch]), Node[str, tuple[bytes, ...], Any])

    @node
    def shown(found: tuple[bytes, int]) -> str:
        return str(found)

    assert_type(await Graph(gather(fetch, measured) >> shown).run("/"), str)
    assert_type(await Graph(gather(fetch, gather(fetch, measured))).run("/"), tuple[bytes, tuple[bytes, int]])


async def streamed() -> None:
    graph = Graph(price >> render)
    assert_type(graph.stream(Order("1")), RunStream[str])
    async for event in graph.stream(Order("1"), buffer=10, run_id="r"):
        assert_type(event, RunEvent[str])
        match event:
            case NodeEntered(node="price") | NodeLeft() | ItemDone() | NodeRetried():
                assert_type(
                    (event.node, event.path, event.visit, event.item), tuple[str, tuple[str, ...], int, int | None]
                )
                assert_type(event.place, NodePlace)
            case NodeEntered():
                assert_type(event.kind, Literal["node_entered"])
            case Progressed(done=done, total=total):
                assert_type((done, total), tuple[float, float | None])
            case Emitted(value=value):
                assert_type(value, Any)
            case Asked(run_id=run_id):
                assert_type(run_id, str)
            case Suspended(questions=questions, wake_at=wake_at):
                assert_type((questions, wake_at), tuple[Mapping[str, Any], float | None])
            case Finished(output=output):
                assert_type(output, str)
            case _:
                assert_never(event)
        if event.kind == "finished":
            assert_type(event.output, str)
    async with graph.stream(Order("1")) as events:
        assert_type(events, RunStream[str])
        assert_type(events.run_id, str)
        assert_type(await anext(events), RunEvent[str])
    kept: RunStream[object] = graph.stream(Order("1"))
    await kept.aclose()
    await emit(1)
    emit("without waiting")
    progress(1)
    progress(1, 2.5)


async def durable(store: Store) -> None:
    ask = Ask[Order, bool](bool, question=lambda order: f"{order.id}?", name="approve")
    assert_type(ask, Ask[Order, bool])
    assert_type(Ask[Order, bool](bool, question="Sure?"), Ask[Order, bool])
    assert_type(Ask(bool, question="Sure?"), Ask[Any, bool])
    assert_type(Ask(bool | None, question=str), Ask[object, bool | None])

    @node.post
    async def decide(store: StoreWriter, answered: Answered[Order, bool]) -> Order | Next[Order]:
        assert_type(answered.input, Order)
        assert_type(answered.answer, bool)
        return answered.input if answered.answer else Next("rejected", answered.input)

    assert_type(ask >> decide, Chain[Order, Order, Answered[Order, bool] | Order])

    def to_version_2(position: RunPosition) -> RunPosition:
        assert_type(position.path, tuple[str, ...])
        assert_type(position.items, Mapping[int, RunPosition])
        return replace(position.renamed(("review", "approve"), "sign"), value=Order("1"))

    approval = Graph(
        ask >> decide >> price, store=store, name="approval", keep_finished="7d", version=2, upgrade={1: to_version_2}
    )
    for check in await approval.check_runs():
        assert_type(check, RunCheck)
        assert_type(check.can_resume, bool)
    assert_type(approval.check_runs_sync(), list[RunCheck])
    state = await approval.submit(Order("1"), run_id="r", store=store)
    if state == "finished":
        assert_type(approval.submit_sync(Order("1"), run_id="r") == state, bool)
    worker = Worker([approval, Graph(charge, name="charge")], store=store, lease="30s", report=reported)
    assert_type(await worker.run(once=True), None)
    try:
        assert_type(await approval.run(Order("1"), run_id="r", allow_changed=True), float)
    except RunSuspendedError as suspended:
        assert_type(suspended.run_id, str)
    assert_type(await approval.resume("r", answer=True), float)
    assert_type(await approval.resume("r", allow_changed=True), float)
    assert_type(await approval.resume("r", answer=True, question=ask, takeover=True), float)
    assert_type(await approval.resume("r", answer="whatever", question="approve#1", store=store), float)
    assert_type(approval.run_sync(Order("1"), run_id="r"), float)
    assert_type(approval.resume_sync("r", answer=False), float)
    maybe = Ask[Order, bool | None](bool | None, question="Sure?")
    assert_type(approval.resume_sync("r", answer=None, question=maybe, allow_changed=True), float)
    assert_type(idempotency_key(), str)
    assert_type(current_run_id(), str)
    assert_type(await fan_out(fetch, ["/"], store=store, run_id="r"), list[bytes])
    async with Pocket() as pocket:
        assert_type(await pocket.run(approval, Order("1"), run_id="r"), float)


async def operate(store: Store, sync: SyncStore, approval: Graph[Order, float]) -> None:
    runs = Runs(store.scope("part"))
    page = await runs.list(state="failed", graph="approval", since=0.0, limit=10)
    assert_type(page.runs, tuple[RunInfo, ...])
    assert_type(await runs.list(state=("pending", "stalled"), after=page.after), RunPage)
    info = await runs.get("r")
    assert_type(info.state, RunState)
    assert_type(info.failure, RunFailure | None)
    assert_type(info.owner, RunOwner | None)
    assert_type(info.result, RunValue | None)
    assert_type((await runs.history("r")).executions, tuple[RunExecution, ...])
    assert_type((await runs.history("r")).path, tuple[PassedNode, ...])
    assert_type(await runs.questions("r"), tuple[RunQuestion, ...])
    ask = Ask[Order, bool](bool, question="Sure?")
    assert_type(await runs.answer("r", True, question=ask, graph=approval), RunInfo)
    assert_type(await runs.cancel("r"), RunInfo)
    assert_type(await runs.retry("r"), RunInfo)
    assert_type(await runs.remove("r", force=True), bool)
    assert_type(await runs.wait("r", timeout="5m"), RunInfo)
    assert_type(runs.sync, SyncRuns)
    assert_type(SyncRuns(sync).list().runs, tuple[RunInfo, ...])
    assert_type(SyncRuns(store).history("r"), RunHistory)
    assert_type(SyncRuns(sync).wait("r"), RunInfo)
