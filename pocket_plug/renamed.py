"""Names that 0.2 has changed: the old ones work until 0.3, with a DeprecationWarning that gives the new one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING
from warnings import warn

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importlib.abc would load importlib.resources, tempfile and archive formats

MODULES = {
    "backend": "store.backend",
    "discovery": "plugins.discovery",
    "forking": "primitives.forking",
    "keys": "store.keys",
    "layer": "store.layer",
    "memory": "store.memory",
    "pocket": "plugins.pocket",
    "sync": "store.sync",
    "telemetry.page": "traces.page",
    "telemetry.recorded": "traces.recorded",
    "transaction": "store.transaction",
    "ttl": "primitives.durations",
    "waiting": "primitives.waiting",
}
EXCEPTIONS = {
    name: f"{name}Error"
    for name in (
        *("Conflict", "NodeTimeout", "NotConfigured", "OutcomeUnknown", "RunChanged"),
        *("RunFenced", "RunMismatch", "RunSuspended", "WrappedStopIteration"),
    )
}
NAMES = {**EXCEPTIONS, "TTL": "Duration"}


class RenamedModules(Loader):
    """Imports modules by their old names, if no other finder knows these: the result is the same module as by the new name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name; None for other names."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "pocket_plug" and name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make an empty module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the empty module by the one with the new name."""
        new = f"pocket_plug.{MODULES[module.__name__.partition('.')[2]]}"
        warn(f"{module.__name__} is now called {new}; 0.3 will remove the old name", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


def renamed(module: str, name: str, names: dict[str, str] = NAMES) -> object:
    """The object for an old name in a module, for the module's `__getattr__`. Raises AttributeError for any other name."""
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new = names[name]
    warn(
        f"{module}.{name} is now called {module}.{new}; 0.3 will remove the old name", DeprecationWarning, stacklevel=3
    )
    found: object = getattr(import_module(module), new)
    return found
