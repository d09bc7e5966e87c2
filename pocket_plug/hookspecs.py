"""The hooks that a plugin may implement, and the objects that they get. This is the manual for plugin authors.

A plugin is a module or an object with functions marked `@hookimpl`, or a class, from which each Pocket makes its own object.
It is found by an entry point in the group `pocket_plug`. Hooks are called once, when a stack is built or a run starts. What
they return is then called directly, so a part that they did not return costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from .graph.observing.views import SILENT as SILENT
from .graph.observing.views import Carrier as Carrier
from .graph.observing.views import NodeCall as NodeCall
from .graph.observing.views import NodeOutcome as NodeOutcome
from .graph.observing.views import Observer as Observer
from .graph.observing.views import Phase as Phase
from .graph.observing.views import PhaseCall as PhaseCall
from .graph.observing.views import Run as Run
from .graph.observing.views import RunNotice as RunNotice
from .graph.observing.views import RunOutcome as RunOutcome
from .otel.additions import SpanAdditions as SpanAdditions
from .primitives.values import SpanAttributes as SpanAttributes

if TYPE_CHECKING:
    import click

    from .codec import Codec
    from .remote import Executor
    from .store.backend import Backend
    from .store.layer import Layer
    from .store.resolving import LayerSpec
    from .store.store import Store

GROUP = "pocket_plug"
"""The entry-point group, and the name that hook markers carry."""

API_GROUP = "pocket_plug.api"
"""The entry-point group in which a plugin may say which level of this API it needs: `NAME = "level1"`."""

API_LEVEL = 1
"""The level of what plugins can rely on. It rises with a release that adds a hook, an argument of a hook, or a field of an
object that hooks get. A plugin that needs a higher level is refused, with what to upgrade."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


Origin = Literal["built-in", "entry point", "given"]
Status = Literal["active", "disabled", "declined", "failed"]


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """The state of one plugin. `pocket-plug plugins` lists them."""

    name: str
    """The entry point's name: also the name of its table in the configuration, and the name that disables it."""
    distribution: str | None = None
    """Its name for `pip install`; None for an object that was given in code."""
    version: str | None = None
    origin: Origin = "given"
    hooks: tuple[str, ...] = ()
    status: Status = "active"
    reason: str = ""
    """Why it is not active."""
    failures: Counter[str] = field(default_factory=Counter[str], compare=False, repr=False)
    """How often it has raised or returned a wrong result, by hook or part: `{"pocket_observe": 3}`."""

    @property
    def verdict(self) -> str:
        """Its status in words, with the reason: `can't be used: ModuleNotFoundError: …`."""
        words = {
            "active": "is in use",
            "disabled": "is disabled",
            "declined": "declined",
            "failed": "can't be used",
        }
        return words[self.status] + (f": {self.reason}" if self.reason else "")

    def __str__(self) -> str:
        """Its name in messages: `'compress' (pocket-plug-compress 0.1.0)`."""
        where = f" ({self.distribution}{f' {self.version}' if self.version else ''})" if self.distribution else ""
        return f"{self.name!r}{where}"


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
    """The hooks. Each says when it is called, its arguments, its result, what happens to errors, and has an example.

    An implementation takes any of the named arguments, or none. It is a plain function: not `async`, no generator, no
    wrapper. It has the spec's name, in a module or an object that is a plugin.

    The order is pluggy's: whoever was registered last is called first, and `@hookimpl(tryfirst=True)` or `trylast=True`
    moves one to the front or the end. pocket_plug's own plugins are registered first, then the installed ones by name,
    then those given in code. If several plugins offer the same name (of a layer, a scheme, a command), the plugin that
    was registered first keeps it.
    """

    @hookspec
    def pocket_observe(self, run: Run) -> Observer | None:
        """Observe a run.

        When: once when each run starts, nested ones too; not again for its nodes.
        Arguments: `run`, with its id, its graph, its parent.
        Returns: an `Observer`, whose parts are then called directly; or None, to ignore this run. The plugin that is
        called first is the outermost observer.
        Errors: an exception, or a result of a wrong type, is logged once and counted; the run continues without it.

        >>> from pocket_plug import Graph, Pocket, hookimpl, node
        >>> class Printing:
        ...     @hookimpl
        ...     def pocket_observe(self, run):
        ...         print("a run of", run.graph)
        >>> @node
        ... async def double(n: int) -> int:
        ...     return 2 * n
        >>> Graph(double, name="doubling").run_sync(21, pocket=Pocket(plugins=[Printing()], autoload=False))
        a run of doubling
        42
        """
        raise NotImplementedError

    @hookspec
    def pocket_span_additions(self) -> SpanAdditions | None:
        """Add attributes to the spans that tracing makes.

        When: once for each Pocket, when it first traces something.
        Arguments: none.
        Returns: `SpanAdditions`, whose parts are then called directly as spans begin; or None.
        Errors: an exception, or a result of a wrong type, is logged once and counted; spans go without its attributes.

        >>> from pocket_plug import Graph, Pocket, hookimpl, node
        >>> from pocket_plug.hookspecs import SpanAdditions
        >>> from pocket_plug.testing.spans import SpanCapture
        >>> class Labelling:
        ...     @hookimpl
        ...     def pocket_span_additions(self):
        ...         return SpanAdditions(node=lambda call, own: {"team": "billing"})
        >>> @node
        ... async def double(n: int) -> int:
        ...     return 2 * n
        >>> with SpanCapture("node") as capture:
        ...     Graph(double).run_sync(21, pocket=Pocket(plugins=[Labelling()], autoload=False))
        42
        >>> capture.one("node double").attributes["team"]
        'billing'
        """
        raise NotImplementedError

    @hookspec
    def pocket_run_notice(self, notice: RunNotice) -> None:
        """Be notified of changes to a durable run.

        When: after it is recorded that a run was submitted, has failed, or was cancelled by an operator; when a worker takes
        over a stalled run, or gives up a run that makes no progress.
        Arguments: `notice`, which says what has happened ("submitted", "failed", "cancelled", "stalled" or "stuck") to which
        run, with further attributes.
        Returns: nothing.
        Errors: an exception is logged once and counted; the run continues.

        >>> from tempfile import mkdtemp
        >>> from pocket_plug import Graph, Pocket, Store, hookimpl, node
        >>> class Printing:
        ...     @hookimpl
        ...     def pocket_run_notice(self, notice):
        ...         print("run", notice.run_id, "was", notice.what)
        >>> @node
        ... async def double(n: int) -> int:
        ...     return 2 * n
        >>> with Store(f"sqlite:///{mkdtemp()}/state.db").sync as store:
        ...     graph = Graph(double, name="doubling", store=store)
        ...     state = graph.submit_sync(21, run_id="d-1", pocket=Pocket(plugins=[Printing()], autoload=False))
        run d-1 was submitted
        """

    @hookspec
    def pocket_layers(self) -> Sequence[type[Layer]]:
        """Offer layers.

        When: once for each Pocket, when it first looks up a layer by its name.
        Arguments: none.
        Returns: a list of subclasses of `Layer`, each to be used by its `name`.
        Errors: an exception, or a result of a wrong type, is logged once and counted; none of its layers is there.
        A name that another plugin has already offered stays with that one, and is logged.

        >>> from pocket_plug import Layer, Pocket, hookimpl
        >>> class Slow(Layer):
        ...     seconds: float = 0.1
        >>> class Offering:
        ...     @hookimpl
        ...     def pocket_layers(self):
        ...         return [Slow]
        >>> Pocket(plugins=[Offering()], autoload=False).layer({"use": "slow", "seconds": 2})
        Slow(seconds=2)
        """
        raise NotImplementedError

    @hookspec
    def pocket_backends(self) -> Mapping[str, Callable[[str], Backend]]:
        """Offer backends, each for the URLs of one scheme.

        When: once for each Pocket, when it first makes a backend of a URL other than `memory://`.
        Arguments: none.
        Returns: a mapping of schemes to functions that make a backend from a whole URL: `{"redis": RedisBackend}`.
        Errors: an exception, or a result of a wrong type, is logged once and counted; none of its backends is there.
        What such a function raises is raised to the code that makes the store, as a ConfigError without passwords.

        >>> from pocket_plug import Memory, Pocket, hookimpl
        >>> class Offering:
        ...     @hookimpl
        ...     def pocket_backends(self):
        ...         return {"scratch": lambda url: Memory()}
        >>> Pocket(plugins=[Offering()], autoload=False).backend("scratch://anything")
        memory
        """
        raise NotImplementedError

    @hookspec
    def pocket_executors(self) -> Mapping[str, Callable[[str], Executor]]:
        """Offer executors, each for the URLs of one scheme.

        When: once for each Pocket, when a graph first names an executor.
        Arguments: none.
        Returns: a mapping of schemes to functions that make an executor from a whole URL: `{"dask": DaskExecutor.from_url}`. An
        executor opens nothing before its first work.
        Errors: an exception, or a result of a wrong type, is logged once and counted; none of its executors is there.
        What such a function raises is raised by `run` or `validate`, as a ConfigError without passwords.

        >>> from pocket_plug import Graph, Pocket, hookimpl, node
        >>> from pocket_plug.executors import Threads
        >>> class Offering:
        ...     @hookimpl
        ...     def pocket_executors(self):
        ...         return {"beside": lambda url: Threads()}
        >>> @node(executor="beside")
        ... def double(n: int) -> int:
        ...     return 2 * n
        >>> Graph(double).run_sync(21, pocket=Pocket(plugins=[Offering()], autoload=False))
        42
        """
        raise NotImplementedError

    @hookspec
    def pocket_types(self, codec: Codec) -> None:
        """Register types, so that their values can be stored.

        When: once for each Pocket, before it first makes a backend or a layer by name.
        Arguments: `codec`, the process's one, with `register`.
        Returns: nothing.
        Errors: an exception is logged once and counted; types that it has registered stay registered.

        >>> from fractions import Fraction
        >>> from pocket_plug import Pocket, hookimpl
        >>> class Fractions:
        ...     @hookimpl
        ...     def pocket_types(self, codec):
        ...         codec.register(Fraction, tag="fraction", encode=str, decode=Fraction)
        >>> from pocket_plug.codec import default_codec
        >>> layer = Pocket(plugins=[Fractions()], autoload=False).layer("migrate")
        >>> default_codec.decode(default_codec.encode(Fraction(1, 3)))
        Fraction(1, 3)
        """

    @hookspec
    def pocket_commands(self) -> Sequence[click.Command]:
        """Add commands to `pocket-plug`.

        When: when the command line looks for a name that isn't its own, or lists the commands.
        Arguments: none.
        Returns: a list of click commands, each with a name.
        Errors: an exception, or a result of a wrong type, is logged once and counted; the command line works without them.
        A name that another plugin or `pocket-plug` itself has stays with that one, and is logged.

        >>> import click
        >>> from pocket_plug import Pocket, hookimpl
        >>> class Greeting:
        ...     @hookimpl
        ...     def pocket_commands(self):
        ...         return [click.Command("greet", callback=lambda: click.echo("hello"))]
        >>> list(Pocket(plugins=[Greeting()], autoload=False).commands())
        ['greet']
        """
        raise NotImplementedError

    @hookspec
    def pocket_configure(self, pocket: PluginHost, options: Mapping[str, Any]) -> None:
        """Read the options, and prepare.

        When: once for each Pocket, when it is made, after all plugins are registered.
        Arguments: `pocket`, the Pocket as plugins may use it; `options`, the plugin's own table `[plugins.NAME]`, with the
        variables of the environment filled in, and empty where there is none.
        Returns: nothing.
        Errors: `NotConfiguredError("why")` means that the plugin declines: it is listed as declined and not used. After
        any other error it is listed as failed and not used. Both are logged, except if an installed plugin declines and the
        configuration has no table for it: it only waits for its settings, as `pocket-plug plugins` shows.

        If `options` is annotated with a TypedDict, editors know the settings: `pocket-plug config schema`.

        Keep state on the plugin's object, and make the plugin a class: then each Pocket makes an object of its own. Settings
        on a module are shared by all Pockets, and the last one that is made wins.

        >>> from pocket_plug import NotConfiguredError, Pocket, hookimpl
        >>> class Choosy:
        ...     @hookimpl
        ...     def pocket_configure(self, options):
        ...         if "server" not in options:
        ...             raise NotConfiguredError("no server is named")
        >>> Pocket(plugins=[Choosy], autoload=False).plugin("choosy").verdict
        'declined: no server is named'
        """

    @hookspec
    def pocket_plugin_failed(self, plugin: PluginRecord, what: str, error: BaseException) -> None:
        """Be notified that a plugin of the same Pocket fails.

        When: the first time that it fails at something; later failures at the same are only counted, in its record.
        Arguments: `plugin`, its record; `what` it failed at: a hook, or a part of its observer such as
        "pocket_observe (node)"; `error`, what it raised, whose message may hold anything, secrets too.
        Returns: nothing.
        Errors: an exception is logged once and counted; nobody is notified of that.

        >>> from pocket_plug import Pocket, hookimpl
        >>> class Broken:
        ...     @hookimpl
        ...     def pocket_layers(self):
        ...         return ["slow"]
        >>> class Listening:
        ...     @hookimpl
        ...     def pocket_plugin_failed(self, plugin, what):
        ...         print(plugin.name, "failed at", what)
        >>> layer = Pocket(plugins=[Broken(), Listening()], autoload=False).layer("migrate")
        broken failed at pocket_layers
        """

    @hookspec
    def pocket_shutdown(self, pocket: PluginHost) -> None:
        """Flush, and release what the plugin holds.

        When: once, after the stores of a Pocket were closed; for the default Pocket at the latest at the process's end.
        Arguments: `pocket`, the Pocket as plugins may use it.
        Returns: nothing.
        Errors: an exception is logged once and counted; the other plugins are still called.

        >>> from pocket_plug import Pocket, hookimpl
        >>> class Closing:
        ...     @hookimpl
        ...     def pocket_shutdown(self):
        ...         print("flushed")
        >>> with Pocket(plugins=[Closing()], autoload=False) as pocket:
        ...     pocket.store.sync.set("a", 1)
        flushed
        """
