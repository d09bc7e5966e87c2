"""The promises of a layer as tests: whoever writes one inherits `LayerContract` and gets the whole suite.

A layer must be no obstacle: around a backend, it keeps all that `BackendContract` asks of that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import fields

import pytest

from pocket_plug.errors import ConfigError, ConflictError, StoreError
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from pocket_plug.store.layer import Layer, parts
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.contracts import BackendContract
from pocket_plug.testing.scenarios import keys_of


class FaultyMemory(Memory):
    """A Memory that suspends before and after each operation, as a network would, and fails when it is told to.

    It needs an event loop. Set `error`, and from then on every operation raises just that.
    """

    inline_read = inline_write = False
    needs_loop = True

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.used: list[str] = []
        """The operations that were begun: "read a", "write a b"."""

    async def _reach(self, what: str) -> None:
        self.used.append(what)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    async def read(self, key: str) -> Entry | None:
        """The entry, after a while."""
        await self._reach(f"read {key}")
        return await super().read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries, after a while."""
        names = list(keys)
        await self._reach(" ".join(["read", *names]))
        return await super().read_many(names)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Done at once after a while; told after another one, so that a cancellation may find it done."""
        await self._reach(" ".join(["write", *(change.key for change in changes)]))
        version = await super().write(changes, expect)
        await asyncio.sleep(0)
        return version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The keys, each after a while."""
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            await self._reach("scan")
            yield key

    async def version(self) -> int:
        """The last version given, after a while."""
        await self._reach("version")
        return await super().version()


class LayerContract(BackendContract):
    """Inherit it, give a recipe, and every promise of the waist is tested around two backends.

        class TestMine(LayerContract):
            def recipe(self):
                return Mine(option=1)

    One backend is Memory, the other one suspends in each operation and fails when it is told to. It is for layers that
    leave keys, values and versions as the user sees them.
    """

    make_inner: Callable[[], Backend] = FaultyMemory

    def recipe(self) -> Layer:
        """What is tested, with options that don't get in the way of some thousand small entries; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override recipe()")

    def build(self, backend: Backend) -> Backend:
        """What is built of the recipe over a backend. Override it if yours stands to the backend in another way."""
        return self.recipe().build(backend)

    @pytest.fixture(autouse=True, params=[Memory, FaultyMemory], ids=["memory", "suspending"])
    def over(self, request: pytest.FixtureRequest, clock: FakeClock) -> None:
        """The backend that the layer is put around."""
        kind: type[Memory] = request.param

        def make_inner() -> Backend:
            inner = kind()
            inner.clock = clock
            return inner

        self.make_inner = make_inner

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """What makes the stack under test."""
        return lambda: self.build(self.make_inner())

    # ------------------------------------------------------------ a recipe is data
    def test_options_are_fixed(self) -> None:
        """Neither a recipe's nor a built layer's can be changed, so what `repr` shows is what is in use."""
        recipe = self.recipe()
        built = self.build(self.make_inner())
        for part in (recipe, *(part for part in parts(built) if type(part) is type(recipe))):
            shown = repr(part)
            for option in fields(recipe):
                with pytest.raises(AttributeError, match=f"option '{option.name}'"):
                    setattr(part, option.name, "changed")
            assert repr(part) == shown

    def test_a_recipe_is_not_changed_by_a_stack(self) -> None:
        """What a stack needs at run time is the built layer's own: any number of stacks may be made of one recipe."""
        recipe = self.recipe()
        before = {**vars(recipe)}
        recipe.build(self.make_inner())
        assert vars(recipe) == before
        with pytest.raises(AttributeError, match="takes no attribute"):
            setattr(recipe, "something", 1)  # noqa: B010 - type checkers would refuse it too

    # ------------------------------------------------------------ what passes through
    @pytest.mark.parametrize("error", [StoreError("the disk is full"), ZeroDivisionError("a bug")], ids=["ours", "any"])
    def test_errors_of_the_inner_one_pass_unchanged(self, error: Exception) -> None:
        """What the backend raises is what the caller gets, the very object: never an answer, never another error."""

        async def main() -> None:
            inner = FaultyMemory()
            layer = self.build(inner)
            await layer.open()
            await layer.write([Put("a", 1)])
            inner.error = error
            uses: list[Callable[[], Awaitable[object]]] = [
                lambda: layer.read("not read so far"),
                lambda: layer.read_many(["nor this", "nor that"]),
                lambda: layer.write([Put("b", 1)]),
                lambda: layer.write([], {"a": 0}),
                lambda: keys_of(layer),
                lambda: layer.read_page(limit=10),
                layer.version,
            ]
            for use in uses:
                with pytest.raises(type(error)) as caught:
                    await use()
                assert caught.value is error
            inner.error = None
            assert (await layer.read_many(["a", "b"])).keys() == {"a"}

        asyncio.run(main())

    def test_a_conflict_passes_with_its_keys(self) -> None:
        """Whoever retries relies on the type and on the names."""

        async def main() -> None:
            layer = self.build(self.make_inner())
            await layer.open()
            await layer.write([Put("a", 1), Put("b", 1)])
            with pytest.raises(ConflictError) as caught:
                await layer.write([Put("a", 2)], {"a": 0, "b": 0, "c": 0})
            assert caught.value.keys == {"a", "b"}

        asyncio.run(main())

    def test_read_many_does_not_pass_the_read_by(self) -> None:
        """A layer that changes `read` is not gone round by a batch or a page: what one gives, the others give."""

        async def main() -> None:
            layer = self.build(self.make_inner())
            await layer.open()
            await layer.write([Put(key, [key]) for key in "abc"])
            one_by_one = {key: await layer.read(key) for key in "abc"}
            assert await layer.read_many("abcd") == one_by_one
            assert dict(await layer.read_page(limit=10)) == one_by_one

        asyncio.run(main())
        layer = self.build(self.make_inner())
        if isinstance(layer, Layer) and layer.read != layer.inner.read:
            assert layer.read_many != layer.inner.read_many
            assert layer.read_page != layer.inner.read_page

    def test_a_page_is_a_page_of_the_inner_one(self) -> None:
        """The layer asks it for the keys of that page: not for all of them, nor from the beginning."""

        async def main() -> None:
            inner = FaultyMemory()
            layer = self.build(inner)
            await layer.open()
            await layer.write([Put(f"k:{n:03}", n) for n in range(300)])
            await layer.flush()
            for reverse, expected in ((False, ["k:150", "k:151", "k:152"]), (True, ["k:148", "k:147", "k:146"])):
                inner.used.clear()
                assert await keys_of(layer, "k:", after="k:149", reverse=reverse, limit=3) == expected
                assert inner.used.count("scan") <= 3

        asyncio.run(main())

    def test_a_cancelled_read_leaves_nothing_behind(self) -> None:
        """A read that was cancelled, at whichever point, raises just that, and the next one is right."""

        async def main() -> None:
            for patience in range(12):
                layer = self.build(FaultyMemory())
                await layer.open()
                await layer.write([Put("a", "old")])
                reading = asyncio.ensure_future(layer.read("a"))
                for _ in range(patience):
                    await asyncio.sleep(0)
                reading.cancel()
                (outcome,) = await asyncio.gather(reading, return_exceptions=True)
                assert isinstance(outcome, asyncio.CancelledError | Entry)
                version = await layer.write([Put("a", "new")])
                assert await layer.read("a") == Entry("new", version)

        asyncio.run(main())

    # ------------------------------------------------------------ recipes
    def test_a_recipe_stays_as_it_was(self) -> None:
        """Building copies it: the recipe has no inner, no counters, and prints the same."""
        recipe = self.recipe()
        before, text = dict(vars(recipe)), repr(recipe)
        recipe.build(self.make_inner())
        assert vars(recipe) == before
        assert repr(recipe) == text

    def test_two_stacks_of_one_recipe_share_nothing(self) -> None:
        """What is written to one is not in the other, and no container belongs to both."""

        async def main() -> None:
            recipe = self.recipe()
            first, second = recipe.build(self.make_inner()), recipe.build(self.make_inner())
            await first.open()
            await second.open()
            await first.write([Put("a", 1)])
            options = vars(recipe).values()
            for name, value in vars(first).items():
                if isinstance(value, list | dict | set | bytearray) and not any(value is option for option in options):
                    assert value is not vars(second).get(name), f"{name} is shared"
            if not first.survives:
                assert await second.read("a") is None

        asyncio.run(main())

    def test_a_built_layer_is_no_recipe(self) -> None:
        """Building it again is refused: it would have two inners."""
        layer = self.recipe().build(self.make_inner())
        assert isinstance(layer, Layer)
        with pytest.raises(ConfigError, match="recipe"):
            layer.build(self.make_inner())

    def test_it_says_what_it_is(self) -> None:
        """The repr is the class and the options that were given; the built one's is the same, and a stack lists it."""
        recipe = self.recipe()
        assert repr(recipe).startswith(f"{type(recipe).__name__}(")
        layer = recipe.build(self.make_inner())
        assert repr(layer) == repr(recipe)
        assert parts(layer)[0] is layer
        assert recipe.name.replace("_", "") in type(recipe).__name__.lower()
