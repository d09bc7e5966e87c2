"""Graphs: nodes with a prep/exec/post lifecycle, joined into something that runs over a store, and the runs themselves."""

from .ask import Answered as Answered
from .ask import Ask as Ask
from .chain import END as END
from .chain import Action as Action
from .chain import Chain as Chain
from .chain import Next as Next
from .each import each as each
from .fan_out import fan_out as fan_out
from .graph import Graph as Graph
from .node import Node as Node
from .retry import Retry as Retry

__all__ = ["END", "Action", "Answered", "Ask", "Chain", "Graph", "Next", "Node", "Retry", "each", "fan_out"]
