"""Keys, values and messages in spans: none by default, only what `capture` asks for, and no value breaks a run."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext

import pocket_plug as pp
from pocket_plug import propagation
from pocket_plug.errors import ConfigError
from pocket_plug.layers import tracing
from pocket_plug.layers.tracing import local_messages
from pocket_plug.layers.tracing.capture import FAILED, Captured, summary
from pocket_plug.testing.spans import SpanCapture

CARD = pp.Key("card:{}")


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def texts(capture: SpanCapture) -> Iterator[str]:
    """Every text that an exporter would send."""
    for span in capture.spans:
        yield span.name
        yield span.status.description or ""
        for held in (span.attributes, *(event.attributes for event in span.events)):
            for name, value in (held or {}).items():
                yield name
                yield from map(str, value if isinstance(value, tuple) else (value,))


# ---------------------------------------------------------------- levels
class Pay(pp.Node[Any, list[int]]):
    """Reads one key and then several, one of which is missing, and writes one."""

    async def prep(self, store: pp.StoreReader, order: Any) -> Any:
        await store.get(CARD("k-1"), default=None)
        await store.get_many([CARD("k-2"), CARD("k-5")])
        return order

    async def post(self, store: pp.StoreWriter, order: Any, prepared: Any, result: Any) -> list[int]:
        await store.set(CARD("k-1"), {"number": 4711})
        return [1, 2, 3]


def paid(**settings: Any) -> SpanCapture:
    with SpanCapture("node", **settings) as capture:
        store = pp.Store(layers=["tracing"])

        async def main() -> None:
            await store.set_many({CARD("k-1"): "old", CARD("k-2"): 2})
            await pp.Graph(Pay(), name="shop", store=store).run({"total": 9})
            await store.set_many({CARD("k-3"): 3, CARD("k-4"): 4})
            assert [key async for key in store.scope(CARD("k-1")).keys()] == []

        asyncio.run(main())
    return capture


CAPTURED = ("pocket_plug.store.key", "pocket_plug.store.keys", "pocket_plug.store.value", "pocket_plug.run.input",
            "pocket_plug.run.output", "pocket_plug.node.input", "pocket_plug.node.output")  # fmt: skip

KEYS: list[tuple[str, dict[str, Any]]] = [
    ("write", {"store.keys": ("card:k-1", "card:k-2")}), ("run shop", {}), ("node pay", {}),
    ("get card:{}", {"store.key": "card:k-1"}), ("get_many", {"store.keys": ("card:k-2", "card:k-5")}),
    ("set card:{}", {"store.key": "card:k-1"}), ("write", {"store.keys": ("card:k-3", "card:k-4")}),
    ("scan card:{}", {"store.key": "card:k-1:"}),
]  # fmt: skip


def values(first: str, order: str, read: str, many: str, put: str, several: str, output: str) -> list[dict[str, str]]:
    return [{"store.value": first}, {"run.input": order, "run.output": output}, {"node.input": order, "node.output": output},
            {"store.value": read}, {"store.value": many}, {"store.value": put}, {"store.value": several}, {}]  # fmt: skip


@pytest.mark.parametrize(
    ("level", "keys", "shown"),
    [
        ("none", False, None),
        ("keys", True, None),
        ("summary", True, values("dict[2]", "dict[1]", "str[3]", "dict[1]", "dict[1]", "dict[2]", "list[3]")),
        ("full", True, values('{"card:k-1": "old", "card:k-2": 2}', '{"total": 9}', '"old"', '{"card:k-2": 2}',
                              '{"number": 4711}', '{"card:k-3": 3, "card:k-4": 4}', "[1, 2, 3]")),
    ],
)  # fmt: skip
def test_each_level_shows_what_it_documents(level: str, keys: bool, shown: Any) -> None:
    """Keys of store operations; types and sizes of inputs, outputs and values; the values. Names stay templates."""
    capture = paid(capture=level)
    found = []
    for span in capture.spans:
        own = {name.removeprefix("pocket_plug."): value for name, value in attributes(span).items() if name in CAPTURED}
        found.append((span.name, own))
    expected = [(name, (of_keys if keys else {}) | (shown[place] if shown else {}))
                for place, (name, of_keys) in enumerate(KEYS)]  # fmt: skip
    assert found == expected


@pytest.mark.parametrize(
    ("level", "message"),
    [("none", None), ("keys", None), ("summary", "PIN 1234 refused"), ("full", "PIN 1234 refused")],
)
def test_messages_of_exceptions_are_shown_from_summary_on(level: Any, message: str | None) -> None:
    """In the event, in the stack trace with the cause, and in the status; below that level only the type is shown."""

    @pp.node
    def fail(n: int) -> int:
        try:
            raise KeyError("account 5678")
        except KeyError as cause:
            raise ValueError("PIN 1234 refused") from cause

    with SpanCapture(capture=level) as capture, pytest.raises(ValueError, match="PIN"):
        pp.Graph(fail, name="g").run_sync(1)
    event = dict(capture.one("exec fail").events[0].attributes or {})
    assert event.get("exception.message") == message
    assert event["exception.type"] == "ValueError"
    stack = str(event["exception.stacktrace"])
    assert "test_tracing_capture.py" in stack
    assert "in test_messages_of_exceptions_are_shown_from_summary_on.<locals>.fail" in stack
    assert "caused by KeyError" in stack
    for span in capture.spans:
        assert span.status.description == (message or "ValueError")
    assert ("account 5678" in stack) == ("PIN 1234" in stack) == (message is not None)
    assert any("1234" in text or "5678" in text for text in texts(capture)) == (message is not None)


def test_pocket_plugs_own_errors_show_no_key_by_default() -> None:
    """Their messages contain keys, so they are hidden like all messages."""

    class Read(pp.Node[int, int]):
        async def prep(self, store: pp.StoreReader, n: int) -> int:
            return await store.require(CARD("secret-9"))  # type: ignore[no-any-return]

    with SpanCapture() as capture, pytest.raises(pp.MissingKeyError, match="secret-9"):
        asyncio.run(pp.Graph(Read(), name="g", store=pp.Store(layers=["tracing"])).run(1))
    assert not any("secret-9" in text for text in texts(capture))


def test_by_default_no_data_is_in_any_span() -> None:
    """Keys, values, inputs, outputs, messages and notes of exceptions, baggage."""
    secret = "s3cr3t"  # noqa: S105

    class Leaky(pp.Node[str, str], retry=pp.Retry(attempts=2)):
        async def prep(self, store: pp.StoreReader, text: str) -> str:
            await store.get(CARD(secret), default=None)
            await store.get(secret, default=None)
            return text

        async def exec(self, text: str) -> str:
            error = pp.StoreError(text)
            error.add_note(secret)
            raise error from ExceptionGroup(secret, [ValueError(secret)])

        async def fallback(self, text: str, error: Exception) -> str:
            return text

        async def post(self, store: pp.StoreWriter, text: str, prepared: str, result: str) -> str:
            await store.set(f"{secret}:x", {secret: secret})
            await store.set(CARD(secret), secret)
            raise ValueError(secret)

    with SpanCapture("debug") as capture, pytest.raises(ValueError, match=secret):
        store = pp.Store(layers=["tracing", pp.layers.Bounding(max_entries=9)])
        asyncio.run(pp.Graph(Leaky(), name="g", store=store).run(secret))
    assert len(capture.spans) > 6
    assert [text for text in texts(capture) if secret in text] == []


def test_an_item_that_gets_its_span_because_it_failed_shows_its_input() -> None:
    """As items that had a span from the start."""

    @pp.node
    async def picky(n: int) -> int:
        if n == 120:
            raise ValueError(n)
        return n

    with SpanCapture(capture="full") as capture:
        asyncio.run(pp.Graph(pp.each(picky, errors="collect"), name="g").run(range(130)))
    items = [attributes(span) for span in capture.spans if span.name == "item picky"]
    shown = {item["pocket_plug.fan_out.index"]: item["pocket_plug.node.input"] for item in items}
    assert shown == {number: str(number) for number in shown}
    assert {*range(100), 120} <= set(shown)


# ---------------------------------------------------------------- redact
def test_redact_is_called_for_each_leaf_with_its_path() -> None:
    """Fields of records and of objects, keys of mappings and positions, as texts; its result is shown."""

    @dataclasses.dataclass
    class Card:
        number: str
        owner: Point

    class Point(NamedTuple):
        x: int
        y: int

    class Shown(msgspec.Struct):
        card: Card

    class Plain:
        def __init__(self) -> None:
            self.token, self._own = "t-1", "t-2"

    class Model(pydantic.BaseModel):
        items: list[Any]

    asked: list[tuple[tuple[str, ...], Any]] = []

    def redact(path: tuple[str, ...], value: Any) -> Any:
        asked.append((path, value))
        return "***" if path[-1] in ("number", "token") else value

    value = Model(items=[Shown(Card("4711", Point(1, 2))), Plain(), {7: b"abc"}, {"one"}, None])
    text = Captured("full", redact).value(("run", "input"), value)
    assert text == (
        '{"items": [{"card": {"number": "***", "owner": {"x": 1, "y": 2}}}, {"token": "***"}, {"7": "bytes[3]"}, ["one"], null]}'
    )
    start = ("run", "input", "items")
    assert asked == [
        ((*start, "0", "card", "number"), "4711"), ((*start, "0", "card", "owner", "x"), 1),
        ((*start, "0", "card", "owner", "y"), 2), ((*start, "1", "token"), "t-1"), ((*start, "2", "7"), b"abc"),
        ((*start, "3", "0"), "one"), ((*start, "4"), None),
    ]  # fmt: skip


def test_redact_applies_to_keys_and_messages_too() -> None:
    """Everything that is captured has passed `redact`."""

    def redact(path: tuple[str, ...], value: Any) -> Any:
        return f"<{'.'.join(path)}>"

    @pp.node
    async def fail(n: int) -> int:
        await store.get(CARD("k"), default=None)
        raise ValueError("PIN")

    with SpanCapture(capture="full", redact=redact) as capture, pytest.raises(ValueError, match="PIN"):
        store = pp.Store(layers=["tracing"])
        asyncio.run(pp.Graph(fail, name="g").run(1))
    assert attributes(capture.one("get card:{}"))["pocket_plug.store.key"] == "<store.key>"
    assert attributes(capture.one("run g"))["pocket_plug.run.input"] == '"<run.input>"'
    assert capture.one("run g").status.description == "<error.message>"
    assert not any("PIN" in text for text in texts(capture))


def test_redact_sees_values_before_they_are_cut() -> None:
    """A secret can't be half shown because it was cut before `redact`."""
    text = Captured("full", lambda path, value: value.replace("s3cr3t", "***")).value(
        ("node", "input"), "a" * 4090 + "s3cr3t"
    )
    assert text == f'"{"a" * 4090}***"'


def test_a_redact_that_raises_leaves_the_attribute_out(caplog: pytest.LogCaptureFixture) -> None:
    """The run continues; it is logged once, without the message, which may contain the value."""

    class Mine(Exception):
        pass

    def redact(path: tuple[str, ...], value: Any) -> Any:
        raise Mine(f"can't judge {value}")

    @pp.node
    def same(text: str) -> str:
        return text

    with SpanCapture(capture="full", redact=redact) as capture:
        assert pp.Graph(same, name="g").run_sync("s3cr3t") == "s3cr3t"
        assert pp.Graph(same, name="g").run_sync("s3cr3t") == "s3cr3t"
    for span in capture.spans:
        for name, value in attributes(span).items():
            assert (value == FAILED) == name.endswith(("input", "output"))
    said = [record.getMessage() for record in caplog.records if record.name == "pocket_plug"]
    assert len(said) == 1
    assert "tracing's redact failed" in said[0]
    assert "s3cr3t" not in said[0]


# ---------------------------------------------------------------- values with unusual behaviour
class Unreadable:
    """No attribute can be read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # the runner itself reads this
            return Unreadable
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError("repr")


class Exits:
    """Raises SystemExit when it is inspected."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise SystemExit(1)


class Endless(Mapping[str, int]):
    """A mapping whose items never end."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield str(number)

    def __len__(self) -> int:
        return 1


class Broken(dict[str, int]):
    """A dict whose length and items can't be read."""

    def __len__(self) -> int:
        raise RuntimeError("len")

    def items(self) -> Any:
        raise RuntimeError("items")


class Liar:
    """Pretends to be a str."""

    __class__ = str  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "liar"


class Falsy(ValueError):
    """An exception whose truth value can't be read."""

    def __bool__(self) -> bool:
        raise RuntimeError("bool")


def cycle() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(10_000):
        found = [found]
    return found


HOSTILE: list[Callable[[], Any]] = [
    Unreadable, Exits, Endless, lambda: Broken(a=1), Liar, cycle, deep, lambda: 10**5000, lambda: float("nan"), object,
    lambda: "\ud800" * 9000, lambda: b"\xff" * 10**6, lambda: "ü" * 10**6, lambda: range(10**9), lambda: {Unreadable(): 1},
    lambda: [Unreadable(), Exits()], lambda: numpy.ones((1000, 1000)), lambda: deque([1, 2]), lambda: ValueError("x"),
    lambda: (n for n in range(3)), lambda: type("T" * 9000, (), {})(), lambda: int, lambda: {"a": {1, 2}},
]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("level", ["keys", "summary", "full"])
def test_no_value_breaks_a_run_or_leaves_a_span_open(level: Any, make: Callable[[], Any]) -> None:
    """Whatever it does when it is inspected: the output is the value itself, and each text can be sent."""
    value = make()

    class Keep(pp.Node[Any, Any]):
        async def post(self, store: pp.StoreWriter, item: Any, prepared: Any, result: Any) -> Any:
            await store.set("k", item)
            return item

    async def main() -> bool:  # asyncio inspects the result
        store = pp.Store(layers=["tracing"])
        return (await pp.Graph(Keep(), name="g", store=store).run(value)) is value

    before = otel_context.get_current()
    with SpanCapture(capture=level) as capture:
        assert asyncio.run(main())
    assert otel_context.get_current() is before
    assert capture.open == 0
    assert len(capture.spans) == 4
    assert all(len(text.encode()) <= 4096 for text in texts(capture))


def test_an_unreadable_part_is_marked_and_hides_nothing_else() -> None:
    """A bad part of a value doesn't hide the others."""
    text = Captured("full", None).value(
        ("run", "input"), {"a": 1, "b": Unreadable(), "c": Exits(), "d": Broken(x=1), "e": 2}
    )
    assert (
        text
        == '{"a": 1, "b": "(unreadable Unreadable)", "c": "(unreadable Exits)", "d": "(unreadable Broken)", "e": 2}'
    )


def test_a_value_is_shown_by_its_real_type_and_to_a_limited_depth() -> None:
    """A value that pretends to be a text is none; what is nested very deep, or contains itself, is `…`."""
    assert Captured("full", None).value(("run", "input"), Liar()) == '"liar"'
    assert Captured("full", None).value(("run", "input"), deep()) == f'{"[" * 13}"…"{"]" * 13}'
    assert Captured("full", None).value(("run", "input"), cycle()) == f'{"[1, " * 12}["…", "…"{"]" * 13}'


def _unwanted(name: str) -> Any:
    def load(_: object) -> Any:
        raise AssertionError(f"{name} was read")

    return property(load)


@dataclasses.dataclass
class Row:
    """Like an object-relational mapper's record: its columns are properties, which load missing data."""

    number: int
    owner: str


Row.owner = _unwanted("owner")  # type: ignore[assignment]


class Lazy:
    shape = _unwanted("shape")
    total = _unwanted("total")

    def __init__(self) -> None:
        self.number = 7

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def test_no_property_is_read_and_no_iterator_used_up() -> None:
    """A value is shown as far as it is in memory: showing it loads and computes nothing."""
    full, summed = Captured("full", None), Captured("summary", None)
    row = object.__new__(Row)
    vars(row)["number"] = 7
    for value, shown in ((row, "Row"), (Lazy(), "Lazy")):
        assert full.value(("run", "input"), value) == '{"number": 7}'
        assert summed.value(("run", "input"), value) == shown
    generator = (number for number in range(3))
    assert "generator" in (full.value(("run", "input"), {"items": generator}) or "")
    assert list(generator) == [0, 1, 2]


def test_summaries_are_types_and_sizes() -> None:
    """No part of the value itself, and nothing that is expensive to compute."""
    values = ([1], (1, 2), {"a": 1}, {1}, "abc", b"ab", 7, 1.5, True, None, object(), ValueError("x"))
    assert list(map(summary, values)) == [
        "list[1]", "tuple[2]", "dict[1]", "set[1]", "str[3]", "bytes[2]", "int", "float", "bool", "None", "object",
        "ValueError"]  # fmt: skip
    assert summary(numpy.zeros((3, 4))) == "ndarray[3, 4]"
    assert summary(Broken(a=1)) == "Broken[1]"  # whatever length it claims


@pytest.mark.parametrize("where", ["str", "bool", "cause"])
@pytest.mark.parametrize("level", ["none", "full"])
def test_no_exception_breaks_a_run_or_leaves_a_span_open(level: Any, where: str) -> None:
    """An exception whose text or truth value can't be read, itself or as a cause, leaves the run unchanged."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit(1)

    error: Exception = {"str": Mute(), "bool": Falsy("x"), "cause": ValueError("x")}[where]
    error.__cause__ = Falsy("cause") if where == "cause" else None

    class Fail(pp.Node[int, int]):
        async def exec(self, n: int) -> int:
            raise error

    with SpanCapture(capture=level) as capture, pytest.raises(type(error)) as caught:
        asyncio.run(pp.Graph(Fail(), name="g").run(1))
    assert caught.value is error
    assert capture.open == 0
    assert [event.name for event in capture.one("exec fail").events] == ["exception"]
    assert ("caused by" in str((capture.one("exec fail").events[0].attributes or {})["exception.stacktrace"])) == (
        where == "cause"
    )


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_plain_value_is_shown_completely_if_it_fits(value: Any) -> None:
    """As JSON, if it contains no bytes; at most 4 KiB, and as valid text."""
    text = Captured("full", None).value(("run", "input"), value)
    assert text is not None
    assert len(text.encode()) <= 4096
    try:
        expected = json.loads(json.dumps(value))
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, UnicodeEncodeError):
        return
    if len(json.dumps(value, ensure_ascii=False).encode()) <= 4096:
        assert repr(json.loads(text)) == repr(expected)


names = st.one_of(
    st.text(st.characters(), min_size=1, max_size=30),
    st.builds(lambda character, times: character * times, st.characters(), st.integers(1000, 9000)),
)
sessions = names.map(lambda text: text.encode(errors="replace").decode())
"""Others are refused."""


@given(names, names, names, names, sessions, st.sampled_from(["none", "keys", "summary", "full"]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_names_are_a_collector_accepts_the_spans(
    graph: str, node: str, failure: str, value: str, session: str, level: Any
) -> None:
    """Names, statuses, attributes and their keys: at most 4 KiB of valid UTF-8, and OTLP's encoding accepts them."""
    kind = type("Failure", (Exception,), {})
    kind.__qualname__ = failure

    class Fails(pp.Node[str, str]):
        async def prep(self, store: pp.StoreReader, order: str) -> str:
            raise kind(value)

    named = Fails().with_options(name=node)
    token = otel_context.attach(baggage.set_baggage("tenant", value))
    try:
        capture = SpanCapture("phase", capture=level, baggage=["tenant"])
        with capture, propagation.session(session), pytest.raises(kind):
            pp.Graph(named, name=graph).run_sync(value)
    finally:
        otel_context.detach(token)
    assert len(capture.spans) == 3
    assert [text for text in texts(capture) if len(text.encode()) > 4096] == []
    encode_spans(capture.spans).SerializeToString()


@given(st.lists(st.text(max_size=3000), max_size=5))
@settings(max_examples=50, deadline=None)
def test_an_array_of_keys_is_limited_as_a_whole(keys: list[str]) -> None:
    """4 KiB for all of them together, starting with the first."""
    shown = Captured("keys", None).keys(keys)
    assert sum(len(key.encode()) for key in shown) <= 4096
    assert len(shown) == len(keys) or sum(len(key.encode("utf-8", "replace")) for key in keys) > 4096


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capture": "all"}, "capture must be one of none, keys, summary, full, not 'all'"),
        ({"resume_trace": "child"}, "resume_trace must be one of link, parent, not 'child'"),
        ({"scopes": ["node"]}, "scopes has 'node'; allowed are graph, phase, store"),
        ({"baggage": [1]}, r"baggage is \[1\]; give a list of names"),
        ({"baggage": 5}, "baggage is 5; give a list of names"),
        ({"redact": "***"}, r"redact is '\*\*\*'; give a Python function that takes \(path, value\)"),
        ({"detail": ["run"]}, r"detail must be one of run, node, phase, debug, not \['run'\]"),
    ],
    ids=str,
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    """An invalid setting is refused with what is allowed, and nothing has changed."""
    before = tracing.configure()
    with pytest.raises(ConfigError, match=message):
        tracing.configure(**changes)
    assert tracing.configure() == before


def test_lists_of_a_configuration_file_are_accepted() -> None:
    """TOML has no tuples."""
    former = tracing.configure(baggage=["tenant"], scopes=[])
    try:
        assert tracing.configure() == dataclasses.replace(former, baggage=("tenant",), scopes=())
    finally:
        tracing.use(former)


# ---------------------------------------------------------------- whatever happens
def test_an_interrupt_while_a_value_is_looked_at_leaves_no_span_open() -> None:
    """Ctrl-C ends the run, as anywhere; open spans are ended too."""

    @pp.node
    def same(text: str) -> str:
        return text

    for place in (("run", "input"), ("node", "input"), ("node", "output"), ("run", "output")):

        def redact(path: tuple[str, ...], value: Any, place: Any = place) -> Any:
            if path == place:
                raise KeyboardInterrupt
            return value

        before = otel_context.get_current()
        with SpanCapture(capture="full", redact=redact) as capture, pytest.raises(KeyboardInterrupt):
            pp.Graph(same, name="g").run_sync("x")
        assert otel_context.get_current() is before
        assert capture.open == 0, place


def test_unread_messages_are_dropped_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that ends now still has its own."""
    monkeypatch.setattr(local_messages, "MOST", 2)
    monkeypatch.setattr(local_messages, "_kept", {})
    monkeypatch.setattr(local_messages, "_are_wanted", True)
    spans = [NonRecordingSpan(SpanContext(1, number, is_remote=False)) for number in (1, 2, 3)]
    for span in spans:
        local_messages.keep(span, ValueError("why"), None)
    assert [local_messages.kept(span.get_span_context()) is not None for span in spans] == [False, True, True]
