"""Layers: recipes, building a stack, and direct access to operations that a layer doesn't override."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any, Literal

import pytest

from pocket_plug import Store, SyncStore
from pocket_plug.errors import ConfigError
from pocket_plug.plugins.config import make_recipe
from pocket_plug.primitives.waiting import drive_inline
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from pocket_plug.store.layer import Layer, build_stack, parts
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.scenarios import keys_of

OPERATIONS = ("read", "read_many", "write", "scan", "version", "flush", "open", "close")


class Idle(Layer):
    """Overrides nothing."""


class OtherIdle(Layer):
    """Overrides nothing either."""


class Upper(Layer):
    """Overrides `read` only."""

    async def read(self, key: str) -> Entry | None:
        entry = await self.inner.read(key)
        return entry and Entry(entry.value.upper(), entry.version, entry.expires_at)


class Encrypting(Layer):
    """Overrides `read` and `write` only; values are stored reversed."""

    inline_read = inline_write = True

    async def read(self, key: str) -> Entry | None:
        entry = await self.inner.read(key)
        return entry and Entry(entry.value["secret"][::-1], entry.version, entry.expires_at)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        hidden = [Put(c.key, {"secret": c.value[::-1]}, c.expires_at) if isinstance(c, Put) else c for c in changes]
        return await self.inner.write(hidden, expect)


class Slow(Layer):
    """Has options."""

    seconds: float = 0.1
    names: tuple[str, ...] = ()


# ---------------------------------------------------------------- operations that aren't overridden
def test_operations_that_a_layer_does_not_override_are_the_inner_ones() -> None:
    """Ten layers that override nothing cost nothing: the outermost one's operations are the backend's own methods."""
    memory = Memory()
    stack: Backend = memory
    for _ in range(10):
        stack = Idle().build(stack)
    for name in OPERATIONS:
        if name != "read_many":
            assert getattr(stack, name) == getattr(memory, name)
    assert stack.read_many == memory.read_many
    assert stack.inline_read
    assert stack.inline_write
    assert not stack.needs_loop


def test_a_derived_operation_uses_the_overridden_one() -> None:
    """If `read_many` was taken from the backend although `read` is overridden, an encrypting layer would leak."""
    memory = Memory()
    layer = Upper().build(memory)
    assert layer.write == memory.write
    assert layer.read_many != memory.read_many

    async def main() -> None:
        await layer.write([Put("a", "x"), Put("b", "y")])
        assert {key: entry.value for key, entry in (await layer.read_many("ab")).items()} == {"a": "X", "b": "Y"}
        around = Idle().build(layer)
        assert (await around.read_many(["a"]))["a"].value == "X"

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Layer, Backend])
def test_a_scan_without_pages_is_refused(kind: type[Backend]) -> None:
    """It would fail when the first page is read, so the class itself is an error, with the required parameters."""

    def old(self: Any, prefix: str = "") -> AsyncIterator[str]:
        raise NotImplementedError

    def half(self: Any, prefix: str = "", *, after: str = "", limit: int | None = None) -> AsyncIterator[str]:
        raise NotImplementedError

    def new(self: Any, *given: Any, **named: Any) -> AsyncIterator[str]:
        raise NotImplementedError

    with pytest.raises(
        TypeError, match=r"Old.scan doesn't take after, reverse, limit; declare it as `scan\(self, prefix"
    ):
        type("Old", (kind,), {"scan": old})
    with pytest.raises(TypeError, match=r"Half.scan doesn't take reverse; declare"):
        type("Half", (kind,), {"scan": half})
    type("New", (kind,), {"scan": new})


@pytest.mark.parametrize("kind", [Store, SyncStore])
def test_a_store_whose_operations_are_overridden_is_refused(kind: type[Any]) -> None:
    """Nodes and scopes would bypass the override, so the error says to write a layer. Other methods may be added."""

    def own(self: Any, *_: Any) -> Any: ...

    for name in ("get", "set", "update", "scope"):
        with pytest.raises(TypeError, match=f"Logged.{name} would not be called by nodes, scopes, .* write a Layer"):
            type("Logged", (kind,), {name: own})
    assert type("Users", (kind,), {"find_user": own, "close": own})().find_user("1") is None


@pytest.mark.parametrize(("name", "operation"), [("get", "read"), ("set_many", "write"), ("delete", "write")])
def test_an_override_that_would_never_be_called_is_refused(name: str, operation: str) -> None:
    """Of an operation of stores. A helper with such a name is allowed beside the operation of layers."""

    async def own(self: Any, *_: Any) -> Any: ...

    with pytest.raises(TypeError, match=f"Idle.{name} would never be called: .* by `{operation}`; override that"):
        type("Idle", (Layer,), {name: own})
    type("Helped", (Layer,), {name: own, operation: own})


async def one(self: Any, key: Any) -> Any: ...
async def two(self: Any, key: Any, value: Any = None) -> Any: ...
async def nothing(self: Any) -> None: ...
def built(self: Any) -> None: ...
def plain(self: Any, value: Any) -> None: ...  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method", "meant"),
    [
        *(("raed", one, "'read'"), ("read_mnay", one, "'read_many'"), ("wirte", two, "'write'")),
        *(("Write", two, "'write'"), ("clsoe", nothing, "'close'"), ("flsh", nothing, "'flush'")),
        *(("on_biuld", built, "'on_build'"), ("gett", one, "'get', in which a layer takes part by 'read'")),
        *(("sett", two, "'set', in which a layer takes part by 'write'"), ("readMany", one, "'read_many'")),
    ],
)  # fmt: skip
def test_a_misspelt_operation_gives_a_warning(name: str, method: Any, meant: str) -> None:
    """No store would ever call it, and nothing else would say so. The warning is shown for the line of the class."""
    with pytest.warns(
        RuntimeWarning, match=f"^Idle.{name} is no operation .* Did you mean {meant}\\?.* name it _{name}$"
    ) as found:
        type("Idle", (Layer,), {name: method})
    assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("_raed", one), ("reads", one), ("reader", one), ("opened", nothing), ("closed", nothing), ("versions", nothing)),
        *(("ready", nothing), ("raed", nothing), ("raed", built), ("reset", two), ("open_file", nothing), ("gate", one)),
        *(("build_index", one), ("spread", one), ("close_all", nothing), ("check_value", one), ("raed", property(one))),
        *(("reload", one), ("reread", one), ("ready", one), ("read_part", one), ("read_any", one), ("read_range", one)),
        *(("delete_all", one), ("delegate", two), ("get_meta", one), ("clone", nothing), ("span", plain), ("tune", plain)),
        ("on", nothing),
    ],
)  # fmt: skip
def test_a_helper_of_a_layer_gives_no_warning(name: str, method: Any) -> None:
    """It has another word for a name, other parameters, is no coroutine, or stands beside the operation."""
    type("Helped", (Layer,), {name: method})
    type("Beside", (Layer,), {"raed": one, "sett": two, "read": one, "write": two})


@pytest.mark.parametrize("kind", [Layer, Backend])
def test_overriding_read_many_alone_is_refused(kind: type[Backend]) -> None:
    """A single get would bypass it, so the class itself is an error, with its name."""

    async def read_many(self: Any, keys: Any) -> dict[str, Entry]:
        return {}

    with pytest.raises(TypeError, match="Batch overrides read_many without read"):
        type("Batch", (kind,), {"read_many": read_many})


def test_no_operation_bypasses_a_layer_with_read_and_write() -> None:
    """get_many, set_many, transactions, updates, scopes and sync calls: no plaintext reaches the backend."""
    memory = Memory()

    async def main() -> None:
        store = Store(memory, layers=[Idle(), Encrypting()])
        await store.set("a", "alpha")
        await store.set_many({"b": "beta", "c": "gamma"})
        await store.update("c", lambda old: old + "!", default="")
        async with store.transaction() as tx:
            assert await tx.get("a") == "alpha"
            await tx.set("d", "delta")
        await store.scope("user").set("1", "epsilon")
        store.sync.set("e", "zeta")
        stored = [entry.value for entry in (await memory.read_many([k async for k in memory.scan()])).values()]
        assert [set(value) for value in stored] == [{"secret"}] * 6
        assert sorted(value["secret"][::-1] for value in stored) == [
            "alpha", "beta", "delta", "epsilon", "gamma!", "zeta"]  # fmt: skip
        assert await store.get_many([*"abcd"]) == {"a": "alpha", "b": "beta", "c": "gamma!", "d": "delta"}

    asyncio.run(main())


# ---------------------------------------------------------------- inline or not
class Suspends(Layer):
    """Overrides `write`, and may await anything."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await asyncio.sleep(0)
        return await self.inner.write(changes, expect)


class Scanning(Layer):
    """Overrides `scan` and doesn't declare it inline."""

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        async for key in self.inner.scan(prefix, after=after, reverse=reverse, limit=limit):
            yield key


@pytest.mark.parametrize(
    ("layer", "inline_read", "inline_write", "needs_loop"),
    [
        (Idle(), True, True, False),
        (Encrypting(), True, True, False),
        (Suspends(), True, False, True),
        (Upper(), False, True, True),
        (Scanning(), False, True, True),
    ],
    ids=lambda value: value.name if isinstance(value, Layer) else "",
)
def test_an_override_is_inline_only_if_it_is_declared(
    layer: Layer, inline_read: bool, inline_write: bool, needs_loop: bool
) -> None:
    """If a layer that suspends was taken for inline, every sync caller would fail; other operations stay inline."""
    built = Idle().build(layer.build(Memory()))
    assert (built.inline_read, built.inline_write, built.needs_loop) == (inline_read, inline_write, needs_loop)


def test_a_layer_is_inline_only_if_its_inner_layer_is() -> None:
    """The inner layer may suspend."""
    built = Encrypting().build(Suspends().build(Memory()))
    assert built.inline_read
    assert not built.inline_write
    assert built.needs_loop


def test_clock_and_durability_come_from_inside() -> None:
    """A layer uses the clock that the store gave its backend, and is durable if its inner layer is."""

    class Durable(Memory):
        survives = True

    clock = FakeClock()
    stack = Store(Durable(), layers=[Idle()], clock=clock).stack
    for part in parts(stack):
        assert part.clock is clock
        assert part.survives


# ---------------------------------------------------------------- recipes
def test_a_recipe_is_data() -> None:
    """Its repr has the options that aren't the default; they are passed by name only."""
    assert repr(Slow()) == "Slow()"
    assert repr(Slow(seconds=2, names=("a",))) == "Slow(seconds=2, names=('a',))"
    assert Slow.name == "slow"
    with pytest.raises(TypeError):
        Slow(2)  # type: ignore[misc]
    with pytest.raises(TypeError, match="secnds"):
        Slow(secnds=2)  # type: ignore[call-arg]


class Keeps(Layer):
    """Its behaviour is decided when it is built, so an option that changes later would be wrong."""

    count: int = 1

    def on_build(self) -> None:
        self.doubled = 2 * self.count


def test_the_repr_of_a_stack_is_always_true() -> None:
    """Options can't be changed later: neither of a recipe that stacks are built from, nor of a built layer."""
    recipe = Keeps(count=3)
    stack = build_stack(Memory(), [recipe])
    assert isinstance(stack, Keeps)
    for part in (recipe, stack):
        with pytest.raises(
            FrozenInstanceError, match=r"keeps's option 'count' can't be changed: .*dataclasses.replace"
        ):
            part.count = 5
        with pytest.raises(FrozenInstanceError, match="option 'count'"):
            del part.count
    with pytest.raises(FrozenInstanceError, match=r"option 'inner' can't be changed"):
        stack.inner = Memory()  # type: ignore[misc]
    assert (repr(stack), stack.doubled) == ("Keeps(count=3)", 6)
    assert repr(replace(recipe, count=5)) == "Keeps(count=5)"


def test_a_recipe_is_data_and_a_built_layer_has_state() -> None:
    """A recipe accepts no attribute besides its options; a built layer accepts any."""
    recipe = Keeps()
    with pytest.raises(FrozenInstanceError, match="keeps's recipe takes no attribute 'seen'"):
        recipe.seen = 1  # type: ignore[attr-defined]
    built = recipe.build(Memory())
    built.seen = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("taken", ["inner", "plugin"])
def test_an_option_must_not_have_a_name_that_every_layer_has(taken: str) -> None:
    """It would be overwritten when the layer is built, or created by its name."""
    with pytest.raises(TypeError, match=f"Odd: an option can't be called '{taken}'"):
        type("Odd", (Layer,), {"__annotations__": {taken: "str"}, taken: ""})


def test_constructors_may_set_any_attribute() -> None:
    """A class's own constructor, `__post_init__`, and that of a derived class."""

    class Own(Layer):
        size: int = 1

        def __init__(self, size: str) -> None:
            self.size = int(size)
            self.label = "mine"

    class Derived(Own):
        def __init__(self) -> None:
            super().__init__("7")
            self.size += 1

    class Normal(Layer):
        ttl: str = "1m"

        def __post_init__(self) -> None:
            self.ttl = self.ttl.strip()

    assert (Own("5").size, Derived().size, Normal(ttl=" 5m ").ttl) == (5, 8, "5m")
    for recipe in (Own("5"), Derived(), Normal()):
        with pytest.raises(FrozenInstanceError):
            recipe.label = "other"


def test_a_class_may_be_used_twice_with_labels() -> None:
    """Each has one, they differ, and the stack's repr shows them."""
    outer, inner = Slow(label="outer"), Slow(label="inner", seconds=3)
    store = SyncStore(layers=[outer, Idle(), inner])
    assert str(store) == "SyncStore(Slow(label='outer') > Idle() > Slow(label='inner', seconds=3) > memory)"


def test_building_copies_the_recipe() -> None:
    """One recipe makes any number of stacks that share only its options."""

    class Counting(Layer):
        def on_build(self) -> None:
            self.seen: list[str] = []

        async def read(self, key: str) -> Entry | None:
            self.seen.append(key)
            return await self.inner.read(key)

    recipe = Counting()
    first, second = recipe.build(Memory()), recipe.build(Memory())
    asyncio.run(first.read("a"))
    assert isinstance(first, Counting)
    assert isinstance(second, Counting)
    assert (first.seen, second.seen) == (["a"], [])
    assert not hasattr(recipe, "seen")
    assert not hasattr(recipe, "inner")


def test_a_built_layer_is_refused_as_a_recipe() -> None:
    """It has an inner layer already."""
    built = Slow(seconds=3).build(Memory())
    with pytest.raises(ConfigError, match=r"Slow\(seconds=3\) is already part of a stack"):
        build_stack(Memory(), [built])  # type: ignore[list-item]


# ---------------------------------------------------------------- building a stack
def test_the_first_written_is_the_outermost() -> None:
    """The written order is kept, and the stack's repr shows it."""
    memory = Memory()
    stack = build_stack(memory, [Idle(), Upper(), OtherIdle()])
    assert [type(part) for part in parts(stack)] == [Idle, Upper, OtherIdle, Memory]
    assert str(SyncStore(layers=[Slow(seconds=1), Idle()])) == "SyncStore(Slow(seconds=1) > Idle() > memory)"


def test_the_order_is_the_order_of_calls() -> None:
    """A write reaches the outermost layer first; the next layer sees its changes."""
    order: list[str] = []

    class Outer(Layer):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            order.append("outer in")
            try:
                return await self.inner.write(changes, expect)
            finally:
                order.append("outer out")

    class Inner(Layer):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            order.append("inner")
            return await self.inner.write(changes, expect)

    asyncio.run(build_stack(Memory(), [Outer(), Inner()]).write([Put("a", 1)]))
    assert order == ["outer in", "inner", "outer out"]


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (
            [Idle(), OtherIdle(), Idle()],
            r"'idle' is twice in the stack; .*give each a label of its own: Idle\(label=",
        ),
        ([Idle(label="a"), Idle()], "'idle' is twice in the stack; "),
        ([Idle(label="a"), Idle(label="a")], "'idle' is twice in the stack with the label 'a'; "),
        ([Idle], r"layers\[0\] is the class Idle; give an instance"),
        ([Idle(), 3], r"layers\[1\] is int; give"),
    ],
    ids=["twice", "one label", "the same label", "class", "number"],
)
def test_an_invalid_stack_is_refused(layers: list[Any], says: str) -> None:
    """The message says where in the list the mistake is, what was found and what to write instead."""
    with pytest.raises(ConfigError, match=says):
        build_stack(Memory(), layers)


def test_open_and_close_reach_every_layer() -> None:
    """Each layer that has something to open or close does so, around its inner layer."""
    order: list[str] = []

    class Opening(Layer):
        async def open(self) -> None:
            await super().open()
            order.append("open")

        async def close(self) -> None:
            order.append("close")
            await super().close()

    async def main() -> None:
        memory = Memory()
        stack = build_stack(memory, [Idle(), Opening(), OtherIdle()])
        await stack.open()
        await stack.write([Put("a", 1)])
        assert drive_inline(keys_of(stack)) == ["a"]
        await stack.close()
        assert order == ["open", "close"]

    asyncio.run(main())


# ---------------------------------------------------------------- options
class Options(Layer):
    """Every kind of option that is checked."""

    count: int = 1
    share: float = 0.5
    limit: int | None = None
    names: tuple[str, ...] = ()
    mode: Literal["fast", "safe"] = "fast"
    side: Literal["left", "right"] | None = None
    call: Callable[[str], object] | None = None
    loud: bool = False
    anything: Any = None


@pytest.mark.parametrize(
    ("options", "says"),
    [({"count": "many"}, "'count' must be int, not 'many'"), ({"count": True}, "'count' must be int, not True"),
     ({"count": None}, "'count' must be int, not None"), ({"share": "0.5"}, "'share' must be float, not '0.5'"),
     ({"limit": 2.5}, "'limit' must be int | None, not 2.5"), ({"names": ("a", 1)}, "'names' must be tuple[str, ...]"),
     ({"names": "a"}, "'names' must be tuple[str, ...], not 'a'"), ({"mode": "fats"}, "'mode' must be one of 'fast', 'safe'"),
     ({"side": "up"}, "'side' must be one of 'left', 'right', None, not 'up'"),
     ({"call": 5}, "'call' must be"), ({"loud": 1}, "'loud' must be bool, not 1"), ({"loud": "yes"}, "'loud' must be bool")],
)  # fmt: skip
def test_an_option_of_another_type_is_refused_when_it_is_written(options: dict[str, Any], says: str) -> None:
    """In Python as in TOML: the error names the layer, the option, the expected type and what was found."""
    with pytest.raises(ConfigError, match=re.escape(f"options's option {says}")):
        Options(**options)
    with pytest.raises(ConfigError, match=re.escape(f"here: options's option {says.partition(', not ')[0]}")):
        make_recipe(Options, options, "here")


def test_an_unknown_option_is_a_type_error() -> None:
    """As for any call, with a suggestion."""
    with pytest.raises(
        TypeError, match=r"Options has no option 'cuont'; it has: label, count, .*Did you mean 'count'\?"
    ):
        Options(cuont=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Options takes its options by their names: label, count, "):
        Options(1)  # type: ignore[misc]


def test_a_value_without_a_type_is_no_option() -> None:
    """The error says how to make it one."""

    class Bare(Layer):
        max_size = 3

    with pytest.raises(
        TypeError, match=r"it has: label\. To make it one, annotate it in the class: max_size: int = …$"
    ):
        Bare(max_size=5)  # type: ignore[call-arg]


def test_valid_options_are_kept() -> None:
    """An int for a float, a list for a tuple, anything for Any; a subclass has the options of its base."""

    class Derived(Options):
        more: int = 0

    made = Derived(share=1, names=["a", "b"], call=print, anything=True, more=3, limit=None)  # type: ignore[arg-type]
    assert (made.share, made.names, made.anything, made.more) == (1, ("a", "b"), True, 3)
    with pytest.raises(ConfigError, match="derived's option 'count'"):
        Derived(count="x")  # type: ignore[arg-type]


def test_a_layer_with_a_constructor_of_its_own_checks_for_itself() -> None:
    """Parameters of a custom `__init__` are not checked."""

    class Own(Layer):
        size: int = 1

        def __init__(self, size: str) -> None:
            self.size = int(size)

    assert Own("5").size == 5
