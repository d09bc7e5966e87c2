"""The modules that have rows: importing them registers these. `make bench` measures them, and the tests look at them."""

from __future__ import annotations

from . import (
    codec,
    durable,
    import_time,
    langgraph_saver,
    lists,
    memory_use,
    network,
    nodes,
    off,
    scaling,
    sqlite,
    store,
    tracing,
)

MODULES = (
    codec,
    durable,
    import_time,
    langgraph_saver,
    lists,
    memory_use,
    network,
    nodes,
    off,
    scaling,
    sqlite,
    store,
    tracing,
)
