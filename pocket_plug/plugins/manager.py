"""A typed façade over pluggy, with a method for each hook. Only this file uses `pm.hook`.

A plugin can't make the program fail: it is checked when it is registered, and its later errors are logged once and counted in
its record.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast, get_type_hints

import pluggy

from pocket_plug.errors import NotConfiguredError, PluginError, is_fault, suggest
from pocket_plug.hookspecs import (
    GROUP,
    Observer,
    PluginHost,
    PluginRecord,
    Run,
    RunNotice,
    SpanAdditions,
    Specs,
    Status,
)
from pocket_plug.otel.additions import Additions, Report
from pocket_plug.primitives.failures import Told, concealed, describe, error_type, stack_of
from pocket_plug.primitives.forking import new_lock, new_rlock
from pocket_plug.primitives.redaction import conceal
from pocket_plug.primitives.signatures import signature_of
from pocket_plug.store.backend import Backend
from pocket_plug.store.layer import Layer

from .tables import alternatives

if TYPE_CHECKING:
    import click

    from pocket_plug.remote import Executor

T = TypeVar("T")
Options = tuple[Mapping[str, Any], Mapping[str, str]]
"""A plugin's options; and their secrets, each with the text that is shown instead."""

_logger = logging.getLogger("pocket_plug")
_details = logging.getLogger("pocket_plug.plugins")


class Manager:
    """The plugins of one Pocket, and the records of plugins that aren't used. Threads may share it."""

    def __init__(self, configured: Collection[str] = ()) -> None:
        """`configured`: names of plugins that have a table in the configuration."""
        self._configured = configured
        self._pm = pluggy.PluginManager(GROUP)
        self._pm.add_hookspecs(Specs)
        self._lock = new_rlock()
        self._records: dict[str, PluginRecord] = {}
        self._nameless: list[PluginRecord] = []
        self._offers: dict[str, Mapping[str, tuple[PluginRecord, Any]]] = {}
        self._observing: tuple[tuple[PluginRecord, Callable[[Run], object]], ...] = ()
        self._additions: Additions | None = None
        self._counting = new_lock()
        self._hidden: dict[str, Mapping[str, str]] = {}

    # ---------------------------------------------------------------- registration
    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """All plugins that were found, in the order of registration; at the end, those without a name or with a taken one."""
        return (*self._records.values(), *self._nameless)

    def load(self, record: PluginRecord, load: Callable[[], object]) -> None:
        """Register what `load` returns. An error is kept in the record and logged as one warning."""
        if taken := self._taken(record.name):
            self.refuse(replace(record, status="failed", reason=taken))
            return
        try:
            self.register(load(), record)
        except NotConfiguredError as error:
            self.drop(record, "declined", error)
        except BaseException as error:
            if not is_fault(error):
                raise
            self.drop(record, "failed", error)

    def refuse(self, record: PluginRecord) -> None:
        """Keep the record of a plugin whose name is taken, or whose metadata can't be read. Logs one warning."""
        self._nameless.append(record)
        _logger.warning("plugin %s %s", record, record.verdict)

    def register(self, plugin: object, record: PluginRecord) -> PluginRecord:
        """Use a plugin. Raises PluginError if its name is taken or its hooks are invalid."""
        with self._lock:
            if taken := self._taken(record.name):
                raise PluginError(taken)
            plugin = _made(plugin)
            if owner := self.in_use(plugin):
                raise PluginError(f"it is in use already, as plugin {owner}")
            hooks = self._check(plugin)
            try:
                self._pm.register(plugin, record.name)
            except (ValueError, pluggy.PluginValidationError) as error:
                raise PluginError(str(error)) from error
            record = replace(record, hooks=hooks, status="active", reason="")
            self._keep(record)
        return record

    def drop(self, record: PluginRecord, status: Status, why: object) -> PluginRecord:
        """Stop using a plugin, or record that it can't be used. This is logged, unless the user asked for it.

        An installed plugin that declines and isn't configured only waits for its settings: this is no warning at each start.
        """
        reason = describe(why) if isinstance(why, BaseException) else str(why)
        record = replace(record, status=status, reason=reason)
        with self._lock:
            if self._pm.has_plugin(record.name):
                self._pm.unregister(name=record.name)
            self._keep(record)
        waits = status == "declined" and record.origin == "entry point" and record.name not in self._configured
        if status != "disabled":
            _logger.log(logging.DEBUG if waits else logging.WARNING, "plugin %s %s", record, record.verdict)
        if status == "failed" and isinstance(why, BaseException):
            self._log_traceback(record, "its start", why)
        return record

    def in_use(self, plugin: object) -> PluginRecord | None:
        """The record of a plugin that is in use: of this module or object, or of an object of this class."""
        for name, used in self._pm.list_name_plugin():
            kind: object = type(used)
            if plugin is used or plugin is kind:
                return self._records[name]
        return None

    def plugin_of(self, record: PluginRecord) -> Any:
        """The module or object that implements a plugin's hooks."""
        return self._pm.get_plugin(record.name)

    def report(self, plugin: PluginRecord, what: str, error: BaseException, *, silent: bool = False) -> None:
        """Count a failure of a plugin at `what`: a hook, or a part of its observer. Log it, and notify the other plugins, once.

        `silent` omits the error's message, which may contain a run's values, and names the line instead: then only the traceback
        has the message. Never raises, also not for an error whose `__str__` raises.
        """
        with self._counting:
            plugin.failures[what] += 1
            first = plugin.failures[what] == 1
        if not first:
            return
        text = (
            f"{error_type(error)}{_line(error)}" if silent and not isinstance(error, PluginError) else describe(error)
        )
        said = Told(error, conceal(text, self._hidden.get(plugin.name, {})))
        _logger.warning("plugin %s failed at %s: %s (logged once; later failures are only counted)", plugin, what, said)
        self._log_traceback(plugin, what, error)
        if what != _FAILED:  # a plugin that fails in this hook isn't notified of that
            for _ in self._ask(_FAILED, plugin=plugin, what=what, error=error):
                pass

    def _log_traceback(self, plugin: PluginRecord, what: str, error: BaseException) -> None:
        """Log the traceback at level debug, for the plugin's author; without messages if one contains a secret."""
        if isinstance(error, PluginError) or not _details.isEnabledFor(logging.DEBUG):
            return  # a PluginError is raised by pocket_plug: its traceback has no line of the plugin
        _, shown = concealed(error, self._hidden.get(plugin.name, {}))
        if shown is None:
            _details.debug("plugin %s failed at %s\n%s", plugin, what, stack_of(error, lambda _: None))
        else:
            _details.debug("plugin %s failed at %s", plugin, what, exc_info=shown)

    def _keep(self, record: PluginRecord) -> None:
        """Keep a record, and reset what was cached from hooks. A disabled plugin with the same name stays listed."""
        owner = self._records.get(record.name)
        if owner is not None and owner.distribution != record.distribution:
            self._nameless.append(owner)
        self._records[record.name] = record
        self._offers = {}
        self._additions = None
        self._observing = tuple(
            (record, function if names else _without_argument(function))
            for record, function, names in self._implementations("pocket_observe")
        )

    def _taken(self, name: str) -> str:
        """Why a plugin can't have this name; "" if it can."""
        owner = self._records.get(name)
        if owner is None or owner.status == "disabled":
            return ""
        return f"the name {name!r} is already used by {owner}; uninstall or rename one of the two"

    def _check(self, plugin: object) -> tuple[str, ...]:
        """The hooks that a plugin implements. Raises PluginError for mistakes that pluggy reports later or not at all."""
        specs = [name for name in dir(Specs) if name.startswith("pocket_")]
        hooks: list[str] = []
        for attribute in dir(plugin):
            options = self._pm.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                if attribute in specs and callable(getattr(plugin, attribute)):
                    raise PluginError(f"{attribute} has no @hookimpl; write it above the function")
                continue
            hook = options.get("specname") or attribute
            if hook not in specs:
                if options.get("optionalhook"):
                    continue
                raise PluginError(f"there is no hook {hook!r}{alternatives(hook, specs)}")
            if options.get("wrapper") or options.get("hookwrapper"):
                raise PluginError(f"{hook} is a wrapper; hooks here are called one by one, so remove `wrapper=True`")
            _check_function(hook, getattr(plugin, attribute))
            hooks.append(hook)
        if not hooks:
            raise PluginError(
                self._class_meant(plugin) or f"it implements no hook; mark functions with @hookimpl: {', '.join(specs)}"
            )
        return tuple(hooks)

    def _class_meant(self, plugin: object) -> str:
        """The hint for a text, and for a module without hooks that has a class with hooks: it must be given instead."""
        if isinstance(plugin, str):
            return "it is a text; import the module, and give that"
        for name, kind in vars(plugin).items() if isinstance(plugin, ModuleType) else ():
            if isinstance(kind, type) and any(self._pm.parse_hookimpl_opts(kind, each) for each in dir(kind)):
                return f"it implements no hook, but its class {name} does; name the class: {kind.__module__}:{name}"
        return ""

    def _implementations(self, hook: str) -> list[tuple[PluginRecord, Callable[..., Any], tuple[str, ...]]]:
        """The implementations of a hook in the order in which pluggy calls them, which is the reverse of its list."""
        found: list[pluggy.HookImpl] = getattr(self._pm.hook, hook).get_hookimpls()
        return [(self._records[each.plugin_name], each.function, each.argnames) for each in reversed(found)]

    def _ask(self, hook: str, only: str | None = None, /, **arguments: object) -> Iterator[tuple[PluginRecord, Any]]:
        for record, function, names in self._implementations(hook):
            if only not in (None, record.name):
                continue
            try:
                answer = function(*[arguments[name] for name in names])
            except BaseException as error:
                if not is_fault(error):
                    raise
                self.report(record, hook, error)
            else:
                if answer is not None:
                    yield record, answer

    # ---------------------------------------------------------------- a method for each hook
    def observers(self, run: Run) -> list[Observer]:
        """The plugins' observers for this run, the outermost first. Errors are reported for their plugins."""
        observers: list[Observer] = []
        for record, ask in self._observing:
            try:
                observer = ask(run)
                if observer is None:
                    continue
                if not isinstance(observer, Observer):
                    raise TypeError(f"it returned {type(observer).__name__}, not an Observer or None")
            except BaseException as error:
                if not is_fault(error):
                    raise
                self.report(record, "pocket_observe", error)
                continue
            object.__setattr__(observer, "report", partial(self.report, record, silent=True))
            observers.append(observer)
        if len(observers) > 1:
            observers.sort(key=lambda observer: not observer.outermost)
        return observers

    def additions(self) -> Additions:
        """What the plugins add to spans. They are asked once, and again after a plugin was added or removed."""
        found = self._additions
        if found is None:
            with self._lock:
                self._additions = found = Additions([*self._asked_additions()])
        return found

    def _asked_additions(self) -> Iterator[tuple[SpanAdditions, Report]]:
        for record, answer in self._ask("pocket_span_additions"):
            if isinstance(answer, SpanAdditions):
                yield answer, partial(self.report, record, silent=True)
            else:
                given = TypeError(f"it returned {type(answer).__name__}, not SpanAdditions or None")
                self.report(record, "pocket_span_additions", given)

    def notify(self, notice: RunNotice) -> None:
        """Notify the plugins of a change of a durable run."""
        for _ in self._ask("pocket_run_notice", notice=notice):
            pass

    def layers(self) -> Mapping[str, tuple[PluginRecord, type[Layer]]]:
        """The layers that plugins offer, by name, each with its plugin."""
        return self._collect("pocket_layers", _layers)

    def backends(self) -> Mapping[str, tuple[PluginRecord, Callable[[str], Backend]]]:
        """The functions that make a backend from a URL, by scheme, each with its plugin."""
        return self._collect("pocket_backends", partial(_by_scheme, "{'redis': RedisBackend}"))

    def executors(self) -> Mapping[str, tuple[PluginRecord, Callable[[str], Executor]]]:
        """The functions that make an executor from a URL, by scheme, each with its plugin."""
        return self._collect("pocket_executors", partial(_by_scheme, "{'dask': DaskExecutor.from_url}"))

    def commands(self) -> Mapping[str, tuple[PluginRecord, click.Command]]:
        """The commands that plugins add to the command line, by name, each with its plugin."""
        return self._collect("pocket_commands", _commands)

    def _collect(
        self, hook: str, entries: Callable[[Any], Iterable[tuple[str, T]]]
    ) -> Mapping[str, tuple[PluginRecord, T]]:
        with self._lock:
            if hook not in self._offers:
                offers: dict[str, tuple[PluginRecord, T]] = {}
                names = [*self._records]
                # the plugin that was registered first keeps a name, so no plugin can replace a built-in part
                for record, answer in sorted(self._ask(hook), key=lambda asked: names.index(asked[0].name)):
                    self._add(offers, record, hook, answer, entries)
                self._offers[hook] = offers
            return self._offers[hook]

    def _add(
        self,
        offers: dict[str, tuple[PluginRecord, T]],
        record: PluginRecord,
        hook: str,
        answer: object,
        entries: Callable[[Any], Iterable[tuple[str, T]]],
    ) -> None:
        """Add what a plugin offers. A name that another plugin offers already is reported, and so are errors."""
        try:
            for name, offer in entries(answer):
                self._check_owner(hook, name, record, offers.setdefault(name, (record, offer))[0])
        except BaseException as error:
            if not is_fault(error):
                raise
            self.report(record, hook, error)

    def _check_owner(self, hook: str, name: str, record: PluginRecord, owner: PluginRecord) -> None:
        if owner is not record:
            self.report(record, hook, PluginError(f"{name!r} is already offered by plugin {owner}"))

    def types(self, only: str | None = None) -> None:
        """Let the plugins register their types with the codec."""
        if self._implementations("pocket_types"):
            from pocket_plug.codec import default_codec

            for _ in self._ask("pocket_types", only, codec=default_codec):
                pass

    def configure(self, pocket: PluginHost, options: Callable[[str], Options], only: str | None = None) -> None:
        """Pass each plugin its options. A plugin that fails is no longer used; errors of `options` are raised."""
        for record, function, names in self._implementations("pocket_configure"):
            if only not in (None, record.name):
                continue
            own, hidden = options(record.name)
            self._hidden[record.name] = hidden
            arguments = {"pocket": pocket, "options": own}
            try:
                function(*[arguments[name] for name in names])
            except NotConfiguredError as error:
                self.drop(record, "declined", conceal(describe(error), hidden))
            except BaseException as error:
                if not is_fault(error):
                    raise
                self.drop(record, "failed", conceal(describe(error), hidden))
                self._log_traceback(record, "pocket_configure", error)

    def settings(self) -> Mapping[str, Any]:
        """The plugins that take options, each with the type that its hook declares for them, by default Mapping."""
        return {
            record.name: _declared(function)
            for record, function, names in self._implementations("pocket_configure")
            if "options" in names
        }

    def shutdown(self, pocket: PluginHost) -> None:
        """Notify the plugins that the Pocket closes."""
        for _ in self._ask("pocket_shutdown", pocket=pocket):
            pass


_FAILED = "pocket_plugin_failed"


def _line(error: BaseException) -> str:
    """Where an error was raised, as in ` at slow.py:17`; "" if it has no traceback."""
    places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    return f" at {os.path.basename(places[-1][0])}:{places[-1][1]}" if places else ""


def _made(plugin: object) -> object:
    """The plugin, or a new object of it if it is a class: each Pocket has its own."""
    if not isinstance(plugin, type):
        return plugin
    try:
        return plugin()
    except NotConfiguredError:
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        raise PluginError(f"calling the class {plugin.__name__} failed: {describe(error)}") from error


def _check_function(hook: str, function: Callable[..., Any]) -> None:
    for kind, is_kind in (
        ("`async def`", inspect.iscoroutinefunction),
        ("an async generator", inspect.isasyncgenfunction),
        ("a generator", inspect.isgeneratorfunction),
    ):
        if is_kind(function):
            raise PluginError(f"{hook} is {kind}; hooks must be plain functions that return their result")
    allowed = [name for name in inspect.signature(getattr(Specs, hook)).parameters if name != "self"]
    takes = f"it may take {' and '.join(allowed)}" if allowed else "it takes no argument"
    for name, parameter in signature_of(function).parameters.items():
        given = parameter.default is not parameter.empty
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise PluginError(f"{hook} has the parameter {str(parameter)!r}; arguments are passed by name: {takes}")
        if name not in allowed and not given:
            raise PluginError(f"{hook} has no argument {name!r}; {takes}.{suggest(name, allowed)}")
        if name in allowed and given:
            raise PluginError(f"{hook} gives {name!r} a default, so it would never be passed; remove the default")


def _declared(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("options", Mapping)
    except BaseException as error:  # a name that can't be resolved here is no error: any table is allowed then
        if not is_fault(error):
            raise
        return Mapping


def _without_argument(function: Callable[[], object]) -> Callable[[Run], object]:
    return lambda run: function()


def _layers(answer: Any) -> Iterable[tuple[str, type[Layer]]]:
    for layer in _items(answer):
        if not (isinstance(layer, type) and issubclass(layer, Layer)):
            raise TypeError(f"it returned {layer!r:.80}, not a subclass of Layer")
        yield layer.name, layer


def _by_scheme(example: str, answer: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(answer, Mapping):
        raise TypeError(f"it returned {type(answer).__name__}, not a mapping of URL schemes: {example}")
    for scheme, make in cast("Mapping[str, Any]", answer).items():
        if not callable(make):
            raise TypeError(f"{scheme!r} has {make!r:.80}, which is not a function that takes a URL")
        yield scheme, make


def _commands(answer: Any) -> Iterable[tuple[str, click.Command]]:
    import click

    for command in _items(answer):
        if not isinstance(command, click.Command) or not command.name:
            raise TypeError(f"it returned {command!r:.80}, not a click command with a name")
        yield command.name, command


def _items(answer: Any) -> Sequence[Any]:
    if not _is_sequence(answer):
        raise TypeError(f"it returned {type(answer).__name__}, not a list")
    return answer


def _is_sequence(answer: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(answer, Sequence) and not isinstance(answer, str | bytes)
