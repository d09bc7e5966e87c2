"""A workflow with some of everything that telemetry shows, and nothing random: for tests and for backends.

`python reference_workflow.py WORD FILE` observes all parts; `… WORD FILE PART` one of them. `WORD` is in each input, value, key,
message and answer; `FILE` is the SQLite database of the durable run, which "resumed" continues.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace

import pocket_plug as pp

PRICE = pp.Key("price:{}", str)
SOLD = pp.Key("sold:{}", int)
DURABLE_RUN = "reference-order"

tracer = trace.get_tracer("shop")
"""The user's own, of the global provider; a test may put another in its place."""

# ---------------------------------------------------------------- nested, retried, replaced, looping, fanned out


class Fetch(pp.Node[str, str], retry=pp.Retry(attempts=3)):
    """Fails twice, then succeeds."""

    def __init__(self) -> None:
        self.failures = 2

    async def exec(self, word: str) -> str:
        if self.failures:
            self.failures -= 1
            error = OSError(f"no line to {word}", word)
            error.add_note(f"tried {word}")
            raise error from KeyError(word)
        return word


class Price(pp.Node[str, str], reads=[PRICE], writes=[PRICE, SOLD]):
    """Reads and writes declared keys, and is repeated once."""

    again = pp.Action[str]()

    async def prep(self, store: pp.StoreReader, word: str, /) -> str | None:
        return await store.get(PRICE(word))

    async def exec(self, known: str | None, /) -> bool:
        return known is not None

    async def post(self, store: pp.StoreWriter, word: str, prepared: Any, is_known: bool, /) -> str | pp.Next[Any]:
        if not is_known:
            await store.set(PRICE(word), f"a {word} costs 3")
            return self.again(word)
        await store.update(SOLD(word), lambda sold: sold + 1, default=0)
        return word


class Hurry(pp.Node[str, str], timeout=0.01):
    """Always times out, and has a fallback."""

    async def exec(self, word: str, /) -> str:
        await asyncio.Event().wait()
        return word

    async def fallback(self, word: str, error: Exception, /) -> str:
        return f"{word} from yesterday"


@pp.node
async def draft(word: str) -> str:
    return word


@pp.node
async def split(word: str) -> list[str]:
    return [word, "", f"more {word}"]


@pp.node
async def pack(word: str) -> str:
    if not word:
        raise LookupError("nothing to pack")
    return word


def shop(store: pp.Store) -> pp.Graph[str, Any]:
    price = Price()
    inner = pp.Graph(Fetch() >> price, price.again >> price, name="checkout")
    return pp.Graph(
        inner >> Hurry() >> split >> pp.each(pack, concurrency=2, errors="collect"), name="shop", store=store
    )


async def nested(scene: Scene) -> None:
    """Everything that succeeds in the end."""
    await shop(scene.store).run(scene.word)


# ---------------------------------------------------------------- failures and cancellations


@pp.node
async def refuse(word: str) -> str:
    try:
        raise KeyError(word)
    except KeyError as error:
        group = ExceptionGroup(f"all of {word}", [ValueError(word), OSError(word)])
        group.add_note(f"about {word}")
        raise group from error


async def failed(scene: Scene) -> None:
    """An error that leaves the nested graph."""
    try:
        await pp.Graph(draft >> pp.Graph(refuse, name="within"), name="failing", store=scene.store).run(scene.word)
    except ExceptionGroup:
        return
    raise AssertionError("it should have failed")


async def cancelled(scene: Scene) -> None:
    """Cancelled from outside, during the second node."""
    entered = asyncio.Event()

    @pp.node
    async def wait(word: str) -> str:
        entered.set()
        await asyncio.Event().wait()
        return word

    run = asyncio.create_task(pp.Graph(draft >> wait, name="stopped", store=scene.store).run(scene.word))
    await entered.wait()
    run.cancel(scene.word)
    try:
        await run
    except asyncio.CancelledError:
        return
    raise AssertionError("it should have been cancelled")


class Stock(pp.Node[str, str]):
    """Another caller writes during its post, once: post is run again."""

    def __init__(self, store: pp.Store) -> None:
        self.store, self.met = store, False

    async def post(self, view: pp.StoreWriter, word: str, prepared: str, result: str, /) -> str:
        await view.update(SOLD(word), lambda sold: sold + 1, default=0)
        if not self.met:
            self.met = True
            await self.store.set(SOLD(word), 10)
        return word


async def conflict(scene: Scene) -> None:
    """A commit that must be done again."""
    await pp.Graph(Stock(scene.store), name="stocktaking", store=scene.store).run(scene.word)


class Untidy(pp.Node[str, str]):
    """Does its work, and its clean-up fails."""

    async def on_complete(self, store: pp.StoreWriter, /) -> None:
        raise OSError(f"{await store.get(PRICE('tea'))} can't be cleaned up")

    async def post(self, store: pp.StoreWriter, word: str, prepared: Any, result: Any, /) -> str:
        await store.set(PRICE("tea"), word)
        return word


async def untidy(scene: Scene) -> None:
    """A failing clean-up after a successful run."""
    await pp.Graph(Untidy(), name="untidy", store=scene.store).run(scene.word)


# ---------------------------------------------------------------- threads, tasks, no event loop


@pp.node
def weigh(word: str) -> str:
    with tracer.start_as_current_span("own work in a thread"):
        return word


@pp.node
async def hand_on(word: str) -> str:
    async def send() -> None:
        with tracer.start_as_current_span("own work in a task"):
            await asyncio.sleep(0)

    def stamp() -> None:
        tracer.start_span("own work by to_thread").end()

    with tracer.start_as_current_span("own work"):
        task = asyncio.create_task(send())
    await task
    await asyncio.to_thread(stamp)
    return word


async def threads(scene: Scene) -> None:
    """The user's own spans, in threads and tasks, below a span of the user's."""
    with tracer.start_as_current_span("request"):
        await pp.Graph(weigh >> hand_on, name="foreign", store=scene.store).run(scene.word)


class Count(pp.Node[str, str]):
    """Without `await`."""

    def prep(self, store: pp.SyncReader, word: str, /) -> int:
        return store.get(SOLD(word), 0)

    def post(self, store: pp.SyncWriter, word: str, before: int, result: int, /) -> str:
        store.set(SOLD(word), before + 1)
        return word


def without_await(scene: Scene) -> None:
    """`run_sync`: all in the caller's thread."""
    pp.Graph(weigh >> Count(), name="sync", store=pp.Store(layers=scene.layers)).run_sync(scene.word)


async def sync(scene: Scene) -> None:
    """The same from a thread without an event loop."""
    await asyncio.to_thread(without_await, scene)


# ---------------------------------------------------------------- suspended, and resumed elsewhere

approve = pp.Ask[str, str](str, question=lambda word: f"really {word}?", name="approve")


class Send(pp.Node[pp.Answered[str, str], str]):
    """Writes the answer."""

    async def post(self, store: pp.StoreWriter, answered: pp.Answered[str, str], prepared: Any, result: Any, /) -> str:
        await store.set(PRICE(answered.answer), answered.input)
        return answered.answer


def approval(store: pp.Store) -> pp.Graph[str, str]:
    return pp.Graph(draft >> approve >> Send(), name="approval", store=store)


async def suspended(scene: Scene) -> None:
    """Waits for an answer; no process waits meanwhile."""
    async with pp.Store(f"sqlite:///{scene.file}", layers=scene.layers) as store:
        try:
            await approval(store).run(scene.word, run_id=DURABLE_RUN)
        except pp.RunSuspendedError:
            return
    raise AssertionError("it should wait for an answer")


async def resumed(scene: Scene) -> None:
    """Continues what "suspended" has left in the file, in any process."""
    async with pp.Store(f"sqlite:///{scene.file}", layers=scene.layers) as store:
        await approval(store).resume(DURABLE_RUN, answer=f"yes, {scene.word}")


# ---------------------------------------------------------------- all of it


@dataclass
class Scene:
    """The data with which the parts are played."""

    word: str
    file: str
    layers: Sequence[str] = ("tracing",)
    store: pp.Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = pp.Store(layers=self.layers)

    def play(self, *parts: str) -> None:
        """Play these parts, or all, each with an event loop and a store of its own."""
        for name in parts or PARTS:
            self.store = pp.Store(layers=self.layers)
            asyncio.run(PARTS[name](self))  # type: ignore[arg-type]


PARTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    part.__name__: part for part in (nested, failed, cancelled, conflict, untidy, threads, sync, suspended, resumed)
}


def main() -> None:
    word, file, *parts = sys.argv[1:]
    with pp.observe():
        Scene(word, file).play(*parts)


if __name__ == "__main__":
    main()
