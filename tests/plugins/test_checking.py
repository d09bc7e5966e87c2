"""`pocket-plug config check`: all mistakes in a file at once, each with its line, and no store is opened."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from pocket_plug.cli import main
from pocket_plug.errors import ConfigError
from pocket_plug.plugins.checking import check_config
from pocket_plug.plugins.config import load_config
from pocket_plug.plugins.toml_lines import lines_of
from tests.conftest import Install

pytestmark = pytest.mark.usefixtures("own_folder")

WRONG = """\
# what this is for
[store]
url = "sqlit:///x.db"
layers = ["tracing", { use = "bounding", max_entires = 3, ttl = [1] },
    "nolayer",
    { max = 3 },
]
[stores.cache]
url = "sqlite:///x.db?durabilty=none"
[stores.b]
url = "${NOPE}"
layer = []
[executors]
heavy = "nowhere://"
x = 3
[plugins]
disable = ["nope"]
[plugins.tracing]
capture = "none"
detail = "al"
[plugins.bounding]
a = 1
[plugins.tracin]
[runs]
older = "x"
keep = -1
"""

FOUND = [
    (3, "store.url", "no plugin offers sqlit://"),
    (4, "store.layers[1].max_entires", "did you mean 'max_entries'?"),
    (4, "store.layers[1].ttl", "bounding's option 'ttl' must be float"),
    (5, "store.layers[2]", "there is no layer 'nolayer'"),
    (6, "store.layers[3]", "a layer is a name or a table"),
    (9, "stores.cache.url", "Did you mean 'durability'?"),
    (11, "stores.b.url", "the environment variable 'NOPE' is not set"),
    (12, "stores.b.layer", "did you mean 'layers'?"),
    (14, "executors.heavy", "there is no executor 'nowhere://'"),
    (15, "executors.x", 'must be a URL such as "processes://?workers=4"'),
    (17, "plugins.disable[0]", "there is no plugin 'nope'"),
    (20, "plugins.tracing.detail", "one of run, node, phase, debug"),
    (21, "plugins.bounding", "takes no options"),
    (23, "plugins.tracin", "did you mean 'tracing'?"),
    (25, "runs.older", "older can't be 'x'"),
    (26, "runs.keep", "keep must be a number of runs"),
]


def written(text: str, name: str = "pocket.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def test_all_mistakes_are_reported_at_once(own_folder: Path) -> None:
    """With the line, the table and the key, in the order of the lines; consequences of another mistake aren't reported."""
    findings = check_config(written(WRONG))
    assert [(each.line, each.table) for each in findings] == [(line, table) for line, table, _ in FOUND]
    for finding, (line, _, words) in zip(findings, FOUND, strict=True):
        assert words in finding.message
        assert str(finding).startswith(f"pocket.toml:{line}: [")
    assert [path.name for path in own_folder.iterdir()] == ["pocket.toml"]


def test_each_layer_says_what_is_wrong_with_it() -> None:
    """Also of values that are of the right type; a layer names itself once."""
    text = """[store]
layers = [
    { use = "fault", probability = 7 },
    { use = "logging", level = "loud" },
    { use = "timeout", read_within = "5 mins" },
    { use = "bounding", max_entries = 0 },
]"""
    said = [
        "fault: probability can't be 7",
        "logging: level 'loud'",
        "timeout: read_within can't",
        "bounding: max_entries",
    ]
    for number, (finding, words) in enumerate(zip(check_config(written(text)), said, strict=True)):
        assert str(finding).startswith(f"pocket.toml:{number + 3}: [store].layers[{number}]: {words}")


def test_the_same_in_pyproject() -> None:
    """There the tables are below [tool.pocket_plug]; the keys are named without that."""
    text = WRONG.replace("[store", "[tool.pocket_plug.store").replace("[plugins", "[tool.pocket_plug.plugins")
    text = text.replace("[executors", "[tool.pocket_plug.executors").replace("[runs", "[tool.pocket_plug.runs")
    findings = check_config(written(text, "pyproject.toml"))
    assert [(each.line, each.table) for each in findings] == [(line, table) for line, table, _ in FOUND]


def test_a_valid_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and one line; its stores are not opened."""
    written('[store]\nurl = "sqlite:///state.db"\nlayers = ["tracing"]')
    assert main(["config", "check"]) == 0
    assert capsys.readouterr() == ("", "pocket.toml: nothing is wrong\n")
    assert not Path("state.db").exists()


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each mistake on stdout, the number on stderr, exit code 1; JSON for machines."""
    written("[store]\nlayer = []\n[stor]")
    assert main(["config", "check", "pocket.toml"]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(" ")[0] for line in out.splitlines()] == ["pocket.toml:2:", "pocket.toml:3:"]
    assert err == "pocket.toml: 2 things are wrong\n"
    assert main(["config", "check", "pocket.toml", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(each["file"], each["line"], each["key"]) for each in found] == [
        ("pocket.toml", 2, "store.layer"),
        ("pocket.toml", 3, "stor"),
    ]


def test_no_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, and none found: exit code 2."""
    assert main(["config", "check", "gone.toml"]) == 2
    assert main(["config", "check"]) == 2
    assert "name a FILE" in capsys.readouterr().err


def test_invalid_toml_is_reported_with_its_line() -> None:
    """It is the only finding."""
    [finding] = check_config(written("[store]\nurl = x"))
    assert finding.line == 2
    assert "is not valid TOML" in finding.message


def test_all_wrong_options_of_a_url_are_reported(own_folder: Path) -> None:
    """Each once, with the URL as written; an unknown scheme is one mistake, whatever its options."""
    url = "sqlite:///a.db?durabilty=power&timeout=-1&patience=5"
    found = check_config(
        written(
            f"""
            [store]
            url = "{url}"
            [stores.whole]
            url = "sqlite:///b.db?durability=power&timeout=1"
            [stores.both]
            url = "sqlit://c.db?timeout=-1&a=2"
            [executors]
            heavy = "processes://?workers=-1&worker=2"
            """
        )
    )
    assert [(each.line, each.table) for each in found] == [
        *[(3, "store.url")] * 3,
        (7, "stores.both.url"),
        *[(9, "executors.heavy")] * 2,
    ]
    for finding, what in zip(
        found[:3], ("no option 'durabilty'", "no option 'patience'", "timeout is -1.0"), strict=True
    ):
        assert what in finding.message
        assert repr(url) in finding.message or "sqlite: timeout" in finding.message
    assert [*own_folder.iterdir()] == [own_folder / "pocket.toml"]


def test_a_wrong_executor_opens_no_store(own_folder: Path) -> None:
    """Nor is a store's mistake reported for the executor."""
    store, executor = '[store]\nurl = "sqlite:///made.db"\n', '[executors]\nheavy = "processes://?worker=2"\n'
    for between, wrong in (("", []), ('[stores.b]\nlayers = ["nolayer"]\n', ["stores.b.layers[0]"])):
        found = check_config(written(store + between + executor))
        assert [each.table for each in found] == [*wrong, "executors.heavy"]
    assert [*own_folder.iterdir()] == [own_folder / "pocket.toml"]


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a password in a URL nor the value of a variable."""
    monkeypatch.setenv("TOKEN", "Marked4711")
    written(
        """
        [store]
        url = "sqlite://me:Marked4711@${TOKEN}/x?nope=1"
        layers = [{ use = "bounding", ttl = "${TOKEN}", max_entries = "${TOKEN}" }]
        [executors]
        a = "processes://${TOKEN}"
        [plugins.tracing]
        detail = "${TOKEN}"
        """
    )
    assert main(["config", "check"]) == 1
    said = "".join(capsys.readouterr())
    assert "pocket.toml:8" in said
    assert "Marked4711" not in said


def test_a_plugin_that_refuses_its_options(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """With the line of the option that it names; nothing else is logged."""
    install(
        "pocket-plug-choosy",
        """
        from pocket_plug import NotConfiguredError, hookimpl
        @hookimpl
        def pocket_configure(options):
            if options["server"] != "here":
                raise NotConfiguredError("server must be here")
        """,
    )
    path = written('[plugins.choosy]\nport = 1\nserver = "there"')
    assert [(each.line, each.message) for each in check_config(path)] == [(3, "[plugins.choosy]: server must be here")]
    assert not caplog.records


def test_loading_reports_the_first_mistake_and_the_command_for_the_rest() -> None:
    """A program that starts with a wrong file is told the command that lists all mistakes."""
    with pytest.raises(ConfigError) as caught:
        load_config(written("[store]\nlayer = 1\nurl = 3\n[stor]"))
    assert "did you mean 'store'?" in str(caught.value)
    assert str(caught.value).endswith(" (and 2 more: pocket-plug config check pocket.toml)")


def test_lines_of_everything_in_toml() -> None:
    """Comments, strings of every kind with brackets and quotes in them, dotted and quoted keys, nested arrays and tables."""
    text = dedent(
        '''
        top = "a # [b] \\" c" # comment [x]
        multi = """
        [no]
        key = "x" \\""" """
        raw = \'\'\'
        [no]\'\'\'
        [a."b.c".d]  # and so on
        e.f = [1, [2,
          3], { g = "}", h = [
            4] }, # ]
          "]",
        ]
        'q' = 1979-05-27T07:32:00Z
        [[many]]
        x = 1
        [[many]]
        x = 2
        '''
    )
    lines = lines_of(text)
    wanted = {
        ("top",): 2,
        ("multi",): 3,
        ("raw",): 6,
        ("a", "b.c", "d"): 8,
        ("a", "b.c", "d", "e", "f"): 9,
        ("a", "b.c", "d", "e", "f", 1, 1): 10,
        ("a", "b.c", "d", "e", "f", 2, "g"): 10,
        ("a", "b.c", "d", "e", "f", 2, "h", 0): 11,
        ("a", "b.c", "d", "e", "f", 3): 12,
        ("a", "b.c", "d", "q"): 14,
        ("many", 0, "x"): 16,
        ("many", 1, "x"): 18,
    }
    assert {path: lines.get(path) for path in wanted} == wanted
    assert not any("no" in path for path in lines)
