"""What is called otherwise since 0.2: old names work on until 0.3, with a DeprecationWarning that says the new one."""

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
    """Finds modules by their old names, once nobody else knows them: each is the very module that has the new name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name, None for all others."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "pocket_plug" and name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Python makes it; `exec_module` puts another one in its place."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of the old one."""
        new = f"pocket_plug.{MODULES[module.__name__.partition('.')[2]]}"
        warn(f"{module.__name__} is called {new} now; the old name goes with 0.3", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


def renamed(module: str, name: str, names: dict[str, str] = NAMES) -> object:
    """What an old name of a module stands for, for its `__getattr__`. Raises AttributeError for any other name."""
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new = names[name]
    warn(f"{module}.{name} is called {module}.{new} now; the old name goes with 0.3", DeprecationWarning, stacklevel=3)
    found: object = getattr(import_module(module), new)
    return found
