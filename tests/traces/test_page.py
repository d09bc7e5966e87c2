"""The page of traces: one file with everything in it, and a trace's texts are data and never markup."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocket_plug.traces.page import page
from pocket_plug.traces.recorded import Event, RecordedSpan, SpanLink, Trace

HOSTILE = '</script ></script><script>alert(1)</script><!--<script>{{script}}\u2028"\\'


def span(number: int, parent: int | None = None, **changes: Any) -> RecordedSpan:
    """A span by its number, with its start in microseconds."""
    start = 1_800_000_000_000_000_000 + number * 1000
    plain = RecordedSpan(f"{7:032x}", f"{number:016x}", None if parent is None else f"{parent:016x}", f"node {number}", 1,
                         "pocket_plug.graph", start, start + 500, {}, resource={"service.name": "tests"})  # fmt: skip
    return replace(plain, **changes)


def trace(*spans: RecordedSpan) -> Trace:
    """A trace of these spans."""
    return Trace(f"{7:032x}", spans)


class Reader(HTMLParser):
    """What a browser would see: the tags with their attributes, and the text in each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []  # style, data, script
        self.open = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag in ("script", "style")
        if self.open:
            self.inside.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside[-1] += data


def data_of(html: str) -> dict[str, Any]:
    """The data in a page."""
    return json.loads(Reader(html).inside[1], parse_constant=refuse)


def refuse(text: str) -> None:
    """NaN and the infinities are no JSON in JavaScript."""
    raise AssertionError(f"{text} is no JSON")


def attributes_of(data: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Attributes by name, restored."""
    return {data["texts"][name]: value for name, value in (data["pairs"][number] for number in numbers)}


TEXTS = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    [HOSTILE, "\ud800", "{{data}}", "]]>", "<!--"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=9) | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(name=TEXTS, attributes=st.dictionaries(TEXTS, VALUES, max_size=4), message=TEXTS)
def test_no_text_of_a_trace_is_markup(name, attributes, message):
    """Whatever a name, an attribute or a message contains: the page has the same elements and the same scripts."""
    event, link = Event(name, 5, attributes), SpanLink(name, message, attributes)
    odd = span(1, name=name, attributes=attributes, message=message, scope=name, resource=attributes, events=(event,),
               links=(link,), span_id=name)  # fmt: skip
    plain, hostile = Reader(page([trace(span(1))])), Reader(page([trace(odd)]))
    assert hostile.tags == plain.tags
    assert hostile.inside[0::2] == plain.inside[0::2]
    assert "<" not in hostile.inside[1]
    data = data_of(page([trace(odd)]))
    assert data["texts"][data["traces"][0]["names"][0]] == name


def test_the_page_loads_nothing_else():
    """No element loads anything, and the policy forbids it: only this style and this script, by their hashes."""
    reader = Reader(page([trace(span(1))]))
    for tag, attributes in reader.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not attributes.keys() & {"src", "href", "style"}
        assert not any(name.startswith("on") for name in attributes)
    style, _, script = reader.inside
    for text in (style, script):
        assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|innerHTML|import\(|eval\(", text)
    [policy] = [found["content"] for tag, found in reader.tags if tag == "meta" and "http-equiv" in found]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for kind, text in (("style-src", style), ("script-src", script)):
        assert f"{kind} 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy


def test_all_spans_are_in_the_data():
    """Each with its parent (its position, or its id if it is missing), times, status, attributes, events, links, resource."""
    failed = span(
        2,
        1,
        status="error",
        message="no",
        attributes={"pocket_plug.attempt": 2},
        scope="pocket_plug.phase",
        events=(Event("exception", span(2).start + 7, {"exception.type": "ValueError"}),),
        links=(SpanLink("a" * 32, "b" * 16, {"why": "resumed"}),),
    )
    data = data_of(page([trace(span(1), failed, span(3, 99, end=0))]))
    [one] = data["traces"]
    assert (one["id"], one["start"]) == (f"{7:032x}", str(span(1).start))
    assert one["ids"][0] == f"{1:016x}"
    assert one["parents"] == [None, 0, f"{99:016x}"]
    assert (data["texts"][one["names"][1]], data["texts"][one["scopes"][1]]) == ("node 2", "pocket_plug.phase")
    assert [one[column][1] for column in ("kinds", "starts", "took", "status")] == [1, 1000, 500, 2]
    assert one["took"][2] == -1  # not ended
    assert attributes_of(data, one["attributes"][1]) == {"pocket_plug.attempt": 2}
    assert attributes_of(data, data["resources"][one["resources"][1]]) == {"service.name": "tests"}
    assert one["more"].keys() == {"1"}
    more = one["more"]["1"]
    [[name, time, numbers]] = more["events"]
    assert (name, time, attributes_of(data, numbers)) == ("exception", 1007, {"exception.type": "ValueError"})
    [[trace_id, span_id, numbers]] = more["links"]
    assert (trace_id, span_id, attributes_of(data, numbers)) == ("a" * 32, "b" * 16, {"why": "resumed"})
    assert more["message"] == "no"


def test_frames_of_a_stack():
    """Each stack is in the data once, with its frames, and which of them are the user's."""
    stack = 'Traceback:\n  File "/app/shop.py", line 41, in charge\n  File "/x/site-packages/httpx/a.py", line 9, in send\nE: no'
    event = Event("exception", span(1).start, {"exception.stacktrace": stack})
    data = data_of(page([trace(span(1, events=(event,)), span(2, events=(event,)))]))
    [[number, frames]] = data["frames"].items()
    assert data["pairs"][int(number)][1] == stack
    texts = data["texts"]
    assert [(texts[file], line, texts[name], users) for file, line, name, users in frames] == [
        ("/app/shop.py", 41, "charge", True),
        ("/x/site-packages/httpx/a.py", 9, "send", False),
    ]


def test_errors_are_the_same_as_in_the_terminal():
    """Each failed span has its error's type, message, place and stack, and whether the error is its own or came from below."""
    stack = 'Traceback:\n  File "/app/shop.py", line 41, in charge\nE: no'
    said = {"exception.type": "shop.E", "exception.message": "no", "exception.stacktrace": stack}
    event, kind = Event("exception", span(2).start, said), {"error.type": "shop.E"}
    again = {
        "error.type": "OSError",
        "pocket_plug.attempt.will_retry": True,
        "code.file.path": "/app/cart.py",
        "code.line.number": 7,
    }
    spans = [span(1, status="error", attributes=kind), span(2, 1, status="error", attributes=kind, events=(event,)),
             span(3, 1, status="error", attributes=again), span(4, 1), span(5, 1, status="error")]  # fmt: skip
    data = data_of(page([trace(*spans)]))
    errors = {number: more["error"] for number, more in data["traces"][0]["more"].items() if "error" in more}
    assert {number: (each["type"], each["message"], each["own"]) for number, each in errors.items()} == {
        "0": ("E", "", False),
        "1": ("E", "no", True),
        "2": ("OSError", "", False),
        "4": ("error", "", True),
    }
    places = {number: (data["texts"][each["at"][0]], each["at"][1]) for number, each in errors.items() if "at" in each}
    assert places == {"1": ("/app/shop.py", 41), "2": ("/app/cart.py", 7)}
    assert data["pairs"][errors["1"]["stack"]][1] == stack
    assert str(errors["1"]["stack"]) in data["frames"]


def test_values_are_exact():
    """Values that JavaScript would round or JSON can't represent are texts; 1, 1.0, True and "1" stay four values."""
    values = {"whole": 2**53, "small": -5, "nan": math.nan, "far": -math.inf, "one": 1, "float": 1.0, "true": True, "text": "1",
              "none": None, "bytes": b"\x00\x01", "list": ("a\tb", 2**60), "deep": {"k": [math.inf]}}  # fmt: skip
    data = data_of(page([trace(span(1, attributes=values))]))
    found = attributes_of(data, data["traces"][0]["attributes"][0])
    assert found == {"whole": "9007199254740992", "small": -5, "nan": "nan", "far": "-inf", "one": 1, "float": 1.0,
                     "true": True, "text": "1", "none": None, "bytes": "AAE=", "list": ["a\tb", str(2**60)],
                     "deep": {"k": ["inf"]}}  # fmt: skip
    assert [type(found[name]) for name in ("one", "float", "true")] == [int, float, bool]


def test_repeated_data_is_there_once():
    """A span costs some 80 bytes besides its own data: names, scopes, resources and equal attributes are shared."""
    same = {"pocket_plug.run.id": "0123456789abcdef0123", "pocket_plug.graph.name": "a graph with a longer name"}
    many = [span(number, 0, name="node same", attributes=same) for number in range(2000)]
    empty, full = len(page([])), len(page([trace(*many)]))
    assert (full - empty) / len(many) < 80


def test_page_without_traces():
    """No traces, or a trace without spans: a page that says so, no error."""
    assert data_of(page([]))["traces"] == []
    assert data_of(page([trace()]))["traces"][0]["ids"] == []


# ---------------------------------------------------------------- colours
STYLE = files("pocket_plug.traces").joinpath("viewer", "page.css").read_text(encoding="utf-8")
PAIRS = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", STYLE)
LIGHT, DARK = {name: light for name, light, _ in PAIRS}, {name: dark for name, _, dark in PAIRS}
TEXT = [(ink, ground) for ink in ("ink", "soft") for ground in ("ground", "panel", "raised", "chosen")]
TEXT += [(name, f"{name}-ground") for name in ("good", "bad", "warn", "blue", "grey")]
BARS = [
    (bar, "ground") for bar in ("run", "node", "item", "phase", "store", "foreign", "bad", "warn-bar", "grey", "accent")
]
BARS += [("strong-line", "panel"), ("strong-line", "raised")]


def contrast(one: str, other: str) -> float:
    """As defined by WCAG: from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        return sum(
            share * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
            for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_apart(colours):
    """WCAG's level AA: 4.5 to 1 for text, 3 to 1 for important bars and borders."""
    assert {pair: ratio for pair in TEXT if (ratio := contrast(*(colours[name] for name in pair))) < 4.5} == {}
    assert {pair: ratio for pair in BARS if (ratio := contrast(*(colours[name] for name in pair))) < 3} == {}
