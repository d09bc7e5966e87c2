"""A Pocket holds plugins, configuration and stores; the process has a default one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import ConfigError, NotConfiguredError, PluginError, StoreClosedError, UnknownStoreError
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.hookspecs import Observer, hookimpl
from pocket_plug.plugins.pocket import Pocket, default_pocket, set_default_pocket
from pocket_plug.primitives.files import located
from pocket_plug.store.layer import Layer, parts
from pocket_plug.store.memory import Memory
from pocket_plug.store.resolving import resolve_backend, resolve_layer
from pocket_plug.store.store import Store
from pocket_plug.testing.isolation import fresh_pocket


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test in a folder of its own, and the process's default Pocket as it was."""
    monkeypatch.chdir(tmp_path)
    set_default_pocket(None)
    yield
    set_default_pocket(None)


def configured(text: str, **options) -> Pocket:
    Path("pocket.toml").write_text(text)
    return Pocket("pocket.toml", autoload=False, **options)


class Counted(Memory):
    """A backend that records when it is opened and closed, and fails to close if told so."""

    log: list[str] = []  # noqa: RUF012

    def __init__(self, url: str) -> None:
        super().__init__()
        self.called = url.removeprefix("counted://")

    async def open(self) -> None:
        if self.called == "unopenable":
            raise ConfigError("can't open")
        self.log.append(f"open {self.called}")

    async def close(self) -> None:
        self.log.append(f"close {self.called}")
        if self.called == "unclosable":
            raise OSError("can't close")


class Offering:
    """Registers `counted://`."""

    @hookimpl
    def pocket_backends(self):
        return {"counted": Counted}

    @hookimpl
    def pocket_shutdown(self):
        Counted.log.append("shutdown")


@pytest.fixture
def log() -> list[str]:
    Counted.log.clear()
    return Counted.log


# ---------------------------------------------------------------- stores
def test_stores_are_built_on_first_use(log):
    """A store of the configuration is built once, when it is first used; the names are known before."""
    pocket = configured("[stores.a]\nurl = 'counted://a'\n[stores.b]\nurl = 'nonsense'", plugins=[Offering()])
    assert list(pocket.stores) == ["a", "b"]
    assert "a" in pocket.stores
    assert pocket.stores["a"] is pocket.stores["a"]
    assert pocket.store is pocket.store


def test_without_configuration():
    """Without a configuration there is one store, in memory, and no named one."""
    pocket = Pocket(autoload=False)
    pocket.store.sync.set("a", 1)
    assert pocket.store.sync.get("a") == 1
    assert dict(pocket.stores) == {}


def test_unknown_store():
    """An unknown name is a KeyError and a ConfigError, with the known names."""
    pocket = configured("[stores.cache]\n")
    with pytest.raises(
        UnknownStoreError, match=r"there is no \[stores.cahce\] in pocket\.toml; did you mean 'cache'\?"
    ):
        pocket.stores["cahce"]
    assert pocket.stores.get("cahce") is None


def test_opens_and_closes_all(log):
    """`async with` opens every store of the configuration, and closes them in reverse before pocket_shutdown is called."""
    text = "[store]\nurl = 'counted://main'\n[stores.a]\nurl = 'counted://a'\n"

    async def main() -> None:
        async with configured(text, plugins=[Offering()]) as pocket:
            assert log == ["open main", "open a"]
        assert log[2:] == ["close a", "close main", "shutdown"]
        await pocket.close()
        assert len(log) == 5, "closing twice does nothing"
        with pytest.raises(StoreClosedError, match="is closed"):
            pocket.store  # noqa: B018
        async with pocket:
            assert log[5:] == ["open main", "open a"]

    asyncio.run(main())


def test_opens_and_closes_all_without_a_loop(log):
    """`with` does the same for programs without an event loop."""
    text = "[store]\nurl = 'counted://main'\n[stores.a]\nurl = 'counted://a'\n"
    with configured(text, plugins=[Offering()]):
        assert log == ["open main", "open a"]
    assert log[2:] == ["close a", "close main", "shutdown"]


@pytest.mark.parametrize("sync", [False, True])
def test_a_store_that_does_not_open(log, sync):
    """If a store can't be opened, the others are closed again, and its error is raised."""
    pocket = configured(
        "[store]\nurl = 'counted://main'\n[stores.a]\nurl = 'counted://unopenable'\n", plugins=[Offering()]
    )

    async def enter() -> None:
        async with pocket:
            raise AssertionError("entered")

    with pytest.raises(ConfigError, match="can't open"):
        pocket.__enter__() if sync else asyncio.run(enter())
    assert "close main" in log
    assert log[-1] == "shutdown"


@pytest.mark.parametrize("sync", [False, True])
def test_a_store_that_does_not_close(log, sync):
    """A store that can't be closed keeps no other open, and its error is raised."""
    text = "[store]\nurl = 'counted://main'\n[stores.a]\nurl = 'counted://unclosable'\n"
    pocket = configured(text, plugins=[Offering()])

    async def enter() -> None:
        async with pocket:
            pass

    with pytest.raises(OSError, match="can't close"):
        if sync:
            with pocket:
                pass
        else:
            asyncio.run(enter())
    assert log[2:] == ["close unclosable", "close main", "shutdown"]


# ---------------------------------------------------------------- runs
def test_a_run_is_observed_by_its_pocket():
    """`pocket.run` and `graph.run(…, pocket=…)` use that Pocket's plugins, and no other's."""
    seen: list[tuple[str, str]] = []

    class Watching:
        def __init__(self, called: str) -> None:
            self.called = called

        @hookimpl
        def pocket_observe(self, run):
            @contextmanager
            def watched(call) -> Iterator[None]:
                yield
                seen.append((self.called, call.output))

            return Observer(node=watched)

    @node
    def shout(word: str) -> str:
        return word.upper()

    async def main() -> None:
        graph = Graph(shout)
        mine = Pocket(autoload=False, plugins=[Watching("mine")])
        set_default_pocket(Pocket(autoload=False, plugins=[Watching("default")]))
        assert await mine.run(graph, "a") == "A"
        assert await graph.run("b", pocket=mine) == "B"
        assert await graph.run("c") == "C"

    asyncio.run(main())
    assert seen == [("mine", "A"), ("mine", "B"), ("default", "C")]


# ---------------------------------------------------------------- plugins of one Pocket
class Configured:
    """Keeps its configuration."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.options: object = None
        self.error = error

    @hookimpl
    def pocket_configure(self, pocket, options):
        self.pocket, self.options = pocket, options
        if self.error is not None:
            raise self.error


def test_configure_with_its_own_table(monkeypatch):
    """A plugin gets the Pocket and its own table, with variables replaced; an empty one if there is none."""
    monkeypatch.setenv("TOKEN", "s3cret")
    plugin, other = Configured(), type("Other", (Configured,), {})()
    pocket = configured("[plugins.configured]\ntoken = '${TOKEN}'\n", plugins=[plugin, other])
    assert (plugin.pocket, plugin.options) == (pocket, {"token": "s3cret"})
    assert other.options == {}


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotConfiguredError("no server given"), "declined", "no server given"),
        (ValueError("port"), "failed", "ValueError: port"),
        (SystemExit(1), "failed", "SystemExit: 1"),
    ],
)
def test_a_plugin_that_declines(caplog, error, status, reason):
    """A plugin that declines or fails when it is configured is listed with its reason, and not called again."""
    pocket = Pocket(autoload=False, plugins=[Configured(error)])
    record = pocket.plugin("configured")
    assert (record.status, record.reason) == (status, reason)
    assert [r.getMessage() for r in caplog.records] == [f"plugin 'configured' {record.verdict}"]


def test_variable_of_a_plugin_that_is_not_set(monkeypatch):
    """A missing variable in a plugin's table is a mistake in the configuration, not a failure of the plugin."""
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(
        ConfigError, match=r"pocket\.toml \[plugins\.configured\]\.token: the environment variable 'NOWHERE'"
    ):
        configured("[plugins.configured]\ntoken = '${NOWHERE}'\n", plugins=[Configured()])


def test_options_for_a_plugin_without_options():
    """A table for a plugin without options would do nothing, so it is refused."""
    with pytest.raises(ConfigError, match=r"pocket\.toml \[plugins\.bounding\]: this plugin takes no options"):
        configured("[plugins.bounding]\nmax_entries = 3\n")


def test_options_for_a_missing_plugin(caplog):
    """A table for a plugin that is not installed is reported, with a suggestion."""
    configured("[plugins.boundin]\nx = 3\n")
    assert "pocket.toml [plugins.boundin]: there is no plugin 'boundin'; did you mean 'bounding'?" in caplog.text


def test_explicit_plugins_are_isolated_too(caplog):
    """A plugin given in code that can't be used is a record and a warning, unless strict."""
    assert Pocket(autoload=False, plugins=[object()]).plugin("object").status == "failed"
    with pytest.raises(PluginError, match="plugin 'object' can't be used: it implements no hook"):
        Pocket(autoload=False, plugins=[object()], strict=True)
    with pytest.raises(PluginError, match="plugin 'str' can't be used: it is a text; import the module, and give that"):
        Pocket(autoload=False, plugins=["pocket_plug_slow"], strict=True)


def test_register_refuses_at_once():
    """If a plugin is registered later and can't be used, register raises."""
    pocket = Pocket(autoload=False)
    with pytest.raises(PluginError, match="it implements no hook"):
        pocket.register(object())
    pocket.register(Offering(), name="mine")
    with pytest.raises(PluginError, match="the name 'mine' is already used by 'mine'"):
        pocket.register(Offering(), name="mine")


def test_a_plugin_that_is_also_installed_is_used_once(caplog):
    """A library may name its own plugin in code: where it is installed too, no run is observed twice, and nothing fails."""
    from pocket_plug.layers import bounding
    from pocket_plug.layers.metrics import MetricsPlugin

    own = Offering()
    pocket = Pocket(plugins=[bounding, MetricsPlugin, own, own], autoload=False, strict=True)
    assert [record.name for record in pocket.plugins if record.origin == "given"] == ["offering"]
    assert pocket.register(bounding) == pocket.plugin("bounding")
    assert pocket.register(Offering) == pocket.register(own) == pocket.plugin("offering")
    assert pocket.register(Offering()).name == "offering-2"
    with pytest.raises(PluginError, match=r"^it is in use already, as plugin 'bounding' \(pocket-plug"):
        pocket.register(bounding, name="again")
    assert not caplog.records


def test_a_plugin_finds_the_files_of_a_configuration(tmp_path, monkeypatch):
    """`located` knows the folder of the configuration in `pocket_configure`, in `on_build`, and where a backend is made."""
    found: dict[str, str] = {}

    class Logs(Layer):
        file: str

        def on_build(self) -> None:
            found["layer"] = located(self.file)

    class Plugin:
        @hookimpl
        def pocket_configure(self, options):
            found["plugin"] = located(options["file"])

        @hookimpl
        def pocket_layers(self):
            return [Logs]

        @hookimpl
        def pocket_backends(self):
            return {"shelf": lambda url: found.update(backend=located(url.removeprefix("shelf:///"))) or Memory()}

    file = tmp_path / "pocket.toml"
    file.write_text(
        "store = { url = 'shelf:///a', layers = [{ use = 'logs', file = 'b' }] }\nplugins.plugin.file = 'c'"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Pocket(file, plugins=[Plugin], autoload=False, strict=True) as pocket:
        pocket.store.sync.set("a", 1)
    assert found == {"backend": f"{tmp_path}/a", "layer": f"{tmp_path}/b", "plugin": f"{tmp_path}/c"}


def test_a_layer_of_a_configuration_gets_the_backends_of_its_pocket(tmp_path, monkeypatch):
    """`to` of persistence is a URL of the Pocket that reads the file, and not of the default Pocket, which isn't even made."""

    class Shelf:
        @hookimpl
        def pocket_backends(self):
            return {"shelf": lambda url: SQLite(tmp_path / "shelf.db")}

    monkeypatch.setenv("POCKET_PLUG_CONFIG", str(tmp_path / "missing.toml"))  # the default Pocket would raise
    file = tmp_path / "pocket.toml"
    file.write_text("store.layers = [{ use = 'persistence', to = 'shelf://' }]")
    with fresh_pocket(), Pocket(file, plugins=[Shelf], autoload=False) as pocket:
        pocket.store.sync.set("a", 1)
    assert (tmp_path / "shelf.db").exists()


def test_register_configures_the_new_one_only():
    """A plugin that is registered later is configured as the others were; those are not called again."""
    first, second = Configured(), Configured()
    pocket = Pocket(autoload=False, plugins=[first])
    first.options = "untouched"
    record = pocket.register(second)
    assert (first.options, second.options, record.name) == ("untouched", {}, "configured-2")


def test_a_plugin_registered_later_that_fails_or_declines_is_an_error():
    """The caller of register learns at once that the plugin is not in use, and why; its record says so too."""

    class Refusing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        @hookimpl
        def pocket_configure(self, options):
            raise self.error

    pocket = Pocket(autoload=False)
    with pytest.raises(PluginError, match=r"plugin 'broken'.*RuntimeError: no such server"):
        pocket.register(Refusing(RuntimeError("no such server")), name="broken")
    with pytest.raises(PluginError, match=r"plugin 'waiting'.*it needs a URL"):
        pocket.register(Refusing(NotConfiguredError("it needs a URL")), name="waiting")
    assert [pocket.plugin(name).status for name in ("broken", "waiting")] == ["failed", "declined"]


def test_types_of_a_plugin_registered_later_are_asked_for():
    """Parts were created by name before, and the other plugins' types were registered for that: they are not called again."""

    class Typed:
        asked = 0

        @hookimpl
        def pocket_types(self, codec):
            self.asked += 1

    first, second = Typed(), Typed()
    pocket = Pocket(autoload=False, plugins=[first])
    pocket.layer("metrics")
    pocket.register(second, name="second")
    pocket.layer("metrics")
    assert (first.asked, second.asked) == (1, 1)


def test_failing_shutdown_harms_nobody(log, caplog):
    """An exception of pocket_shutdown is logged, and the other plugins are called as well."""

    class Broken:
        @hookimpl
        def pocket_shutdown(self, pocket):
            raise RuntimeError("boom")

    with Pocket(autoload=False, plugins=[Broken(), Offering()]):
        pass
    assert log == ["shutdown"]
    assert "plugin 'broken' failed at pocket_shutdown: RuntimeError: boom" in caplog.text


# ---------------------------------------------------------------- the default
def test_a_library_is_not_configured_by_a_file_in_the_current_folder(tmp_path):
    """`import` and a run do the same in any folder: neither its pocket.toml is used nor one above it."""
    Path("pocket.toml").write_text("[store]\nurl = 'sqlite:///found.db'\n[stores.cache]\n")
    Path("below").mkdir()
    code = (
        "import pocket_plug as pp\n"
        "@pp.node.post\n"
        "async def keep(store, n: int) -> None:\n"
        "    await store.set('n', n)\n"
        "pp.Graph(keep).run_sync(1)\n"
        "from pocket_plug.plugins import default_pocket\n"
        "print(default_pocket().config.source or 'none', dict(default_pocket().stores))\n"
    )
    for folder in (tmp_path, tmp_path / "below"):
        ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (0, "none {}\n"), ran.stderr
    assert not Path("found.db").exists()


def test_the_environment_names_the_default_configuration(monkeypatch):
    """A missing file is an error that names the variable; an empty value means none."""
    Path("other.toml").write_text("[stores.cache]\n")
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "other.toml")
    assert list(default_pocket().stores) == ["cache"]
    set_default_pocket(None)
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"POCKET_PLUG_CONFIG is 'nowhere\.toml', but there is no such file"):
        default_pocket()
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "")
    assert default_pocket().config.source == ""


def test_default_is_made_once(monkeypatch):
    """All threads get the same default Pocket, created when it is first needed."""
    Path("pocket.toml").write_text("[stores.cache]\n")
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "pocket.toml")
    found: list[Pocket] = []
    threads = [threading.Thread(target=lambda: found.append(default_pocket())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert list(found[0].stores) == ["cache"]


def test_default_can_be_set():
    """In every thread and context."""
    mine = Pocket(autoload=False)
    set_default_pocket(mine)
    assert default_pocket() is mine
    assert asyncio.run(asyncio.to_thread(default_pocket)) is mine


def test_plugin_that_asks_for_the_default_while_it_is_made(install, caplog):
    """A plugin that needs the Pocket which is being created fails with the way out, instead of hanging."""
    install("pocket-plug-eager", "from pocket_plug.plugins.pocket import default_pocket\ndefault_pocket()")
    assert default_pocket().plugin("eager").status == "failed"
    assert "use the argument `pocket` of pocket_configure" in caplog.text


def test_memory_needs_no_plugins():
    """`memory://` is Memory, without creating a Pocket."""
    from pocket_plug.plugins import pocket

    assert isinstance(resolve_backend("memory://"), Memory)
    assert pocket._default is None


def test_parts_by_name():
    """Stores find layers and backends by name in the default Pocket; for an unknown name the error lists the known ones."""
    assert repr(resolve_layer({"use": "bounding", "max_entries": 10})) == "Bounding(max_entries=10)"
    assert [part.name for part in parts(Store(layers={"logging", "tracing", "metrics"}).stack)[1:-1]] == [
        "tracing",
        "metrics",
        "logging",
    ]
    for url, message in {
        "sqlit:///x.db": r"no plugin offers sqlit://; there is: memory://.*sqlite://.* Did you mean 'sqlite'\?",
        "": r"^the store's URL is empty \(an environment variable that is\?\); it must begin with one of: memory://",
        "state.db": r"'state.db' is not a store's URL \(for a file: sqlite:///state.db\); it must begin with one of: memory://",
        "postgres:hunter2@db/orders": r"^a str of 26 characters is not a store's URL",  # a login without //
        "host=db password=hunter2": r"^a str of 24 characters is not a store's URL",
        "memory://x": "nothing may follow memory://",
    }.items():
        with pytest.raises(ConfigError, match=message):
            resolve_backend(url)


def test_default_is_shut_down_at_exit(tmp_path):
    """pocket_shutdown of the default Pocket's plugins is called when the process ends."""
    code = """
from pocket_plug.hookspecs import hookimpl
from pocket_plug.plugins.pocket import Pocket, set_default_pocket
class Telling:
    @hookimpl
    def pocket_shutdown(self, pocket): print("told")
set_default_pocket(Pocket(autoload=False, plugins=[Telling()]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "told\n"
