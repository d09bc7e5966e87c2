"""Hooks behind typed methods: a plugin's results are used, its errors are logged once and change nothing."""

from __future__ import annotations

import asyncio
import doctest
import inspect
import logging
import random
import re
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path

import click
import pluggy
import pytest
import structlog

import pocket_plug
from pocket_plug.errors import ConfigError, PluginError
from pocket_plug.executors import Threads
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.hookspecs import Observer, Run, Specs, hookimpl
from pocket_plug.layers import logging as own_logging
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from tests.conftest import Install

RUN = Run("run-1", "orders")
OURS = ["tracing", "metrics", "logging"]


def pocket_with(*plugins: object) -> Pocket:
    """A Pocket with only these plugins as observers."""
    return Pocket(plugins=plugins, autoload=False, block=OURS)


def said(caplog: pytest.LogCaptureFixture, about: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if about in record.getMessage()]


# ---------------------------------------------------------------- pocket_observe
def test_observers_of_a_run():
    """Each plugin is called with the run, with or without the argument, and each observer knows its plugin."""
    seen: list[object] = []

    class Asking:
        @hookimpl
        def pocket_observe(self, run):
            seen.append(run)
            return Observer(node=lambda call: None)

    class Silent:
        @hookimpl
        def pocket_observe(self):
            seen.append("silent")

    pocket = pocket_with(Asking(), Silent())
    [observer] = pocket.observers(RUN)
    assert seen == ["silent", RUN]
    observer.report("node", ValueError())
    assert pocket.plugin("asking").failures == {"node": 1}


def test_nothing_to_ask():
    """Without a plugin that observes the list is empty."""
    assert pocket_with().observers(RUN) == []


class Watching:
    def __init__(self, outermost: bool = False) -> None:
        self.observer = Observer(outermost=outermost)

    @hookimpl
    def pocket_observe(self, run):
        return self.observer


class Early(Watching):
    """Called first."""

    @hookimpl(tryfirst=True)
    def pocket_observe(self, run):
        return self.observer


class Late(Watching):
    """Called last."""

    @hookimpl(trylast=True)
    def pocket_observe(self, run):
        return self.observer


def test_order_of_observers():
    """The plugin that was registered last is called first, as in pluggy; an `outermost` observer is outermost."""
    late, first, early, second, tracing = Late(), Watching(), Early(), Watching(), Watching(outermost=True)
    pocket = pocket_with(tracing, late, first, early, second)
    order = [tracing, early, second, first, late]
    assert [id(observer) for observer in pocket.observers(RUN)] == [id(plugin.observer) for plugin in order]


def shutting(called: str, log: list[str], **marks: bool) -> object:
    """A plugin of this name that records pocket_shutdown."""

    def pocket_shutdown(self: object) -> None:
        log.append(called)

    return type(called, (), {"pocket_shutdown": hookimpl(**marks)(pocket_shutdown)})()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_the_same_as_pluggys(seed):
    """With any `tryfirst` and `trylast`, in any order of registration: the same order as in pluggy itself."""
    kinds = [{}, {"tryfirst": True}, {"trylast": True}] * 3
    random.Random(seed).shuffle(kinds)
    log: list[str] = []
    plugins = [shutting(f"p{position}", log, **marks) for position, marks in enumerate(kinds)]
    pluggys = pluggy.PluginManager("pocket_plug")
    pluggys.add_hookspecs(Specs)
    for plugin in plugins:
        pluggys.register(plugin)
    pluggys.hook.pocket_shutdown(pocket=None)
    expected, log[:] = [*log], []
    pocket_with(*plugins).shutdown()
    assert log == expected


def test_logs_of_other_plugins_have_the_ids_of_the_run():
    """Tracing, metrics and logging come before unmarked plugins, so that log events of those have the run's ids."""
    bound: list[object] = []

    class Asking:
        @hookimpl
        def pocket_observe(self):
            @contextmanager
            def watch(run):
                bound.append(structlog.contextvars.get_contextvars().get("run_id"))
                yield

            return Observer(run=watch)

    @node
    def double(n: int) -> int:
        return 2 * n

    former = own_logging.configure(events=True)
    try:
        with structlog.testing.capture_logs():
            asyncio.run(Graph(double, name="g").run(1, pocket=Pocket(plugins=[Asking()], autoload=False)))
    finally:
        own_logging.configure(events=former.events)
        structlog.reset_defaults()
    assert bound != [None]


def test_register_and_unregister():
    """A plugin that is registered later observes runs from then on, until it is unregistered."""
    pocket = pocket_with()
    record = pocket.register(Watching())
    assert (record.name, record.status, record.hooks) == ("watching", "active", ("pocket_observe",))
    assert len(pocket.observers(RUN)) == 1
    pocket.unregister("watching")
    assert pocket.observers(RUN) == []
    assert pocket.plugin("watching").status == "disabled"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("failure", "words"),
    [(ValueError("boom"), "ValueError: boom"), (SystemExit(3), "SystemExit: 3"), (Unspeakable(), "Unspeakable: (its")],
)
def test_raising_observer_is_said_once(caplog, failure, words):
    """An exception of pocket_observe is logged once, counted each time, and the others keep observing."""

    class Broken:
        @hookimpl
        def pocket_observe(self, run):
            raise failure

    pocket = pocket_with(Broken(), Watching())
    for _ in range(3):
        assert [observer.node for observer in pocket.observers(RUN)] == [None]
    [text] = said(caplog, "'broken'")
    assert f"plugin 'broken' failed at pocket_observe: {words}" in text
    assert pocket.plugin("broken").failures == {"pocket_observe": 3}


def test_the_traceback_is_at_level_debug(install, caplog):
    """For failures of an import, of `pocket_configure` or of another hook: for the plugin's author."""
    install("pocket-plug-absent", "import no_such_module")

    class Refusing:
        @hookimpl
        def pocket_configure(self, options):
            raise ValueError("no")

    class Broken:
        @hookimpl
        def pocket_layers(self):
            raise ValueError("no layers")

    caplog.set_level(logging.DEBUG, "pocket_plug")
    pocket = Pocket(plugins=[Refusing(), Broken()], block=OURS)
    for _ in range(2):
        assert "broken" in [record.name for record in pocket.plugins if "nothing" not in pocket.offers.layers]
    for name, what, line in [
        ("absent", "its start", "import no_such_module"),
        ("refusing", "pocket_configure", 'raise ValueError("no")'),
        ("broken", "pocket_layers", 'raise ValueError("no layers")'),
    ]:
        warning, detail = [record for record in caplog.records if f"'{name}'" in record.getMessage()]
        assert (warning.levelname, warning.exc_info) == ("WARNING", None)
        assert (detail.levelname, detail.name) == ("DEBUG", "pocket_plug.plugins")
        assert detail.getMessage().endswith(f"failed at {what}")
        assert line in "".join(traceback.format_exception(detail.exc_info[1]))


def test_a_traceback_shows_nothing_that_is_hidden(tmp_path, monkeypatch, caplog):
    """A message with a value from the environment is left out, the line number stays."""
    monkeypatch.setenv("TOKEN", "Marked4711")
    (tmp_path / "pocket.toml").write_text('[plugins.refusing]\ntoken = "${TOKEN}"')

    class Refusing:
        @hookimpl
        def pocket_configure(self, options):
            raise ValueError(f"{options['token']} is no good")

    caplog.set_level(logging.DEBUG, "pocket_plug")
    Pocket(tmp_path / "pocket.toml", plugins=[Refusing()], autoload=False)
    assert (
        "in test_a_traceback_shows_nothing_that_is_hidden.<locals>.Refusing.pocket_configure\nValueError" in caplog.text
    )
    assert "Marked4711" not in caplog.text


def test_wrong_answer_is_refused(install, caplog):
    """An observer of the wrong type is refused, with the plugin's and distribution's names."""
    install("pocket-plug-odd", """
        from pocket_plug.hookspecs import hookimpl
        @hookimpl
        def pocket_observe(run):
            return "an observer"
    """)  # fmt: skip
    assert Pocket(block=OURS).observers(RUN) == []
    [text] = said(caplog, "'odd'")
    assert "plugin 'odd' (pocket-plug-odd 1.0) failed at pocket_observe" in text
    assert "TypeError: it returned str, not an Observer or None" in text


def test_interrupt_in_an_observer_passes():
    """Ctrl-C belongs to the user, wherever it arrives."""

    class Interrupted:
        @hookimpl
        def pocket_observe(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pocket_with(Interrupted()).observers(RUN)


def test_failures_are_counted_by_kind(caplog):
    """One warning for each kind of failure of a plugin, from any number of threads."""
    pocket = pocket_with(Watching())
    [observer], record = pocket.observers(RUN), pocket.plugin("watching")
    threads = [threading.Thread(target=observer.report, args=(what, ValueError("x")))
               for what in ("node", "phase") for _ in range(50)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record.failures == {"node": 50, "phase": 50}
    assert sorted(text.split(" failed at ")[1].split(":")[0] for text in said(caplog, "'watching'")) == [
        "node",
        "phase",
    ]


# ---------------------------------------------------------------- the other hooks
class Shout(Layer):
    volume: int = 1


class Whisper(Layer):
    name = "shout"


def offering(hook: str, answer: object, called: str = "offering") -> object:
    """A plugin of this name that returns this from one hook."""

    def give(self: object) -> object:
        return answer

    return type(called, (), {hook: hookimpl(give)})()


def test_layers_of_a_plugin():
    """A layer is usable by its name as soon as its plugin is registered."""
    assert (
        repr(pocket_with(offering("pocket_layers", [Shout])).layer({"use": "shout", "volume": 3})) == "Shout(volume=3)"
    )


def test_layers_are_asked_for_once():
    """The hook is called when a name is first looked up, not for every stack."""
    asked: list[int] = []

    class Offering:
        @hookimpl
        def pocket_layers(self):
            asked.append(1)
            return [Shout]

    pocket = pocket_with(Offering())
    assert asked == []
    pocket.layer("shout")
    pocket.layer("shout")
    assert asked == [1]


class RateLimit(Layer):
    """Two words."""


class Called(Layer):
    name = "mycalled"


def test_a_layer_has_a_name_in_snake_case():
    """As a node's. Its name before 0.2 works, and warns; a name given by its author is unchanged."""
    pocket = pocket_with(offering("pocket_layers", [RateLimit, Called]))
    assert (type(pocket.layer("rate_limit")), type(pocket.layer("mycalled"))) == (RateLimit, Called)
    with pytest.warns(DeprecationWarning, match="the layer 'ratelimit' is now called 'rate_limit'"):
        assert type(pocket.layer({"use": "ratelimit", "label": "x"})) is RateLimit
    with pytest.raises(ConfigError, match="there is no layer 'called'"):
        pocket.layer("called")


def test_layer_name_taken(caplog):
    """Of two plugins with one layer name, the first one's is used, and the message names both."""
    first, second = offering("pocket_layers", [Shout], "first"), offering("pocket_layers", [Whisper], "second")
    assert type(pocket_with(first, second).layer("shout")) is Shout
    [text] = said(caplog, "'second'")
    assert "'shout' is already offered by plugin 'first'" in text


@pytest.mark.parametrize(
    ("hook", "answer", "words"),
    [
        ("pocket_layers", Shout, "it returned type, not a list"),
        ("pocket_layers", "shout", "it returned str, not a list"),
        ("pocket_layers", [Shout()], "it returned Shout(), not a subclass of Layer"),
        ("pocket_backends", [Memory], "it returned list, not a mapping of URL schemes"),
        ("pocket_backends", {"x": 3}, "'x' has 3, which is not a function that takes a URL"),
        ("pocket_executors", [Memory], "it returned list, not a mapping of URL schemes"),
        ("pocket_executors", {"x": 3}, "'x' has 3, which is not a function that takes a URL"),
    ],
)
def test_results_of_the_wrong_type(caplog, hook, answer, words):
    """An invalid result is logged with the plugin's name; everything else works."""
    pocket = pocket_with(offering(hook, answer))
    assert pocket.layer("bounding").name == "bounding"
    with pytest.raises(ConfigError):
        pocket.backend("x://")
    with pytest.raises(ConfigError):
        pocket.executor("x://")
    [text] = said(caplog, "'offering'")
    assert f"failed at {hook}: TypeError: {words}" in text


def test_backends_of_a_plugin():
    """For a URL's scheme, the plugin's function is called with the whole URL."""
    urls: list[str] = []

    def make(url: str) -> Memory:
        urls.append(url)
        return Memory()

    pocket = pocket_with(offering("pocket_backends", {"redis": make}))
    assert isinstance(pocket.backend("redis://cache/0"), Memory)
    assert isinstance(pocket.backend("REDIS://cache/1"), Memory)
    assert urls == ["redis://cache/0", "REDIS://cache/1"]


def test_a_backend_that_can_not_be_created():
    """The error names the plugin and the URL, without its password."""

    def refuse(url: str) -> Memory:
        raise ValueError("no such port")

    pocket = pocket_with(offering("pocket_backends", {"redis": refuse, "none": lambda url: None}))
    with pytest.raises(ConfigError, match=r"'redis://me:\*\*\*@host': plugin 'offering' .*ValueError: no such port"):
        pocket.backend("redis://me:secret@host")
    with pytest.raises(PluginError, match="plugin 'offering' returned None, not a Backend"):
        pocket.backend("none://")


def test_executors_of_a_plugin():
    """For a URL's scheme, the plugin's function is called; there is one executor for each URL, closed with its Pocket."""
    closed: list[str] = []

    class Scratch(Threads):
        def __init__(self, url: str) -> None:
            self.url = url

        def close(self) -> None:
            closed.append(self.url)

    class Offering:
        @hookimpl
        def pocket_executors(self):
            return {"scratch": Scratch}

    pocket = pocket_with(Offering())
    assert pocket.executor("scratch://a") is pocket.executor("scratch://a")
    assert pocket.executor("scratch") is pocket.executor("scratch://")
    with pocket:
        pass
    assert sorted(closed) == ["scratch://", "scratch://a"]
    assert pocket.executor("scratch").url == "scratch://"
    asyncio.run(pocket.close())
    assert sorted(closed) == ["scratch://", "scratch://", "scratch://a"]


def test_an_executor_that_can_not_be_created():
    """The error names the plugin and the URL, without its password."""

    def refuse(url: str) -> Threads:
        raise ValueError(f"no such port in {url}")

    pocket = pocket_with(offering("pocket_executors", {"far": refuse, "none": lambda url: None}))
    with pytest.raises(ConfigError, match=r"'far://me:\*\*\*@host': plugin 'offering' .*no such port") as failed:
        pocket.executor("far://me:secret@host")
    assert "secret" not in str(failed.value)
    with pytest.raises(PluginError, match="plugin 'offering' returned None, not an Executor"):
        pocket.executor("none://")


def test_types_are_registered_before_they_are_needed():
    """pocket_types is called once, with the codec, before the first part that could need it is created."""
    from pocket_plug.codec import default_codec

    codecs: list[object] = []

    class Typing:
        @hookimpl
        def pocket_types(self, codec):
            codecs.append(codec)

    pocket = pocket_with(Typing())
    assert isinstance(pocket.backend("memory://"), Memory)
    assert codecs == []
    pocket.layer("bounding")
    pocket.layer("bounding")
    assert codecs == [default_codec]


def test_commands_of_a_plugin(caplog):
    """Commands are registered by name; anything else is reported."""
    command = click.Command("greet")
    pocket = pocket_with(offering("pocket_commands", [command]), offering("pocket_commands", [print], "odd"))
    assert pocket.commands() == {"greet": command}
    assert "not a click command with a name" in said(caplog, "'odd'")[0]


# ---------------------------------------------------------------- rules for hooks
@pytest.mark.parametrize("hook", [name for name in vars(Specs) if name.startswith("pocket_")])
def test_every_hook_is_documented_and_tested(hook):
    """The spec is the manual: when it is called, each argument, the result, what happens to errors, an example that runs.

    (The examples run as doctests.) A hook that lacks one of the five, or that no test implements, fails the suite.
    """
    spec = getattr(Specs, hook)
    parts = re.fullmatch(
        r"\S.+?\.\n\n\s*When: (?P<when>.+?)\n\s*Arguments: (?P<arguments>.+?)\n\s*Returns: (?P<returns>.+?)\n"
        r"\s*Errors: (?P<errors>.+?)\n\n(?P<example>.+)",
        spec.__doc__,
        re.DOTALL,
    )
    assert parts is not None, hook
    arguments = {name for name in inspect.signature(spec).parameters if name != "self"}
    assert arguments <= set(re.findall(r"`(\w+)`", parts["arguments"]))
    assert (parts["arguments"] == "none.") == (not arguments)
    gives = inspect.signature(spec).return_annotation
    assert (parts["returns"] == "nothing.") == (gives == "None")
    [example] = doctest.DocTestFinder().find(spec, hook, globs={})
    assert f"def {hook}(" in "".join(line.source for line in example.examples)
    assert any(line.want for line in example.examples)
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert f"def {hook}(self" in tests or f"def {hook}()" in tests


def test_hooks_are_called_in_one_file():
    """Only manager.py uses pluggy's hook relay."""
    package = Path(pocket_plug.__file__).parent
    users = [
        path.name for path in package.rglob("*.py") if ".hook," in path.read_text() or "pm.hook" in path.read_text()
    ]
    assert users == ["manager.py"]


def test_a_warning_reaches_a_terminal():
    """A program without a logging configuration gets the warning on stderr."""
    code = (
        "from pocket_plug.plugins.pocket import Pocket\n"
        "Pocket(autoload=False, plugins=[object()])\n"
    )  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "plugin 'object' can't be used: it implements no hook" in result.stderr
    assert logging.getLogger("pocket_plug").level == logging.NOTSET


# ---------------------------------------------------------------- plugins without their settings
WAITING = """
    from pocket_plug import NotConfiguredError, hookimpl
    class Waiting:
        @hookimpl
        def pocket_configure(self, options):
            if "server" not in options:
                raise NotConfiguredError("no server is named")
"""


def test_an_unconfigured_plugin_is_silent_by_default(
    install: Install, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is installed and needs settings that are missing: nothing is logged or printed; its record has the reason."""
    install("pocket-plug-waiting", WAITING, entry_points="waiting = pocket_plug_waiting:Waiting")
    install("pocket-plug-early", "from pocket_plug import NotConfiguredError\nraise NotConfiguredError('not here')")
    with caplog.at_level("INFO"):
        pocket = Pocket()
    assert not caplog.records
    assert capsys.readouterr() == ("", "")
    assert pocket.plugin("waiting").verdict == "declined: no server is named"
    assert pocket.plugin("early").verdict == "declined: not here"
    with pytest.raises(PluginError, match=r"'waiting' .* is required, but declined: no server is named"):
        Pocket(required=["waiting"])


def test_a_configured_plugin_that_declines_is_a_warning(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The user has written settings for it, or passed it in code, so its absence is reported."""
    install("pocket-plug-waiting", WAITING, entry_points="waiting = pocket_plug_waiting:Waiting")
    (tmp_path / "pocket.toml").write_text("[plugins.waiting]\nport = 1")
    Pocket(tmp_path / "pocket.toml")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "declined: no server is named" in caplog.text
    caplog.clear()
    from pocket_plug_waiting import Waiting  # type: ignore[import-not-found] # installed above

    Pocket(plugins=[Waiting], block=["waiting"], autoload=False)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
