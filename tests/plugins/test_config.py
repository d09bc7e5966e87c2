"""`pocket.toml`: mistakes are reported with the file, the path in it, and a suggestion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocket_plug.errors import ConfigError
from pocket_plug.plugins.config import StoreTable, default_config, expand, find_config, load_config, make_recipe
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.primitives.durations import Duration
from pocket_plug.store.layer import Layer
from pocket_plug.store.resolving import order_names

FULL = """
[store]
url = "sqlite:///state.db"
layers = ["tracing", "metrics"]
[stores.cache]
layers = ["metrics", { use = "bounding", max_entries = 10_000, ttl = "5m" }]
[plugins]
disable = ["logging"]
[plugins.redis]
timeout = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "pocket.toml") -> str:
    Path(name).write_text(text)
    return name


def test_a_whole_file():
    """Stores with their layers in the written order, disabled plugins, and the plugins' options."""
    config = load_config(written(FULL))
    assert config.store == StoreTable("pocket.toml [store]", "sqlite:///state.db", ("tracing", "metrics"))
    bounding = {"use": "bounding", "max_entries": 10_000, "ttl": "5m"}
    assert config.stores == {"cache": StoreTable("pocket.toml [stores.cache]", "memory://", ("metrics", bounding))}
    assert config.disable == ("logging",)
    assert config.options == {"redis": {"timeout": 3}}


def test_the_same_in_pyproject():
    """In pyproject.toml it is below [tool.pocket_plug], and messages say so."""
    headed = FULL.replace("[store", "[tool.pocket_plug.store").replace("[plugins", "[tool.pocket_plug.plugins")
    config = load_config(written(headed, "pyproject.toml"))
    assert config.store.where == "pyproject.toml [tool.pocket_plug.store]"
    assert config.stores["cache"].where == "pyproject.toml [tool.pocket_plug.stores.cache]"
    assert config.disable == ("logging",)


def test_an_empty_file_is_the_default():
    """A store in memory without layers."""
    config = load_config(written(""))
    assert (config.store.url, config.store.layers, config.stores) == ("memory://", (), {})


# ---------------------------------------------------------------- which file is used
def test_pocket_toml_before_pyproject():
    """`pocket.toml` is used; a pyproject.toml only if it has our table and there is no pocket.toml."""
    assert find_config() is None
    written("[project]\nname = 'pocket_plug_user'\n", "pyproject.toml")
    assert find_config() is None
    written("[tool.pocket_plug]\n", "pyproject.toml")
    assert find_config() == Path("pyproject.toml")
    written("")
    assert find_config() == Path("pocket.toml")


def test_the_nearest_file_is_used(tmp_path, monkeypatch):
    """In the current folder or above, as for ruff and pytest; a file in the current folder is named as it is written."""
    written("")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'pocket_plug_user'")
    monkeypatch.chdir(below)
    assert find_config() == tmp_path / "pocket.toml"
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.pocket_plug]")
    assert find_config() == tmp_path / "a" / "pyproject.toml"
    written("")
    assert find_config() == Path("pocket.toml")


def test_a_removed_current_folder_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders above it are unknown then, so nobody can say whether there is a file."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="the current folder was removed"):
        find_config()


def test_a_file_that_another_user_may_have_planted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder such as `/tmp`, where all may write. It is used if it is named, or if it is the user's own or root's."""
    (tmp_path / "mine").mkdir()
    written("")
    monkeypatch.chdir(tmp_path / "mine")
    tmp_path.chmod(0o1777)
    assert find_config() == tmp_path / "pocket.toml"
    if os.geteuid() == 0:
        os.chown(tmp_path / "pocket.toml", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match=r"pocket\.toml belongs to another user.*POCKET_PLUG_CONFIG="):
        find_config()
    monkeypatch.setenv("POCKET_PLUG_CONFIG", str(tmp_path / "pocket.toml"))
    assert default_config() == tmp_path / "pocket.toml"
    tmp_path.chmod(0o755)
    assert find_config() == tmp_path / "pocket.toml"


def test_a_foreign_pyproject_is_left_alone():
    """A pyproject.toml without our table may have any mistakes."""
    written("[broken", "pyproject.toml")
    assert find_config() is None


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stor]", "pocket.toml: there is no 'stor' here; did you mean 'store'?"),
        ("[zzz]", "pocket.toml: there is no 'zzz' here; there is: executors, plugins, runs, store, stores"),
        ("store = 3", "pocket.toml [store]: this is a table, not int"),
        ("[stores]\ncache = 'x'", "pocket.toml [stores.cache]: this is a table, not a str of 1 character"),
        ("[store]\nlayer = []", "pocket.toml [store]: there is no 'layer' here; did you mean 'layers'?"),
        ("[stores.a]\nurl = 3", 'pocket.toml [stores.a].url must be a string such as "sqlite:///state.db", not int'),
        (
            "[store]\nlayers = 'x'",
            "pocket.toml [store].layers must be a list, outermost first, not a str of 1 character",
        ),
        ("[store]\nlayers = [3]", "pocket.toml [store].layers[0]: a layer is a name or a table"),
        ("[store]\nlayers = ['a', {max = 3}]", "pocket.toml [store].layers[1]: a layer is a name or a table"),
        ("[plugins]\ndisable = 'x'", "pocket.toml [plugins].disable must be a list of names, not a str of 1 character"),
        ("[plugins]\ndisable = [3]", "pocket.toml [plugins].disable[0] must be a name, not int"),
        ("[plugins]\ndisabel = ['x']", "pocket.toml [plugins.disabel]: this is a table, not a list of 1 item"),
        ("[store", "pocket.toml is not valid TOML: "),
        (f"[store]\nurl = {'9' * 5000}", "pocket.toml is not valid TOML: "),
        (f"[store]\nlayers = {'[' * 5000}{']' * 5000}", "pocket.toml can't be read: it is nested too deeply"),
    ],
)
def test_invalid_configurations(text, message):
    """Each is refused with the file, the path in it, what was found and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load_config(written(text))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ("{max = 3}", "a table without `use`, of: max"),
        ("{}", "a table without `use`"),
        ("{use = 3}", "a table whose `use` is int"),
        ("3", "int"),
    ],
)
def test_an_invalid_layer(layer, found):
    """The error says what was found in the place of its name."""
    with pytest.raises(ConfigError) as caught:
        load_config(written(f"[store]\nlayers = [{layer}]"))
    assert str(caught.value).endswith(f", not {found}")


def test_no_such_file():
    """A file that was named must exist."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml can't be read: .*No such file"):
        Pocket("nowhere.toml")


def test_no_text():
    """It must be a text file."""
    Path("pocket.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"pocket\.toml can't be read: .*utf-8"):
        Pocket("pocket.toml")


def test_pyproject_without_our_table():
    """A pyproject.toml that was named must have our table."""
    with pytest.raises(ConfigError, match=r"pyproject\.toml has no table \[tool\.pocket_plug\]"):
        load_config(written("[project]\n", "pyproject.toml"))


# ---------------------------------------------------------------- layers and their options
class Slow(Layer):
    """A layer with options of several types."""

    seconds: float = 0.1
    ttl: Duration | None = None
    only: tuple[str, ...] = ()
    mode: str

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise ValueError("seconds must not be negative")


def test_options_become_a_recipe():
    """Options are the layer's fields; types that TOML lacks are converted."""
    assert repr(make_recipe(Slow, {"mode": "x", "seconds": 2, "ttl": "5m", "only": ["a"]})) == (
        "Slow(seconds=2, ttl='5m', only=('a',), mode='x')"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second": 1}, "here: slow has no option 'second'; did you mean 'seconds'?"),
        ({"mode": "x", "xyz": 1}, "here: slow has no option 'xyz'; there is: label, mode, only, seconds, ttl"),
        ({"mode": 3}, "here: slow's option 'mode' must be str, not 3"),
        ({"mode": "x", "only": [1]}, "here: slow's option 'only' must be tuple[str, ...], not [1]"),
        ({"seconds": 1}, "here: slow needs the option 'mode'"),
        ({"mode": "x", "seconds": -1}, "here: slow: seconds must not be negative"),
    ],
)
def test_options_that_do_not_fit(options, message):
    """An unknown option, one of another type, a missing one, a value that the layer refuses: all errors name the option."""
    with pytest.raises(ConfigError) as caught:
        make_recipe(Slow, options, "here")
    assert str(caught.value) == message


def test_an_option_whose_hint_cannot_be_resolved_is_unchecked():
    """The hint is the user's code: if it can't be resolved, all options of that layer accept any value."""

    class Vague(Layer):
        what: Nowhere = 1  # noqa: F821

    recipe = make_recipe(Vague, {"what": "anything"})
    assert recipe.what == "anything"


def test_a_misspelt_option_gets_a_suggestion():
    """The error has the path of a misspelt option in a list of layers, and a suggestion."""
    written('[stores.cache]\nlayers = ["metrics", { use = "bounding", max_entires = 1 }]')
    with pytest.raises(ConfigError) as caught:
        Pocket("pocket.toml", autoload=False).stores["cache"]
    message = "pocket.toml [stores.cache].layers[1]: bounding has no option 'max_entires'; did you mean 'max_entries'?"
    assert str(caught.value) == message


def test_unknown_layer_and_scheme():
    """The error has the path of an unknown layer, and of an unknown scheme."""
    written('[store]\nlayers = ["bonding"]\n[stores.x]\nurl = "memry://"')
    pocket = Pocket("pocket.toml", autoload=False)
    with pytest.raises(ConfigError, match=r"pocket\.toml \[store\]\.layers\[0\]: there is no layer 'bonding'; did you"):
        pocket.store  # noqa: B018
    with pytest.raises(
        ConfigError, match=r"pocket\.toml \[stores\.x\]: 'memry://': no plugin offers memry://; there is"
    ):
        pocket.stores["x"]


def test_names_in_a_set_get_the_default_order():
    """A set has no order, so the names get the default order: other plugins' layers inside the three that observe."""
    names = {"bounding", "persistence", "compress", "audit", "migrate", "logging", "metrics", "tracing"}
    outside, inside = ["tracing", "metrics", "logging", "migrate"], ["persistence", "bounding"]
    assert order_names(names) == [*outside, "audit", "compress", *inside]
    slow = Slow(mode="x")
    assert order_names({"bounding", slow, "logging"}) == ["logging", slow, "bounding"]


# ---------------------------------------------------------------- the environment
def test_variables_are_filled_in(monkeypatch):
    """`${NAME}` in any string, at any depth; numbers and other text are unchanged."""
    monkeypatch.setenv("HOST", "db.example")
    value = {"url": "x://${HOST}/${HOST}", "list": ["${HOST}", 3], "other": "$HOST {HOST}"}
    assert expand(value, "") == {
        "url": "x://db.example/db.example",
        "list": ["db.example", 3],
        "other": "$HOST {HOST}",
    }


def test_variable_that_is_not_set(monkeypatch):
    """It is an error when it is used, with file, path and variable; other stores work."""
    monkeypatch.delenv("NOWHERE", raising=False)
    written(
        '[stores.a]\nurl = "sqlite:///${NOWHERE}/x.db"\n[stores.b]\nlayers = [{ use = "bounding", ttl = "${NOWHERE}" }]'
    )
    pocket = Pocket("pocket.toml", autoload=False)
    assert pocket.store
    with pytest.raises(
        ConfigError, match=r"pocket\.toml \[stores\.a\]\.url: the environment variable 'NOWHERE' is not"
    ):
        pocket.stores["a"]
    with pytest.raises(
        ConfigError, match=r"pocket\.toml \[stores\.b\]\.layers\[0\]\.ttl: the environment variable 'NOW"
    ):
        pocket.stores["b"]
