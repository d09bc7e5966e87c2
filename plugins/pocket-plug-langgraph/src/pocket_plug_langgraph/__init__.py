"""LangGraph's memory in a pocket_plug store: `PocketSaver` keeps the checkpoints of graphs, `PocketStore` their long-term memory.

Both use names under `langgraph:`, each in a scope of its own, so one store can serve both.
"""

from .saver import PocketSaver as PocketSaver
from .store import PocketStore as PocketStore
