"""`Pocket`: the plugins, the configuration and the named stores of a program; and the process's default Pocket.

Stores and graphs without a Pocket use the default one, which is made when it is first needed.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from itertools import chain, count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar
from warnings import warn

from pocket_plug.errors import (
    ConfigError,
    PluginError,
    StoreClosedError,
    UnknownStoreError,
    is_fault,
)
from pocket_plug.graph.elsewhere import Elsewhere, ExecElsewhere
from pocket_plug.graph.graph import Graph
from pocket_plug.hookspecs import Carrier, Observer, PluginRecord, Run, RunNotice
from pocket_plug.otel.additions import Additions
from pocket_plug.primitives.default_pocket import building_by, use_default_pocket
from pocket_plug.primitives.failures import concealed
from pocket_plug.primitives.files import relative_to
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.names import snake_case
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.secret_options import variables
from pocket_plug.store.backend import Backend
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.store.resolving import LayerSpec
from pocket_plug.store.store import Store

from .by_url import made_backend
from .config import (
    Config,
    StoreTable,
    default_config,
    expand,
    layer_name,
    load_config,
    make_recipe,
)
from .discovery import find_plugins
from .manager import Manager, Options
from .missing import why_missing
from .shown import Plugins, plugin_table
from .tables import alternatives

if TYPE_CHECKING:
    import click

    from pocket_plug.remote import Executor

In = TypeVar("In")
Out = TypeVar("Out")

DISABLE = "POCKET_PLUG_DISABLE"
_logger = logging.getLogger("pocket_plug")


def named_by_variable() -> list[str]:
    """The plugins that the environment variable disables."""
    return [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]


class Offers(NamedTuple):
    """What the plugins of a Pocket offer."""

    layers: Mapping[str, type[Layer]]
    """Layers, by name."""
    backends: tuple[str, ...]
    """URL schemes of stores."""
    executors: tuple[str, ...]
    """URL schemes of executors."""
    settings: Mapping[str, Any]
    """The plugins that take options, each with the type that its `pocket_configure` declares for its table."""


class Pocket:
    """Plugins, configuration and named stores.

    `config` is a `pocket.toml`, or a `pyproject.toml` with a table `[tool.pocket_plug]`. `plugins` are used besides the
    installed ones: modules, objects, or classes, of which each Pocket makes its own object. With `autoload=False`, only
    the built-in plugins are found. `block` names plugins that are not used. A plugin that can't be used is logged as a
    warning and has a record in `plugins`; with `strict`, or if `required` names it, PluginError is raised. Raises
    ConfigError for an invalid file.

    Two environment variables are used, too: `POCKET_PLUG_DISABLE=a,b` and `POCKET_PLUG_AUTOLOAD=0`.

    >>> Pocket(autoload=False).plugin("bounding").status
    'active'
    """

    def __init__(
        self,
        config: str | Path | Config | None = None,
        /,
        *,
        plugins: Iterable[object] = (),
        autoload: bool = True,
        block: Iterable[str] = (),
        strict: bool = False,
        required: Iterable[str] = (),
    ) -> None:
        for option, given in (("plugins", plugins), ("block", block), ("required", required)):
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise ConfigError(f"Pocket: {option} can't be {found(given)}; give a list: {option}=[…]")
        self.config = config or Config() if isinstance(config, Config | None) else load_config(config)
        self._manager = Manager(self.config.options)
        self._lock = new_rlock()
        self._stores: dict[str | None, Store] = {}
        self._executors: dict[str, Executor] = {}
        self._types_asked = self._closed = self._notified = False
        self.stores: Mapping[str, Store] = _Stores(self.config, self._build)
        """The stores of the tables `[stores.NAME]`, each built on first use."""
        unwanted = self._unwanted(block)
        third_party = autoload and _autoload_wanted()
        candidates, broken = find_plugins(third_party=third_party)
        for record in broken:
            self._manager.refuse(record)
        for candidate in candidates:
            if candidate.record.name in unwanted:
                self._manager.drop(candidate.record, "disabled", f"by {unwanted[candidate.record.name]}")
            else:
                self._manager.load(candidate.record, candidate.load)
        for plugin in plugins:
            if self._manager.in_use(plugin):  # it is installed, too: used twice, it would observe each run twice
                continue
            self._manager.load(PluginRecord(self._free_name(plugin)), partial(_itself, plugin))
        if not third_party:  # the variable, which is for all programs, may name plugins that weren't searched for
            unwanted = {name: where for name, where in unwanted.items() if where != DISABLE}
        self._warn_of_unknown(unwanted)
        self._check_options()
        with relative_to(self.config.folder):
            self._manager.configure(self, self._options)
        self._insist(strict, required)

    def __repr__(self) -> str:
        active = [record.name for record in self.plugins if record.status == "active"]
        return f"Pocket({self.config.source!r}, plugins={active})"

    def _repr_html_(self) -> str:
        return plugin_table(self.plugins)

    # ---------------------------------------------------------------- plugins
    @property
    def plugins(self) -> Plugins:
        """The records of all plugins that were found, used or not."""
        return Plugins(self._manager.records)

    def plugin(self, name: str) -> PluginRecord:
        """The record of one plugin. Raises PluginError, with the known names, if there is none."""
        for record in self.plugins:
            if record.name == name:
                return record
        raise PluginError(f"there is no plugin {name!r}{alternatives(name, [each.name for each in self.plugins])}")

    def register(self, plugin: object, /, *, name: str | None = None) -> PluginRecord:
        """Use one more plugin: a module, an object or a class. It observes runs that start from now on.

        If it is in use already, this returns its record. Raises PluginError if it can't be used.
        """
        if name is None and (used := self._manager.in_use(plugin)):
            return used
        record = self._manager.register(plugin, PluginRecord(name or self._free_name(plugin)))
        with relative_to(self.config.folder):
            self._manager.configure(self, self._options, only=record.name)
        if self._types_asked:
            self._manager.types(only=record.name)
        record = self.plugin(record.name)
        if record.status != "active":
            raise PluginError(f"plugin {record} {record.verdict}")
        return record

    def unregister(self, name: str, /) -> None:
        """Stop using a plugin."""
        self._manager.drop(self.plugin(name), "disabled", "unregistered")

    def observers(self, run: Run) -> list[Observer]:
        """The plugins' observers for a run, the outermost first. Called once when a run starts; never fails."""
        return self._manager.observers(run)

    def additions(self) -> Additions:
        """What the plugins add to spans. Called when something is traced; never fails."""
        return self._manager.additions()

    def notify(self, notice: RunNotice) -> None:
        """Notify the plugins of a change that a durable run has undergone outside of an execution; never fails."""
        self._manager.notify(notice)

    def commands(self, taken: Collection[str] = ()) -> dict[str, click.Command]:
        """The commands that plugins add to `pocket-plug`, by name. Those with a `taken` name are reported and left out."""
        commands: dict[str, click.Command] = {}
        for name, (record, command) in self._manager.commands().items():
            if name in taken:
                self._manager.report(
                    record, "pocket_commands", PluginError(f"pocket-plug has a built-in command {name!r}")
                )
            else:
                commands[name] = command
        return commands

    def _free_name(self, plugin: object) -> str:
        named = plugin if isinstance(plugin, ModuleType | type) else type(plugin)
        base = named.__name__.rpartition(".")[2].removeprefix("pocket_plug_").lower()
        taken = {record.name for record in self.plugins if record.status != "disabled"}
        return next(name for name in chain([base], (f"{base}-{n}" for n in count(2))) if name not in taken)

    def _unwanted(self, block: Iterable[str]) -> dict[str, str]:
        """The disabled plugins, each with what disables it."""
        unwanted = {name: f"{self.config.where}.disable" for name in self.config.disable}
        unwanted |= dict.fromkeys(named_by_variable(), DISABLE)
        return unwanted | dict.fromkeys(block, "Pocket(block=...)")

    def _warn_of_unknown(self, unwanted: Mapping[str, str]) -> None:
        known = [record.name for record in self.plugins]
        configured = {name: self._table_of(name) for name in self.config.options}
        for name, where in {**configured, **unwanted}.items():
            if name not in known:
                why = ("" if name in unwanted else why_missing("settings", name, ())) or alternatives(name, known)
                _logger.warning("%s: there is no plugin %r%s", where, name, why)

    def _check_options(self) -> None:
        for record in self.plugins:
            if (
                record.name in self.config.options
                and record.status == "active"
                and "pocket_configure" not in record.hooks
            ):
                raise ConfigError(f"{self._table_of(record.name)}: this plugin takes no options")

    def _table_of(self, name: str) -> str:
        return f"{self.config.where.removesuffix(']')}.{name}]"

    def _options(self, name: str) -> Options:
        written = self.config.options.get(name, {})
        return expand(written, self._table_of(name)), variables(written)

    def _insist(self, strict: bool, required: Iterable[str]) -> None:
        for record in self.plugins:
            if strict and record.status == "failed":
                raise PluginError(f"plugin {record} {record.verdict}")
        for name in required:
            record = self.plugin(name)
            if record.status != "active":
                raise PluginError(f"plugin {record} is required, but {record.verdict}")

    # ---------------------------------------------------------------- parts by name
    @property
    def offers(self) -> Offers:
        """What the plugins offer, by the names that are used in configurations."""
        return Offers(
            {name: layer for name, (_, layer) in self._manager.layers().items()},
            ("memory", *self._manager.backends()),
            (*self._manager.executors(),),
            self._manager.settings(),
        )

    def backend(self, url: str, /) -> Backend:
        """A new backend for a URL. Raises ConfigError for an invalid URL and for an unknown scheme, with the known ones."""
        if url == "memory://":
            return Memory()
        self._ask_types()
        return made_backend(url, self._manager)

    def layer(self, spec: LayerSpec, /, *, where: str = "") -> Layer:
        """A layer's recipe by name, or from `{"use": name, option: value}`.

        Raises ConfigError, with a message that begins with `where`, for an unknown layer or invalid options.
        """
        self._ask_types()
        name = layer_name(spec, where)
        offers = self._manager.layers()
        name = _current_name(name, offers)
        if name not in offers:
            why = why_missing("layer", name, self.plugins) or alternatives(name, offers)
            raise ConfigError(f"{where and f'{where}: '}there is no layer {name!r}{why}")
        options = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "use"}
        record, kind = offers[name]
        return make_recipe(kind, options, where, plugin=self._manager.plugin_of(record))

    def executor(self, executor: Elsewhere, /) -> ExecElsewhere:
        """The executor for `executor=`: a name in the table `[executors]`, a scheme such as "processes", or a URL.

        All nodes with the same value share one; an executor object is returned as it is. Raises ConfigError, with the known
        names, if there is none.
        """
        if not isinstance(executor, str):
            return executor
        known = self._executors.get(executor)
        if known is None:
            from .by_url import found_executor

            with self._lock:
                url, make = found_executor(executor, self.config, self._manager)
                known = self._executors.get(url) or make()
                self._executors[executor] = self._executors[url] = known
        return known

    def _close_executors(self) -> None:
        with self._lock:
            executors, self._executors = {*self._executors.values()}, {}
        with ExitStack() as closing:
            for executor in executors:
                closing.callback(executor.close)

    def _ask_types(self) -> None:
        with self._lock:
            if not self._types_asked:
                self._types_asked = True
                self._manager.types()

    # ---------------------------------------------------------------- stores
    @property
    def store(self) -> Store:
        """The store of the table `[store]`, or a store in memory without such a table. Built on first use."""
        return self._build(None, self.config.store)

    def default_store(self) -> Store | None:
        """The store of the table `[store]`, for graphs without a store; None without such a table."""
        return self.store if self.config.store.where else None

    def _build(self, name: str | None, table: StoreTable) -> Store:
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"{self!r} is closed")
            if name not in self._stores:
                self._stores[name] = self._built(table)
            return self._stores[name]

    def _built(self, table: StoreTable) -> Store:
        url = expand(table.url, f"{table.where}.url")
        places = [f"{table.where}.layers[{position}]" for position in range(len(table.layers))]
        layers = [self.layer(spec, where=where) for spec, where in zip(table.layers, places, strict=True)]
        try:
            with relative_to(self.config.folder), building_by(self):
                store = Store(self.backend(url), layers=layers)
        except BaseException as error:
            if not is_fault(error):
                raise
            said, cause = concealed(error, variables((table.url, table.layers)))
            if cause is not None and not isinstance(error, ConfigError | PluginError):
                raise
            kind = PluginError if isinstance(error, PluginError) else ConfigError
            raise kind(f"{table.where}: {said}" if table.where else said) from cause
        store.stack.from_environment = variables(table.url)
        return store

    def _configured(self) -> list[Store]:
        with self._lock:
            self._closed = self._notified = False
        return [self.store, *self.stores.values()]

    async def __aenter__(self) -> Self:
        """Open every store of the configuration. After `close`, new stores are built."""
        try:
            for store in self._configured():
                await store.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close executors and stores, the last one built first, and then notify the plugins. A failure doesn't stop the rest."""
        try:
            async with AsyncExitStack() as closing:
                for store in self._taken_stores():
                    closing.push_async_callback(store.close)
                if self._executors:
                    from pocket_plug.graph.running.workers import pool

                    closing.push_async_callback(pool().call, self._close_executors)
        finally:
            self.shutdown()

    def __enter__(self) -> Self:
        """Open every store of the configuration, for callers without an event loop."""
        try:
            for store in self._configured():
                store.stack.open_sync()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with ExitStack() as closing:
                for store in self._taken_stores():
                    closing.callback(store.sync.close)
                closing.callback(self._close_executors)
        finally:
            self.shutdown()

    def _taken_stores(self) -> list[Store]:
        with self._lock:
            self._closed, stores, self._stores = True, list(self._stores.values()), {}
        return stores

    def shutdown(self) -> None:
        """Close the executors, and call the plugins' `pocket_shutdown`, once.

        `close` calls it, and for the default Pocket also the end of the process.
        """
        self._close_executors()
        with self._lock:
            notified, self._notified = self._notified, True
        if not notified:
            self._manager.shutdown(self)

    async def run(
        self, graph: Graph[In, Out], input: In, /, *, run_id: str | None = None, traceparent: Carrier | None = None
    ) -> Out:
        """Run a graph with this Pocket: its plugins observe the run."""
        return await graph.run(input, pocket=self, run_id=run_id, traceparent=traceparent)


def _itself(plugin: object) -> object:
    return plugin


def _current_name(name: str, offers: Mapping[str, tuple[PluginRecord, type[Layer]]]) -> str:
    """A layer's current name. Before 0.2 it was the class name in lower case, without underscores; such a name warns."""
    for new, (_, kind) in offers.items():
        if name == kind.__name__.lower() and name not in offers and new == snake_case(kind.__name__):
            warn(
                f"the layer {name!r} is now called {new!r}; 0.3 will remove the old name",
                DeprecationWarning,
                stacklevel=3,
            )
            return new
    return name


class _Stores(Mapping[str, Store]):
    """The named stores, built on demand."""

    def __init__(self, config: Config, build: Callable[[str, StoreTable], Store]) -> None:
        self._tables, self._build = config.stores, build
        self._file = config.source

    def __getitem__(self, name: str) -> Store:
        if name in self._tables:
            return self._build(name, self._tables[name])
        if self._file:
            raise UnknownStoreError(f"there is no [stores.{name}] in {self._file}{alternatives(name, self._tables)}")
        raise UnknownStoreError(
            f"there is no [stores.{name}], since no configuration file was read. The command line reads the nearest pocket.toml, "
            "or pyproject.toml with [tool.pocket_plug], in this folder or above it. A program names one: Pocket('pocket.toml'), "
            f"or POCKET_PLUG_CONFIG=pocket.toml. This line in a pocket.toml is enough: stores.{name}.url = 'sqlite:///state.db'"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


def _autoload_wanted() -> bool:
    value = os.environ.get("POCKET_PLUG_AUTOLOAD", "1").strip().lower()
    if value not in ("0", "1", "false", "true", ""):
        raise ConfigError(f"POCKET_PLUG_AUTOLOAD must be 0 or 1, not {value!r}")
    return value not in ("0", "false")


# ---------------------------------------------------------------- the process's default Pocket
_default: Pocket | None = None
_making = False


def _reset_making() -> None:
    """In a forked child: a thread of the parent that was making the default Pocket doesn't exist here."""
    global _making
    _making = False


_default_lock = new_rlock(_reset_making)


def default_pocket() -> Pocket:
    """The Pocket that is used if none is given: made on first use, from the file that `POCKET_PLUG_CONFIG` names.

    Without this variable it has no configuration; files in the current folder are not read. A program sets its own by
    `set_default_pocket(Pocket("pocket.toml"))`. The default belongs to the whole process. (A context variable would be
    lost in threads and executors.)
    """
    return _default or _make_default()


def _make_default() -> Pocket:
    global _making
    with _default_lock:
        if _default is not None:
            return _default
        if _making:
            raise PluginError(
                "the default Pocket was requested while it was being created; a plugin must not use it while it is imported or "
                "configured: use the argument `pocket` of pocket_configure"
            )
        _making = True
        try:
            pocket = Pocket(default_config())
        finally:
            _making = False
        set_default_pocket(pocket)
        return pocket


def current_default() -> Pocket | None:
    """The process's default Pocket, or None if it wasn't needed yet."""
    return _default


def set_default_pocket(pocket: Pocket | None, /) -> None:
    """Make `pocket` the process's default; None: a new one is made when it is next needed. The old one is not closed."""
    global _default
    with _default_lock:
        _default = pocket
        atexit.unregister(_shut_down_default)
        atexit.register(_shut_down_default)


def _shut_down_default() -> None:
    if _default is not None:
        _default.shutdown()


use_default_pocket(default_pocket)  # called directly from now on: an import in each run would take a tenth of its time
