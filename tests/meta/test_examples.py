"""The examples run, and print what they are meant to show."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pocket_plug.store.backend import Backend
from pocket_plug.testing.contracts import BackendContract

EXAMPLES = Path(__file__).parents[2] / "examples"

SHOWN = {
    "accumulator": """
        3 readings, 9.5 °C on average, warmest at harbour
        201 readings, 10.0 °C on average, warmest at station 200
    """,
    "agent": """
        answer: about 3.8 people per km²
        tools:  ['lookup(population of Iceland)', 'lookup(area of Iceland)']
        calls of the model: 4 (one of them failed)
    """,
    "approval": """
        agreed
        submit
        counting words for hours
        waiting: send 'All is well, and the cat says hello' (8 words)?
        submit
        waiting: send 'All is well, and the cat says hello' (8 words)?
        answer
        sent, as number 1
        answer
        sent, as number 1
        refused
        dropped 8 words
    """,
    "basics": """
        hello / nothing yet
        Alice stands at user:123, for at most 300 seconds: 300
        nickname is there
        surname is not there
        visits: 100
        deleted: True and again: False
        left: ['greeting', 'nickname', 'size', 'user:123', 'visits']
        bonjour
    """,
    "bounded": """
        cache
        evicted page:news for size
        cached: ['page:about', 'page:home', 'page:jobs']
        sessions
        Alice is a stranger again
        Bob is known
        Alice's session ends after a search
        rate limit
        this minute: [True, True, True, False, False]
        the next one: [True, True]
    """,
    "branches": """
        o-42: paid 42.00
        o-4200: paid 4200.00
        o-6666: held back
        sorry, o-42000: 42000 is over the limit
        graph 'careless' can't run:
        - node 'charge' declares the action 'declined', but has no edge for it; add node.declined >> other
        - node 'charge' declares the action 'review', but has no edge for it; add node.review >> other
        n0 -- "declined" --> n3
    """,
    "checkpoint": """
        first attempt
        scanning 'Moby-Dick' for hours
        failed: the printer is out of paper
        second attempt
        printed 320 pages, 96000 words
    """,
    "clean_up": """
        news
        on_complete: lock freed: True
        left in the store: ['published:news']
        gossip
        on_failure:  we don't print gossip
        on_complete: lock freed: True
        left in the store: ['published:news', 'temp:draft:gossip']
    """,
    "configuration": """
        store: SyncStore(Metrics() > SQLite('${DATA}/state.db', durability='process'))
        kept in the database: ['a', 'b', 'c']
        kept in the cache:    ['b', 'c']
        refused:
        …/pocket.toml [stores.cache].layers[0]: bounding has no option 'max_entires'; did you mean 'max_entries'?
    """,
    "custom_backend": """
        now:    {'price:tea': 6}
        before: price:tea: [3, 4, 5, 6]
        before: price:milk: [1, None]
    """,
    "dependencies": """
        Order(id='o-1', user='alice', items=3, price=26.97)
        Order(id='o-2', user='bob', items=1, price=9.99)
        sold: 4
        refused: node 'nosy' reads 'user:alice:diary', which its reads= and writes= do not declare; it has: config:price_per_item
    """,
    "fan_out": """
        190 bytes, at most 5 pages at a time
        [b'xxx', b'x', b'xx']
        [b'x', KeyError('/nowhere')]
        refused: '/nowhere'
    """,
    "gather": """
        tea: 4.50, 3 pieces, 4.0 stars
        refused: nothing at 'price:milk', needed by Price.prep
    """,
    "isolated_runs": """
        steps: [7, 3, 1]
        run:halving:2:steps = [7, 3, 1]
        left: ['run:halving:2:steps', 'run:halving:3:steps']
    """,
    "missing_data": """
        refused: nothing at 'secret:api_key' (scope 'prod:'), needed by Connect.prep
        connected to example.org with 6 characters of key, 3 retries
        connected to example.org with 6 characters of key, 0 retries
        middle_name: asked, has none
        maiden_name: never asked
    """,
    "observer": """
        inversion(4)
        flaky: retry
        flaky: ok in 3 attempts, 4 -> invert
        invert: ok, 0.25 -> end
        success after 2 nodes
        inversion(0)
        invert: failed, None -> end
        failure after 2 nodes
        and the caller sees: division by zero
    """,
    "persistent": """
        all there, although memory holds two: ['order:1', 'order:2', 'order:3', 'order:4']
        from the file:   Order(id='o-1', total=10.0)
        now from memory: Order(id='o-1', total=10.0)
        after a restart: Order(id='o-4', total=40.0)
        in the database: ['order:1', 'order:2', 'order:3']
    """,
    "phases": """
        Good morning, Alice!
        Good morning, Alice!
        Good morning, Alice!
        Hi, Alice.
        last:class = Good morning, Alice!
        called as a function: Hi, Bob.
        a reader can set: False
    """,
    "repository": """
        User(id='1', name='Alice') / None
        User(id='1', name='Alicia')
        refused: '3': this store is typed User, the value is dict[str, str]
    """,
    "scopes": """
        from the root: Alice and Bob
        from within:   ['7', 'admin:1']
        acme has turned over 30
        globex has turned over 5
        acme has turned over 42
        acme:admin has turned over 1
        tenant:acme%3Aadmin:revenue = 1
        tenant:acme:revenue = 42
    """,
    "store_middleware": """
        Store(Journal(prefix='shop') > Bounding(max_entries=100) > memory)
        get_many
        shop: read user:1: hit
        shop: read user:2: miss
        update
        shop: write 2: stats:visits set (int)
        transaction
        shop: write 3: user:2 set (str)
        shop: write 3: user:1 deleted
        without await
        shop: read user:2: hit
    """,
    "subgraph": """
        inbox: bob@x.org: Lunch today?
        spam:  lottery@x.org: You WIN!
        inbox: bob@x.org: Or tomorrow?
        spam:  bob@x.org: Hello?
        ['screening:seen:bob@x.org', 'screening:seen:lottery@x.org']
    """,
    "transaction": """
        opened: alice 100, bob 0, nobody 0
        t-1 committed: alice 30, bob 70, nobody 0
        t-2 rolled back: alice 30, bob 70, nobody 0
        t-3: there is no account 'nobody': alice 30, bob 70, nobody 0
        t-3 is still pending
        alice still has money in it: alice 30, bob 70, nobody 0
    """,
    "two_processes": """
        taken: two cups
        shipped: a parcel with two cups, sent
        traces: 1
          run orders [two_processes]
            node check [two_processes]
            node enqueue [two_processes]
              exec enqueue [two_processes]
                run shipping [warehouse]
                  node pack [warehouse]
                  node send [warehouse]
              post enqueue [two_processes]
    """,
    "workflow_context": """
        [r-1] Alice, about “Where is my parcel, …”: à votre service
        [r-2] Bob, about “Thanks a lot!”: at your service
        kept: Bob was the last to ask
    """,
    "write_behind": """
        counted, although memory holds two: [100, 100, 100]
        in the database after a flush:      [100, 100, 100]
        not queued: key 'session': value: builtins.object is not registered
        after a restart: ['visits:0', 'visits:1', 'visits:2']
    """,
}


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def assert_shown(output: str, expected: str) -> None:
    """All expected lines are in the output, in this order, among any others."""
    rest = iter(lines(output))
    for line in lines(expected):
        assert line in rest, f"{line!r} is not (or not there) in:\n{output}"


def run(name: str, folder: Path) -> tuple[str, str]:
    """The stdout and stderr of an example that is run as a script, in a folder in which it leaves nothing behind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        cwd=folder,
        env=environment | {"PYTHONIOENCODING": "utf-8", "POCKET_PLUG_AUTOLOAD": "0"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout, done.stderr


@pytest.mark.parametrize("name", SHOWN)
def test_it_shows_what_it_is_there_for(name: str, tmp_path: Path) -> None:
    """An example runs from anywhere, prints the expected lines, leaves nothing behind, and prints nothing on stderr."""
    said, complained = run(name, tmp_path)
    assert_shown(said, SHOWN[name])
    assert complained == ""


def test_tracing_takes_one_line(tmp_path: Path) -> None:
    """`traced.py` draws runs, nodes, attempts and store operations as one tree, and writes them to a file."""
    said, drawn = run("traced", tmp_path)
    assert_shown(said, "votes: 8\nlines in the file: 1")
    tree = re.sub(r"[^\w\s#✗]|\d[\d.]* (µs|ms|s)\b", "", drawn)
    assert_shown(
        tree,
        """
        run survey
        node poll graph
        node each_ask
        item ask 1
        exec ask ✗ TimeoutError tracedpy21
        exec ask #2
        node add_up
        set votes
        """,
    )


def test_work_in_another_process_is_a_child_of_its_sender(tmp_path: Path) -> None:
    """`two_processes.py` has one trace: the worker's run is, by its indentation, below the attempt that sent the message."""
    said, _ = run("two_processes", tmp_path)
    tree = said.partition("traces: 1\n")[2]
    depths = {line.split("[")[0].strip(): len(line) - len(line.lstrip()) for line in tree.splitlines()}
    assert depths == {"run orders": 2, "node check": 4, "exec check": 6, "node enqueue": 4, "exec enqueue": 6,
                      "run shipping": 8, "node pack": 10, "exec pack": 12, "node send": 10, "exec send": 12,
                      "post enqueue": 6}  # fmt: skip


def test_every_example_is_tested_and_listed() -> None:
    """The index lists every example, and no missing one; every example is run above."""
    there = {path.name for path in EXAMPLES.glob("*.py")}
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(there)
    assert {f"{name}.py" for name in SHOWN} | {"traced.py"} == there


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_opens_with_what_it_shows(path: Path) -> None:
    """An example starts with two or three lines on what it shows, and can be imported without running."""
    doc, _, code = path.read_text(encoding="utf-8").removeprefix('"""').partition('"""')
    assert 2 <= len(lines(doc)) <= 3
    assert 'if __name__ == "__main__":' in code


class TestLedger(BackendContract):
    """The backend of `custom_backend.py` passes the backend contract."""

    @pytest.fixture
    def make_backend(self) -> type[Backend]:
        ledger: type[Backend] = runpy.run_path(str(EXAMPLES / "custom_backend.py"))["Ledger"]
        return ledger
