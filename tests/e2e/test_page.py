"""The page of traces in a real browser: what it shows, how mouse and keys work, and that it does nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import pocket_plug as pp
from pocket_plug.traces.by_name import stats_by_name
from pocket_plug.traces.failing import failures, grouped
from pocket_plug.traces.page import page as html_of
from pocket_plug.traces.recorded import Event, RecordedSpan, Trace, read_traces

AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"
ITEMS = 150  # more than get spans
TOTAL = pp.Key("total:{}", int)


# ---------------------------------------------------------------- the traced programs
@pp.node
def find(number: int) -> list[int]:
    """Returns the items."""
    return list(range(number))


class Price(pp.Node[int, int], retry=pp.Retry(attempts=2)):
    """The fourth item is retried."""

    def __init__(self) -> None:
        self.refused = False

    async def exec(self, item: int) -> int:
        if item == 3 and not self.refused:
            self.refused = True
            raise TimeoutError("slow")
        return item


class Rate(pp.Node[list[int], int]):
    """Always uses the fallback."""

    async def exec(self, prices: list[int]) -> int:
        raise ConnectionError("no rates")

    def fallback(self, prices: list[int], error: Exception) -> int:
        return len(prices)


class Check(pp.Node[int, int]):
    """Sends the run back once; its action `refuse` is never taken."""

    again = pp.Action[list[int]]()
    refused = pp.Action[int]()

    async def post(self, store: pp.StoreWriter, input: int, prepared: int, result: int) -> int | pp.Next[list[int]]:
        times = await store.update(TOTAL("eu"), lambda total: total + 1, default=0)
        return self.again([input]) if times == 1 else input


@pp.node
def refuse(number: int) -> str:
    """Is never visited."""
    return "refused"


@pp.node
def tax(number: int) -> int:
    """Within the nested graph."""
    return number


@pp.node
def ship(number: int) -> str:
    """Fails."""
    raise KeyError("port")


@pp.node
def mail(text: str) -> str:
    """Is not reached."""
    return text


def orders(file: Path) -> None:
    """Trace a run with some of everything into a file."""
    rate, check = Rate(), Check()
    whole = find >> pp.each(Price()) >> rate >> check >> pp.Graph(tax, name="billing") >> ship >> mail
    graph = pp.Graph(
        whole, check.again >> rate, check.refused >> refuse, store=pp.Store(layers=["tracing"]), name="orders"
    )
    with pp.observe(file=file, terminal=False), pytest.raises(KeyError):
        graph.run_sync(ITEMS)


approve = pp.Ask[int, bool](bool, question=lambda number: f"{number}?", name="approve")


def approval(file: Path, store: Path) -> None:
    """Trace a run that is suspended, and its second execution, into a file."""
    with pp.SyncStore(f"sqlite:///{store}", layers=["tracing"]) as opened:

        @pp.node
        def done(answered: pp.Answered[int, bool]) -> str:
            return f"{answered.input}: {answered.answer}"

        graph = pp.Graph(tax >> approve >> done, store=opened, name="approval")
        with pp.observe(file=file, terminal=False):
            with pytest.raises(pp.RunSuspendedError):
                graph.run_sync(7, run_id="seven")
            graph.resume_sync("seven", answer=True)


def span(number: int, parent: int | None, **changes: Any) -> RecordedSpan:
    """A made-up span of one trace."""
    start = 1_800_000_000_000_000_000 + number * 10_000
    given: dict[str, Any] = {
        "trace_id": "7" * 32,
        "span_id": f"{number:016x}",
        "parent_id": None if parent is None else f"{parent:016x}",
        "name": f"node n{number}",
        "kind": 1,
        "scope": "pocket_plug.graph",
        "start": start,
        "end": start + 9_000,
        "attributes": {},
    }
    return RecordedSpan(**given | changes)


# ---------------------------------------------------------------- the browser
class Opened:
    """A page in the browser, and everything it did that it must not do."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.wrong.append(f"request: {request.url}"))
        page.on("popup", lambda popup: self.wrong.append("a second page"))


@pytest.fixture
def show(browser, tmp_path) -> Iterator[Callable[..., Page]]:
    """Opens the page of traces; at the end, no page has executed a script from the data, failed, or sent a request."""
    opened: list[Opened] = []

    def open_page(traces: list[Trace], address: str | None = None, **options: Any) -> Page:
        file = tmp_path / f"page-{len(opened)}.html"
        file.write_text(html_of(traces), encoding="utf-8")
        one = Opened(browser.new_page(**{"viewport": {"width": 1300, "height": 850}} | options))
        opened.append(one)
        one.page.goto(address or file.as_uri())
        assert one.wrong.pop(0).startswith("request: file:")
        return one.page

    yield open_page
    for one in opened:
        one.page.close()
        assert one.wrong == []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[Trace]:
    """The run with some of everything."""
    file = tmp_path_factory.mktemp("orders") / "traces.jsonl"
    with ThreadPoolExecutor() as pool:  # this thread runs the browser's event loop
        pool.submit(orders, file).result()
    return read_traces(file)


@pytest.fixture
def page(show, recorded) -> Page:
    """The page of that run, at its first row and without details."""
    page = show(recorded)
    page.keyboard.press("Escape")
    page.locator("#rows").press("Home")
    return page


def names(page: Page) -> list[str]:
    """The names in the visible rows, from the top."""
    rows = page.locator(".row").all()
    texts = [(int(row.get_attribute("aria-rowindex") or 0), row.locator(".name").inner_text()) for row in rows]
    return [text for _, text in sorted(texts)]


def bar(page: Page, name: str) -> Any:
    """The position and width of a row's bar: read in one step, since rows may be redrawn meanwhile."""
    found = """name => {
        const row = [...document.querySelectorAll(".row")].find(row => row.querySelector(".name").innerText === name);
        const {x, width} = row.querySelector(".bar").getBoundingClientRect();
        return {x, width, whole: row.querySelector(".track").clientWidth};
    }"""
    return page.evaluate(found, name)


def row(page: Page, name: str) -> Any:
    """The first row with that name."""
    return page.locator(".row").filter(has=page.locator(".name", has_text=re.compile(rf"^{re.escape(name)}$"))).first


# ---------------------------------------------------------------- what it shows
def test_head(page, recorded):
    """At the top: the graph, the run's outcome, its id, steps, spans, errors, retries, and the service."""
    head = page.locator("#head")
    for text in ("orders", "✗ failure", recorded[0].run_id, f"{len(recorded[0].spans):,}"):
        expect(head).to_contain_text(text)
    figures = dict(
        zip(page.locator("#figures dt").all_inner_texts(), page.locator("#figures dd").all_inner_texts(), strict=True)
    )
    assert figures["steps"] == str(recorded[0].root.attributes["pocket_plug.run.steps"])
    assert (figures["errors"], figures["retries"]) == (str(recorded[0].errors), str(recorded[0].retries))
    assert page.title() == "orders · failure"


def test_the_head_says_when_it_began_for_readers_elsewhere(show, recorded):
    """A page is kept and sent to others: the time is the reader's, with its zone, and of another year with that year."""
    old = span(0, None, start=1_600_000_000 * 10**9, end=1_600_000_001 * 10**9)
    page = show(
        [Trace("7" * 32, (old,))], timezone_id="Asia/Tokyo", locale="en-US", viewport={"width": 1024, "height": 768}
    )
    began = page.locator("#figures div", has_text="began").locator("dd")
    expect(began).to_have_text("Sep 13, 2020, 21:26:40 GMT+9")
    page = show(recorded, viewport={"width": 1024, "height": 768})
    assert page.locator("#theme").bounding_box()["y"] < page.locator("#figures").bounding_box()["y"] + 20, "one line"


def test_waterfall(page):
    """Spans in tree order, with levels, marks for failures, and bars at their place in time."""
    assert names(page)[:4] == ["run orders", "node find", "exec find", "node each_price"]
    assert [row(page, name).get_attribute("aria-level") for name in ("run orders", "node find", "exec find")] == [
        "1",
        "2",
        "3",
    ]
    expect(row(page, "run orders")).to_contain_text("✗ KeyError")
    expect(row(page, "node each_price")).to_contain_text(f"of {ITEMS} items shown")
    page.locator("#search").fill("timeouterror")
    expect(page.locator(".row", has_text="↻ TimeoutError")).to_have_count(1)
    page.locator("#search").fill("name=rate")
    expect(row(page, "node rate")).to_contain_text("⤵ fallback")
    expect(page.locator(".row", has_text="visit 2").first).to_be_visible()
    page.locator("#search").fill("")
    expect(row(page, "node find")).to_be_visible()
    whole, first, second = (bar(page, name) for name in ("run orders", "node find", "node each_price"))
    assert whole["x"] <= first["x"] < second["x"]
    assert max(first["width"], second["width"]) < whole["width"]


def test_path_in_the_graph(page):
    """Edges that were taken or not, how often, the outcome of each node, retries, items, and the end."""
    ways = {
        way.get_attribute("data-way"): way.get_attribute("data-times") for way in page.locator("path[data-way]").all()
    }
    assert ways == {
        "find>default>each_price": "1",
        "each_price>default>rate": "1",
        "rate>default>check": "2",
        "check>again>rate": "1",
        "check>default>billing": "1",
        "check>refused>refuse": "0",
        "billing>default>ship": "1",
        "ship>default>mail": "0",
    }
    classes = {
        node.get_attribute("data-node"): node.get_attribute("class").split()[1] for node in page.locator(".place").all()
    }
    assert classes == {
        "find": "ok",
        "each_price": "ok",
        "rate": "fallback",
        "check": "ok",
        "billing": "ok",
        "ship": "failed",
        "refuse": "unvisited",
        "mail": "unvisited",
    }
    expect(page.locator("[data-node=each_price]")).to_contain_text(f"{ITEMS} items")
    expect(page.locator("[data-node=check]")).to_contain_text("\N{MULTIPLICATION SIGN}2")
    expect(page.locator(".end")).to_have_class("end bad")
    boxes = {name: page.locator(f"[data-node={name}] .box").bounding_box() for name in classes}
    # the edge back doesn't count
    assert boxes["find"]["x"] < boxes["rate"]["x"] < boxes["check"]["x"] < boxes["ship"]["x"]


def test_graph_and_waterfall_go_together(page):
    """A click on a node selects its visits, one after another; a selected span shows its node."""
    node = page.locator("[data-node=check]")
    node.click()
    first = page.locator(".row.selected").get_attribute("data-span")
    expect(page.locator(".row.selected .name")).to_have_text("node check")
    node.click()
    assert page.locator(".row.selected").get_attribute("data-span") != first
    page.locator("#rows").focus()
    page.keyboard.press("Home")
    row(page, "exec find").click()
    expect(page.locator("[data-node=find]")).to_have_class(re.compile("selected"))
    expect(node).not_to_have_class(re.compile("selected"))


def test_nested_graph(page):
    """A nested run has a graph of its own, which follows the selected span; the breadcrumbs lead back."""
    page.locator("[data-node=billing]").dblclick()
    expect(page.locator(".place")).to_have_count(1)
    expect(page.locator("#crumbs")).to_have_text(re.compile("orders.billing"))
    page.locator("#crumbs button").click()
    expect(page.locator(".place")).to_have_count(8)
    page.locator("#search").fill("exec tax")
    row(page, "exec tax").click()
    expect(page.locator("#crumbs b")).to_have_text("billing")


def joined(file: Path) -> None:
    """Trace a run of two branches that join into a file."""
    graph = pp.Graph(pp.gather(tax, refuse >> mail) >> pp.node(str, name="both"), name="joined")
    with pp.observe(file=file, terminal=False):
        graph.run_sync(7)


def test_branches(show, tmp_path):
    """The graph of a gather has a beginning for each branch, and no node that nobody wrote."""
    file = tmp_path / "traces.jsonl"
    with ThreadPoolExecutor() as pool:
        pool.submit(joined, file).result()
    page = show(read_traces(file))
    page.locator("[data-node=gather_tax_refuse]").dblclick()
    expect(page.locator("#crumbs b")).to_have_text("branches")
    expect(page.locator(".place")).to_have_count(3)
    expect(page.locator("circle.begin")).to_have_count(2)
    expect(page.locator(".way.idle")).to_have_count(0)


def test_details(page):
    """All about a span: figures, message, exception with its stack, attributes, ids."""
    page.locator("#search").fill("exec ship")
    row(page, "exec ship").dblclick()
    details = page.locator("#details")
    expect(details.locator("h2")).to_have_text("exec ship")
    expect(details.locator(".stack")).to_contain_text("in ship")
    expect(details.get_by_text("self", exact=True)).to_be_visible()
    cells = dict(zip(details.locator("th").all_inner_texts(), details.locator("td").all_inner_texts(), strict=True))
    assert cells["error.type"].startswith("KeyError")
    assert any(name.endswith("attempt") for name in cells)
    details.get_by_label("close the details").click()
    expect(details).to_be_hidden()


# ---------------------------------------------------------------- failures
def test_it_opens_at_the_failure(show, recorded):
    """The error of the run is selected and visible, and its details begin with the error: type, the user's frame, the rest."""
    page = show(recorded)
    expect(page.locator(".row.selected .name")).to_have_text("exec ship")
    expect(page.locator(".row.selected")).to_be_in_viewport()
    error = page.locator("#details > header + section")
    expect(error.locator("h3")).to_have_text("✗ KeyError")
    expect(error.locator(".frame").first).to_contain_text(re.compile(r"^test_page\.py:\d+ in ship"))
    expect(error.locator(".frame").nth(1)).to_be_hidden()
    error.locator("summary").first.click()
    expect(error.locator(".frame").nth(1)).to_be_visible()
    error.get_by_text("copy the error").click()
    expect(error.locator(".copy")).to_have_text(re.compile("^(not )?copied$"))
    page.locator("#rows").press("Home")  # the run shows where its error arose
    page.get_by_text("raised in exec ship").click()
    expect(page.locator(".row.selected .name")).to_have_text("exec ship")


def test_an_error_without_a_frame_of_the_user(show):
    """For a timeout, for example: the place to look at first is the definition of the node."""
    file = "/x/site-packages/pocket_plug/graph/running/phase_calls.py"
    stack = f'Traceback:\n  File "{file}", line 170, in attempt\nNodeTimeoutError: slow'
    event = Event("exception", span(1, 0).end, {"exception.type": "NodeTimeoutError", "exception.stacktrace": stack})
    written = {"code.file.path": "/app/shop.py", "code.line.number": 41, "code.function.name": "shop.hurry"}
    spans = [span(0, None, name="node hurry", attributes=written, status="error"),
             span(1, 0, name="exec hurry", scope="pocket_plug.phase", status="error", events=(event,))]  # fmt: skip
    page = show([Trace("7" * 32, tuple(spans))])
    expect(page.locator("#details .frame").first).to_contain_text("shop.py:41 in shop.hurry")
    expect(page.locator("#details .frame").nth(1)).to_contain_text("phase_calls.py:170 in attempt")


def test_it_opens_where_the_address_says(show, recorded):
    """An address that names a span has priority over a failure."""
    page = show(recorded)
    root = recorded[0].root
    address = f"{page.url.split('#')[0]}#{root.trace_id}/{root.span_id}"
    again = show(recorded, address=address)
    expect(again.locator(".row.selected .name")).to_have_text("run orders")
    expect(again.locator("#details h2")).to_have_text("run orders")


def test_errors_by_type_and_place(page):
    """The number of errors opens a list of them, the run's own error first; each click on a group goes to its next error."""
    page.locator("#figures .bad button").click()
    problems = page.locator(".problem")
    expect(problems.locator("b")).to_have_text(["KeyError", "ConnectionError", "TimeoutError"])
    expect(problems.nth(1)).to_contain_text(re.compile(r"test_page\.py:\d+ in (Rate\.)?exec✗ 2 errors"))
    expect(problems.nth(2)).to_contain_text("↻ 1 retried")
    seen = []
    for turn in ("1 of 2", "2 of 2", "1 of 2"):
        problems.nth(1).click()
        expect(problems.nth(1).locator(".turn")).to_have_text(turn)
        expect(page.locator("#details h2")).to_have_text("exec rate")
        seen.append(page.evaluate("location.hash"))
    assert seen[0] == seen[2] != seen[1]
    page.get_by_role("tab", name="Waterfall").click()
    expect(page.locator(".row.selected .name")).to_have_text("exec rate")
    expect(page.locator(".row.selected")).to_be_in_viewport()


# ---------------------------------------------------------------- the table
def column(page: Page, name: str) -> list[str]:
    """The cells of a column of the table; the first column is "name"."""
    cells = "#by-name tbody th" if name == "name" else f'#by-name [data-of="{name}"]'
    return page.locator(cells).all_inner_texts()


def test_table_by_name(page, recorded):
    """Each name with its number, p50, p95, maximum, total, self time and errors; a click on a column sorts, on a name filters."""
    page.get_by_role("tab", name="Table").click()
    counts, errors = (dict(zip(column(page, "name"), column(page, each), strict=True)) for each in ("count", "errors"))
    assert (counts["node rate"], errors["node rate"]) == ("2", "0")
    assert (counts["exec rate"], errors["exec rate"]) == ("2", "2")
    assert sum(map(int, counts.values())) == len(recorded[0].spans)
    assert column(page, "name")[0] == "run orders"  # by total
    for header in ("Count", "p50", "p95", "Max", "Self", "Errors", "Name"):
        page.get_by_role("button", name=header, exact=True).click()
        order = "ascending" if header == "Name" else "descending"
        expect(page.locator(f'#by-name th[aria-sort="{order}"]')).to_have_text(header)
    assert column(page, "name") == sorted(column(page, "name"))
    page.locator("#by-name tbody button", has_text="node rate").click()
    assert names(page) == ["run orders", "node rate", "node rate"]
    page.locator("#only").click()
    expect(row(page, "node find")).to_be_visible()


def test_figures_of_the_table(show):
    """p50 and p95 are those of `trace stats`; self time is the time that no child covers."""
    spans = [span(0, None, name="run r", end=span(100, 0).end)]
    spans += [span(number, 0, name="node n", end=span(number, 0).start + number * 1000) for number in range(1, 101)]
    page = show([Trace("7" * 32, tuple(spans))])
    page.get_by_role("tab", name="Table").click()
    [line] = [texts for texts in page.locator("#by-name tbody tr").all_inner_texts() if "node n" in texts]
    assert line.split("\t")[1:5] == ["100", "51 µs", "95 µs", "100 µs"]


def handed_up() -> Trace:
    """An error that went through three spans, one that was retried, one name in two scopes, and a span that hasn't ended."""
    error = {"error.type": "KeyError"}
    spans = [
        span(0, None, name="run r", end=span(9, 0).end, status="error", attributes=error),
        span(1, 0, name="node n", end=span(6, 0).end, status="error", attributes=error),
        span(2, 1, name="exec n", status="error", attributes=error | {"pocket_plug.attempt.will_retry": True}),
        span(3, 1, name="exec n", end=span(5, 0).end, status="error", attributes=error),
        span(4, 3, name="GET /", scope="http"),
        span(5, 1, name="GET /", status="error", attributes={"error.type": "500"}),
        span(8, 0, name="node n", end=0),
        span(9, 0, name="exec m", end=0),
    ]
    return Trace("7" * 32, tuple(spans))


@pytest.mark.parametrize("what", ["recorded", "made up"])
def test_the_figures_are_those_of_the_terminal(show, recorded, what):
    """The table has the names and figures that `trace show --stats` prints, the head and the list the same number of errors."""
    trace = recorded[0] if what == "recorded" else handed_up()
    page = show([trace])
    page.get_by_role("tab", name="Table").click()
    lines = page.evaluate("names.lines.map(({name, count, errors, median, p95, longest, total, self}) =>"
                          " [name, count, errors, median, p95, longest, total, self])")  # fmt: skip
    expected = [[each.name, each.count, each.errors, each.p50, each.p95, each.max, each.total, each.own]
                for each in stats_by_name(trace.spans)]  # fmt: skip
    assert sorted(lines) == sorted(expected)
    assert page.evaluate("trace.errors") == trace.errors
    places = page.evaluate("groupsOfErrors(trace).filter(({failed}) => failed).map(({type, at, failed}) =>"
                           " [type, at ? placeOf(at) : '', failed])")  # fmt: skip
    groups = grouped(failures(trace.spans))
    assert sorted(places) == sorted([group[0].kind, group[0].place, len(group)] for group in groups)


# ---------------------------------------------------------------- time
def spread_out() -> Trace:
    """A run of 100 µs: `a` for 40, then `c` for 50 with `d` in it for 30, and `b` at the same time as both."""
    times = {
        "run r": (0, 100, None),
        "node a": (0, 40, 0),
        "node b": (10, 50, 0),
        "node c": (45, 95, 0),
        "exec d": (60, 90, 3),
    }
    begun = span(0, None).start
    spans = [span(number, parent, name=name, start=begun + start * 1000, end=begun + end * 1000)
             for number, (name, (start, end, parent)) in enumerate(times.items())]  # fmt: skip
    return Trace("7" * 32, tuple(spans))


def test_critical_path(show):
    """The spans that determine the run's duration are marked, each with its own part; the sum is the
    duration, in the table too.
    """
    page = show([spread_out()])
    expect(page.locator(".row.critical")).to_have_count(0)
    page.keyboard.press("c")
    expect(page.locator("#path")).to_have_attribute("aria-pressed", "true")
    own = {"run r": "◆ 10 µs", "node a": "◆ 40 µs", "node c": "◆ 20 µs", "exec d": "◆ 30 µs"}
    for name, part in own.items():
        expect(row(page, name).locator(".mark.path")).to_have_text(part)
        assert row(page, name).locator(".part-of-path").count()
    expect(page.locator(".row.critical")).to_have_count(len(own))
    page.get_by_role("tab", name="Table").click()
    assert sorted(column(page, "path")) == sorted(["0", *(part[2:] for part in own.values())])


def test_sorted_and_filtered_by_duration(show):
    """`>40us` keeps spans that took longer, and their ancestors; sorted by duration, the longest child is first."""
    page = show([spread_out()])
    assert names(page) == ["run r", "node a", "node b", "node c", "exec d"]
    page.locator("#by-duration").click()
    assert names(page) == ["run r", "node c", "exec d", "node a", "node b"]
    page.keyboard.press("d")
    assert names(page)[1] == "node a"
    for query, found in {">40us": ["run r", "node a", "node b", "node c"], "<0.03ms": ["run r", "node c", "exec d"],
                         ">30µs exec": ["run r", "node c", "exec d"]}.items():  # fmt: skip
        page.locator("#search").fill(query)
        expect(page.locator("#found")).to_be_visible()
        assert names(page) == found


def test_two_traces_compared(show):
    """With another trace of the page: by name, the figures of each and the differences, the largest first."""
    before = visits(10, odd=0)
    *later, last = (
        replace(each, trace_id="8" * 32, start=each.start + 1, end=each.end + 1) for each in visits(20, odd=3).spans
    )
    after = Trace("8" * 32, (*later, replace(last, name="node new")))
    page = show([before, after])
    page.get_by_role("tab", name="Table").click()
    expect(page.locator("#by-name thead th")).to_have_count(9)
    page.locator("#compare").select_option(index=1)
    lines = {line.split("\t")[0]: line.split("\t")[1:] for line in page.locator("#by-name tbody tr").all_inner_texts()}
    count, other, more = lines["node step"][:3]
    assert (count, other, more) == ("19", "10", "+9")
    assert lines["node new"][:3] == ["1", "0", "+1"]
    assert lines["node step"][-3:] == ["1", "0", "+1"]  # errors
    sums = [lines["node step"][at] for at in (6, 7, 8)]
    assert sums == ["190 µs", "55 µs", "+135 µs"]
    assert next(iter(lines)) == "node step"
    page.locator("#compare").select_option(index=0)
    expect(page.locator("#by-name thead th")).to_have_count(9)


# ---------------------------------------------------------------- accessibility
LONG = "node a_rather_long_name_of_a_node_that_somebody_gave_it_for_a_reason"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing(show, recorded, width, colours):
    """No view breaks a rule of accessibility that axe checks, wide or narrow, light or dark."""
    model = Trace("7" * 32, (span(0, None, name="run r"), span(1, 0, name="chat", scope="llm", attributes=GEN_AI)))
    page = show([*recorded, model], color_scheme=colours, viewport={"width": width, "height": 850})
    page.evaluate(AXE.read_text(encoding="utf-8"))

    def check(view: str) -> None:
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert [(view, each["id"], each["nodes"][0]["target"]) for each in found["violations"]] == []

    page.locator("#traces").select_option(value=recorded[0].id)
    check("opened at the failure")
    page.get_by_label("close the details").click()
    page.keyboard.press("c")
    check("waterfall")
    page.get_by_role("tab", name="Table").click()
    check("table")
    page.locator("#compare").select_option(index=1)
    check("comparison")
    page.get_by_role("tab", name="Errors").click()
    check("errors")
    page.keyboard.press("?")
    check("keys")
    page.keyboard.press("Escape")
    page.locator("#traces").select_option(value=model.id)
    page.get_by_role("tab", name="Waterfall").click()
    row(page, "chat").dblclick()
    check("conversation")


def test_narrow_hides_no_name(show, recorded):
    """At 390 px each name is shown in full, also with marks beside it or deep in the tree."""
    deep = [span(number, number - 1 if number else None, name=LONG, status="error") for number in range(12)]
    for trace in (recorded[0], Trace("7" * 32, tuple(deep))):
        page = show([trace], viewport={"width": 390, "height": 780})
        page.get_by_label("close the details").click()
        page.locator("#rows").press("Home")
        page.keyboard.press("c")
        cut = """() => [...document.querySelectorAll('.row')].filter(row => {
            const shown = row.querySelector('.name');
            const [name, box] = [shown, row.querySelector('.label')].map(each => each.getBoundingClientRect());
            const above = name.top < box.top - 1 || name.bottom > box.bottom + 1;
            return above || name.right > box.right + 1 || shown.scrollWidth > shown.clientWidth;
        }).map(row => row.querySelector('.name').textContent)"""
        assert page.locator(".row").count() > 10
        assert page.evaluate(cut) == []


def test_marks_give_way_to_names(show):
    """Beside the details at 1024 px, the end of a long mark is left out, with an ellipsis, rather than that of a name."""
    error = {"error.type": "builtins.ValueError", "pocket_plug.retry.delay": 0.005, "pocket_plug.attempt": 2}
    deep = [span(number, number - 1 if number else None, name=f"node n{number}") for number in range(5)]
    deep.append(span(5, 4, name="exec settle_up", status="error", attributes=error))
    page = show([Trace("7" * 32, tuple(deep))], viewport={"width": 1024, "height": 768})
    page.locator("#rows").press("End")
    page.keyboard.press("Enter")
    label = row(page, "exec settle_up").locator(".label")
    assert label.locator(".name").evaluate("name => name.scrollWidth <= name.clientWidth")
    assert label.evaluate("label => label.scrollWidth <= label.clientWidth")
    assert label.locator(".mark").evaluate_all("marks => marks.some(mark => mark.scrollWidth > mark.clientWidth)")


# ---------------------------------------------------------------- model calls
CALL = {"city": "Oslo <b>"}
OPENINFERENCE = {
    "llm.model_name": "gemma-3", "llm.token_count.prompt": 1200, "llm.token_count.completion": 34,
    "llm.cost.prompt": 0.001, "llm.cost.completion": 0.0005, "input.value": "{}",
    "llm.input_messages.0.message.role": "system", "llm.input_messages.0.message.content": "Be brief.",
    "llm.input_messages.1.message.role": "user",
    "llm.input_messages.1.message.contents.0.message_content.text": "Weather in Oslo?",
    "llm.input_messages.10.message.role": "tool", "llm.input_messages.10.message.content": "57°F",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "get_weather",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": json.dumps(CALL),
}  # fmt: skip
GEN_AI = {
    "gen_ai.provider.name": "acme", "gen_ai.request.model": "gemma-3", "gen_ai.usage.input_tokens": 1200,
    "gen_ai.usage.output_tokens": 34,
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
    "gen_ai.input.messages": json.dumps([
        {"role": "user", "parts": [{"type": "text", "content": "Weather in Oslo?"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "57°F"}]}]),
    "gen_ai.output.messages": json.dumps([
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c2", "name": "get_weather", "arguments": CALL}]}]),
}  # fmt: skip
STRUCTURED = GEN_AI | {
    name: json.loads(text) for name, text in GEN_AI.items() if isinstance(text, str) and text[0] == "["
}


@pytest.mark.parametrize("said", [OPENINFERENCE, GEN_AI, STRUCTURED], ids=["openinference", "gen_ai", "structured"])
def test_conversation_of_a_model(show, said):
    """Model, tokens and messages with their roles and tool calls, by either convention; totals at the top."""
    agent = {"gen_ai.usage.input_tokens": 2400, "gen_ai.usage.output_tokens": 68}  # repeats the sum of its calls
    calls = [span(number, 1, name="chat gemma-3", scope="llm", kind=3, attributes=said) for number in (2, 3)]
    page = show([Trace("7" * 32, (span(0, None, name="run r"), span(1, 0, name="agent", attributes=agent), *calls))])
    expect(page.locator("#figures")).to_contain_text("2,400 in · 68 out")
    if said is OPENINFERENCE:
        expect(page.locator("#figures")).to_contain_text("$0.003")
    expect(row(page, "chat gemma-3")).to_contain_text("1,200 in · 34 out tokens")
    row(page, "chat gemma-3").dblclick()
    details = page.locator("#details")
    expect(details.locator(".conversation .who b")).to_have_text(["system", "user", "tool", "assistant"])
    parts = details.locator(".conversation .part")
    for part, text in zip(parts.all(), ("Be brief.", "Weather in Oslo?", "57°F", "get_weather"), strict=True):
        expect(part).to_contain_text(text)
    expect(parts.nth(2)).to_contain_text("← result")
    expect(parts.last.locator("pre")).to_have_text(re.compile(r'"city": "Oslo <b>"'))
    expect(details).to_contain_text("gemma-3")
    assert not [name for name in details.locator("th").all_inner_texts() if "messages" in name]


def test_invalid_messages(show):
    """Text that claims to be messages but is truncated, or something else, is shown unchanged with the attributes."""
    odd = {"gen_ai.input.messages": '[{"role": "us', "gen_ai.output.messages": "7", "gen_ai.usage.input_tokens": "many",
           "llm.input_messages.x.message.role": "user"}  # fmt: skip
    mixed = {
        "gen_ai.input.messages": json.dumps(
            [None, 5, {"role": 7}, {"role": "user", "parts": [None, 3, {"type": "odd"}]}]
        )
    }
    page = show([Trace("7" * 32, (span(0, None, attributes=odd), span(1, 0, attributes=mixed)))])
    row(page, "node n0").dblclick()
    expect(page.locator("#details th", has_text="gen_ai.input.messages")).to_be_visible()
    row(page, "node n1").dblclick()
    expect(page.locator(".conversation .who b")).to_have_text(["7", "user"])


def test_input_and_output(show):
    """If they were captured, they are above the attributes, once, whatever names they have."""
    value = '{"amount":9.5}'
    said = {
        "pocket_plug.node.input": value,
        "input.value": value,
        "input.mime_type": "application/json",
        "pocket_plug.node.output": "7",
    }
    page = show([Trace("7" * 32, (span(0, None, attributes=said),))])
    row(page, "node n0").dblclick()
    headings = page.locator("#details h3").all_inner_texts()
    assert headings[:3] == ["Input", "Output", "Attributes"]
    expect(page.locator("#details section", has_text="Input").first.locator("pre")).to_have_text(
        '{\n  "amount": 9.5\n}'
    )
    assert page.locator("#details th").all_inner_texts()[:1] == ["input.mime_type"]


# ---------------------------------------------------------------- interaction
def test_folding(page):
    """By mouse, by the arrow keys, all at once, and to a level; a folded row says how many spans it has."""
    fan_out = row(page, "node each_price")
    fan_out.locator(".twisty").click()
    expect(fan_out).to_have_attribute("aria-expanded", "false")
    expect(row(page, "item price [0]")).to_have_count(0)
    assert int(fan_out.locator(".inside").inner_text()) >= 100
    page.locator("#rows").focus()
    page.keyboard.press("ArrowRight")
    expect(fan_out).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".row.selected .name")).to_have_text("item price [0]")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".row.selected .name")).to_have_text("node each_price")
    page.keyboard.press("-")
    expect(page.locator(".row")).to_have_count(1)
    page.keyboard.press("2")
    assert names(page)[1:4] == ["node find", "node each_price", "node rate"]
    page.keyboard.press("+")
    expect(row(page, "exec find")).to_be_visible()
    expect(page.locator("#levels option:checked")).to_have_text("fold to …")
    page.locator("#levels").select_option(label="level 1")
    expect(page.locator(".row")).to_have_count(1)


def test_filters(page):
    """Text matches names and attributes and keeps ancestors; errors only; if a scope is off, its children move up."""
    page.locator("#search").fill("total:{}")
    expect(page.locator("#found")).to_contain_text(re.compile(r"^\d+ of "))
    found = names(page)
    assert found[:3] == ["run orders", "node check", "post check"]
    assert {"get total:{}", "set total:{}"} & set(found)
    page.locator("#search").fill("no such thing")
    expect(page.locator("#nothing")).to_be_visible()
    page.locator("#clear").click()
    page.locator("#errors").click()
    assert "exec ship" in names(page)
    assert "exec find" not in names(page)
    page.locator("#errors").click()
    page.locator("[data-scope=phase]").click()
    assert not [name for name in names(page) if name.startswith(("exec", "post"))]
    page.locator("#search").fill("total:{}")
    expect(page.locator(".row", has_text="total:{}").first).to_have_attribute("aria-level", "3")


def test_keys_alone(page):
    """Everything works without a mouse; the keys are listed."""
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("j")
    expect(page.locator(".row.selected .name")).to_have_text("node find")
    active = page.locator("#rows").get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("/")
    page.keyboard.type("ship")
    page.keyboard.press("Enter")
    expect(page.locator("#rows")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(page.locator("#details h2")).to_have_text("exec ship")
    page.keyboard.press("Escape")
    expect(page.locator("#search")).to_have_value("")
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    page.locator("#rows").press("Home")
    page.keyboard.press("n")
    expect(page.locator(".row.selected")).to_contain_text("↻ TimeoutError")
    page.keyboard.press("Enter")
    page.keyboard.press("j")  # the details go along
    expect(page.locator("#details h2")).to_have_text(page.locator(".row.selected .name").inner_text())
    page.keyboard.press("g")
    expect(page.locator("#drawing")).to_be_hidden()
    page.keyboard.press("g")
    page.locator(".place").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".row.selected .name")).to_have_text("node each_price")


def test_zoom(page):
    """A span can fill the width, a part of the time can be selected by dragging, and the whole can be restored."""
    row(page, "node find").click()
    page.keyboard.press("z")
    assert 0.8 < bar(page, "node find")["width"] / bar(page, "node find")["whole"] < 1
    page.locator("#zoom").click()
    expect(page.locator("#zoom")).to_be_hidden()
    axis = page.locator("#axis").bounding_box()
    page.mouse.move(axis["x"] + axis["width"] * 0.5, axis["y"] + 5)
    page.mouse.down()
    page.mouse.move(axis["x"] + axis["width"] * 0.75, axis["y"] + 5)
    page.mouse.up()
    expect(page.locator("#zoom")).to_be_visible()
    expect(row(page, "node find").locator(".aside.before")).to_be_visible()


def test_executions_of_one_run(show, tmp_path):
    """A suspended run and its resumption are shown together, and linked to each other."""
    file = tmp_path / "traces.jsonl"
    approval(file, tmp_path / "approval.db")
    page = show([trace for trace in reversed(read_traces(file)) if trace.runs])  # in any order
    expect(page.locator("#executions button")).to_have_text(["1 ‖ suspended", "2 ✓ success"])
    expect(row(page, "run approval")).to_contain_text("▸ resumed")
    expect(page.locator("[data-node=tax]")).to_have_class("place earlier")
    row(page, "run approval").dblclick()
    page.locator("#details .jump", has_text="↗").first.click()
    expect(page.locator("#outcome")).to_have_text("‖ suspended")
    expect(page.locator("[data-node=approve]")).to_have_class(re.compile("suspended"))
    page.keyboard.press("]")
    expect(page.locator("#outcome")).to_have_text("✓ success")
    page.locator("#traces").select_option(index=1)
    expect(page.locator("#outcome")).to_have_text("‖ suspended")


def test_light_and_dark(show, recorded):
    """As the system is set, until the reader chooses, which is remembered."""
    page = show(recorded, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)))
    page.locator("#theme").click()
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_contain_text("dark")
    assert page.evaluate(ground) == dark


def visits(number: int, odd: int) -> Trace:
    """A run that visits a node this often; one visit failed."""
    spans = [span(0, None, name="run r", end=span(number + 1, 0).end)]
    for visit in range(1, number + 1):
        said = {"pocket_plug.node.name": "step", "pocket_plug.node.visit": visit}
        end = span(visit, 0).start + visit * 1000
        spans.append(
            span(visit, 0, name="node step", attributes=said, end=end, status="error" if visit == odd else "unset")
        )
    return Trace("7" * 32, tuple(spans))


def test_repeated_visits_are_one_row(show):
    """The first visit and failures have rows of their own; the others are one row with their figures, which unfolds."""
    page = show([visits(40, odd=7)])
    expect(page.locator(".row")).to_have_count(4)
    assert names(page) == ["run r", "node step", "node step visits 2\u201340", "node step"]
    alike = page.locator(".row", has_text="visits")
    expect(alike).to_contain_text("38")
    expect(alike).to_contain_text("max 40 µs · p95 38 µs")
    expect(page.locator(".row.selected")).to_contain_text("visit 7")
    alike.dblclick()
    expect(page.locator("#details h2")).to_have_text("node step visits 2\u201340")
    expect(page.locator("#details .jump").first).to_contain_text("node step visit 40")
    page.locator("#rows").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#rows")).to_have_attribute("aria-rowcount", "42")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".row.selected")).to_contain_text("visit 2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".row")).to_have_count(4)
    page.locator("#details .jump").nth(1).click()  # the list scrolls to the target
    expect(page.locator(".row.selected")).to_contain_text("visit 39")
    page.locator("#search").fill("node.visit=12")
    assert names(page) == ["run r", "node step"]


def test_a_nested_graph_and_its_node_are_one_row(page):
    """The node's row says that it is a graph, and the rows below are the run's; the run's details are one click away."""
    page.locator("#search").fill("billing")
    expect(row(page, "node billing")).to_contain_text("graph")
    expect(row(page, "run billing")).to_have_count(0)
    page.locator("#search").fill("node tax")
    expect(row(page, "node tax")).to_have_attribute("aria-level", "3")
    page.locator("#search").press("Escape")
    page.keyboard.press("2")
    row(page, "node billing").dblclick()
    page.locator("#details .jump", has_text="run billing").click()
    expect(page.locator("#details h2")).to_have_text("run billing")
    expect(page.locator(".row.selected .name")).to_have_text("node billing")


def test_narrow(show, recorded):
    """On a telephone only the drawing is wider than the screen, and the details are above the rows."""
    page = show(recorded, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_label("close the details").click()
    page.locator("#rows").press("Home")
    row(page, "node find").dblclick()
    expect(page.locator("#details")).to_be_in_viewport(ratio=0.9)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_print(page, recorded):
    """Printed, all unfolded rows are shown; a nested graph and its node are one row."""
    page.keyboard.press("+")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    groups = page.locator(".bar.alike").count()
    expect(page.locator(".row")).to_have_count(len(recorded[0].spans) - 1 + groups)


def test_many_spans(show):
    """Of 10,000 spans only the visible ones are in the document, at any scroll position; all of them are found."""
    spans = [span(0, None, name="run big", end=span(10_000, 0).end)]
    spans += [span(number, number - number % 10 if number % 10 else 0) for number in range(1, 10_000)]
    page = show([Trace("7" * 32, tuple(spans))])
    rows = page.locator(".row")
    page.keyboard.press("+")
    expect(page.locator("#rows")).to_have_attribute("aria-rowcount", "10000")
    assert rows.count() < 100
    page.locator("#rows").focus()
    page.keyboard.press("End")
    for name in ("node n9999", "node n9998", "node n9990"):
        expect(row(page, name)).to_be_visible()
    for _ in range(6):
        page.keyboard.press("PageUp")
    expect(row(page, "node n9999")).to_have_count(0)
    assert rows.count() < 100
    page.locator("#search").fill("n4321")
    expect(page.locator("#found")).to_have_text("1 of 10,000 spans")
    assert names(page) == ["run big", "node n4320", "node n4321"]


HOSTILE = ["</script ></script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{script}}", "\u2028'\"`${alert(1)}",
           "__proto__", "constructor", "\ud800", "<svg onload=alert(1)>", "javascript:alert(1)", "a\tb\tc"]  # fmt: skip


def test_hostile_texts(show):
    """Text of a trace is shown unchanged: none of it is executed as a script, fetched, or parsed as an element."""
    odd = []
    for number, text in enumerate(HOSTILE):
        ours = ("node.name", "node.type", "node.next", "node.action", "node.attempts", "graph.name", "run.id")
        attributes = {text: text, "error.type": text} | {f"pocket_plug.{name}": text for name in ours}
        attributes |= {"pocket_plug.graph.nodes": HOSTILE, "pocket_plug.graph.edges": HOSTILE}
        event = Event(
            text, 1_800_000_000_000_000_000, {"exception.stacktrace": text, "exception.message": text, text: text}
        )
        name = f"{'node' if number else 'run'} {text}"
        odd.append(span(number, number // 2 if number else None, name=name, message=text, status="error", events=(event,),
                        attributes=attributes, resource={"service.name": text, text: text}))  # fmt: skip
    page = show([Trace("7" * 32, tuple(odd))])
    for _ in HOSTILE:
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.locator("#rows").focus()
    for node in page.locator(".place").all():
        node.dispatch_event("click")
        node.dispatch_event("dblclick")
    page.locator("#search").fill("<img")
    expect(page.locator(".row .name", has_text="<img src=x onerror=alert(1)>")).to_be_visible()
    assert page.locator("img, iframe, [onerror], [onload], script:not([type]) ~ script").count() == 0


def walked(edges: list[tuple[str, str, str]], *steps: tuple[str, str, str], fails: bool = False) -> Trace:
    """A made-up run that takes these steps over a graph with these edges, and fails in the last node if so."""
    ours = "pocket_plug."
    begun = {
        f"{ours}run.id": "r",
        f"{ours}graph.name": "g",
        f"{ours}graph.edges": tuple("\t".join(edge) for edge in edges),
        f"{ours}run.outcome": "failure" if fails else "success",
    }
    ways = [*steps, (steps[-1][2], "default", None)]
    status = "error" if fails else "unset"
    spans = [span(0, None, name="run g", attributes=begun, status=status)]
    for number, (name, action, following) in enumerate(ways, 1):
        said = {f"{ours}node.name": name, f"{ours}node.action": action}
        said |= {f"{ours}node.next": following} if following else {}
        spans.append(span(number, 0, name=f"node {name}", attributes=said, status="unset" if following else status))
    return Trace("7" * 32, tuple(spans))


def test_several_edges_between_the_same_nodes(show):
    """Each edge is visible with its label; the one that was taken is straight."""
    actions = ["slow", "fast", "default", "a_long_name_of_an_action"]
    page = show([walked([("a", action, "b") for action in actions], ("a", "fast", "b"))])
    whole = page.locator("#drawing svg").bounding_box()
    seen = {action: page.locator(f'[data-way="a>{action}>b"]').bounding_box() for action in actions}
    for box in [*seen.values(), *(label.bounding_box() for label in page.locator(".way-label").all())]:
        assert whole["y"] <= box["y"]
        assert box["y"] + box["height"] <= whole["y"] + whole["height"]
    heights = sorted(box["height"] for box in seen.values())
    assert heights[0] == seen["fast"]["height"] < 12  # only as high as its arrow head
    assert all(lower + 5 < higher for lower, higher in pairwise(heights))


def test_a_large_graph(show):
    """Its text is readable, and the failed node is visible, as is a selected one."""
    edges = [(f"n{number}", "default", f"n{number + 1}") for number in range(40)]
    page = show([walked(edges, *edges[:25], fails=True)])
    expect(page.locator("[data-node=n25]")).to_be_in_viewport(ratio=0.9)
    expect(page.locator("[data-node=n3]")).not_to_be_in_viewport()
    assert page.locator("[data-node=n25] .box").bounding_box()["height"] > 28
    row(page, "node n3").click()
    expect(page.locator("[data-node=n3]")).to_be_in_viewport(ratio=0.9)


def test_n_leads_to_the_errors(show):
    """One after the other, in a trace that is partly folded; the row of the error is always visible."""
    wrong = {4567: "error", 8765: "error"}
    spans = [span(0, None, name="run big", end=span(9_999, 0).end)]
    spans += [span(number, 0, status=wrong.get(number, "unset")) for number in range(1, 9_999)]
    page = show([Trace("7" * 32, tuple(spans))])
    expect(page.locator("#rows")).to_have_attribute("aria-rowcount", "9999")
    expect(page.locator("#drawing")).to_have_text("9,998 nodes are too many to draw; the table lists them.")
    expect(page.locator(".row.selected .name")).to_have_text("node n4567")
    for name in ("node n8765", "node n4567"):
        page.keyboard.press("n")
        expect(page.locator(".row.selected .name")).to_have_text(name)
        expect(row(page, name)).to_be_in_viewport()


def test_odd_trees(show):
    """Parents that form a circle, that are missing, that are their own; a deep chain; running spans: all have a row."""
    ring = [span(1, 2), span(2, 1), span(3, 3), span(4, 99), span(5, 4, end=0), span(6, None, scope="", name="")]
    page = show([Trace("7" * 32, tuple(ring))])
    expect(page.locator(".row")).to_have_count(6)
    expect(row(page, "node n4")).to_contain_text("parent elsewhere")
    expect(row(page, "node n5")).to_contain_text("not ended")
    killed = show([Trace("7" * 32, (span(1, None, end=0, name="run killed"),))])
    expect(killed.locator("#outcome")).to_have_text(
        "… not ended"
    )  # a page can't know whether its run is still in progress
    deep = show([Trace("7" * 32, tuple(span(number, number - 1 if number else None) for number in range(3000)))])
    deep.keyboard.press("+")
    expect(deep.locator("#rows")).to_have_attribute("aria-rowcount", "3000")
    expect(show([]).locator("#title")).to_have_text("No traces")
