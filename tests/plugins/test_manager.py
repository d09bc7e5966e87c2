"""Hooks behind typed methods: what a plugin gives is used, what it raises is said once and changes nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

import pocket_plug
from pocket_plug.errors import ConfigError, PluginError
from pocket_plug.hookspecs import Observer, Run, Specs, hookimpl
from pocket_plug.plugins.manager import report_failure
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory

RUN = Run("run-1", "orders")
OURS = ["tracing", "metrics", "logging"]


def pocket_with(*plugins: object) -> Pocket:
    """A Pocket that only these plugins watch."""
    return Pocket(plugins=plugins, autoload=False, block=OURS)


def said(caplog: pytest.LogCaptureFixture, about: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if about in record.getMessage()]


# ---------------------------------------------------------------- pocket_observe
def test_observers_of_a_run():
    """Each plugin is asked with the run, by name or not at all, and each observer knows whose it is."""
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
    assert seen == [RUN, "silent"]
    observer.report("node", ValueError())
    assert pocket.plugin("asking").failures == {"node": 1}


def test_nothing_to_ask():
    """Without a plugin that observes there is an empty list."""
    assert pocket_with().observers(RUN) == []


class Watching:
    def __init__(self, outermost: bool = False) -> None:
        self.observer = Observer(outermost=outermost)

    @hookimpl
    def pocket_observe(self, run):
        return self.observer


class Early(Watching):
    @hookimpl(tryfirst=True)
    def pocket_observe(self, run):
        return self.observer


class Late(Watching):
    @hookimpl(trylast=True)
    def pocket_observe(self, run):
        return self.observer


def test_order_of_observers():
    """Tracing is outermost, so that the others' logs carry its ids; else the order is that of the plugins' list."""
    late, first, early, second, tracing = Late(), Watching(), Early(), Watching(), Watching(outermost=True)
    pocket = pocket_with(late, first, early, second, tracing)
    order = [tracing, early, first, second, late]
    assert [id(observer) for observer in pocket.observers(RUN)] == [id(plugin.observer) for plugin in order]


def test_register_and_unregister():
    """A plugin registered later watches the runs that start from then on, until it is unregistered."""
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
    """What pocket_observe raises is said once, counted each time, and the others watch on."""

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


def test_wrong_answer_is_refused(install, caplog):
    """An observer of the wrong type is refused, naming plugin and distribution."""
    install("pocket-plug-odd", """
        from pocket_plug.hookspecs import hookimpl
        @hookimpl
        def pocket_observe(run):
            return "an observer"
    """)  # fmt: skip
    assert Pocket(block=OURS).observers(RUN) == []
    [text] = said(caplog, "'odd'")
    assert "plugin 'odd' (pocket-plug-odd 1.0) failed at pocket_observe" in text
    assert "TypeError: it gave str, not an Observer or None" in text


def test_interrupt_in_an_observer_passes():
    """Ctrl-C is the user's, wherever it arrives."""

    class Interrupted:
        @hookimpl
        def pocket_observe(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pocket_with(Interrupted()).observers(RUN)


def test_failures_are_counted_by_kind(caplog):
    """One warning for each kind of failure of a plugin, however many threads meet it."""
    record = pocket_with(Watching()).plugin("watching")
    threads = [threading.Thread(target=report_failure, args=(record, what, ValueError("x")))
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
    """A plugin of this name that answers one hook with this."""

    def give(self: object) -> object:
        return answer

    return type(called, (), {hook: hookimpl(give)})()


def test_layers_on_offer():
    """A layer is usable by its name as soon as its plugin is there."""
    assert (
        repr(pocket_with(offering("pocket_layers", [Shout])).layer({"use": "shout", "volume": 3})) == "Shout(volume=3)"
    )


def test_layers_are_asked_for_once():
    """The hook is asked when a name is first looked up, not for every stack."""
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


def test_layer_name_taken(caplog):
    """Of two plugins that offer one layer name, the first one's is used, and the message names both."""
    first, second = offering("pocket_layers", [Shout], "first"), offering("pocket_layers", [Whisper], "second")
    assert type(pocket_with(first, second).layer("shout")) is Shout
    [text] = said(caplog, "'second'")
    assert "'shout' is offered by plugin 'first' already" in text


@pytest.mark.parametrize(
    ("hook", "answer", "words"),
    [
        ("pocket_layers", Shout, "it gave type, not a list"),
        ("pocket_layers", "shout", "it gave str, not a list"),
        ("pocket_layers", [Shout()], "it gave Shout(), not a subclass of Layer"),
        ("pocket_backends", [Memory], "it gave list, not a mapping of URL schemes"),
        ("pocket_backends", {"x": 3}, "'x' leads to 3, which can't be called with a URL"),
    ],
)
def test_offers_of_the_wrong_type(caplog, hook, answer, words):
    """An answer that can't be used is said, naming the plugin; everything else works."""
    pocket = pocket_with(offering(hook, answer))
    assert pocket.layer("bounding").name == "bounding"
    with pytest.raises(ConfigError):
        pocket.backend("x://")
    [text] = said(caplog, "'offering'")
    assert f"failed at {hook}: TypeError: {words}" in text


def test_backends_on_offer():
    """A URL's scheme leads to what the plugin gave for it, called with the whole URL."""
    urls: list[str] = []

    def make(url: str) -> Memory:
        urls.append(url)
        return Memory()

    pocket = pocket_with(offering("pocket_backends", {"redis": make}))
    assert isinstance(pocket.backend("redis://cache/0"), Memory)
    assert isinstance(pocket.backend("REDIS://cache/1"), Memory)
    assert urls == ["redis://cache/0", "REDIS://cache/1"]


def test_backend_that_can_not_be_made():
    """What a plugin raises for a URL names the plugin and the URL, without the password in it."""

    def refuse(url: str) -> Memory:
        raise ValueError("no such port")

    pocket = pocket_with(offering("pocket_backends", {"redis": refuse, "none": lambda url: None}))
    with pytest.raises(ConfigError, match=r"'redis://me:\*\*\*@host': plugin 'offering' .*ValueError: no such port"):
        pocket.backend("redis://me:secret@host")
    with pytest.raises(PluginError, match="plugin 'offering' made None of it, not a Backend"):
        pocket.backend("none://")


def test_types_are_registered_before_they_are_needed():
    """pocket_types is asked once, with the codec, before the first part that could need it is made."""
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


def test_commands_on_offer(caplog):
    """Commands come by name; what is none is said."""
    command = click.Command("greet")
    pocket = pocket_with(offering("pocket_commands", [command]), offering("pocket_commands", [print], "odd"))
    assert pocket.commands() == {"greet": command}
    assert "not a click command with a name" in said(caplog, "'odd'")[0]


# ---------------------------------------------------------------- the house
@pytest.mark.parametrize("hook", [name for name in vars(Specs) if name.startswith("pocket_")])
def test_every_hook_is_documented_and_tested(hook):
    """A hook without a docstring, or that no test implements, fails the suite."""
    assert getattr(Specs, hook).__doc__
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert f"def {hook}(self" in tests or f"def {hook}()" in tests


def test_hooks_are_called_in_one_file():
    """pluggy's hook relay is touched in manager.py only."""
    package = Path(pocket_plug.__file__).parent
    users = [
        path.name for path in package.rglob("*.py") if ".hook," in path.read_text() or "pm.hook" in path.read_text()
    ]
    assert users == ["manager.py"]


def test_a_warning_reaches_a_terminal():
    """A program that configured no logging sees the warning on stderr."""
    code = (
        "from pocket_plug.plugins.pocket import Pocket\n"
        "Pocket(autoload=False, plugins=[object()])\n"
    )  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "plugin 'object' can't be used: it implements no hook" in result.stderr
    assert logging.getLogger("pocket_plug").level == logging.NOTSET
