"""Graphs: nodes with a prep/exec/post lifecycle, joined into something that runs over a store, and the runs themselves."""

from .fan_out import fan_out as fan_out
from .graph import Graph as Graph
from .kinds.ask import Answered as Answered
from .kinds.ask import Ask as Ask
from .kinds.each import each as each
from .nodes.chain import END as END
from .nodes.chain import Action as Action
from .nodes.chain import Chain as Chain
from .nodes.chain import Next as Next
from .nodes.node import Node as Node
from .nodes.retry import Retry as Retry

__all__ = ["END", "Action", "Answered", "Ask", "Chain", "Graph", "Next", "Node", "Retry", "each", "fan_out"]
