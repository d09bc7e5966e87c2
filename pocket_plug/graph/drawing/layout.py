"""The layout of a drawn graph: its nodes in layers from left to right, and the edges between them.

The page of traces places its graphs in the same way, in `traces/viewer/graph.js`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SPACE, LANE = 24.0, 30.0
"""The vertical space in a layer between two nodes, and for an edge that passes the layer: in pixels, as all lengths here."""
LEFT, GAP = 46.0, 46.0
"""The space before the first layer, and the least space between two layers."""
LETTER = 6.2
"""The width of a letter in an edge's label."""
SWEEPS = 4
TWIN = 30.0
"""The distance between two edges that join the same two nodes."""


@dataclass(eq=False)
class Place:
    """The place of a node, or of an edge in a layer that it passes: that has no height. `x` and `y` are the centre."""

    width: float
    height: float = 0.0
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    at: int = 0
    before: list[Place] = field(default_factory=list["Place"], repr=False)
    after: list[Place] = field(default_factory=list["Place"], repr=False)

    @property
    def room(self) -> float:
        """The vertical space that it takes in its layer."""
        return self.height + SPACE if self.height else LANE


@dataclass(eq=False)
class Way:
    """An edge between two nodes, by their names, and its label. `leads_back`: it closes a loop."""

    source: str
    target: str
    action: str
    label: str
    leads_back: bool = False
    via: list[Place] = field(default_factory=list[Place])
    path: str = ""
    """The attribute `d` of the SVG path."""
    tip: tuple[float, float] = (0.0, 0.0)
    label_at: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Layout:
    """The places of all nodes, the edges between them, and the bounds of both: the least y, the greatest y, the greatest x."""

    places: Mapping[str, Place]
    ways: Sequence[Way]
    top: float
    bottom: float
    right: float


def lay_out(sizes: Mapping[str, tuple[float, float]], ways: Sequence[Way]) -> Layout:
    """Place the nodes, of these widths and heights, and the edges between them. A run begins with the first node.

    A node's layer is the length of the longest path to it from the start, without edges that lead back.

    >>> layout = lay_out({"parse": (96, 44), "sum": (96, 44)}, [Way("parse", "sum", "default", "")])
    >>> layout.places["parse"].layer, layout.places["sum"].layer
    (0, 1)
    """
    places = {name: Place(width, height) for name, (width, height) in sizes.items()}
    outgoing: dict[str, list[Way]] = {name: [] for name in sizes}
    for way in ways:
        outgoing[way.source].append(way)
    _find_back_ways(outgoing)
    forward = [way for way in ways if not way.leads_back]
    order = _topological(outgoing, forward)
    for name in order:
        for way in outgoing[name]:
            if not way.leads_back:
                target = places[way.target]
                target.layer = max(target.layer, places[name].layer + 1)
    layers: list[list[Place]] = [[] for _ in range(max(place.layer for place in places.values()) + 1)]
    for name in order:
        layers[places[name].layer].append(places[name])
    for way in forward:
        _pass_layers(way, places, layers)
    _sort(layers)
    _spread(layers, forward, places)
    _straighten(layers)
    return _draw(places, ways)


def _find_back_ways(outgoing: Mapping[str, Sequence[Way]]) -> None:
    """Mark the edges that lead back, by a depth-first search. No recursion, since graphs may be deep."""
    is_done: dict[str, bool] = {}  # False: on the current path
    for root in outgoing:
        if root in is_done:
            continue
        is_done[root] = False
        walk = [(root, iter(outgoing[root]))]
        while walk:
            name, rest = walk[-1]
            way = next(rest, None)
            if way is None:
                is_done[name] = True
                walk.pop()
            elif way.target not in is_done:
                is_done[way.target] = False
                walk.append((way.target, iter(outgoing[way.target])))
            elif not is_done[way.target]:
                way.leads_back = True


def _topological(outgoing: Mapping[str, Sequence[Way]], forward: Sequence[Way]) -> list[str]:
    waits = dict.fromkeys(outgoing, 0)
    for way in forward:
        waits[way.target] += 1
    order = [name for name, number in waits.items() if number == 0]
    for name in order:  # the loop appends to it
        for way in outgoing[name]:
            if not way.leads_back:
                waits[way.target] -= 1
                if waits[way.target] == 0:
                    order.append(way.target)
    return order


def _pass_layers(way: Way, places: Mapping[str, Place], layers: Sequence[list[Place]]) -> None:
    """Give an edge over several layers a place in each of them."""
    source, target = places[way.source], places[way.target]
    way.via = [Place(0.0, layer=layer) for layer in range(source.layer + 1, target.layer)]
    stations = [source, *way.via, target]
    for one, other in pairwise(stations):
        other.before.append(one)
        one.after.append(other)
    for lane in way.via:
        layers[lane.layer].append(lane)


def _sort(layers: Sequence[list[Place]]) -> None:
    """Sort each layer by the average rank of the joined places, forwards and backwards in turn, so that few edges cross."""
    for sweep in range(SWEEPS):
        backwards = sweep % 2 == 1
        for layer in layers:
            _number(layer)
        for layer in reversed(layers) if backwards else layers:
            ranks = {place: (_middle(place, place.after if backwards else place.before), place.at) for place in layer}
            layer.sort(key=ranks.__getitem__)
            _number(layer)


def _number(layer: Sequence[Place]) -> None:
    for at, place in enumerate(layer):
        place.at = at


def _middle(place: Place, joined: Sequence[Place]) -> float:
    return sum(other.at for other in joined) / len(joined) if joined else float(place.at)


def _spread(layers: Sequence[Sequence[Place]], forward: Sequence[Way], places: Mapping[str, Place]) -> None:
    """Place each layer to the right of the one before, and its places one below the other."""
    labels: dict[int, int] = {}  # the length of the longest label of an edge that begins in a layer
    for way in forward:
        begins = places[way.source].layer
        labels[begins] = max(labels.get(begins, 0), len(way.label))
    x = LEFT
    for number, layer in enumerate(layers):
        width = max(place.width for place in layer)
        y = -sum(place.room for place in layer) / 2
        for place in layer:
            if not place.height:
                place.width = width
            place.x, place.y = x + width / 2, y + place.room / 2
            y += place.room
        x += width + max(GAP, labels.get(number, 0) * LETTER + 30)


def _straighten(layers: Sequence[Sequence[Place]]) -> None:
    """Move places towards the height of the places before them, without changing their order in the layer."""
    for layer in layers:
        wanted = [
            sum(each.y for each in place.before) / len(place.before) if place.before else place.y for place in layer
        ]
        above: Place | None = None
        for place, y in zip(layer, wanted, strict=True):
            place.y = y if above is None else max(y, above.y + (above.room + place.room) / 2)
            above = place
        shift = sum(y - place.y for place, y in zip(layer, wanted, strict=True)) / len(layer)
        for place in layer:
            place.y += shift


# ---------------------------------------------------------------- the edges
def _draw(places: Mapping[str, Place], ways: Sequence[Way]) -> Layout:
    top = min(place.y - place.height / 2 for place in places.values()) - 18
    floor = bottom = max(place.y + place.height / 2 for place in places.values()) + 6
    right = max(place.x + place.width / 2 for place in places.values())
    twins: dict[tuple[str, str], int] = {}  # the number of edges between the same two nodes, drawn one below the other
    back = 0
    for way in ways:
        ends = way.source, way.target
        twin = twins.get(ends, 0)
        twins[ends] = twin + 1
        source, target = places[way.source], places[way.target]
        if way.leads_back:
            lowest = _lead_back(way, source, target, floor + 30 + 26 * back, twin)
            back += 1
        else:
            lowest = _lead_on(way, source, target, twin)
        bottom = max(bottom, lowest)
    return Layout(places, ways, top, bottom, right)


def _lead_back(way: Way, source: Place, target: Place, depth: float, twin: int) -> float:
    """Draw an edge that leads back, below all nodes; return its lowest y. The curve reaches three quarters of `depth`."""
    shift = (18.0, -18.0) if source is target else (10.0 * twin, 10.0 * twin)
    start, end = source.x + shift[0], target.x + shift[1]
    way.tip = end, target.y + target.height / 2 + 5
    down, up = f"{_n(start)} {_n(depth)}", f"{_n(end)} {_n(depth)}"
    leaves = source.y + source.height / 2
    way.path = f"M{_n(start)} {_n(leaves)}C{down} {up} {_n(end)} {_n(way.tip[1])}"
    way.label_at = (start + end) / 2, (leaves + way.tip[1] - 5) / 2 * 0.25 + depth * 0.75 + 14
    return way.label_at[1] + 4


def _lead_on(way: Way, source: Place, target: Place, twin: int) -> float:
    """Draw an edge to the right, straight through the layers that it passes; return its lowest y."""
    points = [(source.x + source.width / 2, source.y)]
    for lane in way.via:
        points += [(lane.x - lane.width / 2, lane.y), (lane.x + lane.width / 2, lane.y)]
    points.append((target.x - target.width / 2 - 5, target.y))
    way.tip = points[-1]
    way.path = f"M{_n(points[0][0])} {_n(points[0][1])}"
    for at, ((x, y), (to_x, to_y)) in enumerate(pairwise(points), 1):
        middle, bow = (x + to_x) / 2, twin * TWIN if at == 1 else 0.0
        curve = f"C{_n(middle)} {_n(y + bow)} {_n(middle)} {_n(to_y + bow)} {_n(to_x)} {_n(to_y)}"
        way.path += curve if at % 2 else f"L{_n(to_x)} {_n(to_y)}"
    (x, y), (to_x, to_y) = points[:2]
    lowered = twin * TWIN * 0.75
    way.label_at = (way.via[0].x, way.via[0].y - 6) if way.via else ((x + to_x) / 2, (y + to_y) / 2 - 6 + lowered)
    return max(y, to_y) + lowered + 6


def _n(number: float) -> str:
    """A number for SVG, rounded to hundredths.

    >>> _n(2.0), _n(-0.001), _n(1 / 3)
    ('2', '0', '0.33')
    """
    return f"{round(number, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
