"""The other workflow frameworks, doing what our nodes do: nodes in a row, each passing on a number; and a fan-out.

Each is imported when it is used, so that a row loads only those that it compares. (They read annotations when the classes are
made, so annotations are no strings here.)
"""

import itertools
import operator
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

from .harness import Body


# ---------------------------------------------------------------- PocketFlow
def pocketflow(length: int) -> Any:
    """A Flow of so many nodes with prep, exec and post."""
    from pocketflow import Flow, Node

    class Phases(Node):
        def prep(self, shared: dict[str, Any]) -> int:
            return 1

        def exec(self, n: int) -> int:
            return n

        def post(self, shared: dict[str, Any], n: int, result: int) -> str:
            return "default"

    return Flow(start=_joined([Phases() for _ in range(length)]))


def pocketflow_async(length: int, *, writes: bool = False) -> Any:
    """An AsyncFlow of so many."""
    from pocketflow import AsyncFlow, AsyncNode

    class Phases(AsyncNode):
        async def prep_async(self, shared: dict[str, Any]) -> int:
            return 1

        async def exec_async(self, n: int) -> int:
            return n

        async def post_async(self, shared: dict[str, Any], n: int, result: int) -> str:
            return "default"

    class Writes(Phases):
        async def post_async(self, shared: dict[str, Any], n: int, result: int) -> str:
            shared["key"] = result
            return "default"

    kind = Writes if writes else Phases
    return AsyncFlow(start=_joined([kind() for _ in range(length)]))


def _joined(nodes: list[Any]) -> Any:
    for one, next_one in pairwise(nodes):
        one >> next_one
    return nodes[0]


# ---------------------------------------------------------------- the others
class Number(TypedDict):
    """LangGraph's state."""

    n: int


def burr(length: int, *hooks: Any) -> Body:
    """A ring of actions, executed once."""
    from burr.core import ApplicationBuilder, State, action

    @action(reads=["n"], writes=["n"])
    async def step(state: State) -> State:
        return state.update(n=state["n"])

    names = [f"node_{n}" for n in range(length)]
    builder = (
        ApplicationBuilder().with_actions(**dict.fromkeys(names, step)).with_transitions(*pairwise([*names, names[0]]))
    )
    app = builder.with_state(n=1).with_entrypoint(names[0]).with_hooks(*hooks).build()

    async def body(times: int) -> None:
        for _ in range(times):
            await app.arun(halt_after=[names[-1]])

    return body


def pydantic_graph(length: int, *, traced: bool = False) -> Body:
    """A chain of steps. What traces it is Logfire."""
    from pydantic_graph import GraphBuilder, StepContext

    async def step(context: StepContext[None, None, int]) -> int:
        return context.inputs

    builder = GraphBuilder(input_type=int, output_type=int, auto_instrument=traced)
    steps = [builder.step(step, node_id=f"node_{n}") for n in range(length)]
    joints = pairwise([builder.start_node, *steps, builder.end_node])
    builder.add(*(builder.edge_from(one).to(next_one) for one, next_one in joints))
    graph = builder.build()

    async def body(times: int) -> None:
        for _ in range(times):
            await graph.run(inputs=1)

    return body


def langgraph(length: int) -> Body:
    """A chain of nodes in a StateGraph."""
    from langgraph.graph import END, START, StateGraph

    async def step(state: Number) -> Number:
        return {"n": state["n"]}

    builder: Any = StateGraph(Number)
    names = [f"node_{n}" for n in range(length)]
    for name in names:
        builder.add_node(name, step)
    for one, next_one in pairwise([START, *names, END]):
        builder.add_edge(one, next_one)
    graph = builder.compile()

    async def body(times: int) -> None:
        for _ in range(times):
            await graph.ainvoke({"n": 1}, {"recursion_limit": length + 10})

    return body


def llama_index(length: int) -> Body:
    """One step that continues this often."""
    from workflows import Workflow, step
    from workflows.events import Event, StartEvent, StopEvent

    class Again(Event):
        n: int

    class Steps(Workflow):
        @step
        async def go(self, event: StartEvent | Again) -> Again | StopEvent:
            return Again(n=event.n - 1) if event.n > 1 else StopEvent(result=event.n)

    workflow = Steps(timeout=None)

    async def body(times: int) -> None:
        for _ in range(times):
            await workflow.run(n=length)

    return body


def workflows(length: int) -> dict[str, Body]:
    """Each framework with this many nodes."""
    return {
        "Burr": burr(length),
        "pydantic-graph": pydantic_graph(length),
        "LangGraph": langgraph(length),
        "llama-index-workflows": llama_index(length),
    }


# ---------------------------------------------------------------- fan-outs
class Items(TypedDict):
    """LangGraph's state, with the results of the items."""

    items: range
    results: Annotated[list[int], operator.add]


def langgraph_fan_out(items: int, wide: int) -> Body:
    """A Send for each item."""
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    async def work(item: int) -> dict[str, list[int]]:
        return {"results": [item]}

    def spread(state: Items) -> list[Send]:
        return [Send("work", item) for item in state["items"]]

    builder: Any = StateGraph(Items)
    builder.add_node("work", work)
    builder.add_conditional_edges(START, spread, ["work"])
    builder.add_edge("work", END)
    graph = builder.compile()

    async def body(times: int) -> None:
        for _ in range(times):
            state = await graph.ainvoke({"items": range(items), "results": []}, {"max_concurrency": wide})
            assert len(state["results"]) == items

    return body


def pydantic_graph_fan_out(items: int) -> Body:
    """A map and a join; it has no width."""
    from pydantic_graph import GraphBuilder, StepContext, reduce_list_append

    async def work(context: StepContext[None, None, int]) -> int:
        return context.inputs

    builder = GraphBuilder(input_type=list[int], output_type=list[int], auto_instrument=False)
    step = builder.step(work)
    join = builder.join(reduce_list_append, initial_factory=list[int])
    builder.add(
        builder.edge_from(builder.start_node).map().to(step),
        builder.edge_from(step).to(join),
        builder.edge_from(join).to(builder.end_node),
    )
    graph = builder.build()

    async def body(times: int) -> None:
        for _ in range(times):
            assert len(await graph.run(inputs=list(range(items)))) == items

    return body


def llama_index_fan_out(items: int, wide: int) -> Body:
    """An event for each item, and one step that collects the answers."""
    from workflows import Context, Workflow, step
    from workflows.events import Event, StartEvent, StopEvent

    class Item(Event):
        n: int

    class Done(Event):
        n: int

    class FanOut(Workflow):
        @step
        async def spread(self, context: Context, event: StartEvent) -> Item | None:
            for n in range(items):
                context.send_event(Item(n=n))

        @step(num_workers=wide)
        async def work(self, event: Item) -> Done:
            return Done(n=event.n)

        @step
        async def collect(self, context: Context, event: Done) -> StopEvent | None:
            done = context.collect_events(event, [Done] * items)
            return None if done is None else StopEvent(result=[each.n for each in done])

    workflow = FanOut(timeout=None)

    async def body(times: int) -> None:
        for _ in range(times):
            assert len(await workflow.run()) == items

    return body


def fan_outs(items: int, wide: int) -> dict[str, Body]:
    """Each framework with this many items, at most `width` at a time."""
    return {
        "LangGraph": langgraph_fan_out(items, wide),
        "pydantic-graph": pydantic_graph_fan_out(items),
        "llama-index-workflows": llama_index_fan_out(items, wide),
    }


# ---------------------------------------------------------------- durable runs
class NumberAndText(TypedDict):
    """LangGraph's state, with what our nodes write under a key."""

    n: int
    key: dict[str, Any]


def text(n: int) -> dict[str, Any]:
    """What a node writes: a value of at most some hundred bytes, a different one for each number."""
    return {"n": n, "text": f"{n} " * 10}


def langgraph_over(length: int, saver: Any) -> Body:
    """A chain whose checkpoints are written before it continues; each run is a new thread."""

    def step(state: NumberAndText) -> NumberAndText:
        return {"n": state["n"] + 1, "key": text(state["n"])}

    graph, configs = _langgraph_chain(length, step, saver)

    def body(times: int) -> None:
        for _ in range(times):
            state = graph.invoke({"n": 0}, next(configs), durability="sync")
            assert state["n"] == length

    return body


def langgraph_over_async(length: int, saver: Any) -> Body:
    """The same, async."""

    async def step(state: NumberAndText) -> NumberAndText:
        return {"n": state["n"] + 1, "key": text(state["n"])}

    graph, configs = _langgraph_chain(length, step, saver)

    async def body(times: int) -> None:
        for _ in range(times):
            state = await graph.ainvoke({"n": 0}, next(configs), durability="sync")
            assert state["n"] == length

    return body


@contextmanager
def sqlite_saver(path: Path, synchronous: str) -> Iterator[Any]:
    """LangGraph's own, in a file with a log."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        saver = SqliteSaver(connection)
        saver.setup()
        yield saver


@asynccontextmanager
async def sqlite_saver_async(path: Path, synchronous: str) -> AsyncIterator[Any]:
    """The same, async."""
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        await saver.conn.execute(f"PRAGMA synchronous = {synchronous}")
        await saver.setup()
        yield saver


@contextmanager
def langgraph_sqlite(length: int, path: Path, synchronous: str) -> Iterator[Body]:
    """A chain over LangGraph's own saver."""
    with sqlite_saver(path, synchronous) as saver:
        yield langgraph_over(length, saver)


@asynccontextmanager
async def langgraph_sqlite_async(length: int, path: Path, synchronous: str) -> AsyncIterator[Body]:
    """The same, async."""
    async with sqlite_saver_async(path, synchronous) as saver:
        yield langgraph_over_async(length, saver)


@asynccontextmanager
async def langgraph_postgres_async(length: int, url: str) -> AsyncIterator[Body]:
    """The same in PostgreSQL."""
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        yield langgraph_over_async(length, saver)


def _langgraph_chain(length: int, step: Any, saver: Any) -> tuple[Any, Iterator[dict[str, Any]]]:
    from langgraph.graph import END, START, StateGraph

    builder: Any = StateGraph(NumberAndText)
    names = [f"node_{n}" for n in range(length)]
    for name in names:
        builder.add_node(name, step)
    for one, next_one in pairwise([START, *names, END]):
        builder.add_edge(one, next_one)
    configs = (
        {"configurable": {"thread_id": str(thread)}, "recursion_limit": length + 10} for thread in itertools.count()
    )
    return builder.compile(checkpointer=saver), configs


@contextmanager
def dbos(length: int, path: Path, synchronous: str) -> Iterator[tuple[Body, Body]]:
    """A workflow of steps, and an async one. There is one DBOS in a process, so they share its file.

    The file gets a write-ahead log, as the others' files have: DBOS itself leaves SQLite's default, which is slower.
    """
    import sqlalchemy
    from dbos import DBOS

    def prepare(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")

    @DBOS.step()
    def step(n: int) -> dict[str, Any]:
        return text(n)

    @DBOS.workflow()
    def workflow() -> int:
        for n in range(length):
            step(n)
        return length

    @DBOS.step()
    async def async_step(n: int) -> dict[str, Any]:
        return text(n)

    @DBOS.workflow()
    async def async_workflow() -> int:
        for n in range(length):
            await async_step(n)
        return length

    def body(times: int) -> None:
        for _ in range(times):
            assert workflow() == length

    async def async_body(times: int) -> None:
        for _ in range(times):
            assert await async_workflow() == length

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", prepare)
    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{path}"})
    DBOS.launch()
    try:
        yield body, async_body
    finally:
        DBOS.destroy()
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", prepare)
