"""Graphs: nodes with a prep/exec/post lifecycle, joined into something that runs over a store, and the runs themselves."""

from .fan_out import fan_out
from .gather import gather
from .graph import Graph
from .kinds.ask import Answered, Ask
from .kinds.each import each
from .nodes.chain import END, Action, Chain, Next
from .nodes.node import Node
from .nodes.retry import Retry

__all__ = ["END", "Action", "Answered", "Ask", "Chain", "Graph", "Next", "Node", "Retry", "each", "fan_out", "gather"]
