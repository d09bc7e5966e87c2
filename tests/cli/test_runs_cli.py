"""`pocket-plug runs`: durable runs are listed, shown, resumed, answered and removed, without the program's types."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from pocket_plug import Action, Graph, Node, Runs, RunSuspendedError, Sleep, SyncStore, node
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.cli import main
from pocket_plug.errors import ConflictError, RunFencedError
from pocket_plug.graph.durable.heartbeat import BEAT, KEPT
from pocket_plug.graph.durable.indexing import INDEXED
from pocket_plug.graph.durable.records import RUN, keys_of
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.states import State, put_state
from pocket_plug.plugins.pocket import set_default_pocket
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Change, Delete, Put

EXAMPLES = Path(__file__).parents[2] / "examples"
POCKET_PLUG = [sys.executable, "-W", "error", "-m", "pocket_plug"]
WHO_GOES_ON = "`pocket-plug worker TARGET` resumes pending runs, `pocket-plug runs resume TARGET RUN` a single one\n"
URL = "sqlite:///state.db?durability=process"

SHOP = """
    from dataclasses import dataclass
    from decimal import Decimal
    import pathlib
    import pocket_plug as pp

    @dataclass(frozen=True)
    class Price:
        amount: Decimal

    @pp.node
    def price(word: str) -> Price:
        return Price(Decimal(len(word)))

    @pp.node
    def deliver(price: Price) -> str:
        if not pathlib.Path("open").exists():
            raise RuntimeError("closed")
        return f"delivered for {price.amount}"

    ask = pp.Ask[Price, Price](Price, question=lambda price: price, name="ask")

    @pp.node
    def agree(answered: pp.Answered[Price, Price]) -> str:
        return f"agreed on {answered.answer.amount}"

    @pp.node
    def same(answered: pp.Answered[str, bool]) -> str:
        return answered.input

    sure = pp.Ask[str, bool](bool, question="sure?", name="sure")
    nap = pp.Graph(sure >> same >> pp.Sleep[str](until=1e10), name="nap")
    nested = pp.Graph(price >> deliver, name="nested")
    graph = pp.Graph(nested, name="shop")
    haggle = pp.Graph(price >> pp.Graph(ask >> agree, name="talk"), name="haggle")
    graph_of_its_own = pp.Graph(price >> deliver, store=pp.Store("sqlite:///other.db"), name="own")
    number = 7
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in a folder with a program and a store."""
    monkeypatch.chdir(tmp_path)
    Path("pocket.toml").write_text(f'[store]\nurl = "{URL}"\n')
    Path("shop.py").write_text(dedent(SHOP))
    return tmp_path


class Ran:
    """The output of a command, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process, which knows none of the program's types; commands that load the program run elsewhere."""

    def run(*arguments: str) -> Ran:
        set_default_pocket(None)
        capsys.readouterr()
        code = main(arguments)
        return Ran(code, *capsys.readouterr())

    return run


def elsewhere(*arguments: str) -> Ran:
    """Run a command in a process of its own."""
    done = subprocess.run([*POCKET_PLUG, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def fill(values: dict[str, Any]) -> None:
    with opened() as backend:
        drive(backend.write([Put(key, value) for key, value in values.items()]))


@contextmanager
def opened() -> Iterator[SQLite]:
    backend = SQLite("state.db", durability="process")
    drive(backend.open())
    yield backend
    drive(backend.close())


def keys(prefix: str = "") -> list[str]:
    async def names() -> list[str]:
        return [name async for name in backend.scan(prefix) if name != INDEXED]  # the index stays once runs were listed

    with opened() as backend:
        return drive(names())


def overwrite(key: str, record: bytes) -> None:
    import sqlite3

    connection = sqlite3.connect("state.db", isolation_level=None)
    connection.execute("UPDATE entries SET value = ? WHERE key = ?", (record, key))
    connection.close()


def finish(*run_ids: str) -> None:
    """Durable runs that have ended."""

    @node
    def upper(word: str) -> str:
        return word.upper()

    with SyncStore(URL) as store:
        for run_id in run_ids:
            Graph(upper, store=store, name="plain").run_sync(run_id, run_id=run_id)
    set_default_pocket(None)  # these runs have made one, which isn't the command line's


# ---------------------------------------------------------------- two processes
def test_an_approval_is_submitted_in_one_process_and_answered_in_another(here: Any) -> None:
    """The example's run waits in the store, is found, shown and answered by later processes, and sends one mail."""
    approval = str(EXAMPLES / "approval.py")
    submitted = elsewhere("run", approval, "--run-id", "mail", "--input", '"All is well"')
    assert (submitted.code, submitted.out) == (3, "  counting words for hours\n")
    assert submitted.err == (
        "run 'mail' waits for an answer: send 'All is well' (3 words)?\n"
        "`pocket-plug runs answer TARGET mail ANSWER` answers it\n"
    )

    (listed,) = here("runs", "ls", "--json").json
    assert (listed["run_id"], listed["state"], listed["graph"], listed["node"]) == (
        "mail",
        "suspended",
        "approval",
        "approve",
    )
    assert listed["run"] == "mail"  # its name in 0.1.0, until 0.3
    (question,) = here("runs", "show", "mail", "--json").json["questions"]
    assert (question["id"], question["question"]) == ("approve#1", {"value": "send 'All is well' (3 words)?"})
    assert here("runs", "rm", "nobody").code == 1

    resumed = elsewhere("runs", "resume", approval, "mail")
    assert (resumed.code, resumed.out) == (3, "")
    answered = elsewhere("runs", "answer", approval, "mail", "true")
    assert (answered.code, answered.out, answered.err) == (0, "sent, as number 1\n", "")
    again = elsewhere("runs", "answer", approval, "mail", "true", "--json")
    assert (again.code, again.out) == (0, '"sent, as number 1"\n')
    assert here("runs", "ls", "--json").json[0]["state"] == "finished"


def test_what_a_run_prints_is_no_part_of_its_json() -> None:
    """Of `runs resume`, `answer` and `check`: with --json it goes to stderr."""
    with Path("shop.py").open("a") as program:
        program.write(
            dedent("""
            print("imported")
            @pp.node
            def loud(answered: pp.Answered[str, bool]) -> str:
                print("at work")
                return answered.input
            loudly = pp.Graph(pp.Ask[str, bool](bool, question="sure?", name="sure") >> loud, name="loudly")
            """)
        )
    assert elsewhere("run", "shop.py:loudly", "--run-id", "l", "--input", "x", "--json").out == ""
    checked = elsewhere("runs", "check", "shop.py:loudly", "--json")
    assert ([each["run_id"] for each in checked.json], checked.err) == (["l"], "imported\n")
    answered = elsewhere("runs", "answer", "shop.py:loudly", "l", "true", "--json")
    assert (answered.code, answered.out, answered.err) == (0, '"x"\n', "imported\nat work\n")
    resumed = elsewhere("runs", "resume", "shop.py:loudly", "l", "--json")
    assert (resumed.code, resumed.out, resumed.err) == (0, '"x"\n', "imported\n")


def test_each_execution_of_a_run_is_traced() -> None:
    """--trace and --capture of `run` and `runs answer`: one run, an execution for each, and the command that shows them all."""
    approval = str(EXAMPLES / "approval.py")
    submitted = elsewhere("run", approval, "--run-id", "mail", "--input", '"All is well"', "--trace")
    resumed = elsewhere("runs", "resume", approval, "mail", "--trace")
    assert "All is well" not in Path(".pocket_plug/traces.jsonl").read_text("utf-8")
    answered = elsewhere("runs", "answer", approval, "mail", "true", "--trace", "--capture", "full")
    assert (submitted.code, resumed.code, answered.code) == (3, 3, 0)
    assert "sent, as number 1" in Path(".pocket_plug/traces.jsonl").read_text("utf-8")
    assert elsewhere("runs", "resume", approval, "mail", "--capture", "full").code == 2
    shown = [" trace show mail --open" in ran.err for ran in (submitted, resumed, answered)]
    assert shown == [True, False, True], "what still waits for its answer has done nothing"
    listed = elsewhere("trace", "ls", "--json").json
    assert [(run["run_id"], run["outcome"]) for run in listed] == [("mail", "success"), ("mail", "suspended")]


# ---------------------------------------------------------------- ls
def test_ls_has_a_line_for_each_run(here: Any) -> None:
    """Id, state, graph, node, age, steps and details: open runs first, the newest at the top; ids unchanged."""
    elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"')
    finish("z:1%", "a")
    heading, *lines = here("runs", "ls").out.splitlines()
    assert heading.split() == ["run", "state", "graph", "node", "age", "steps", "why"]
    assert [re.sub(r"\b\d+s\b", "AGE", line).split() for line in lines] == [
        ["order", "failed", "shop", "nested/deliver", "AGE", "1", "RuntimeError:", "closed"],
        ["a", "finished", "plain", "AGE", "1"],
        ["z:1%", "finished", "plain", "AGE", "1"],
    ]


def test_ls_of_a_state(here: Any) -> None:
    """--state filters the list, in JSON too."""
    finish("done")
    elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"')
    assert [each["run_id"] for each in here("runs", "ls", "--state", "failed", "--json").json] == ["order"]
    assert here("runs", "ls", "--state", "suspended", "--json").json == []
    assert here("runs", "ls", "--state", "suspended").err == "there are no such runs in the default store\n"
    assert here("runs", "ls", "--state", "dead").code == 2


def test_ls_lists_runs_with_damaged_records(here: Any) -> None:
    """A damaged record, a foreign value and a newer format are listed as unreadable; all other runs are listed."""
    finish("good", "damaged", "newer")
    fill({f"{RUN}foreign": [1], f"{RUN}newer": {"format": 2}})
    overwrite(f"{RUN}damaged", b"\xff\x00")
    states = {each["run_id"]: each["state"] for each in here("runs", "ls", "--json").json}
    assert states == {"good": "finished", "damaged": "unreadable", "foreign": "unreadable", "newer": "unreadable"}
    assert here("runs", "ls").code == 0
    for run_id in ("damaged", "foreign", "newer"):
        assert here("runs", "show", run_id).code == 1
        assert here("runs", "rm", run_id).code == 0
    assert [each["run_id"] for each in here("runs", "ls", "--json").json] == ["good"]


# ---------------------------------------------------------------- show
def test_show_shows_types_it_does_not_know(here: Any) -> None:
    """A value of the program's own type is shown as it is stored; the module isn't imported."""
    assert elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"').code == 1
    shown = here("runs", "show", "order")
    assert "shop" not in sys.modules
    assert "<Price {'amount': Decimal('5')}>" in shown.out
    found = here("runs", "show", "order", "--json").json
    assert found["value"]["type"] == "Price"
    assert found["input"] == {"value": "hello"}
    assert found["visits"] == {"nested/price": 1}
    assert [(each["node"], each["next"]) for each in found["path"]] == [("nested#1/price#1", "deliver")]


def test_show_shortens_long_values(here: Any) -> None:
    """So that what is below them can be seen; JSON has all of them."""

    @node
    def count(numbers: list[int]) -> int:
        return len(numbers)

    numbers = list(range(1000))
    with SyncStore(URL) as store:
        Graph(count, store=store, name="counting").run_sync(numbers, run_id="long")
    set_default_pocket(None)
    shown = here("runs", "show", "long").out
    assert "… and 980 lines more; --json prints all\n" in shown
    assert "count#1" in "".join(shown.splitlines()[-2:])
    assert here("runs", "show", "long", "--json").json["input"]["value"] == numbers


def test_show_has_the_end_of_a_long_path_and_the_date(here: Any) -> None:
    """A loop has passed thousands of nodes: what is above stays on the screen. The date is for a search in logs."""

    class Again(Node[int, int], name="again"):
        more = Action[int]()

        async def post(self, store: Any, n: int, prepared: Any, result: Any) -> Any:
            return self.more(n + 1) if n < 30 else n

    again = Again()
    with SyncStore(URL) as store:
        Graph(again, again.more >> again, store=store, name="loop").run_sync(1, run_id="r")
    set_default_pocket(None)
    lines = here("runs", "show", "r").out.splitlines()
    began = datetime.fromtimestamp(here("runs", "show", "r", "--json").json["started"]).astimezone()
    assert any(
        re.fullmatch(rf"started     \d+s ago, {re.escape(began.isoformat(' ', 'seconds'))}", line) for line in lines
    )
    at = lines.index("10 nodes passed before these; --json prints all")
    assert [line.split()[0] for line in lines[at + 2 :]] == [f"again#{visit}" for visit in range(11, 31)]


def test_show_works_with_damaged_parts(here: Any) -> None:
    """A further record of the run that can't be read is reported, and the rest is shown."""
    finish("r")
    _, part = keys_of("r")
    for key in keys(part):
        overwrite(key, b"\xff")
    shown = here("runs", "show", "r")
    assert shown.code == 0
    assert "result      'R'" in shown.out
    assert "unreadable" in shown.out
    found = here("runs", "show", "r", "--json").json
    assert (found["input"], found["path"]) == (None, [{"node": None, "next": None, "at": None}])


def test_show_names_the_trace(here: Any) -> None:
    """The trace in which the run was started contains its spans."""
    traced = elsewhere("run", "shop.py", "--trace", "--run-id", "order", "--input", '"hello"')
    assert traced.code == 1
    trace_id = here("runs", "show", "order", "--json").json["trace_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert trace_id in Path(".pocket_plug/traces.jsonl").read_text()


def test_show_links_the_traces_of_all_executions(here: Any) -> None:
    """Each with its error, first and last; all are in the trace file."""
    assert elsewhere("run", "shop.py", "--trace", "--run-id", "order", "--input", '"hello"').code == 1
    assert elsewhere("runs", "resume", "shop.py", "order", "--trace").code == 1
    executions = here("runs", "show", "order", "--json").json["executions"]
    assert [(each["number"], each["left"], each["failure"]["message"]) for each in executions] == [
        (1, "failed", "closed"),
        (2, "failed", "closed"),
    ]
    traces = [each["trace_id"] for each in executions]
    assert len(set(traces)) == 2
    kept = Path(".pocket_plug/traces.jsonl").read_text()
    assert all(trace in kept for trace in traces)
    shown = here("runs", "show", "order").out
    assert all(trace in shown for trace in traces)
    command = re.search(r"^pocket-plug (trace show order) draws them", shown, re.MULTILINE)
    assert command is not None
    drawn = here(*command[1].split(), "--json").json
    assert {each["trace_id"] for each in drawn} == set(traces)


@pytest.mark.parametrize("command", [["runs", "ls"], ["store", "check"]])
def test_a_store_that_does_not_answer_at_once(here: Any, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """A server that is away is tried for half a minute: the command says what it waits for."""

    async def slowly(self: SQLite) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await at_once(self)

    fill({"a": 1})
    at_once = SQLite.open
    said = "the default store doesn't answer yet; waiting\n"
    assert said not in here(*command).err
    monkeypatch.setattr("pocket_plug.cli.target.PATIENT_SECONDS", 0.0)
    monkeypatch.setattr(SQLite, "open", slowly)
    ran = here(*command)
    assert (ran.code, said in ran.err) == (0, True)


def test_show_of_no_run(here: Any) -> None:
    """The error says that there is no such run, and where the command has looked."""
    finish("r")
    shown = here("runs", "show", "q")
    assert shown.code == 1
    assert shown.err == (
        "UnknownRunError: there is no run 'q' in SQLite('state.db', durability='process'); "
        "`pocket-plug runs ls` lists the runs of [store], `pocket-plug runs --url URL ls` those of another store\n"
    )
    assert here("runs", "show", "q\udc80").err.startswith("KeyNameError: ")


# ---------------------------------------------------------------- resume and answer
def test_resume_continues_a_run_and_prints_the_result(here: Any) -> None:
    """With the store that --url names, once the cause of the failure is removed; the result is printed as by `run`."""
    assert elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"').code == 1
    Path("pocket.toml").unlink()
    assert "RuntimeError: closed" in elsewhere("runs", "--url", URL, "resume", "shop.py", "order").err
    Path("open").touch()
    assert elsewhere("runs", "--url", URL, "resume", "shop.py", "order").out == "delivered for 5\n"
    assert elsewhere("runs", "--url", URL, "resume", "shop.py:graph", "order", "--json").out == '"delivered for 5"\n'


def test_resume_over_a_named_store(here: Any) -> None:
    """--name means the store of that table, for reading and for resuming."""
    elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"')
    Path("pocket.toml").write_text(f'[stores.orders]\nurl = "{URL}"\n')
    Path("open").touch()
    ran = elsewhere("runs", "--name", "orders", "resume", "shop.py", "order")
    assert ran.err == ""
    assert ran.out == "delivered for 5\n"
    assert here("runs", "--name", "orders", "ls", "--json").json[0]["state"] == "finished"
    assert elsewhere("runs", "--name", "order", "resume", "shop.py", "order").code == 2


def test_resume_of_a_changed_graph_has_to_be_allowed(here: Any) -> None:
    """It is refused with the difference, and done with --allow-changed."""
    elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"')
    Path("open").touch()
    source = Path("shop.py").read_text()
    Path("shop.py").write_text(
        source.replace("price >> deliver, name", "price >> deliver >> wrap, name").replace(
            "nested =", "@pp.node\ndef wrap(what: str) -> str:\n    return f'{what}, wrapped'\n\nnested ="
        )
    )
    refused = elsewhere("runs", "resume", "shop.py", "order")
    assert refused.code == 1
    assert "+ node nested/wrap" in refused.err
    assert elsewhere("runs", "resume", "shop.py", "order", "--allow-changed").out == "delivered for 5, wrapped\n"


def test_an_answer_is_converted_to_the_type_of_the_question(here: Any) -> None:
    """In a nested graph too: JSON is converted; invalid input is refused, and the run still waits."""
    assert elsewhere("run", "shop.py:haggle", "--run-id", "h", "--input", '"hello"').code == 3
    for wrong in ("7", '{"amount": "much"}', "{", '{"price": 1}'):
        refused = elsewhere("runs", "answer", "shop.py:haggle", "h", wrong)
        assert refused.code == 2
        assert "ANSWER: " in refused.err
        assert here("runs", "show", "h", "--json").json["state"] == "suspended"
    Path("answer.json").write_text('{"amount": "3.5"}')
    assert elsewhere("runs", "answer", "shop.py:haggle", "h", "@answer.json").out == "agreed on 3.5\n"


def test_a_run_that_sleeps_says_until_when(here: Any) -> None:
    """As a date with its time zone, and with the way to continue the run; there is no question to show."""
    assert elsewhere("run", "shop.py:nap", "--run-id", "n", "--input", "x").code == 3
    until = datetime.fromtimestamp(1e10).astimezone().isoformat(" ")
    for command in (("runs", "answer", "shop.py:nap", "n", "true"), ("runs", "resume", "shop.py:nap", "n")):
        asleep = elsewhere(*command)
        assert (asleep.code, asleep.out) == (3, "")
        assert asleep.err == (
            f"run 'n' sleeps until {until}; `pocket-plug worker TARGET` resumes it then, or `pocket-plug runs resume`\n"
        )


def test_a_run_that_is_due_says_since_when(here: Any) -> None:
    """It said "for 0s", for days: no worker is there, or none can take it."""

    class Former(SQLite):
        clock = staticmethod(lambda: 1e9)

    with SyncStore(Former("state.db")) as store:
        graph = Graph(Sleep[int]("1h"), name="nap")
        with pytest.raises(RunSuspendedError):
            graph.run_sync(1, run_id="n", store=store)
    days = r"\d+d(\d+[hms])? ago"  # in one hour of each day they are without hours
    assert re.search(
        rf"suspended  nap    sleep  .* was due {days}; no worker has taken it$", here("runs", "ls").out, re.M
    )
    assert re.search(rf"^wake_at +{days}$", here("runs", "show", "n").out, re.M)


def test_a_graph_that_asks_needs_an_id(here: Any) -> None:
    """The error suggests --run-id, the command line's name for it."""
    refused = elsewhere("run", "shop.py:nap", "--input", "x")
    assert refused.code == 2
    assert "graph 'nap' asks, so its run may wait; give it an id: --run-id ID" in refused.err


def test_an_answer_to_no_question(here: Any) -> None:
    """A run that isn't suspended is refused with its state and the way out, and so is an unknown run."""
    elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"')
    assert (
        "RunMismatchError: run 'order' can't take the answer: no question is open; it has failed; try it again by "
        "resume(run_id), Runs.retry or `pocket-plug runs retry`\n"
        in elsewhere("runs", "answer", "shop.py", "order", "-1").err
    )
    assert "UnknownRunError" in elsewhere("runs", "answer", "shop.py", "nobody", "1").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--url", "sqlite:///no.db", "resume", "shop.py", "r"), "there is no file no.db"),
        (("--url", URL, "--name", "x", "ls"), "give only one of them"),
        (("--url", URL, "resume", "shop.py:number", "r"), "is int, not a Graph"),
        (("--url", URL, "resume", "shop.py:graph_of_its_own", "r"), "has a store of its own"),
        (("--url", "memory://", "ls"), "is in memory"),
        (("--url", URL, "show", "-x"), "must come after --"),
        (("--url", URL, "ls", "--stat"), "Did you mean"),
        (("rm",), "Missing argument"),
    ],
)
def test_wrong_usage(here: Any, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2, a message that says what to do, and no file is created."""
    finish("r")
    ran = here("runs", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert not Path("no.db").exists()
    assert not Path("other.db").exists()


OWN = """
    import pocket_plug as pp

    @pp.node
    def said(answered: pp.Answered[str, str]) -> str:
        return f"{answered.input} {answered.answer}"

    ask = pp.Ask[str, str](str, question=str, name="ask")
    store = pp.Store("sqlite:///state.db?durability=process")
    graph = pp.Graph(ask >> said, store=store, name="own")
"""


@pytest.fixture
def own(here: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run a command in this process that may load own.py, whose graph has a store of its own and uses built-in types only."""
    Path("own.py").write_text(dedent(OWN))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def close() -> None:  # at the end of its process; but this process goes on
        if own := sys.modules.pop("own", None):
            own.store.sync.close()

    def run(*arguments: str) -> Ran:
        close()
        ran: Ran = here(*arguments)
        return ran

    yield run
    close()


@pytest.mark.parametrize("url", [URL, "sqlite:///folder/../state.db", "sqlite:////{}/state.db", "sqlite:///link.db"])
def test_the_store_that_is_named_may_be_the_graphs_own(own: Any, folder: Path, url: str) -> None:
    """However its file is written: the runs are found."""
    Path("folder").mkdir()
    Path("link.db").symlink_to("state.db")
    url = url.format(str(folder).lstrip("/"))
    assert own("run", "own.py", "--run-id", "r", "--input", '"hello"').code == 3
    answered = own("runs", "--url", url, "answer", "own.py", "r", '"you"')
    assert (answered.code, answered.out) == (0, "hello you\n"), answered.err
    assert own("runs", "--url", url, "resume", "own.py", "r").out == "hello you\n"


@pytest.mark.parametrize("run_id", ["--help", "--trace", "-x", "--", "-1", "--url"])
def test_ids_that_look_like_options(own: Any, run_id: str) -> None:
    """After `--`, and as the value of --run-id; in every command that takes a run."""
    asked = own("run", "own.py", "--run-id", run_id, "--input", '"hello"')
    assert (asked.code, asked.out) == (3, ""), asked.err
    assert f"run {run_id!r} waits" in asked.err
    assert [each["run_id"] for each in own("runs", "ls", "--json").json] == [run_id]
    assert own("runs", "show", "--json", "--", run_id).json["state"] == "suspended"
    assert own("runs", "answer", "--", "own.py", run_id, '"you"').out == "hello you\n"
    assert own("runs", "resume", "--", "own.py", run_id).out == "hello you\n"
    assert own("runs", "rm", "--", run_id).code == 0
    assert keys("pocket:") == []


def test_a_run_id_is_for_graphs(here: Any) -> None:
    """`run --run-id` of an application is an error, and not ignored."""
    Path("app.py").write_text("def main():\n    pass\n")
    assert "--run-id is for a graph" in here("run", "app.py", "--run-id", "r").err


def test_run_with_an_id_resumes_and_repeats_the_result(here: Any) -> None:
    """The same command, after a failure and after the end; another input is refused."""
    line = ("run", "shop.py", "--run-id", "order", "--input")
    assert elsewhere(*line, '"hello"').code == 1
    Path("open").touch()
    assert elsewhere(*line, '"hello"').out == "delivered for 5\n"
    Path("open").unlink()
    assert elsewhere(*line, '"hello"').out == "delivered for 5\n"
    assert "RunMismatchError" in elsewhere(*line, '"other"').err


# ---------------------------------------------------------------- rm
def test_rm_removes_all_of_a_run_and_nothing_else(here: Any) -> None:
    """Its checkpoint and its parts; not those of a run whose id starts with the same text, nor entries. An unknown run is
    reported.
    """
    finish("r", "r:2", "r2", "s")
    fill({"mine": 1})
    removed = here("runs", "rm", "r", "nobody", "s", "s")
    there_is_none = "there is no run 'nobody' in the default store; `pocket-plug runs ls` lists the runs\n"
    assert (removed.code, removed.err) == (1, there_is_none)
    left = keys()
    assert "mine" in left
    assert {each["run_id"] for each in here("runs", "ls", "--json").json} == {"r:2", "r2"}
    for run_id in ("r", "s"):
        checkpoint, part = keys_of(run_id)
        assert not [key for key in left if key == checkpoint or key.startswith(part)]
    assert here("runs", "show", "r:2", "--json").json["input"] == {"value": "r:2"}


def test_rm_removes_the_scheduled_removal_too(here: Any) -> None:
    """The schedule for removing a finished run is removed too, and no other run's."""
    with SyncStore(URL) as store:
        kept = Graph(node(lambda word: word, name="say"), store=store, name="g", keep_finished="7d")
        for run_id in ("a:b", "b"):
            assert kept.run_sync("x", run_id=run_id) == "x"
    assert here("runs", "rm", "b").code == 0
    assert [key.rpartition(":")[2] for key in keys("pocket:run-ended:")] == ["a%3Ab"]
    assert here("runs", "rm", "a:b").code == 0
    assert keys("pocket:") == []


def test_rm_of_a_running_run_needs_force(here: Any) -> None:
    """Without --force nothing of the run is changed, and it continues."""
    refused: list[tuple[Ran, bool]] = []

    @node
    def at_work(word: str) -> str:
        before = keys("pocket:")
        refused.append((here("runs", "rm", "r"), keys("pocket:") == before))
        return word

    with SyncStore(URL) as store:
        assert Graph(at_work, store=store, name="g").run_sync("x", run_id="r") == "x"
    ((ran, is_untouched),) = refused
    assert (ran.code, is_untouched) == (1, True)
    assert "add --force" in ran.err
    assert here("runs", "rm", "r").code == 0, "a finished one needs none"
    assert keys("pocket:") == []


def test_rm_fences_off_a_running_execution(here: Any) -> None:
    """If a run is removed while it is executed, that execution commits nothing more, and leaves no records."""

    @node
    def removed_meanwhile(word: str) -> str:
        assert here("runs", "rm", "r", "--force").code == 0
        return word

    @node.post
    def count(store: Any, word: str) -> str:
        store.set("counted", 1)
        return word

    with SyncStore(URL) as store:
        with pytest.raises(RunFencedError):
            Graph(removed_meanwhile >> count, store=store, name="g").run_sync("x", run_id="r")
        assert store.get("counted") is None
    assert keys() == []


def test_rm_takes_a_run_over_before_it_removes_its_parts(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No item of a running execution can be committed once its parts are being removed."""
    elsewhere("run", "shop.py", "--run-id", "order", "--input", '"hello"')
    checkpoint, part = keys_of("order")
    write, owners, versions = SQLite.write, [], [here("store", "get", checkpoint, "--json").json["version"]]

    async def watched(self: SQLite, changes: Any, expect: Any = {}, /) -> int:  # noqa: B006 - as it is
        if isinstance(changes[0], Delete):
            entry = await self.read(checkpoint)
            assert entry is not None
            owners.append(entry.value["owner"])
            with pytest.raises(ConflictError):
                await write(self, [Put(f"{part}item:late", {})], {checkpoint: versions[0]})
        return await write(self, changes, expect)

    with monkeypatch.context() as patch:
        patch.setattr(SQLite, "write", watched)
        assert here("runs", "rm", "order", "--force").code == 0
    assert [owner.partition(".")[0] for owner in owners] == [""], "no execution's"
    assert keys() == []


def test_rm_in_many_writes_ends_with_the_checkpoint(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of many records that is removed in part is still listed, and can be removed again."""
    finish("r")
    checkpoint, part = keys_of("r")
    fill({f"{part}path:{number:09}": {} for number in range(7)})
    monkeypatch.setattr(sys.modules["pocket_plug.graph.durable.removal"], "CHUNK", 3)
    writes: list[list[str]] = []
    write = SQLite.write

    async def watched(self: SQLite, changes: Any, expect: Any = {}, /) -> int:  # noqa: B006 - as it is
        changes = list(changes)
        if changes and isinstance(changes[0], Delete):
            if len(writes) == 2:
                raise OSError("no power")
            writes.append([change.key for change in changes])
            assert checkpoint in expect
        return await write(self, changes, expect)

    with monkeypatch.context() as patch:
        patch.setattr(SQLite, "write", watched)
        failed = here("runs", "rm", "r")
        assert (failed.code, failed.err.splitlines()[-1]) == (1, "OSError: no power")
    assert [len(batch) for batch in writes] == [3, 3]
    assert [each["run_id"] for each in here("runs", "ls", "--json").json] == ["r"]
    assert here("runs", "rm", "r").code == 0
    assert keys() == []


def test_ids_are_shown_unchanged_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text that looks like rich's markup isn't treated as markup, and control characters are escaped."""
    ids = ["[red]", "[/x]", "a\x1b[2J"]
    finish(*ids)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["runs", "ls"]) == 0
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "[/x]" in out
    assert r"a\x1b[2J" in out
    assert "\x1b[2J" not in out
    assert main(["runs", "show", ids[-1]]) == 0
    assert "\x1b[2J" not in capsys.readouterr().out


# ---------------------------------------------------------------- failures, answers and cancellation
def fail(run_id: str, error: type[Exception] = RuntimeError) -> None:
    """A run that has failed."""

    @node
    def fails(word: str) -> str:
        raise error("closed")

    with SyncStore(URL) as store, pytest.raises(error):
        Graph(fails, store=store, name="failing").run_sync("x", run_id=run_id)
    set_default_pocket(None)


def test_ls_shows_a_limited_number_and_says_that_there_are_more(here: Any) -> None:
    """Open runs come before ended ones, however old they are."""
    fail("old")
    finish(*(f"done{number}" for number in range(4)))
    listed = here("runs", "ls", "--limit", "3")
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["old", "done3", "done2"]
    assert listed.err == "there are more runs; use --limit 30 to see them\n"
    everything = here("runs", "ls", "--limit", "5", "--json")
    assert [each["run_id"] for each in everything.json] == ["old", "done3", "done2", "done1", "done0"]
    assert everything.err == ""
    assert [each["run_id"] for each in here("runs", "ls", "--graph", "failing", "--json").json] == ["old"]
    several = here("runs", "ls", "--state", "failed", "--state", "suspended", "--json")
    assert [each["run_id"] for each in several.json] == ["old"]


def test_a_failure_is_shown_and_retried(here: Any) -> None:
    """The error and its place, and the executions; retry leaves the run to a worker, and says so."""
    fail("r")
    fail("s")
    shown = here("runs", "show", "r")
    assert re.search(r"failure     RuntimeError: closed\n +\d+s ago at fails, visit 1\n", shown.out)
    facts = here("runs", "show", "r", "--json").json
    assert (facts["state"], facts["failure"]["node"], len(facts["executions"])) == ("failed", "fails", 1)
    retried = here("runs", "retry", "r", "s")
    assert (retried.code, retried.out) == (0, "r  pending\ns  pending\n")
    assert retried.err == WHO_GOES_ON
    assert here("runs", "retry", "r", "--json").json[0]["state"] == "pending"
    finish("done")
    refused = here("runs", "retry", "done")
    assert refused.code == 1
    assert refused.err == "RunStateError: run 'done' can't be tried again: it has finished\n"


def test_one_run_that_can_not_be_changed_does_not_stop_the_others(here: Any) -> None:
    """A worker may have taken one of many meanwhile: it is reported, and the exit code is 1."""
    for run_id in ("a", "c"):
        fail(run_id)
    finish("b")
    retried = here("runs", "retry", "a", "b", "none", "c")
    assert (retried.code, retried.out) == (1, "a  pending\nc  pending\n")
    first, second, way_on = retried.err.splitlines()
    assert first == "RunStateError: run 'b' can't be tried again: it has finished"
    assert second.startswith("UnknownRunError: there is no run 'none'")
    assert f"{way_on}\n" == WHO_GOES_ON
    cancelled = here("runs", "cancel", "none", "a", "--json")
    assert (cancelled.code, [each["run_id"] for each in cancelled.json]) == (1, ["a"])


class Closed(Exception):
    """An error of an application."""


def test_runs_are_counted_by_state_graph_node_and_error(here: Any) -> None:
    """The largest group comes first."""
    finish("done0", "done1", "done2")
    for run_id in ("a", "b"):
        fail(run_id, Closed)
    fail("c")
    about = ("state", "graph", "node", "error", "runs")
    counted = here("runs", "count", "--json").json
    assert [tuple(each[name] for name in about) for each in counted] == [
        ("finished", "plain", None, None, 3),
        ("failed", "failing", "fails", "Closed", 2),
        ("failed", "failing", "fails", "RuntimeError", 1),
    ]
    first = here("runs", "show", "a", "--json").json
    assert counted[1]["since"] == first["since"]
    header, *rows = here("runs", "count", "--state", "failed", "--error", "Closed").out.splitlines()
    assert (header.split(), [row.split()[:5] for row in rows]) == (
        [*about, "oldest"],
        [["failed", "failing", "fails", "Closed", "2"]],
    )
    nothing = here("runs", "count", "--graph", "none")
    assert (nothing.code, nothing.err) == (0, "there are no such runs in the default store\n")


def test_runs_are_selected_by_node_and_error(here: Any) -> None:
    """For the list and for changes; a run whose failure was retried has no error any more."""
    finish("done")
    for run_id in ("a", "b", "c"):
        fail(run_id, Closed)
    fail("other")

    def ids(*options: str) -> list[str]:
        return [each["run_id"] for each in here("runs", *options, "--json").json]

    assert ids("ls", "--error", "Closed", "--limit", "2") == ["c", "b"]
    assert ids("ls", "--node", "fails") == ["other", "c", "b", "a"]
    assert ids("ls", "--error", f"{Closed.__module__}.Closed") == ids("ls", "--error", "Closed") == ["c", "b", "a"]
    assert ids("ls", "--error", "Close") == ids("ls", "--node", "fail") == []
    planned = here("runs", "retry", "--error", "Closed", "--dry-run")
    assert [line.split()[:2] for line in planned.out.splitlines()[1:]] == [[each, "failed"] for each in "cba"]
    retried = here("runs", "retry", "--error", "Closed")
    assert (retried.code, retried.out, retried.err) == (0, "retried 3 runs\n", WHO_GOES_ON)
    again = here("runs", "retry", "--error", "Closed")
    assert (again.code, again.out, again.err) == (0, "", "there are no such runs in the default store\n")
    assert ids("cancel", "--graph", "failing", "--state", "pending") == ["c", "b", "a"]
    assert ids("cancel", "--graph", "plain") == []  # it has finished
    assert [each["state"] for each in here("runs", "ls", "--json").json] == ["failed", *["cancelled"] * 3, "finished"]


def test_a_list_of_a_few_selected_runs_does_not_read_all_in_small_pages(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most runs aren't selected, so a page may be much longer than the list."""
    reads, listed = list[int](), Runs.list

    async def counted(self: Runs, **options: Any) -> Any:
        reads.append(options["limit"])
        return await listed(self, **options)

    for run_id in map(str, range(10)):
        fail(run_id)
    monkeypatch.setattr(Runs, "list", counted)
    assert here("runs", "ls", "--node", "other", "--limit", "1", "--json").json == []
    assert len(reads) == 2  # open runs, ended runs


@pytest.mark.parametrize("command", ["cancel", "retry"])
@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ([], "give RUNs, or select them by --state, --graph, --node or --error"),
        (["a", "--graph", "failing"], "give RUNs, or select them by --state, --graph, --node and --error; not both"),
        (["a", "--dry-run"], "give RUNs, or select them by --state, --graph, --node and --error; not both"),
        (["--state", "finished"], "Invalid value for '--state': 'finished' is not one of"),
    ],
)
def test_a_change_says_which_runs_it_is_about(here: Any, command: str, arguments: list[str], way_out: str) -> None:
    """No run is changed by a command that names none, or that is ambiguous."""
    fail("a")
    refused = here("runs", command, *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert way_out in refused.err
    assert [each["state"] for each in here("runs", "ls", "--json").json] == ["failed"]


def test_cancel_ends_runs(own: Any) -> None:
    """A waiting run is cancelled at once; an unknown or ended one is reported, with the ones before it in JSON."""
    for run_id in ("r", "s"):
        assert own("run", "own.py", "--run-id", run_id, "--input", '"hello"').code == 3
    assert own("runs", "cancel", "r").out == "r  cancelled\n"
    cancelled = own("runs", "cancel", "--json", "s", "none")
    assert (cancelled.code, [each["run_id"] for each in cancelled.json]) == (1, ["s"])
    assert "UnknownRunError: there is no run 'none'" in cancelled.err
    assert "RunCancelledError" in own("runs", "resume", "own.py", "r").err
    assert (
        "RunStateError: run 'r' can't take an answer: it is cancelled"
        in own("runs", "answer", "own.py", "r", '"x"', "--leave").err
    )


def test_an_answer_can_be_left_to_a_worker(own: Any) -> None:
    """The question is in the list; the answer makes the run pending, and nothing is executed."""
    assert own("run", "own.py", "--run-id", "r", "--input", '"hello"').code == 3
    assert own("runs", "ls").out.splitlines()[1].split()[-1] == "'hello'"
    assert re.search(r"questions   ask#1: 'hello'\n +waits for str\n", own("runs", "show", "r").out)
    left = own("runs", "answer", "own.py", "r", '"you"', "--leave", "--question", "ask#1")
    assert (left.code, left.out, left.err) == (0, "r  pending\n", WHO_GOES_ON)
    assert "answered 'you'" in own("runs", "show", "r").out
    assert own("runs", "resume", "own.py", "r").out == "hello you\n"


def test_a_run_is_submitted_for_a_worker(own: Any) -> None:
    """It is recorded once, however often the command is repeated, and nothing is executed."""
    for _ in range(2):
        submitted = own("runs", "submit", "own.py", "r", "--input", '"hello"')
        assert (submitted.code, submitted.out, submitted.err) == (0, "r  pending\n", "")
    assert [(run["run_id"], run["steps"]) for run in own("runs", "ls", "--json").json] == [("r", 0)]
    other = own("runs", "submit", "own.py", "r", "--input", '"bye"')
    assert (other.code, other.out) == (1, "")
    assert "RunMismatchError: run 'r' was started with another input" in other.err
    assert own("worker", "own.py", "--once").out.splitlines()[0].split() == ["taken", "r", "own"]
    assert own("runs", "submit", "own.py", "r", "--input", '"hello"', "--json").json["state"] == "suspended"


def test_a_first_run_is_submitted_to_a_new_file(here: Any) -> None:
    """The store that is named needn't exist yet: as with `run`, and unlike the commands that look for runs."""
    submitted = elsewhere("runs", "--url", "sqlite:///new.db", "submit", "shop.py:nap", "r", "--input", "x")
    assert (submitted.code, submitted.out) == (0, "r  pending\n"), submitted.err
    assert here("runs", "--url", "sqlite:///new.db", "ls", "--json").json[0]["state"] == "pending"


def test_a_run_is_submitted_in_the_scope_of_its_graph(own: Any) -> None:
    """It has its state there, as the run itself will have."""
    Path("own.py").write_text(dedent(OWN).replace('name="own"', 'name="own", scope="tenant"'))
    submitted = own("runs", "submit", "own.py", "r", "--input", "hello", "--json").json
    assert (submitted["run_id"], submitted["state"], submitted["graph"]) == ("r", "pending", "own")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("own.py", "r"), 2, "the graph takes str; give it by --input"),
        (("own.py",), 2, "Missing argument 'RUN'"),
        (("own.py:sure", "r"), 2, "own.py:sure is Ask, not a Graph"),
        (("own.py", "", "--input", "x"), 1, "run_id"),
    ],
)
def test_a_run_that_is_submitted_wrongly(own: Any, arguments: tuple[str, ...], code: int, said: str) -> None:
    """Nothing is recorded."""
    finish("done")
    Path("own.py").write_text(dedent(OWN) + "\nsure = ask\n")
    refused = own("runs", "submit", *arguments)
    assert (refused.code, refused.out) == (code, "")
    assert said in refused.err
    assert [run["run_id"] for run in own("runs", "ls", "--json").json] == ["done"]


def test_an_answer_to_a_question_that_was_not_asked(own: Any) -> None:
    """The message is about the question, whatever the answer looks like."""
    assert own("run", "own.py", "--run-id", "r", "--input", '"hello"').code == 3
    refused = own("runs", "answer", "own.py", "r", "you", "--question", "ask#2")
    assert (refused.code, refused.err) == (
        1,
        "RunMismatchError: run 'r' can't take the answer: it has no question 'ask#2'. Open questions: 'ask#1'\n",
    )


def watch(here: Any, monkeypatch: pytest.MonkeyPatch, *meanwhile: Callable[[], object]) -> Ran:
    """`runs ls --watch`: each of `meanwhile` is called between two looks, then comes Ctrl-C."""
    steps = iter(meanwhile)

    async def sleep(seconds: float) -> None:
        if (step := next(steps, None)) is None:
            raise KeyboardInterrupt
        await asyncio.to_thread(step)

    monkeypatch.setattr("pocket_plug.cli.runs.listing.asyncio", SimpleNamespace(run=asyncio.run, sleep=sleep))
    watched: Ran = here("runs", "ls", "--watch")
    return watched


def test_ls_watches(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is printed again and again, with the changes, until Ctrl-C, which is no failure."""
    finish("a")
    watched = watch(here, monkeypatch, lambda: finish("b"))
    assert watched.code == 0
    assert [line.split()[0] for line in watched.out.splitlines()] == ["run", "a", "run", "b", "a"]


def executed_elsewhere(*heartbeat: Change) -> None:
    """A run `r` that a process on another machine executes, as the store has it; it was last committed long ago."""
    process = {"id": "elsewhere", "host": "another machine", "pid": 7, "machine": "another boot", "began": "1"}
    with SyncStore(URL) as store:
        Graph(node(lambda word: word, name="say"), store=store, name="g").submit_sync("x", run_id="r")
    (pending,), run = keys("pocket:run-state:pending:"), keys_of("r")[0]
    running = State(0.0, owner="it", process=process, lease=30.0)
    with opened() as backend:
        record = drive(backend.read(run))
        assert record is not None
        now_running = Put(run, {**record.value, "status": "running", "owner": "it.1", "updated": 5.0})
        state = put_state(pending.replace("pending", "running"), running)
        drive(backend.write([now_running, Delete(pending), state, *heartbeat]))


def test_a_long_node_is_seen_by_its_heartbeat(here: Any) -> None:
    """A run is late only if its process shows no sign of life."""
    at = time.time() - 7200
    executed_elsewhere(Put(f"{BEAT}elsewhere", {"owners": ["it"]}, at + KEPT))
    assert "pid 7 on another machine, last seen 2h" in here("runs", "ls").out
    assert "last seen 2h" in here("runs", "show", "r").out
    (run,) = here("runs", "ls", "--json").json
    assert run["owner"]["seen"] == pytest.approx(at)


def test_ls_notices_while_it_watches_that_a_run_is_stalled(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, or in a stopped process: its record is unchanged for its lease, by the clock of `ls`."""
    clock = [0.0]
    monkeypatch.setattr(StallWatch.__init__, "__defaults__", (lambda: clock[0],))
    executed_elsewhere()
    moments = [29.0, 31.0]
    watched = watch(here, monkeypatch, *[lambda: clock.insert(0, moments.pop(0))] * 2)
    lines = watched.out.splitlines()
    assert [line.split()[1] for line in lines] == [*["state", "running"] * 2, "state", "stalled"]
    assert "ago, longer than its lease of 30s" in lines[1], "by the wall clock it was last seen long ago"
    cancelled = here("runs", "cancel", "r")
    assert cancelled.out == "r  ending\n"
    assert cancelled.err.startswith("ending: a process executes it, and notices this at its next commit")
    assert here("runs", "show", "r").out.splitlines()[1] == "state       ending"


HANGS = """
    import pocket_plug as pp

    @pp.node
    def hangs(word: str) -> str:
        print("at work", flush=True)
        import time
        time.sleep(60)
        return word

    graph = pp.Graph(hangs, name="hangs")
"""


def test_a_run_whose_process_was_killed_is_stalled_at_once(here: Any) -> None:
    """While the process lives, the run is its own, and a cancellation is left in the store; once it is killed, anybody may take
    the run.
    """
    Path("hangs.py").write_text(dedent(HANGS))
    command = [*POCKET_PLUG, "run", "hangs.py", "--run-id", "r", "--input", '"hello"']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "at work"
            (run,) = here("runs", "ls", "--json").json
            assert (run["state"], run["owner"]["pid"]) == ("running", process.pid)
            assert f"pid {process.pid} on " in here("runs", "ls").out
            refused = here("runs", "retry", "r")
            assert "RunStateError: run 'r' can't be tried again: it is being executed" in refused.err
        finally:
            process.kill()
    assert [each["state"] for each in here("runs", "ls", "--json").json] == ["stalled"]
    assert here("runs", "retry", "r").out == "r  pending\n"
    assert here("runs", "cancel", "r").out == "r  cancelled\n"
