"""`pocket-plug runs check TARGET`: before a deployment, a pipeline finds out which open runs could not be resumed after it."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pocket_plug import RunCheck, RunSuspendedError, SyncStore
from pocket_plug.cli import main
from pocket_plug.graph.durable.records import keys_of
from pocket_plug.plugins.pocket import set_default_pocket
from pocket_plug.store.backend import Delete, Put

URL = "sqlite:///state.db?durability=process"

SHOP = """
    import pathlib
    from dataclasses import dataclass
    import pocket_plug as pp

    def stop(word):
        if not pathlib.Path("open").exists():
            raise RuntimeError("closed")

    @pp.node
    def order(word: str) -> str:
        return word

    @pp.node
    def pay(word: str) -> str:
        stop(word)
        return word

    @pp.node
    def deliver(word: str) -> str:
        return f"delivered {word}"

    sure = pp.Ask[str, bool](bool, question="Sure?", name="sure")

    @pp.node
    def answered(answer: pp.Answered[str, bool]) -> str:
        return answer.input

    graph = pp.Graph(order >> pay >> deliver, name="shop")
    asking = pp.Graph(sure >> answered, name="asking")
    before = pp.Graph(order.with_options(name="take") >> pay >> deliver, name="shop")
    renamed = pp.Graph(order >> pay.with_options(name="bill") >> deliver, name="shop")
    to_bill = {1: lambda run: run.renamed("pay", "bill")}
    upgraded = pp.Graph(order >> pay.with_options(name="bill") >> deliver, name="shop", version=2, upgrade=to_bill)
    @dataclass
    class Consignment:
        word: str

    @pp.node
    def pack(word: str) -> Consignment:
        return Consignment(word)

    @pp.node
    def send(parcel: Consignment) -> str:
        stop(parcel.word)
        return parcel.word

    sending = pp.Graph(pack >> send, name="sending")

    own = pp.Graph(order, store=pp.Store("sqlite:///other.db"), name="own")
    volatile = pp.Graph(order, store=pp.Store(), name="volatile")
    number = 7
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in a folder with a program and a store."""
    monkeypatch.chdir(tmp_path)
    Path("pocket.toml").write_text(f'[store]\nurl = "{URL}"\n')
    Path("shop.py").write_text(dedent(SHOP))
    return tmp_path


def run(arguments: list[str]) -> int:
    """Run a command as in a process of its own: with a Pocket of its own, which looks for the configuration."""
    set_default_pocket(None)
    sys.modules.pop("shop", None)
    return main(arguments)


def begin(name: str, *ids: str) -> None:
    """Start runs of a graph that don't end."""
    sys.path.insert(0, str(Path.cwd()))
    import shop

    with SyncStore(URL) as store:
        graph = getattr(shop, name)
        for run_id in ids:
            placed = type(graph)(*graph._chains, store=store, name=graph.name)
            with pytest.raises((RuntimeError, RunSuspendedError)):
                placed.run_sync("tea", run_id=run_id)


def stored() -> dict[str, Any]:
    with SyncStore(URL) as store:
        stack = store.place[0]

        async def everything() -> dict[str, Any]:
            found = await stack.read_many([key async for key in stack.scan("")])
            return {key: (entry.version, entry.value) for key, entry in found.items()}

        return stack.run(everything())


def test_all_runs_can_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    """If the graph is unchanged, or at least the part ahead of the run: exit code 0, with the reason."""
    begin("graph", "a", "b")
    before = stored()
    assert run(["runs", "check", "shop.py"]) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["run", "state", "node", "verdict", "why"],
        ["a", "failed", "pay", "unchanged"],
        ["b", "failed", "pay", "unchanged"],
    ]
    assert err == "all 2 can resume\n"
    assert run(["runs", "check", "shop.py:before"]) == 0
    assert "unchanged ahead" in capsys.readouterr().out
    assert run(["runs", "check", "shop.py:upgraded"]) == 0
    assert "upgraded" in capsys.readouterr().out
    assert stored() == before, "nothing is written"


def test_without_an_open_run_nothing_stands_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Also before the first run. It says so."""
    begin("graph")
    assert run(["runs", "check", "shop.py"]) == 0
    assert capsys.readouterr().err == "there are no open runs\n"


def test_some_runs_can_not_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1; each such run is listed with the reason, and the last line has their number."""
    begin("graph", "a")
    assert run(["runs", "check", "shop.py:renamed"]) == 1
    out, err = capsys.readouterr()
    assert "a    failed  pay   refused  run 'a' can't resume in the current graph 'shop': it is at node 'pay'" in out
    assert err == "1 of 1 open runs can't resume\n"


def test_a_value_that_the_new_program_can_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    """The graph is the same, but a field of the class is gone: a resume would fail, so the deployment has to stop."""
    begin("sending", "a")
    assert run(["runs", "check", "shop.py:sending"]) == 0
    program = Path("shop.py").read_text("utf-8")
    Path("shop.py").write_text(
        program.replace("class Consignment:\n    word:", "class Consignment:\n    content:"), "utf-8"
    )
    capsys.readouterr()
    assert run(["runs", "check", "shop.py:sending"]) == 1
    out, err = capsys.readouterr()
    assert "a    failed  send  refused  CodecError: decoding a shop.Consignment from" in out
    assert "it was stored with fields that the class doesn't have: word" in out
    assert err == "1 of 1 open runs can't resume\n"


def test_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """--json has the fields of a RunCheck for each run, and `run` for its id, with the same exit code."""
    begin("graph", "a")
    assert run(["runs", "check", "shop.py:renamed", "--json"]) == 1
    out, err = capsys.readouterr()
    (found,) = json.loads(out)
    assert set(found) == {field.name for field in fields(RunCheck)}
    assert (found["run_id"], found["can_resume"], found["verdict"], found["version"]) == ("a", False, "refused", 1)
    assert err == ""


def test_only_open_runs_of_that_graph(capsys: pytest.CaptureFixture[str]) -> None:
    """Ended runs and other graphs' runs are not checked; waiting runs are."""
    begin("graph", "a", "done")
    begin("asking", "waits")
    Path("open").touch()
    assert run(["runs", "resume", "shop.py", "done"]) == 0
    capsys.readouterr()
    assert run(["runs", "check", "shop.py"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["run", "a"]
    assert err == "all 1 can resume\nnot checked: the open runs of 'asking'\n"
    assert run(["runs", "check", "shop.py:asking"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["waits", "suspended", "sure", "unchanged"]


@pytest.mark.parametrize("damage", ["run", "start", "no start", "newer"])
def test_a_run_whose_records_are_damaged(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It can't be resumed, and is listed with the others."""
    begin("graph", "a", "b")
    key, part = keys_of("a")
    with SyncStore(URL) as store:
        stack = store.place[0]
        entry = stack.run(stack.read(key))
        assert entry is not None
        changes: dict[str, Any] = {
            "run": {key: {**entry.value, "frames": []}},
            "start": {f"{part}start": {"graph": "shop"}},
            "newer": {key: {**entry.value, "format": 99}},
        }
        if damage == "no start":
            stack.run(stack.write([Delete(f"{part}start")]))
        else:
            stack.run(stack.write([Put(name, value) for name, value in changes[damage].items()]))
    assert run(["runs", "check", "shop.py", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["can_resume"] for each in found] == [False, True]
    says = {"newer": "newer pocket_plug", "no start": "lost the record"}.get(damage, "CorruptRecordError")
    assert says in found[0]["why"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["shop.py:number"], "is int, not a Graph"),
        (["shop.py:volatile"], "its store"),
        (["shop.py:nothing"], "has no 'nothing'"),
    ],
)
def test_what_can_not_be_checked(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error, with exit code 2, so that a pipeline can tell it from runs that can't be resumed."""
    assert run(["runs", "check", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_graph_with_a_store_of_its_own_and_another_one_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error: its runs aren't in that store."""
    begin("graph", "a")
    assert run(["runs", "--url", URL, "check", "shop.py:own"]) == 2
    assert "has a store of its own" in capsys.readouterr().err
    assert run(["runs", "--url", URL, "check", "shop.py"]) == 0
