"""`pocket-plug store` handles append-only lists: shown, checked, moved and removed with their items."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from pocket_plug import SyncStore
from pocket_plug.cli import main
from pocket_plug.plugins.pocket import set_default_pocket

URL, TO = "sqlite:///state.db?durability=process", "sqlite:///to.db?durability=process"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test in a folder with two lists and a value, and with a default Pocket of its own."""
    monkeypatch.chdir(tmp_path)
    set_default_pocket(None)
    with SyncStore(URL) as store:
        for n in range(5):
            store.append("log", {"n": n})
        store.trim("log", keep=3)
        store.append("zoo", (1, 2), ttl="1h")
        store.set("a", 1)
    yield tmp_path
    set_default_pocket(None)


def run(*arguments: str, code: int = 0, url: str = URL) -> tuple[str, str]:
    """The stdout and stderr of a command."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        got = main(["store", "--url", url, *arguments])
    out.seek(0)
    text = out.read()
    assert got == code, (text, err.getvalue())
    return text, err.getvalue()


def names() -> list[str]:
    with closing(sqlite3.connect("state.db")) as connection:
        return [name for (name,) in connection.execute("SELECT key FROM entries ORDER BY key")]


def test_a_list_is_one_entry_of_a_listing() -> None:
    """`ls` shows its key, with its length in the long form; names of its items are pocket_plug's own, shown with --all."""
    assert run("ls")[0].split() == ["a", "log", "zoo"]
    assert len(run("ls", "--all")[0].split()) == 7
    assert "pocket:list of 3" in run("ls", "-l")[0]
    facts = json.loads(run("ls", "--json")[0])
    assert [(each["key"], each.get("length")) for each in facts] == [("a", None), ("log", 3), ("zoo", 1)]


def test_a_list_is_shown_by_its_items() -> None:
    """`get` prints them, the oldest first; JSON has their number too."""
    shown = run("get", "log")[0]
    assert [json.loads(text) for text in shown.replace("}\n{", "}\n\n{").split("\n\n")] == [{"n": n} for n in (2, 3, 4)]
    assert run("get", "zoo")[0] == "(1, 2)\n"
    facts = json.loads(run("get", "log", "--json")[0])
    assert (facts["type"], facts["length"]) == ("pocket:list", 3)


def test_lists_come_through_an_export_and_an_import() -> None:
    """With all items and the deadline, by prefix too, over an existing list; a list that has expired is skipped completely."""
    Path("out.jsonl").write_text(run("export")[0])
    with SyncStore(TO) as store:
        store.append("log", "other")
    run("import", "out.jsonl", url=TO)
    run("import", "out.jsonl", url=TO)
    with SyncStore(TO) as store, SyncStore(URL) as source:
        assert store.tail("log", 9) == [{"n": n} for n in (2, 3, 4)]
        assert store.tail("zoo", 9) == [(1, 2)]
        # with one deadline, read one after the other
        assert store.ttl("zoo") == pytest.approx(source.ttl("zoo"), abs=60)
        assert store.append("log", "next") == 4
    lines = run("export", "zoo")[0].splitlines()
    assert len(lines) == 2
    Path("old.jsonl").write_text("\n".join([lines[0].replace('"expires_at":', '"expires_at":-'), lines[1]]))
    assert "left out 1 " in run("import", "old.jsonl", url="sqlite:///old.db")[1]
    with SyncStore("sqlite:///old.db") as store:
        assert store.length("zoo") == 0
    assert "checked 0 entries" in run("check", url="sqlite:///old.db")[1]


def test_removing_a_list_removes_its_items() -> None:
    """By its key, and by a prefix."""
    run("rm", "log")
    assert len(names()) == 3
    run("rm", "--prefix", "z", "--yes")
    assert names() == ["a"]


def test_the_check_counts_items() -> None:
    """A list that lacks items is a fault; items of deleted lists are no fault, but are reported."""
    assert run("check") == ("", "checked 7 entries: 0 damaged, 0 faults\n")
    with SyncStore(URL) as store:
        store.set("zoo", "a value")
    assert run("check")[1].startswith("1 entry of lists that no longer exist: later appends remove them\n")
    with closing(sqlite3.connect("state.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM entries WHERE key LIKE 'pocket:+log:%:0000000003'")
    assert "fault: the list 'log' lacks 1 of its 3 items\n" in run("check", code=1)[0]
