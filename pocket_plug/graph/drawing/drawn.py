"""What a graph can be drawn as. What draws it is imported when somebody asks."""

from __future__ import annotations

from pocket_plug.graph.planning.plan import Plan


class Drawn:
    """The drawings of a graph, by its plan."""

    plan: Plan

    def mermaid(self) -> str:
        """The graph as a Mermaid flow chart."""
        from .mermaid import flow_chart

        return flow_chart(self.plan)

    def svg(self) -> str:
        """The graph as a picture: the text of an SVG file, which needs nothing else and has a light and a dark ground."""
        from .picture import picture

        return picture(self.plan, alone=True)

    def _repr_html_(self) -> str:
        """In a notebook: the picture, in the colours of its theme."""
        from .picture import picture

        return picture(self.plan, alone=False)
