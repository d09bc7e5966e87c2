"""Secrets are printed nowhere: secrets of the configuration, passwords in URLs, values in messages.

Each test provokes every error and every `repr` that it can with a marked text, searches all output, and shows with the same text
in an ordinary place that it would be found.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug import Answered, Ask, Graph, Key, Memory, Next, Node, SyncStore, hookimpl
from pocket_plug.cli import main
from pocket_plug.errors import ConfigError, PocketError
from pocket_plug.layers import Bounding, Persistence
from pocket_plug.plugins.config import make_recipe
from pocket_plug.plugins.pocket import Pocket, set_default_pocket
from pocket_plug.primitives.redaction import public, public_url
from pocket_plug.store.backend import Backend
from pocket_plug.store.layer import Layer, secret
from pocket_plug.testing.spans import SpanCapture

WORD = "Marked4711"


class Sealing(Layer):
    """Like an encryption layer, with every option in `repr` that its author didn't declare secret."""

    key: str | bytes | tuple[str, ...] = secret()
    salt: str = "none"
    to: str = ""

    def __post_init__(self) -> None:
        if self.salt == "refused":
            raise ValueError(f"the key {self.key} and its form {self.key!r} are refused")

    def on_build(self) -> None:
        if self.salt == "unbuildable":
            raise ConfigError(f"{self!r} can't be built with {self.to!r}")


class Telling(Sealing, Layer):
    """The same, without the declaration."""

    name = "telling"
    key: str | bytes | tuple[str, ...] = ""


class Plugin:
    """Layers that can't be built, and backends that can't be created."""

    @hookimpl
    def pocket_layers(self) -> Sequence[type[Layer]]:
        return [Sealing, Telling]

    @hookimpl
    def pocket_backends(self) -> dict[str, Callable[[str], Backend]]:
        def refuse(url: str) -> Backend:
            raise RuntimeError(f"connecting to {url} with {url!r} failed")

        return {"net": refuse, "odd": lambda url: pp}  # type: ignore[dict-item,return-value]


class Refusing:
    """A plugin that quotes the options that it refuses."""

    @hookimpl
    def pocket_configure(self, options: Any) -> None:
        raise ValueError(f"there is no {options['token']}, {options['token']!r}")


class Said:
    """All output: texts of errors with their causes, reprs, logs, spans, threads."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def error(self, act: Callable[[], object], kind: type[BaseException] = Exception) -> None:
        """The traceback of an action that has to fail."""
        with pytest.raises(kind) as caught:
            act()
        self.texts.append("".join(traceback.format_exception(caught.value)))
        self.texts.append(repr(caught.value))

    def with_word(self, word: str = WORD) -> list[str]:
        """Where it was said. A traceback quotes lines of source, which here spell the word by its name only."""
        return [text for text in self.texts if word in text]


@contextmanager
def pocket_of(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pocket]:
    monkeypatch.chdir(folder)
    (folder / "pocket.toml").write_text(text)
    pocket = Pocket("pocket.toml", plugins=[Plugin(), Refusing()], autoload=False)
    set_default_pocket(pocket)
    try:
        yield pocket
    finally:
        pocket.shutdown()
        set_default_pocket(None)


# ---------------------------------------------------------------- secrets of layers
def everything_about(recipe: Layer, said: Said) -> None:
    """Each repr and error that shows a layer."""
    store = SyncStore(layers=[recipe])
    said.texts += [repr(recipe), repr(store), str(store), repr(store.scope("x")), repr([recipe])]
    said.error(lambda: Memory() and recipe.build(Memory()).build(Memory()))  # type: ignore[attr-defined]
    said.error(lambda: SyncStore(layers=[recipe, recipe]))
    said.error(lambda: SyncStore(layers=recipe))  # type: ignore[arg-type]
    said.error(lambda: SyncStore(recipe))
    said.error(lambda: Persistence(to=Memory()).build(_Surviving().build_over(recipe)))
    store.close()


class _Surviving(Memory):
    survives = True

    def build_over(self, recipe: Layer) -> Backend:
        return recipe.build(self)


def test_a_secret_option_is_never_shown() -> None:
    """By no repr and no error of a recipe, a stack or a store; an option that isn't secret is shown by all of them."""
    for value in (WORD, WORD.encode(), (WORD, WORD)):
        said, control = Said(), Said()
        everything_about(Sealing(key=value, salt="x"), said)
        assert said.with_word() == []
        everything_about(Telling(key=value, salt="x"), control)
        assert len(control.with_word()) >= 8
    assert repr(Sealing(key=WORD, salt="x")) == "Sealing(key='***', salt='x')"


def test_a_secret_option_that_is_refused_is_not_quoted() -> None:
    """One of another type, or one that the layer itself refuses, with its own message and cause."""
    for options in ({"key": 4711}, {"key": {WORD: WORD}}, {"key": WORD, "salt": 3}, {"key": WORD, "salt": "refused"},
                    {"key": (WORD,), "salt": "refused"}, {"key": [WORD], "sallt": ""}):  # fmt: skip
        said, control = Said(), Said()
        said.error(lambda options=options: make_recipe(Sealing, options, "here"), ConfigError)
        if "salt" not in options:  # in Python, too
            said.error(lambda options=options: Sealing(**options))
        assert said.with_word() == said.with_word("4711") == []
        control.error(lambda options=options: make_recipe(Telling, options, "here"), ConfigError)
        assert bool(control.with_word()) == (options.get("salt") == "refused" or isinstance(options["key"], dict))
    with pytest.raises(ConfigError) as caught:
        make_recipe(Sealing, {"key": {WORD: 1, "b": 2}}, "here")
    assert str(caught.value).endswith("not a dict of 2 items")


IN_ENVIRONMENT = """
[stores.refused]
layers = [{ use = "telling", key = "${KEY}", salt = "refused" }]
[stores.unbuildable]
layers = [{ use = "telling", key = "a", salt = "unbuildable", to = "x ${KEY}" }]
[stores.typed]
layers = [{ use = "telling", key = "a", salt = ["${KEY}"] }]
[stores.good]
layers = [{ use = "telling", key = "${KEY}" }, { use = "sealing", key = "${KEY}", to = "https://me:${KEY}@host/${KEY}" }]
[stores.literal]
layers = [{ use = "sealing", key = "WORD" }]
[stores.no_url]
url = "${KEY}"
[stores.no_scheme]
url = "nowhere://${KEY}/"
[stores.no_backend]
url = "net://me:WORD@${KEY}/?token=WORD"
[stores.no_kind]
url = "odd://me:WORD@host/?password=WORD"
[stores.memory]
url = "memory://me:WORD@host"
[stores.option]
url = "sqlite:///${KEY}.db?durability=${KEY}"
[stores.file]
url = "sqlite://me:WORD@host"
[stores.ttl]
layers = [{ use = "bounding", ttl = "${KEY}" }]
[stores.level]
layers = [{ use = "logging", level = "${KEY}" }]
[stores.behind]
layers = [{ use = "persistence", to = "${KEY}" }]
[plugins.refusing]
token = "${KEY}"
""".replace("WORD", WORD)


def test_values_from_the_environment_are_shown_by_their_variable(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Options, URLs and tables of plugins, in reprs, errors with their causes, warnings and commands."""
    monkeypatch.setenv("KEY", WORD)
    said = Said()
    with pocket_of(tmp_path, IN_ENVIRONMENT, monkeypatch) as pocket:
        for name in pocket.stores:
            if name in ("good", "literal"):
                said.texts += [repr(pocket.stores[name]), repr(pocket.stores[name].stack)]
            else:
                said.error(lambda name=name: pocket.stores[name], PocketError)
        said.texts.append(repr(pocket) + repr(pocket.plugins) + repr(pocket.config))
        assert repr(pocket.stores["good"]) == (
            "Store(Telling(key='${KEY}') > Sealing(key='${KEY}', to='https://me:***@host/${KEY}') > memory)"
        )
        assert "there is no ${KEY}, '${KEY}'" in pocket.plugin("refusing").reason
        for arguments in (["stack", "good"], ["stack", "literal"], ["stack", "--json", "good"], ["plugins"],
                          ["stack", "--json", "literal"], ["stack", "refused"], ["--debug", "stack", "behind"],
                          ["--debug", "stack", "no_backend"], ["store", "--url", f"net://me:{WORD}@h", "ls"],
                          ["plugins", "--json"]):  # fmt: skip
            main(arguments)
            said.texts.append("".join(capsys.readouterr()))
    said.texts += [*caplog.messages, caplog.text]
    assert len(said.texts) > 30
    assert said.with_word() == []
    control = f"[store]\nlayers = [{{ use = 'telling', key = '{WORD}' }}]"  # neither secret nor from a variable
    with pocket_of(tmp_path, control, monkeypatch) as pocket:
        main(["stack"])
        assert WORD in repr(pocket.store)
        assert WORD in capsys.readouterr().out


class Careless(Layer):
    """Quotes its secret in an error while a stack is built: in the text, in its cause, in a note."""

    key: str = secret()
    how: str = "text"

    def on_build(self) -> None:
        if self.how == "text":
            raise RuntimeError(f"{self.key} is too short")
        error = ConfigError("it is too short")
        if self.how == "note":
            error.add_note(f"it was {self.key}")
            raise error
        raise error from ExceptionGroup("both", [ValueError(f"it was {self.key}")])


class Open(Careless):
    """The same, without the declaration."""

    key: str = ""


class OffersCareless:
    @hookimpl
    def pocket_layers(self) -> Sequence[type[Layer]]:
        return [Careless]


@pytest.mark.parametrize("how", ["text", "cause", "note"])
def test_a_layer_that_quotes_its_secret_while_it_is_built(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python, and in a configuration that has it literally or from the environment; the error is otherwise complete."""
    monkeypatch.setenv("KEY", WORD)
    monkeypatch.chdir(tmp_path)
    said = Said()
    said.error(lambda: SyncStore(layers=[Careless(key=WORD, how=how)]), ConfigError)
    for written, name in ((WORD, "literal"), ("${KEY}", "variable")):
        text = f'[store]\nlayers = [{{ use = "careless", key = "{written}", how = "{how}" }}]'
        Path(f"{name}.toml").write_text(text)
        pocket = Pocket(f"{name}.toml", plugins=[OffersCareless()], autoload=False)
        said.error(lambda pocket=pocket: pocket.store, ConfigError)
    assert said.with_word() == []
    assert all("too short" in text for text in said.texts)
    control = Said()
    control.error(lambda: SyncStore(layers=[Open(key=WORD, how=how)]))
    assert control.with_word() != []


def test_a_store_shows_its_url_as_the_configuration_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend's repr is made from the URL, and a stack's repr contains it."""
    monkeypatch.setenv("KEY", WORD)
    with pocket_of(tmp_path, '[store]\nurl = "sqlite:///x-${KEY}.db"', monkeypatch) as pocket:
        said = [repr(pocket.store), str(pocket.store), repr(pocket.store.sync), repr(pocket.store.stack)]
        assert [text for text in said if WORD in text] == []
        assert "x-${KEY}.db" in said[0]


def test_a_plugins_errors_are_logged_without_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In any hook, not only while it is configured."""

    class Forgetful:
        @hookimpl
        def pocket_configure(self, options: Any) -> None:
            self.token = options["token"]

        @hookimpl
        def pocket_layers(self) -> Sequence[type[Layer]]:
            raise RuntimeError(f"{self.token} has no layers")

        @hookimpl
        def pocket_observe(self) -> None:
            raise RuntimeError(f"{self.token} sees nothing")

    monkeypatch.setenv("KEY", WORD)
    monkeypatch.chdir(tmp_path)
    Path("pocket.toml").write_text('[plugins.forgetful]\ntoken = "${KEY}"')
    pocket = Pocket("pocket.toml", plugins=[Forgetful()], autoload=False)
    pocket.layer("bounding")
    pocket.observers(pp.hookspecs.Run("run-1", "g"))
    assert "${KEY} has no layers" in caplog.text
    assert "${KEY} sees nothing" in caplog.text
    assert WORD not in caplog.text


def test_the_causes_of_errors_that_quote_nothing_are_kept() -> None:
    """A cause is left out only if it would show a secret."""
    with pytest.raises(ConfigError) as caught:
        make_recipe(Telling, {"key": "a", "salt": "refused"}, "here")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://app:{WORD}@cache:6379/0", "redis://app:***@cache:6379/0"),
        (f"redis://:{WORD}@cache", "redis://:***@cache"),
        (f"redis://app:a {WORD}@cache", "redis://app:***@cache"),
        (f"redis://app:a@{WORD}/b@cache", "redis://app:***@cache"),
        (
            f"postgresql+x://db/app?user=me&sslpassword={WORD}&a=b#c",
            "postgresql+x://db/app?user=me&sslpassword=***&a=b#c",
        ),
        (f"http://h/?api_KEY={WORD}", "http://h/?api_KEY=***"),
        (f"postgresql://db/app?password=a;{WORD}&a=b", "postgresql://db/app?password=***&a=b"),  # libpq's password, too
        (f"postgresql://db/app?password=a#{WORD}", "postgresql://db/app?password=***"),
        (f"postgresql://db/app?password=a@{WORD}", "postgresql://db/app?password=***@***"),
        (f"postgresql://db:5432/app?password=a@{WORD}&a=b", "postgresql://db:***@***&a=b"),
        (f"postgresql://db/app?password=a {WORD}", "postgresql://db/app?password=***"),
        (f"postgresql://db/app?a=b;p%61ssword={WORD}", "postgresql://db/app?a=b;p%61ssword=***"),
        (f"redis://app:a?key={WORD}@cache", "redis://app:***@***"),
        (f"see net://u:{WORD}@h and net://v:{WORD}@i", "see net://u:***@h and net://v:***@i"),
        ("sqlite:////srv/a:b@c.db?timeout=5", "sqlite:////srv/a:b@c.db?timeout=5"),
        ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
    ],
)
def test_no_password_of_a_url_is_shown(url: str, shown: str) -> None:
    """A user's or a parameter's, in valid and invalid URLs; other text is unchanged."""
    assert public_url(url) == shown
    assert public({"a": [url, (url,)], "b": 1}) == {"a": [shown, (shown,)], "b": 1}
    assert repr(Sealing(key="", to=url)).endswith(f"to={shown!r})")


def test_a_command_prints_no_password_that_others_log(tmp_path: Path) -> None:
    """As OpenTelemetry's exporter logs the whole URL of an endpoint whose port is invalid."""
    app = tmp_path / "app.py"
    app.write_text(
        f"import logging\ndef main(): logging.getLogger('otel').error('failed: %s', 'http://u:{WORD}@host:99999/v1')"
    )
    program = f"import sys; from pocket_plug.cli import main; sys.exit(main(['run', {str(app)!r}]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "failed: http://u:***@host:99999/v1\n")


@pytest.mark.parametrize("error", [ConfigError, OSError])
def test_a_plugins_errors_are_raised_without_the_urls_password(error: type[Exception]) -> None:
    """Also in errors of pocket_plug; an error without the password is raised unchanged."""

    class Offers:
        @hookimpl
        def pocket_backends(self) -> dict[str, Callable[[str], Backend]]:
            def make(url: str) -> Backend:
                raise error(f"no way to {url}")

            return {"net": make}

    pocket = Pocket(plugins=[Offers()], autoload=False)
    with pytest.raises(ConfigError, match=r"no way to net://me:\*\*\*@host") as caught:
        pocket.backend(f"net://me:{WORD}@host")
    assert WORD not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigError, match=r"no way to net://host$"):
        pocket.backend("net://host")


# ---------------------------------------------------------------- values
@dataclass
class Unregistered:
    """A user's value, whose repr shows everything."""

    text: str = WORD

    def __str__(self) -> str:
        return self.text


class Loud(str):
    """A value of an unregistered type."""


async def failures(store: pp.Store, said: Said, number: Key[int]) -> None:
    """Each known way to pass something wrong to a store, a graph or a run."""
    value = Unregistered()

    async def fails(awaitable: Any, kind: type[BaseException] = Exception) -> None:
        with pytest.raises(kind) as caught:
            await awaitable
        said.texts += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]

    bad: Any = value
    text: Any = WORD
    await fails(store.set(number, text))
    await fails(store.set(number, bad))
    await fails(store.set_many({number: bad}))
    await fails(store.typed(int).set("n", text))
    await fails(store.update(number, lambda _: text, default=0))
    await fails(store.get(bad))
    await fails(store.get_many([bad]))
    await fails(store.set(bad, 1))
    await fails(store.delete(bad))
    await fails(store.set("a", 1, ttl=bad))
    said.error(lambda: store.scope(bad))
    said.error(lambda: Key("a:{}")(bad))
    said.error(lambda: Key("a:{}")(WORD, WORD))
    said.error(lambda: pp.Store(bad))
    said.error(lambda: pp.Store(layers=[bad]))
    said.error(lambda: pp.Store(layers=bad))
    await store.set("text", WORD)
    await fails(store.get(Key("text", int)))
    await fails(store.typed(int).get("text"))
    await fails(store.update("text", lambda old: old + 1))
    async with store.transaction() as ended:
        pass
    await fails(ended.set("a", WORD))
    await fails(ended.get(WORD.lower()))


class Wrong(Node[int, int]):
    """Leaves by an unknown action, with a value."""

    async def exec(self, n: int) -> int:
        return n

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> Next[Any]:
        return Next("nowhere", Unregistered())


class Stops(Node[int, int]):
    """StopIteration can leave no coroutine."""

    def exec(self, n: int) -> int:
        return next(iter(()))


class Forgets(Node[int, Any]):
    """Returns a coroutine that nobody awaits."""

    def exec(self, n: int) -> Any:
        async def answer(hidden: str = WORD) -> str:
            return hidden

        return answer()


class Keeps(Node[Any, Any]):
    """Leaves with a value that no codec knows."""

    async def exec(self, n: Any) -> Any:
        return [Loud(WORD), Unregistered()]


async def failing_runs(store: pp.Store, said: Said) -> None:
    """Runs that are started or resumed with a wrong value, and nodes that do something wrong with a value."""

    async def fails(awaitable: Any) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it is searched
            await awaitable
        said.texts += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]

    bad: Any = Unregistered()
    text: Any = WORD
    for node in (Wrong(), Stops(), Forgets()):
        await fails(Graph(node, store=store).run(1))
        await fails(Graph(node, store=store).run(text))
    await fails(Graph(pp.each(Wrong()), store=store).run(bad))
    await fails(pp.fan_out(Wrong(), bad))
    said.error(lambda: Graph(bad))
    said.error(lambda: Wrong() >> bad)
    said.error(lambda: Wrong.with_options(Wrong(), reads=[bad]))
    await fails(Graph(Keeps() >> Keeps(), store=store).run(1, run_id="keeps"))
    await fails(Graph(Keeps(), store=store).run(bad, run_id="begun"))
    await fails(Graph(Keeps(), store=store).run(1, run_id=bad))

    ask = Ask[Any, int](int, question=lambda given: f"is {given} right?", name="ask")

    class After(Node[Answered[Any, int], str], name="after"):
        async def exec(self, prepared: Answered[Any, int]) -> str:
            return str(prepared.answer)

    asking = Graph(ask >> After(), store=store, name="asking")
    await fails(asking.run(WORD, run_id="asked"))  # suspended
    await fails(asking.run(f"other {WORD}", run_id="asked"))
    await fails(asking.resume("asked", answer=text))
    await fails(asking.resume("asked", answer=bad))
    await asking.resume("asked", answer=1)
    await fails(asking.resume("asked", answer=text))
    await fails(asking.run(f"other {WORD}", run_id="asked"))
    await fails(asking.run(WORD))


LAYERS: dict[str, Callable[[], list[Layer]]] = {
    "alone": list,
    "bounded": lambda: [Bounding(max_entries=100, durable=True)],
    "behind a cache": lambda: [Persistence(to="sqlite:///cached.db"), Bounding(max_entries=100)],
}


@pytest.mark.parametrize("layers", LAYERS)
def test_no_error_quotes_a_value(
    layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages, their causes, reprs, log lines, spans and threads have keys, nodes, types and sizes, and no value."""
    monkeypatch.chdir(tmp_path)
    said = Said()
    number: Key[int] = Key("number", int)

    async def play() -> None:
        backend = "memory://" if layers == "behind a cache" else "sqlite:///state.db"
        async with pp.Store(backend, layers=["tracing", *LAYERS[layers]()]) as store:
            await failures(store, said, number)
            await failing_runs(store, said)
            said.texts += [thread.name for thread in threading.enumerate()] + [repr(store)]

    with caplog.at_level(logging.INFO), SpanCapture() as spans:
        asyncio.run(play())
    said.texts += [str((span.name, dict(span.attributes or {}), span.status.description,
                        [(event.name, dict(event.attributes or {})) for event in span.events]))
                   for span in spans.spans]  # fmt: skip
    said.texts += caplog.messages
    assert len(said.texts) > 100
    assert said.with_word() == []
    control = Said()
    control.error(lambda: int(WORD))  # other errors quote their input
    assert len(control.with_word()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "'a' * 2_000_000",
        "'?' + 'key' * 700_000",
        "'?' + 'key' * 700_000 + '='",
        "'?' * 2_000_000 + '='",
        "'a://b:' * 350_000",
    ],
    ids=["word", "name", "name without a value", "beginnings of names", "ports"],
)
def test_a_long_text_is_searched_in_linear_time(text: str) -> None:
    """Log records are searched for passwords, and may have anything in them: quadratic time would be hours here."""
    code = f"from pocket_plug.primitives.redaction import public_url; text = {text}; assert public_url(text) == text"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
