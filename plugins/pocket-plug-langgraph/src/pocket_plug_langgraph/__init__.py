"""LangGraph's memory in a store of pocket_plug: `PocketSaver` keeps the checkpoints of graphs, `PocketStore` what they remember.

Both live in the store under `langgraph:`, each in scopes of its own, so one store may have both.
"""

from .saver import PocketSaver as PocketSaver
from .store import PocketStore as PocketStore
