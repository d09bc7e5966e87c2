"""What a plugin may implement, and what it is handed. This is the manual for plugin authors.

A plugin is a module or an object with functions marked `@hookimpl`; an entry point in the group `pocket_plug` makes it
found. Hooks are asked once, when a stack is built or a run starts; what they gave is then called directly, so a part
that they did not give costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from .graph.observing import SILENT as SILENT
from .graph.observing import Carrier as Carrier
from .graph.observing import NodeCall as NodeCall
from .graph.observing import NodeOutcome as NodeOutcome
from .graph.observing import Observer as Observer
from .graph.observing import Phase as Phase
from .graph.observing import PhaseCall as PhaseCall
from .graph.observing import Run as Run
from .graph.observing import RunOutcome as RunOutcome

if TYPE_CHECKING:
    import click

    from .codec import Codec
    from .store.backend import Backend
    from .store.layer import Layer
    from .store.resolving import LayerSpec
    from .store.store import Store

GROUP = "pocket_plug"
"""The entry-point group, and the name that hook markers carry."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class PluginHost(Protocol):
    """The Pocket, as its plugins may use it: a `pocket_plug.Pocket`."""

    @property
    def store(self) -> Store:
        """The store of the table `[store]`, without one a store in memory."""
        ...

    @property
    def stores(self) -> Mapping[str, Store]:
        """The stores of the tables `[stores.NAME]`, built on demand."""
        ...

    def backend(self, url: str, /) -> Backend:
        """A new backend for a URL."""
        ...

    def layer(self, spec: LayerSpec, /) -> Layer:
        """A layer's recipe by name, or from `{"use": name, option: value}`."""
        ...


class Specs:
    """The hooks. Take any of the named arguments, or none."""

    @hookspec
    def pocket_observe(self, run: Run) -> Observer | None:
        """Asked once as each run starts, nested ones too. None: stay silent for this whole run."""

    @hookspec
    def pocket_layers(self) -> Sequence[type[Layer]]:  # type: ignore[empty-body]  # pyright: ignore[reportReturnType]
        """The layers that the plugin offers; asked when a name is first looked up. A layer's name is its `name`."""

    @hookspec
    def pocket_backends(self) -> Mapping[str, Callable[[str], Backend]]:  # type: ignore[empty-body]  # pyright: ignore[reportReturnType]
        """URL schemes, each with what makes a backend of a whole URL: `{"redis": RedisBackend}`."""

    @hookspec
    def pocket_types(self, codec: Codec) -> None:
        """Register types with the codec; asked when the codec is first needed by this Pocket."""

    @hookspec
    def pocket_commands(self) -> Sequence[click.Command]:  # type: ignore[empty-body]  # pyright: ignore[reportReturnType]
        """Commands for `pocket-plug`; asked when the command line starts."""

    @hookspec
    def pocket_configure(self, pocket: PluginHost, options: Mapping[str, Any]) -> None:
        """Asked once, when a Pocket is made. `options` is the plugin's own table: `[plugins.NAME]`.

        Raise `NotConfiguredError("why")` to step back: the plugin is then listed as declined and not used.
        """

    @hookspec
    def pocket_shutdown(self, pocket: PluginHost) -> None:
        """Asked when a Pocket is closed, and at exit for the process's default one: flush here."""
