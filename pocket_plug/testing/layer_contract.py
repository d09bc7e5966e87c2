"""The promises of a layer as tests: inherit `LayerContract` to get the whole suite.

A layer around a backend must keep all promises of the backend, so `LayerContract` inherits `BackendContract`.
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
    """A Memory that suspends before and after each operation, as over a network, and fails on demand.

    It needs an event loop. If `error` is set, every operation raises that object.
    """

    inline_read = inline_write = False
    needs_loop = True

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.used: list[str] = []
        """The operations that were started, such as "read a" or "write a b"."""

    async def _reach(self, what: str) -> None:
        self.used.append(what)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    async def read(self, key: str) -> Entry | None:
        """The entry, after suspending once."""
        await self._reach(f"read {key}")
        return await super().read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries, after suspending once."""
        names = list(keys)
        await self._reach(" ".join(["read", *names]))
        return await super().read_many(names)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Suspend, write, and suspend again, so that a cancellation may come after the write."""
        await self._reach(" ".join(["write", *(change.key for change in changes)]))
        version = await super().write(changes, expect)
        await asyncio.sleep(0)
        return version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The keys, each after suspending once."""
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            await self._reach("scan")
            yield key

    async def version(self) -> int:
        """The last version, after suspending once."""
        await self._reach("version")
        return await super().version()


class _Refusing(FaultyMemory):
    """Refuses to be opened, flushed or closed, and notes what it is given. A stack binds methods early, so these are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = ""
        self.made: list[Change] = []

    def _refuse(self, name: str) -> None:
        if self.refuses == name:
            raise StoreError("the disk is full")

    async def open(self) -> None:
        self._refuse("open")
        await super().open()

    async def flush(self) -> None:
        self._refuse("flush")
        await super().flush()

    async def close(self) -> None:
        self._refuse("close")
        await super().close()

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        self.made.extend(changes)
        return await super().write(changes, expect)


class LayerContract(BackendContract):
    """Tests every promise of a layer, around two backends. Inherit it, and return a recipe:

        class TestMine(LayerContract):
            def recipe(self):
                return Mine(option=1)

    One backend is Memory; the other one suspends in each operation, and fails on demand. The contract is for layers that don't
    change keys, values and versions for the user.
    """

    make_inner: Callable[[], Backend] = FaultyMemory

    def recipe(self) -> Layer:
        """The recipe to test, with options that allow some thousand small entries; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override recipe()")

    def build(self, backend: Backend) -> Backend:
        """Build the recipe around a backend. Override it if your layer takes its backend in another way."""
        return self.recipe().build(backend)

    @pytest.fixture(autouse=True, params=[Memory, FaultyMemory], ids=["memory", "suspending"])
    def over(self, request: pytest.FixtureRequest, clock: FakeClock) -> None:
        """Sets the inner backend of the layer."""
        kind: type[Memory] = request.param

        def make_inner() -> Backend:
            inner = kind()
            inner.clock = clock
            return inner

        self.make_inner = make_inner

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """A function that makes the stack under test."""
        return lambda: self.build(self.make_inner())

    # ------------------------------------------------------------ a recipe is data
    def test_options_are_fixed(self) -> None:
        """The options of recipes and built layers can't be changed, so `repr` shows the options in use."""
        recipe = self.recipe()
        built = self.build(self.make_inner())
        for part in (recipe, *(part for part in parts(built) if type(part) is type(recipe))):
            shown = repr(part)
            for option in fields(recipe):
                with pytest.raises(AttributeError, match=f"option '{option.name}'"):
                    setattr(part, option.name, "changed")
            assert repr(part) == shown

    def test_a_recipe_is_not_changed_by_a_stack(self) -> None:
        """State of a stack belongs to the built layer, so any number of stacks may be built from one recipe."""
        recipe = self.recipe()
        before = {**vars(recipe)}
        recipe.build(self.make_inner())
        assert vars(recipe) == before
        with pytest.raises(AttributeError, match="takes no attribute"):
            setattr(recipe, "something", 1)  # noqa: B010 - type checkers would refuse it too

    # ------------------------------------------------------------ errors and reads of the inner backend
    @pytest.mark.parametrize("error", [StoreError("the disk is full"), ZeroDivisionError("a bug")], ids=["ours", "any"])
    def test_errors_of_the_inner_one_pass_unchanged(self, error: Exception) -> None:
        """The caller gets the same exception object that the backend raises: never an answer, never another error."""

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

    @pytest.mark.parametrize("name", ["open", "flush", "close"])
    def test_open_flush_and_close_are_those_of_the_inner_one_too(self, name: str) -> None:
        """Each reaches the backend, and its error the caller: it may say that acknowledged writes are lost."""

        async def main() -> None:
            inner = _Refusing()
            inner.refuses = name
            layer = self.build(inner)
            if name != "open":
                await layer.open()
            with pytest.raises(StoreError, match="the disk is full"):
                await getattr(layer, name)()

        asyncio.run(main())

    def test_what_a_change_says_besides_its_value_passes(self) -> None:
        """An update and a touch keep their `renews`: a layer inside may have a deadline of its own."""

        async def main() -> None:
            inner = _Refusing()
            layer = self.build(inner)
            await layer.open()
            await layer.write([Put("a", 1), Put("b", 1, renews=False)])
            await layer.flush()
            assert {change.key: change.renews for change in inner.made if isinstance(change, Put)} == {
                "a": True,
                "b": False,
            }

        asyncio.run(main())

    def test_a_conflict_passes_with_its_keys(self) -> None:
        """A ConflictError keeps its type and key names, which retries rely on."""

        async def main() -> None:
            layer = self.build(self.make_inner())
            await layer.open()
            await layer.write([Put("a", 1), Put("b", 1)])
            with pytest.raises(ConflictError) as caught:
                await layer.write([Put("a", 2)], {"a": 0, "b": 0, "c": 0})
            assert caught.value.keys == {"a", "b"}

        asyncio.run(main())

    def test_read_many_does_not_pass_the_read_by(self) -> None:
        """If a layer changes `read`, batches and pages don't bypass it: all return the same entries."""

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

    def test_a_scan_and_a_read_show_the_same_keys(self, clock: FakeClock) -> None:
        """At first, and a year later: what `read` hides, because it is too old for the layer, `scan` hides too."""

        async def main() -> None:
            inner = self.make_inner()
            inner.clock = clock
            layer = self.build(inner)
            await layer.open()
            await layer.write([Put(key, key) for key in "abc"])
            for _ in range(2):
                assert await keys_of(layer) == [key for key in "abc" if await layer.read(key) is not None]
                clock.advance(365 * 24 * 3600)

        asyncio.run(main())

    def test_a_page_is_a_page_of_the_inner_one(self) -> None:
        """The layer requests only the keys of that page from the inner backend: not all keys, and not from the beginning."""

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
        """A read that is cancelled at any point raises CancelledError, and the next read is right."""

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
        """Building copies the recipe, which gets no inner backend and no state, and has the same repr."""
        recipe = self.recipe()
        before, text = dict(vars(recipe)), repr(recipe)
        recipe.build(self.make_inner())
        assert vars(recipe) == before
        assert repr(recipe) == text

    def test_two_stacks_of_one_recipe_share_nothing(self) -> None:
        """Entries written to one are not in the other, and no mutable container is shared."""

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
        """Building it again is refused: it would have two inner backends."""
        layer = self.recipe().build(self.make_inner())
        assert isinstance(layer, Layer)
        with pytest.raises(ConfigError, match="recipe"):
            layer.build(self.make_inner())

    def test_it_says_what_it_is(self) -> None:
        """The repr has the class and the given options; a built layer has the same, and a stack lists it."""
        recipe = self.recipe()
        assert repr(recipe).startswith(f"{type(recipe).__name__}(")
        layer = recipe.build(self.make_inner())
        assert repr(layer) == repr(recipe)
        assert parts(layer)[0] is layer
        assert recipe.name.replace("_", "") in type(recipe).__name__.lower()
