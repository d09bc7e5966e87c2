"""Finds a store's backend by its URL, and layers by their names, among plugins that this package doesn't import.

It asks the Pocket whose configuration is built, or else the default Pocket, and only if a store is built from names.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, TypeVar

from pocket_plug.primitives.default_pocket import find_building_pocket

from .backend import Backend
from .layer import Layer
from .memory import Memory

LayerSpec = str | Mapping[str, Any]
"""A layer by name, or with options: `{"use": name, option: value}`."""

L = TypeVar("L", bound=str | Layer)

_OUTER = ("tracing", "metrics", "logging", "readonly", "copying", "migrate", "timeout")
_INNER = ("fault", "persistence", "bounding")
_OTHERS = len(_OUTER)  # the place of third parties' layers
_USUAL_ORDER = {name: n for n, name in enumerate((*_OUTER, "", *_INNER))}


def resolve_backend(url: str) -> Backend:
    """A new backend for a URL, from the plugins of that Pocket; `memory://` needs none of them. Raises ConfigError."""
    if url == "memory://":
        return Memory()
    backend: Backend = find_building_pocket().backend(url)
    return backend


def resolve_layer(spec: LayerSpec) -> Layer:
    """A layer's recipe by name, or from `{"use": name, option: value}`, from the plugins of that Pocket."""
    layer: Layer = find_building_pocket().layer(spec)
    return layer


def order_names(layers: Set[L]) -> list[L]:
    """A set of names in the usual order: tracing, metrics, logging, readonly, copying, migrate, timeout, third parties, fault,
    persistence, bounding.

    >>> order_names({"bounding", "compress", "tracing"})
    ['tracing', 'compress', 'bounding']
    """

    def rank(layer: str | Layer) -> tuple[int, str]:
        name = layer if isinstance(layer, str) else layer.name
        return _USUAL_ORDER.get(name, _OTHERS), name

    return sorted(layers, key=rank)
