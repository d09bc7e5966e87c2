"""A graph as a picture: an SVG that loads nothing: no scripts, fonts or style sheets.

Within a page it has the colour of the text around it, so it can be read on a light and on a dark background. As a file of its
own it contains both backgrounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.planning.plan import Plan
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.markup import text
from pocket_plug.primitives.redaction import public_url

from .kinds import kind_of
from .layout import Place, Way, lay_out

HEIGHT = 44.0
"""The height of a node's box; that of a nested graph has the graph below that."""
MARGIN = 12.0
"""The space around a nested graph."""

_SMALLEST = 0.7
"""A picture that is wider than its page is scaled down to this at most, so that it can be read; the page then scrolls."""

_LONGEST = 22
"""How many letters of a name are drawn, at most. The whole name is in the title."""

_STYLE = (
    "<style>svg{color:#171b22}.ground{fill:#fff}.label{stroke:#fff}@media(prefers-color-scheme:dark)"
    "{svg{color:#e7ebf1}.ground{fill:#0e1116}.label{stroke:#0e1116}}</style>"
)
_IN_NOTEBOOK = ' style="stroke:var(--jp-layout-color0,var(--vscode-editor-background,transparent))"'
"""The background colours of JupyterLab and VS Code, for the outline of a label, so that no edge touches the text."""
_FONT = 'font-family="system-ui,sans-serif" fill="currentColor"'


def picture(plan: Plan, *, alone: bool) -> str:
    """The SVG of a plan. `alone`: for a file of its own, with colours; otherwise for a page, with the colours of that."""
    drawing = _draw(plan, alone)
    top, width, height = drawing.top, drawing.width, drawing.height
    style = f"max-width:100%;min-width:{width * _SMALLEST:g}px;height:auto"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {top:g} {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" style="{style}"><title>{text(f"graph {plan.name}")}</title>',
        *([_STYLE, f'<rect class="ground" y="{top:g}" width="{width:g}" height="{height:g}"/>'] if alone else []),
        *drawing.parts,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Drawing:
    """The SVG elements of one graph, and the rectangle that they fill, from x = 0 on."""

    parts: list[str]
    top: float
    width: float
    height: float


def _draw(plan: Plan, alone: bool) -> _Drawing:
    """Draw a graph; a nested graph is drawn within the box of its node."""
    steps = {step.name: step for step in plan.shown}
    inner = {
        name: _draw(graph.plan, alone) for name, step in steps.items() if (graph := step.inner_graph()) is not None
    }
    ways = [
        Way(step.name, target.name, action, "" if action == DEFAULT else _shortened(action))
        for step in steps.values()
        for action, target in step.actions.items()
    ]
    layout = lay_out({name: _size(step, inner.get(name)) for name, step in steps.items()}, ways)
    begins = [layout.places[step.name] for step in plan.begins]
    top = min([layout.top, *(place.y - place.height / 2 - 34 for place in begins if place.layer)]) - 4
    parts = [
        *(part for place in begins for part in _begin(place)),
        *(_way(way) for way in ways),
        *(part for name, step in steps.items() for part in _box(step, layout.places[name], inner.get(name))),
        *(_label(way, alone) for way in ways if way.label),
    ]
    return _Drawing(parts, top, layout.right + 16, layout.bottom - top + 12)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _second(step: Step) -> str:
    """The second line of a node's box: the kind of node, and its executor."""
    executor = step.passed.executor
    where = f"on {public_url(executor)}" if isinstance(executor, str) else ""
    return " · ".join(filter(None, (kind_of(step), _shortened(where))))


def _width(step: Step) -> float:
    return min(230.0, max(96.0, len(_shortened(step.name)) * 7.6 + 56, len(_second(step)) * 6.1 + 44))


def _size(step: Step, inner: _Drawing | None) -> tuple[float, float]:
    """The width and height of a node's box."""
    if inner is None:
        return _width(step), HEIGHT
    return max(_width(step), inner.width + 2 * MARGIN), HEIGHT + inner.height + MARGIN


def _title(step: Step) -> str:
    """The title of a node, which a browser shows under the pointer: the whole name, the second line, reads and writes."""
    declared = [f"reads {key.template}" for key in step.reads] + [f"writes {key.template}" for key in step.writes]
    return f"<title>{text('; '.join(filter(None, (step.name, _second(step), *declared))))}</title>"


# ---------------------------------------------------------------- the parts
def _box(step: Step, place: Place, inner: _Drawing | None) -> Iterator[str]:
    left, upper = place.x - place.width / 2, place.y - place.height / 2
    line = 'stroke="currentColor" stroke-width="1.5"'
    size = f'width="{place.width:g}" height="{place.height:g}" rx="7"'
    if step.kind == "fan_out" and not step.branches:
        for shift in (6, 3):
            yield f'<rect x="{left + shift:g}" y="{upper - shift:g}" {size} fill="none" {line} stroke-opacity=".4"/>'
    shade = ".16" if inner is None else ".07"
    yield f'<g>{_title(step)}<rect x="{left:g}" y="{upper:g}" {size} fill="#5b8def" fill-opacity="{shade}" {line}/>'
    second = _second(step)
    middle = upper + HEIGHT / 2
    yield _line(left + 13, middle + (-3 if second else 5), _shortened(step.name), 'font-size="13" font-weight="600"')
    if second:
        yield _line(left + 13, middle + 13, second, 'font-size="11" fill-opacity=".8"')
    if inner is not None:
        yield f'<g transform="translate({left + MARGIN:g} {upper + HEIGHT - inner.top:g})">'
        yield from inner.parts
        yield "</g>"
    yield "</g>"


def _line(x: float, y: float, words: str, look: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" {look} {_FONT}>{text(words)}</text>'


def _begin(place: Place) -> Iterator[str]:
    """The circle and the arrow at the node that a run begins with."""
    upper = place.y - place.height / 2
    if place.layer:  # there may be a node to its left, so the arrow comes from above
        start, line, tip = (place.x, upper - 26), f"M{place.x:g} {upper - 26:g}V{upper - 5:g}", (place.x, upper - 5)
    else:
        left = place.x - place.width / 2
        start, line, tip = (left - 34, place.y), f"M{left - 34:g} {place.y:g}H{left - 5:g}", (left - 5, place.y)
    yield f'<circle cx="{start[0]:g}" cy="{start[1]:g}" r="5" fill="currentColor"/>'
    yield f'<path d="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>{_tip(tip, 90 if place.layer else 0)}'


def _way(way: Way) -> str:
    title = f"<title>{text(f'{way.source} → {way.target} by {way.action}')}</title>"
    line = f'<path d="{way.path}" fill="none" stroke="currentColor" stroke-width="1.5" stroke-opacity=".75"/>'
    return f"<g>{title}{line}{_tip(way.tip, -90 if way.leads_back else 0)}</g>"


def _tip(at: tuple[float, float], degrees: int) -> str:
    """The head of an arrow. An SVG marker would need an id, which several pictures in one page would share."""
    turned = f" rotate({degrees})" if degrees else ""
    return f'<path d="M-4.5 -4L4 0L-4.5 4z" fill="currentColor" transform="translate({at[0]:g} {at[1]:g}){turned}"/>'


def _label(way: Way, alone: bool) -> str:
    ground = ' class="label"' if alone else _IN_NOTEBOOK
    halo = f'paint-order="stroke" stroke-width="4" stroke-linejoin="round"{ground}'
    return _line(*way.label_at, way.label, f'font-size="11" text-anchor="middle" {halo}')
