"""The JSON Schema of `pocket-plug config schema` is valid, accepts every file that pocket_plug accepts, and refuses others."""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator

from pocket_plug.cli import main
from pocket_plug.plugins.checking import check_config
from pocket_plug.plugins.pocket import Pocket, set_default_pocket
from pocket_plug.plugins.schema import config_schema, schema_of
from pocket_plug.plugins.tables import ABOUT
from pocket_plug.store.backend import Backend
from tests.conftest import Install

ROOT = Path(__file__).parents[2]
TABLE = re.compile(rf"^\s*\[({'|'.join(ABOUT)})[].]", re.MULTILINE)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    set_default_pocket(None)
    yield
    set_default_pocket(None)


def validator() -> Draft202012Validator:
    with Pocket() as pocket:
        return Draft202012Validator(config_schema(pocket.offers))


def is_a_configuration(text: str) -> bool:
    """Is it TOML with our tables, and no others?"""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return bool(content) and content.keys() <= ABOUT.keys()


def in_docs() -> Iterator[str]:
    """Blocks of TOML in all pages."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")):
        yield from re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def in_tests() -> Iterator[str]:
    """Texts in the code of tests, and the files of the examples."""
    for file in (*(ROOT / "tests").rglob("*.py"), *(ROOT / "plugins").glob("*/tests/*.py")):
        source = file.read_text("utf-8")
        if "pocket.toml" in source and TABLE.search(source.replace("\\n", "\n").replace('"', "\n")):
            texts = (each.value for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Constant))
            yield from (text for text in texts if isinstance(text, str) and TABLE.search(text))
    for file in (ROOT / "examples").rglob("pocket.toml"):
        yield file.read_text("utf-8")


@pytest.mark.parametrize(("texts", "least"), [(in_docs, 8), (in_tests, 10)], ids=["docs", "tests"])
def test_accepted_configurations_are_valid(texts: Any, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every configuration in the docs and in the tests that pocket_plug accepts."""
    for name in re.findall(r"\$\{(\w+)\}", "".join(texts())):
        if name not in os.environ:
            monkeypatch.setenv(name, "sqlite:///x.db" if "URL" in name else "some text that is long enough for it")
    checked = validator()
    found = [text for text in dict.fromkeys(texts()) if is_a_configuration(text)]
    invalid = [text for text in found if not checked.is_valid(tomllib.loads(text))]
    assert len(found) - len(invalid) >= least
    for text in invalid:
        Path("pocket.toml").write_text(text)
        assert check_config("pocket.toml"), text


@pytest.mark.parametrize(
    "text",
    [
        "[stor]",
        "store = 3",
        "[stores]\ncache = 'x'",
        "[store]\nlayer = []",
        "[stores.a]\nurl = 3",
        "[store]\nurl = 'sqlit:///x.db'",
        "[store]\nurl = 'memory://x'",
        "[store]\nlayers = 'x'",
        "[store]\nlayers = [3]",
        "[store]\nlayers = ['nolayer']",
        "[store]\nlayers = ['tracing', {max = 3}]",
        "[store]\nlayers = [{use = 'bounding', max_entires = 3}]",
        "[store]\nlayers = [{use = 'bounding', max_entries = '3'}]",
        "[store]\nlayers = [{use = 'persistence', to = 'sqlite:///x.db', mode = 'sideways'}]",
        "[store]\nlayers = ['persistence']",
        "[store]\nlayers = [{use = 'persistence'}]",
        "[executors]\nheavy = 'nowhere://'",
        "[executors]\nheavy = 3",
        "[plugins]\ndisable = 'x'",
        "[plugins]\ndisable = [3]",
        "[plugins]\ndisabel = ['x']",
        "[plugins.tracing]\ndetail = 'al'",
        "[plugins.tracing]\nredact = 'x'",
        "[plugins.metrics]\nnode_duration = 'yes'",
        "[plugins.logging]\nevent = true",
        "[runs]",
        "[runs]\nkeep = 'x'",
        "[runs]\nstates = ['running']\nkeep = 1",
        "[runs]\nkept = 1",
    ],
)
def test_refused_configurations_are_invalid(text: str) -> None:
    """As in pocket_plug itself."""
    Path("pocket.toml").write_text(text)
    assert check_config("pocket.toml")
    assert not validator().is_valid(tomllib.loads(text))


def test_it_is_a_valid_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """Of version 2020-12, as the command prints it: the same each time."""
    assert main(["config", "schema"]) == 0
    printed = capsys.readouterr().out
    schema = json.loads(printed)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    assert main(["config", "schema"]) == 0
    assert capsys.readouterr().out == printed


def test_it_has_the_parts_of_plugins(install: Install) -> None:
    """A layer with its options, schemes, and settings of pocket_configure; no option that only Python can express."""
    install(
        "pocket-plug-more",
        """
        from collections.abc import Callable
        from typing import Literal, TypedDict
        from pocket_plug import Memory, hookimpl, secret
        from pocket_plug.layers import Layer

        class Slow(Layer):
            '''Delays every read.

            And more.
            '''
            seconds: float = 0.1
            kind: Literal["a", "b"]
            key: str = secret(default="Marked4711")
            call: Callable[[], None] | None = None

        class Options(TypedDict, total=False):
            servers: list[str]

        @hookimpl
        def pocket_layers():
            return [Slow]

        @hookimpl
        def pocket_backends():
            return {"scratch": lambda url: Memory()}

        @hookimpl
        def pocket_executors():
            return {"beside": lambda url: None}

        @hookimpl
        def pocket_configure(options: Options):
            pass
        """,
    )
    checked = validator()
    good = """
        [store]
        url = "scratch://x"
        layers = [{ use = "slow", kind = "a", seconds = 1, label = "x" }, { use = "slow", kind = "${KIND}" }]
        [executors]
        a = "beside"
        b = "beside://x?y=1"
        [plugins.more]
        servers = ["a"]
    """
    assert checked.is_valid(tomllib.loads(good))
    for old, new in (
        ('kind = "a", ', ""),
        ('kind = "a"', 'kind = "c"'),
        ("seconds = 1", "call = 1"),
        ('["a"]', '"a"'),
        ("servers", "server"),
        ("scratch://x", "scratc://x"),
        ("beside://x", "besides://x"),
    ):
        assert old in good
        assert not checked.is_valid(tomllib.loads(good.replace(old, new))), new
    slow = next(
        each for each in checked.schema["$defs"]["layer"]["anyOf"] if each.get("description") == "Delays every read."
    )
    assert slow["properties"]["seconds"]["default"] == 0.1
    assert "Marked4711" not in json.dumps(checked.schema)


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (int | None, {"type": "integer"}),
        (bool | float, {"anyOf": [{"type": "boolean"}, {"type": "number"}]}),
        (float | timedelta | str, {"anyOf": [{"type": "number"}, {"type": "string"}]}),
        (Sequence[int], {"type": "array", "items": {"type": "integer"}}),
        (tuple[str, ...] | None, {"type": "array", "items": {"type": "string"}}),
        (Mapping[str, int], {"type": "object"}),
        (Literal[1, 2], {"enum": [1, 2]}),
        (Any, {}),
        (Backend, None),
        (bytes, None),
        (type(None), None),
        (frozenset[str], None),
    ],
)
def test_types(hint: Any, schema: Any) -> None:
    """The TOML types for each Python type."""
    assert schema_of(hint) == schema
