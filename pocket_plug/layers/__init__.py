"""The built-in layers. Each is a plugin like any third party's, imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pocket_plug.store.layer import Layer

if TYPE_CHECKING:
    from .bounding import Bounding
    from .copying import Copying
    from .fault import Fault
    from .logging import Logging
    from .metrics import Metrics
    from .migrate import Migrate
    from .persistence import Persistence
    from .readonly import Readonly
    from .timeout import Timeout
    from .tracing import Tracing

__all__ = [
    "Bounding",
    "Copying",
    "Fault",
    "Layer",
    "Logging",
    "Metrics",
    "Migrate",
    "Persistence",
    "Readonly",
    "Timeout",
    "Tracing",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{name.lower()}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
