"""The drawings of a graph. The modules that draw are imported when a drawing is requested."""

from __future__ import annotations

from pocket_plug.graph.planning.plan import Plan


class Drawn:
    """The methods of a graph that draw it."""

    plan: Plan

    def mermaid(self) -> str:
        """The graph as a Mermaid flow chart."""
        from .mermaid import flow_chart

        return flow_chart(self.plan)

    def svg(self) -> str:
        """The graph as a picture: the text of an SVG file, which needs no other files and has a light and a dark background."""
        from .picture import picture

        return picture(self.plan, alone=True)

    def _repr_html_(self) -> str:
        """For a notebook: the picture, in the colours of the notebook's theme."""
        from .picture import picture

        return picture(self.plan, alone=False)
