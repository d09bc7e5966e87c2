"""The modules with rows: importing them registers the rows. `make bench` measures them, and the tests read them."""

from __future__ import annotations

from importlib import import_module

NAMES = [
    "codec",
    "durable",
    "import_time",
    "langgraph_saver",
    "lists",
    "memory_use",
    "network",
    "nodes",
    "off",
    "scaling",
    "sqlite",
    "store",
    "surface",
    "tracing",
]
MODULES = [import_module(f".{name}", __package__) for name in NAMES]
