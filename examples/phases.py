"""A node's phases: prep reads, exec works without the store, post writes. As a class or as functions, async or not.

A prep that writes is a type error, and at run time its store has no `set`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocket_plug import Graph, Key, Node, Store, StoreReader, StoreWriter, SyncReader, SyncWriter, node


@dataclass(frozen=True)
class Tone:
    greeting: str = "Hello"
    mark: str = "."


TONE = Key("config:tone", Tone)
LAST = Key("last:{}", str)


class Greet(Node[str, str, str]):
    """An async class: for nodes that await something."""

    async def prep(self, store: StoreReader, name: str) -> tuple[Tone, str]:
        return await store.get(TONE, Tone()), name

    async def exec(self, prepared: tuple[Tone, str]) -> str:
        tone, name = prepared
        return f"{tone.greeting}, {name}{tone.mark}"

    async def post(self, store: StoreWriter, name: str, prepared: tuple[Tone, str], text: str) -> str:
        await store.set(LAST("class"), text)
        return text


class GreetSync(Node[str, str]):
    """The same without `await`: its store is sync."""

    def prep(self, store: SyncReader, name: str) -> tuple[Tone, str]:
        return store.get(TONE, Tone()), name

    def exec(self, prepared: tuple[Tone, str]) -> str:
        tone, name = prepared
        return f"{tone.greeting}, {name}{tone.mark}"

    def post(self, store: SyncWriter, name: str, prepared: tuple[Tone, str], text: str) -> str:
        store.set(LAST("sync class"), text)
        return text


async def look_up(store: StoreReader, name: str) -> tuple[Tone, str]:
    return await store.get(TONE, Tone()), name


async def phrase(prepared: tuple[Tone, str]) -> str:
    tone, name = prepared
    return f"{tone.greeting}, {name}{tone.mark}"


async def remember(store: StoreWriter, name: str, prepared: tuple[Tone, str], text: str) -> str:
    await store.set(LAST("functions"), text)
    return text


greet_by_functions = node.of(prep=look_up, exec=phrase, post=remember, name="greet")


@node
def greet_plainly(name: str) -> str:
    """Only exec, so a plain function is enough. You can still call it as a function."""
    return f"Hi, {name}."


def main() -> None:
    store = Store()
    store.sync.set(TONE, Tone("Good morning", "!"))
    for greet in (Greet(), GreetSync(), greet_by_functions, greet_plainly):
        print(Graph(greet, store=store).run_sync("Alice"))
    for name in store.sync.keys("last:"):
        print(f"{name} = {store.sync.get(name)}")
    print("called as a function:", greet_plainly("Bob"))
    print("a reader can set:", hasattr(store.reader(), "set"))


if __name__ == "__main__":
    main()
