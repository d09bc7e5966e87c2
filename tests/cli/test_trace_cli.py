"""`pocket-plug trace`: runs in a trace file are listed, shown, and opened in the browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocket_plug.cli import main
from pocket_plug.traces.drawing import TIMES
from pocket_plug.traces.retention import appending

POCKET_PLUG = [sys.executable, "-W", "error", "-m", "pocket_plug"]
A, B, C, D = (letter * 32 for letter in "abcd")
S = 1_000_000_000
BEGIN = 1_700_000_000 * S


def span(
    trace: str, number: int, parent: int, name: str, begin: float, end: float, error: str = "", **said: Any
) -> Any:
    """A span in OTLP/JSON, times in seconds; pocket_plug's own attributes, with `_` for `.`."""
    kinds = {str: "stringValue", int: "intValue", bool: "boolValue"}
    attributes = {
        f"pocket_plug.{name.replace('_', '.', 1).replace('fan.out_', 'fan_out.')}": value
        for name, value in said.items()
    }
    attributes |= {"error.type": error} if error else {}
    return {
        "traceId": trace,
        "spanId": f"{number:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": name,
        "startTimeUnixNano": str(BEGIN + int(begin * S)),
        "endTimeUnixNano": str(BEGIN + int(end * S)),
        "attributes": [{"key": key, "value": {kinds[type(value)]: value}} for key, value in attributes.items()],
        "status": {"code": 2 if error else 0},
    }


def line(*spans: Any) -> str:
    """A request."""
    scope = {"scope": {"name": "pocket_plug.graph"}, "spans": spans}
    return json.dumps({"resourceSpans": [{"scopeSpans": [scope]}]}) + "\n"


def run(trace: str, number: int, begin: float, end: float, run_id: str, graph: str, outcome: str, **more: Any) -> Any:
    """A run's span."""
    said = {"run_id": run_id, "graph_name": graph, "run_outcome": outcome}
    return span(trace, number, more.pop("parent", 0), f"run {graph}", begin, end, **said, **more)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four traces: a failed run, a request with two runs, a run suspended and resumed in a trace of its
    own, one of another tool.
    """
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ".pocket_plug" / "traces.jsonl"
    path.parent.mkdir()
    node = {"node_name": "charge", "run_id": "abc-1", "graph_name": "shop", "node_visit": 1, "node_attempts": 3}
    path.write_text(
        line(span(A, 2, 1, "node charge", 0.1, 0.9, "builtins.ValueError", **node))
        + line(run(A, 1, 0, 1, "abc-1", "shop", "failure", error="builtins.ValueError"))
        + line(
            span(B, 1, 0, "GET /", 10, 20),
            run(B, 2, 11, 12, "abd-2", "mail", "suspended", parent=1),
            run(B, 3, 13, 15, "xyz-3", "ship", "success", parent=1),
            run(B, 4, 13, 14, "sub-4", "sub", "success", parent=3, run_parent_id="xyz-3"),
        )
        + line(run(C, 1, 30, 31, "abd-2", "mail", "success", run_resumed=True))
        + line(span(D, 1, 0, "GET /other", 40, 41))
    )
    return path


Says = Callable[..., tuple[int, str, str]]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    """The result of a command: exit code, stdout, stderr."""

    def says(*arguments: str) -> tuple[int, str, str]:
        code = main(["trace", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return says


# ---------------------------------------------------------------- ls
def test_runs_are_listed_newest_first(file: Path, says: Says) -> None:
    """If several runs share a trace, each with its own spans; each execution of a resumed run separately."""
    code, out, err = says("ls")
    assert (code, err) == (0, "")
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert rows[0] == ["run", "graph", "outcome", "started", "took", "spans", "errors", "retries"]
    assert [[*row[:3], *row[4:]] for row in rows[1:]] == [
        ["abd-2", "mail", "success", "1.00 s", "1", "0", "0"],
        ["xyz-3", "ship", "success", "2.00 s", "2", "0", "0"],
        ["abd-2", "mail", "suspended", "1.00 s", "1", "0", "0"],
        ["abc-1", "shop", "✗ failure: ValueError", "1.00 s", "2", "1", "2"],
    ]


def test_runs_are_filtered(file: Path, says: Says) -> None:
    """By graph, by failure, and up to a limit; for machines, with all that is known."""
    assert [each["run_id"] for each in json.loads(says("ls", "--graph", "mail", "--json")[1])] == ["abd-2", "abd-2"]
    assert [each["run_id"] for each in json.loads(says("ls", "--limit", "2", "--json")[1])] == ["abd-2", "xyz-3"]
    assert json.loads(says("ls", "--failed", "--json")[1]) == [
        {"run_id": "abc-1", "graph": "shop", "outcome": "failure", "error": "builtins.ValueError", "place": None, "start": BEGIN,
         "duration": S, "spans": 2, "errors": 1, "retries": 2, "trace_id": A}]  # fmt: skip


def test_no_run_is_said(file: Path, says: Says) -> None:
    """A table without rows would leave open where it has looked; JSON is only an empty list then."""
    head = "run  graph  outcome  started  took  spans  errors  retries\n"
    for chosen in (("--graph", "nothing"), ("--min", "1h"), ("--error", "Nothing"), ("--since", "1s")):
        assert says("ls", *chosen) == (0, head, "there are no such runs in .pocket_plug/traces.jsonl\n")
    file.write_text("")
    assert says("ls") == (0, head, "there are no runs in .pocket_plug/traces.jsonl\n")
    assert says("ls", "--json")[:2] == (0, "[]\n")


def test_a_run_without_an_end_is_unfinished(file: Path, says: Says) -> None:
    """It is known from its nodes, after its process was killed."""
    node = {"node_name": "charge", "run_id": "gone-5", "graph_name": "shop"}
    file.write_text(line(span("e" * 32, 2, 1, "node charge", 0, 1, **node)))
    (found,) = json.loads(says("ls", "--json")[1])
    assert (found["run_id"], found["outcome"], found["spans"]) == ("gone-5", "unfinished", 1)


def test_a_run_that_another_process_began_counts_for_both(file: Path, says: Says) -> None:
    """If two runs share a trace, as after passing a traceparent on, the spans below both count for both."""
    outer, inner = run(A, 1, 0, 9, "r-1", "front", "success"), run(A, 3, 1, 2, "r-2", "back", "success", parent=2)
    file.write_text(line(span(A, 4, 3, "node b", 1, 2), inner) + line(span(A, 2, 1, "node a", 0, 9), outer))
    found = json.loads(says("ls", "--json")[1])
    assert [(each["run_id"], each["spans"]) for each in found] == [("r-2", 2), ("r-1", 4)]


def test_a_retried_failure_is_no_error(file: Path, says: Says) -> None:
    """In the list and below the tree, as on the page: errors are final failures only."""
    file.write_text(
        line(
            run(A, 1, 0, 3, "r-1", "g", "success"),
            span(A, 2, 1, "node n", 0, 3, node_name="n", node_attempts=2),
            span(A, 3, 2, "exec n", 0, 1, error="builtins.OSError", attempt_will_retry=True),
            span(A, 4, 2, "exec n", 2, 3, attempt=2),
        )
    )
    (found,) = json.loads(says("ls", "--json")[1])
    assert (found["spans"], found["errors"], found["retries"]) == (4, 0, 1)
    assert "4 spans, 0 errors, 1 retry, " in says("show")[1]


def test_parents_that_form_a_circle_are_accepted(file: Path, says: Says) -> None:
    """A file may contain anything."""
    file.write_text(
        line(span(A, 1, 2, "a", 0, 1), span(A, 2, 1, "b", 0, 1), run(A, 3, 0, 1, "r", "g", "success", parent=3))
    )
    assert says("ls")[0] == 0
    code, out, _ = says("show", "r")
    assert code == 0
    assert "run r: success" in out
    assert [len(re.findall(rf"(?m)^\W*{name} ", out)) for name in ("a", "b", "run g")] == [1, 1, 1]


def test_a_missing_file_and_a_file_without_runs_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    """With the way out."""
    monkeypatch.chdir(tmp_path)
    for command in ("ls", "show"):
        code, _, err = says(command, "--file", "t.jsonl")
        assert code == 2
        assert (
            "there is no file t.jsonl. `pocket-plug run --trace` and observe() create one; or name another file\n"
            in err
        )
    Path("t.jsonl").write_text("noise\n")
    code, out, err = says("ls", "--file", "t.jsonl")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "t.jsonl: 1 line could not be read" in err
    code, _, err = says("show", "--file", "t.jsonl")
    assert code == 1
    assert "there are no traces in t.jsonl" in err


@pytest.mark.parametrize("command", [["ls"], ["show"], ["show", "--watch"]])
def test_a_path_that_is_not_a_file_is_reported(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    """A folder in the place of the file, or a file in the place of its folder: no traceback, exit code 2."""
    monkeypatch.chdir(tmp_path)
    Path(".pocket_plug").write_text("")
    code, _, err = says(*command)
    assert code == 2
    assert ".pocket_plug/traces.jsonl can't be read: Not a directory; name another file\n" in err
    Path(".pocket_plug").unlink()
    Path(".pocket_plug", "traces.jsonl").mkdir(parents=True)
    code, _, err = says(*command)
    assert code == 2
    assert ".pocket_plug/traces.jsonl can't be read: Is a directory" in err


# ---------------------------------------------------------------- show
def shown(out: str) -> list[str]:
    """The names in a drawn tree, and the lines below trees up to the run."""
    return [re.split(r" +[\d.]+ m?s  |: ", line)[0].strip() for line in out.splitlines()]


def test_a_run_is_drawn(file: Path, says: Says) -> None:
    """By its id, by the start of the id, or by its graph: the tree, and a line about the run."""
    drawn = ["run shop ✗ ValueError", "└─ node charge ✗ ValueError", "run abc-1"]
    for name in ("abc-1", "abc", "shop"):
        code, out, err = says("show", name)
        assert (code, shown(out), err) == (0, drawn, "")
    assert "failure, " in out
    assert out.endswith(f"2 spans, 1 error, 2 retries, trace {A}\n"), "whole, since its ids are to be copied"


def test_a_run_may_be_called_like_a_trace(file: Path, says: Says) -> None:
    """Ids made by uuid4().hex are as long as ids of traces."""
    name = "0123456789abcdef" * 2
    file.write_text(line(run(A, 1, 0, 1, name, "g", "success")))
    for wanted in ([name], [A], []):
        code, out, _ = says("show", *wanted)
        assert (code, shown(out)) == (0, ["run g", f"run {name}"])


def test_without_runs_the_newest_trace_is_shown(file: Path, says: Says) -> None:
    """For programs that only use a store."""
    file.write_text(line(span(B, 1, 0, "get b", 5, 6)) + line(span(A, 1, 0, "get a", 0, 9)))
    code, out, err = says("show")
    assert (code, err) == (0, "")
    assert shown(out)[0] == "get b"


def test_all_executions_of_a_resumed_run_are_shown(file: Path, says: Says) -> None:
    """The newest run, in the order of its executions, each with its whole trace; `--json` has every span."""
    code, out, _ = says("show")
    assert code == 0
    assert shown(out) == ["GET /", "├─ run mail", "└─ run ship", "└─ run sub", "run abd-2", "run mail", "run abd-2"]
    traces = json.loads(says("show", "--json")[1])
    assert [(each["trace_id"], len(each["spans"])) for each in traces] == [(B, 4), (C, 1)]


def test_any_trace_is_shown_by_its_id(file: Path, says: Says) -> None:
    """Also if it has no run."""
    code, out, _ = says("show", D)
    assert code == 0
    assert shown(out)[0] == "GET /other"
    code, _, err = says("show", "9" * 32)
    assert code == 1
    assert "there is no trace 9999" in err


def test_an_unknown_run_is_reported(file: Path, says: Says) -> None:
    """With a suggestion, or with the candidates if the start of an id isn't unique."""
    code, _, err = says("show", "shpo")
    assert code == 1
    assert "there is no run 'shpo' in .pocket_plug/traces.jsonl" in err
    assert "Did you mean 'shop'?" in err
    code, _, err = says("show", "ab")
    assert code == 1
    assert "2 runs in .pocket_plug/traces.jsonl begin with 'ab': abd-2, abc-1" in err


# ---------------------------------------------------------------- the page
def test_the_page_is_written(file: Path, says: Says, tmp_path: Path) -> None:
    """To a file, whose path is printed, or to stdout."""
    code, out, err = says("show", "shop", "--html", "deep/page.html")
    assert (code, out, err) == (0, "", "page: deep/page.html\n")
    assert "node charge" in Path("deep/page.html").read_text("utf-8")
    code, out, _ = says("show", "shop", "--html", "-")
    assert code == 0
    assert out == Path("deep/page.html").read_text("utf-8")
    (tmp_path / "taken").write_text("")
    code, _, err = says("show", "shop", "--html", "taken/page.html")
    assert code == 2
    assert "the page can't be written to taken/page.html" in err


def test_two_runs_are_on_one_page(file: Path, says: Says) -> None:
    """Both, each execution once; in the terminal the command that compares them is named."""
    assert says("show", "shop", "abd-2", "--html", "both.html")[0] == 0
    text = Path("both.html").read_text("utf-8")
    assert all(text.count(f'"id":"{trace}"') == 1 for trace in (A, B, C))
    assert says("show", "shop", "shop", "--html", "-")[1].count('"id":') == 1
    code, _, err = says("show", "shop", "mail")
    assert code == 2
    assert "add --html or --open" in err
    assert "pocket-plug trace diff" in err


def test_the_page_is_opened(file: Path, says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the browser, from a cache if no path was given; without a browser the path is printed."""
    opened: list[str] = []
    there = True

    def open_(url: str) -> bool:
        opened.append(url)
        return there

    monkeypatch.setattr(webbrowser, "open", open_)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, _, err = says("show", "shop", "--open")
    page = tmp_path / "cache" / "pocket_plug" / "trace-abc-1.html"
    assert (code, err, opened) == (0, f"page: {page}\n", [page.as_uri()])
    assert page.is_file()
    there = False
    code, _, err = says("show", "shop", "--open", "--html", "p.html")
    assert code == 1
    assert opened[1] == (tmp_path / "p.html").as_uri()
    assert "no browser" in err


def test_invalid_arguments_are_refused(file: Path, says: Says) -> None:
    """Before anything is done."""
    assert says("show", "--watch", "--json")[0] == 2
    assert says("show", "--open", "--html", "-")[0] == 2
    code, _, err = says("show", "--json", "--html", "page.html")
    assert code == 2
    assert "give only one of them" in err
    assert not Path("page.html").exists()


# ---------------------------------------------------------------- run --trace says how to open it
FLOW = """
import pocket_plug as pp

@pp.node
def work(number: int) -> float:
    return 1 / number

graph = pp.Graph(work, name="flow")
"""


@pytest.mark.parametrize(
    ("number", "code", "outcome"), [("1", 0, "success"), ("0", 1, "✗ failure: ZeroDivisionError flow.py:6")]
)
def test_a_traced_run_says_how_to_open_it(tmp_path: Path, number: str, code: int, outcome: str) -> None:
    """Also if it failed; the command that is printed shows that run."""
    (tmp_path / "flow.py").write_text(FLOW)
    command = [*POCKET_PLUG, "run", "flow.py", "--trace", "--input", number]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code
    found = re.search(
        r"^trace: \.pocket_plug/traces\.jsonl · open it: pocket-plug trace show (\w+) --open$", done.stderr, re.M
    )
    assert found is not None
    listed = subprocess.run(
        [*POCKET_PLUG, "trace", "ls"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    (row,) = listed.stdout.splitlines()[1:]
    assert row.startswith(f"{found[1]}  flow   {outcome}")


def test_capture_needs_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a trace it is refused, and so is an unknown level."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captured.py").write_text(FLOW)
    assert main(["run", "captured.py", "--input", "1", "--capture", "full"]) == 2
    assert "--capture chooses what a trace records; give --trace, too" in capsys.readouterr().err
    assert main(["run", "captured.py", "--input", "1", "--trace", "--capture", "everything"]) == 2
    assert "'none', 'keys', 'summary', 'full'" in capsys.readouterr().err
    assert not (tmp_path / ".pocket_plug").exists()


MAIN = "\n\ndef main():\n    print('ran', graph.run_sync(1))\n"
OWN = MAIN.replace(
    "print", "from pocket_plug.plugins import set_default_pocket\n    set_default_pocket(pp.Pocket())\n    print"
)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"POCKET_PLUG_CONFIG": "pocket.toml"}, "can't be used: "),
        ({"POCKET_PLUG_DISABLE": "tracing"}, "is disabled: by POCKET_PLUG_DISABLE"),
    ],
)
@pytest.mark.parametrize("main", ["", MAIN])
def test_a_trace_without_the_plugin_that_makes_it_is_refused(
    tmp_path: Path, settings: dict[str, str], why: str, main: str
) -> None:
    """Like any invalid configuration, and no trace is announced. For a graph this is found before it is run."""
    (tmp_path / "pocket.toml").write_text('[plugins.tracing]\ncapture = "nonsense"\n')
    (tmp_path / "flow.py").write_text(FLOW + main)
    command = [*POCKET_PLUG, "run", "flow.py", "--trace", *(["--input", "1"] if not main else [])]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "ran 1.0\n" if main else "")
    assert f"--trace needs the plugin 'tracing', which {why}" in done.stderr
    assert "trace: " not in done.stderr


def test_a_program_may_trace_in_a_pocket_of_its_own(tmp_path: Path) -> None:
    """Then the default Pocket makes no difference."""
    (tmp_path / "pocket.toml").write_text('[plugins.tracing]\ncapture = "nonsense"\n')
    (tmp_path / "flow.py").write_text(FLOW + OWN)
    done = subprocess.run(
        [*POCKET_PLUG, "run", "flow.py", "--trace"],
        cwd=tmp_path,
        env=os.environ | {"POCKET_PLUG_CONFIG": "pocket.toml"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ran 1.0\n"), done.stderr
    assert "trace: .pocket_plug/traces.jsonl" in done.stderr


# ---------------------------------------------------------------- stats, rm
def test_runs_are_filtered_by_time_error_node_and_attribute(
    file: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each filter restricts the list; invalid filters are refused."""

    def ids(*options: str) -> list[str]:
        return [each["run_id"] for each in json.loads(says("ls", "--json", *options)[1])]

    assert ids("--error", "ValueError") == ids("--error", "builtins.ValueError") == ["abc-1"]
    assert ids("--min", "1500ms") == ["xyz-3"]
    assert ids("--node", "charge") == ids("--node", "charge", "--min", "700ms") == ["abc-1"]
    assert ids("--node", "charge", "--min", "900ms") == []  # the run took a second, but not the node
    assert ids("--attr", "pocket_plug.node.attempts=3") == ["abc-1"]
    assert ids("--attr", "pocket_plug.run.resumed=true") == ["abd-2"]
    assert ids("--attr", "pocket_plug.node.attempts=3", "--error", "OSError") == []
    monkeypatch.setattr("pocket_plug.cli.trace.time.time", lambda: BEGIN / 1e9 + 40)
    assert ids("--since", "15s") == ["abd-2"]
    assert ids("--since", "1h") == ["abd-2", "xyz-3", "abd-2", "abc-1"]
    assert "there are more runs; use --limit 20 to see them" in says("ls", "--limit", "2")[2]
    for options in (["--since", "soon"], ["--min", "-1"], ["--attr", "customer"]):
        assert says("ls", *options)[0] == 2


def test_graphs_and_nodes_are_summed_up(file: Path, says: Says) -> None:
    """A line for each graph, and below it its nodes."""
    code, out, _ = says("stats")
    assert code == 0
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert rows[0] == ["graph, node", "count", "failed", "retries", "p50", "p95", "max", "in all"]
    assert ["shop", "1", "1", "2", *["1.00 s"] * 4] in rows
    assert json.loads(says("stats", "--graph", "ship", "--json")[1])[0]["total"] == 2 * S


def test_an_error_counts_where_it_arose_and_what_failed_by_it_is_called_failed(file: Path, says: Says) -> None:
    """One definition of errors: in `show --stats` and in `ls`. `stats` counts runs and visits that failed."""
    kind = "OSError"
    file.write_text(
        line(
            run(A, 1, 0, 9, "a-1", "shop", "failure", error=kind, run_retries=1),
            span(
                A, 2, 1, "node charge", 0, 9, kind, node_name="charge", graph_name="shop", node_visit=1, node_attempts=2
            ),
            span(A, 3, 2, "exec charge", 0, 1, kind, attempt_will_retry=True),
            span(A, 4, 2, "exec charge", 2, 9, kind),
        )
    )

    def counted(*command: str) -> dict[str, list[str]]:
        rows = [re.split(r"  +", text.strip()) for text in says(*command)[1].splitlines()]
        return {row[0]: row[1:4] for row in rows if len(row) > 4}

    assert counted("stats") == {
        "graph, node": ["count", "failed", "retries"],
        "shop": ["1", "1", "1"],
        "charge": ["1", "1", "1"],
    }
    assert counted("show", "--stats") == {
        "span": ["count", "errors", "retries"],
        "run shop": ["1", "0", "0"],
        "node charge": ["1", "0", "0"],
        "exec charge": ["2", "1", "1"],
    }
    (listed,) = json.loads(says("ls", "--json")[1])
    assert listed["errors"] == 1


def test_traces_are_removed(file: Path, says: Says) -> None:
    """By a run's name, by age, or all of them; an unknown run is reported."""
    assert says("rm", "abc-1") == (0, "", "removed 1 run, 2 spans\n")
    assert [each["run_id"] for each in json.loads(says("ls", "--json")[1])] == ["abd-2", "xyz-3", "abd-2"]
    code, _, err = says("rm", "abd-2", "nobody")
    assert code == 1
    assert "removed 2 runs, 5 spans" in err
    assert "there is no run 'nobody'" in err
    assert says("rm", "--older", "1h")[2] == "removed 0 runs, 1 span\n"
    assert says("rm", "--all") == (0, "", "removed 0 runs, 0 spans\n")
    assert file.read_text() == ""
    for options in ([], ["abc-1", "--all"], ["--older", "1h", "--all"]):
        assert says("rm", *options)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        *((["rm", ""], "RUN"), (["show", ""], "RUN"), (["diff", ""], "RUN"), (["diff", "#1"], "RUN")),
        *(
            (["diff", "shop", ""], "OTHER"),
            (["diff", "shop", "#2"], "OTHER"),
            (["show", "shop", "", "--html", "-"], "OTHER"),
        ),
    ],
)
def test_an_empty_name_is_no_run(file: Path, says: Says, arguments: list[str], title: str) -> None:
    """Every id starts with it: a variable that isn't set must not remove the only run. With a number after
    it, it is still empty.
    """
    before = line(run(A, 1, 0, 1, "abc-1", "shop", "success"))
    file.write_text(before)
    code, _, err = says(*arguments)
    assert code == 2
    assert f" {title} is empty" in err
    assert file.read_text() == before


def test_huge_numbers_are_accepted(file: Path, says: Says) -> None:
    """A time before the epoch is the beginning; a limit above the number of runs is no limit."""
    age, number = f"{'9' * 15}d", "9" * 30
    assert says("stats", "--since", age) == says("stats")
    assert says("ls", "--since", age, "--limit", number) == says("ls")
    assert says("rm", "--older", age) == (0, "", "removed 0 runs, 0 spans\n")


def test_a_failed_removal_of_traces_is_reported(file: Path, says: Says) -> None:
    """Another program is writing, or the file can't be written: nothing is removed, and the message doesn't speak of reading."""
    before = file.read_bytes()
    with appending(file):
        code, _, err = says("rm", "--all")
    assert (code, file.read_bytes()) == (1, before)
    assert f"nothing was removed: another process is writing to {file.relative_to(Path.cwd())}; try again" in err
    (file.parent / "traces.jsonl.new~").mkdir()
    code, _, err = says("rm", "--all")
    assert (code, file.read_bytes()) == (2, before)
    assert "since the new file beside it can't be written: Is a directory" in err


# ---------------------------------------------------------------- show --errors, --all, --stats
STACK = 'Traceback (most recent call last):\n  File "/app/shop/orders.py", line {}, in charge\n{}'


def failing(each: Any, line: int = 41, message: str = "") -> Any:
    """A span with the event of its exception."""
    kind = next(said["value"]["stringValue"] for said in each["attributes"] if said["key"] == "error.type")
    said = {"exception.type": kind, "exception.stacktrace": STACK.format(line, kind)}
    said |= {"exception.message": message} if message else {}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in said.items()]
    return each | {"events": [{"name": "exception", "attributes": attributes}]}


@pytest.fixture
def broken(file: Path) -> Path:
    """A run of a fan-out of 60 items, of which 37 failed at one line and one at another; 5 more have no span."""
    spans = [
        run(A, 1, 0, 9, "abc-1", "shop", "failure", error="KeyError"),
        span(A, 2, 1, "node each", 0, 8, error="KeyError", node_name="each", fan_out_suppressed_failed=5),
        span(A, 3, 1, "node before", 0, 0.1, node_name="before"),
    ]
    for index in range(60):
        error = "KeyError" if index == 50 else "shop.Declined" if 3 <= index < 40 else ""
        spans.append(span(A, 100 + index, 2, "item charge", 0, 1 + index / 100, error, fan_out_index=index))
        part = span(A, 200 + index, 100 + index, "exec charge", 0, 1 + index / 100, error)
        spans.append(failing(part, 7 if index == 50 else 41, f"no funds for {index}") if error else part)
    file.write_text(line(*spans))
    return file


def test_errors_are_shown_with_their_ancestors(broken: Path, says: Says) -> None:
    """Equal errors are one line, with the number, the place of the first, and its message; successful spans are left out."""
    code, out, err = says("show", "abc-1", "--errors")
    lines = [re.split(r" +[\d.]+ m?s  |: failure", line)[0].strip("│├└─ ") for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines == [
        "run shop ✗ KeyError",
        "node each ✗ KeyError",
        "5 more items failed and left no span",
        "item charge [3] ✗ Declined",
        "exec charge ✗ Declined orders.py:41",
        f"37 {TIMES} Declined at orders.py:41, first in item [3]",
        "no funds for 3",
        "item charge [50] ✗ KeyError",
        "exec charge ✗ KeyError orders.py:7",
        "no funds for 50",
        "run abc-1",
    ]


def test_without_errors_there_is_the_last_line_only(file: Path, says: Says) -> None:
    """The line says that there are none; the exit code is 0."""
    code, out, _ = says("show", "xyz-3", "--errors")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "0 errors" in out


def test_errors_of_other_tools_have_their_type_everywhere(file: Path, says: Says) -> None:
    """It is only in the exception's event, and the last one counts; an exception that the span has handled is no error."""
    events = [
        {"name": "exception", "attributes": [{"key": "exception.type", "value": {"stringValue": kind}}]}
        for kind in ("shop.Handled", "shop.Boom")
    ]
    failed = {"events": events, "status": {"code": 2}}
    fine = {"events": events, "status": {"code": 0}}
    file.write_text(
        line(
            run(A, 1, 0, 9, "r-1", "shop", "failure") | failed,
            span(A, 2, 1, "GET /pay", 1, 2) | failed,
            span(A, 3, 1, "GET /tea", 3, 4) | fine,
        )
    )
    _, tree, _ = says("show", "r-1")
    assert tree.count("✗ Boom") == 2
    assert "1 error," in tree
    assert "Handled" not in tree
    assert "✗ Boom" in says("show", "r-1", "--errors")[1]
    assert "✗ failure: Boom" in says("ls", "--error", "Boom")[1]
    assert "Boom" not in says("ls", "--error", "Handled")[1]
    page = says("show", "r-1", "--html", "-")[1]
    assert "shop.Boom" in page


def test_with_all_nothing_is_summed_up(broken: Path, says: Says) -> None:
    """A line for each span, and messages in full."""
    long = "why " * 100
    broken.write_text(broken.read_text().replace('no funds for 3"', f'{long}"'))
    folded, whole = says("show", "abc-1")[1], says("show", "abc-1", "--all")[1]
    assert "more: item charge" in folded
    assert " more: " not in whole
    assert whole.count("item charge [") == whole.count("exec charge") == 60
    assert (folded.count("why"), whole.count("why")) == (17, 100)


def test_spans_are_summed_up_by_their_name(broken: Path, says: Says) -> None:
    """A table, sorted by self time."""
    code, out, _ = says("show", "abc-1", "--stats")
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert code == 0
    assert rows[0] == ["span", "count", "errors", "retries", "p50", "p95", "max", "in all", "self"]
    assert rows[1] == ["exec charge", "60", "38", "0", "1.30 s", "1.56 s", "1.59 s", "1 min 17 s", "1 min 17 s"]
    assert ["run shop", "1", "0", "0", *["9.00 s"] * 4, "1.00 s"] in rows


@pytest.mark.parametrize("view", ["--errors", "--all", "--stats"])
@pytest.mark.parametrize("other", [["--json"], ["--watch"], ["--html", "page.html"], ["--open"]])
def test_a_view_is_for_the_terminal_only(file: Path, says: Says, view: str, other: list[str]) -> None:
    """It doesn't apply to machine-readable output, to the browser or to a live trace."""
    code, out, err = says("show", view, *other)
    assert (code, out) == (2, "")
    assert f"{view} is for the terminal; leave it out with --watch, --html, --open and --json" in err


def test_only_one_view_is_accepted(file: Path, says: Says) -> None:
    """Two are refused; the last one doesn't win."""
    code, out, err = says("show", "--errors", "--stats")
    assert (code, out) == (2, "")
    assert "--errors and --stats can't be combined" in err


def test_one_execution_of_a_run_is_named_by_its_number(file: Path, says: Says) -> None:
    """In the order of their start; a run whose id looks like that has priority."""
    assert f"trace {B}" in says("show", "abd-2#1")[1]
    assert f"trace {C}" in says("show", "mail#2")[1]
    code, _, err = says("show", "abd-2#3")
    assert code == 1
    assert "run 'abd-2' has 2 executions in .pocket_plug/traces.jsonl, but no #3" in err
    file.write_text(file.read_text() + line(run("e" * 32, 1, 0, 1, "abd-2#1", "g", "success")))
    assert f"trace {'e' * 32}" in says("show", "abd-2#1")[1]


# ---------------------------------------------------------------- diff
@pytest.fixture
def two(file: Path) -> Path:
    """Three runs of a graph, the last of which was resumed and failed, and one run of another graph."""
    file.write_text(
        line(run(A, 1, 0, 2, "r-1", "shop", "success"), span(A, 2, 1, "node charge", 0, 1, node_name="charge"))
        + line(
            run(B, 1, 10, 11, "r-2", "shop", "suspended"), span(B, 2, 1, "node charge", 10, 10.5, node_name="charge")
        )
        + line(run(C, 1, 20, 23, "r-2", "shop", "failure", error="OSError", run_resumed=True))
        + line(span(C, 2, 1, "node ship", 20, 23, error="OSError", node_name="ship"))
        + line(run(D, 1, 30, 31, "x-1", "other", "success"))
    )
    return file


def compared(out: str) -> list[list[str]]:
    return [re.split(r"  +", text.strip()) for text in out.splitlines()]


def test_a_run_is_compared_with_the_previous_one(two: Path, says: Says) -> None:
    """Of the same graph: outcome and duration, then the spans by name, the largest change first."""
    code, out, err = says("diff", "r-2")
    rows = compared(out)
    assert (code, err) == (0, "")
    assert [row[:4] for row in rows[1:3]] == [
        ["before", "r-1", "shop", "success"],
        ["after", "r-2", "shop", "✗ failure: OSError"],
    ]
    assert rows[2][-2:] == ["4.00 s", "+2.00 s (+100 %)"]
    assert rows[4:] == [
        ["span", "count", "errors", "p50", "in all", "difference"],
        ["node ship", "- → 1", "- → 1", "- → 3.00 s", "- → 3.00 s", "+3.00 s", "fails now"],
        ["run shop", "1 → 2", "0", "2.00 s → 1.00 s", "2.00 s → 4.00 s", "+2.00 s (+100 %)"],
        ["node charge", "1", "0", "1.00 s → 500.0 ms", "1.00 s → 500.0 ms", "-500.0 ms (-50 %)"],
    ]


@pytest.mark.parametrize("outcome", ["success", "suspended", "failure", "cancelled"])
def test_an_outcome_has_the_same_words_everywhere(file: Path, says: Says, outcome: str) -> None:
    """In the list and in a comparison; the error's type only if the run failed."""
    file.write_text(
        line(run(A, 1, 0, 2, "r-1", "g", "success")) + line(run(B, 1, 5, 6, "r-2", "g", outcome, error="a.Odd"))
    )
    expected = outcome if outcome in ("success", "suspended") else f"✗ {outcome}: Odd"
    listed, beside = compared(says("ls")[1])[1], compared(says("diff", "r-2")[1])[2]
    assert (listed[0], listed[2], beside[1], beside[3]) == ("r-2", expected, "r-2", expected)


def test_two_executions_are_compared(two: Path, says: Says) -> None:
    """By their number, each with the previous one, or by the ids of their traces; and any two runs that are named."""
    assert says("diff", "r-2#2") == says("diff", "r-2#2", "r-2#1") == says("diff", C, B)
    found = json.loads(says("diff", "r-2#2", "--json")[1])
    assert [found[side]["outcome"] for side in ("before", "after")] == ["suspended", "failure"]
    assert {each["name"]: each["mark"] for each in found["spans"]} == {
        "run shop": "",
        "node charge": "gone",
        "node ship": "fails now",
    }
    found = json.loads(says("diff", "r-2#1", "--json")[1])
    assert [found[side]["run_id"] for side in ("before", "after")] == ["r-1", "r-2"]
    found = json.loads(says("diff", "x-1", "shop", "--json")[1])
    assert [found[side]["graph"] for side in ("before", "after")] == ["shop", "other"]


def test_a_comparison_without_a_partner_is_refused(two: Path, says: Says) -> None:
    """A graph's first run, also by default; a trace without a run; a file without runs."""
    for arguments in ([], ["r-1"]):
        code, _, err = says("diff", *arguments)
        assert code == 1
        assert "before" in err
        assert "name the run to compare it with" in err
    two.write_text(line(span(D, 1, 0, "GET /other", 40, 41)))
    assert says("diff")[0] == 1
    code, _, err = says("diff", D)
    assert code == 1
    assert f"there is no run in a trace {D}" in err


@pytest.mark.parametrize(("silence", "outcome"), [(0, "running"), (60, "unfinished")])
def test_a_run_that_has_not_ended_is_compared_up_to_now(two: Path, says: Says, silence: int, outcome: str) -> None:
    """Its open spans count up to now; none of its spans is reported as new or missing, nor the nodes that it hasn't reached."""
    began = time.time() - silence - 10
    left = two.with_name(f"{two.name}.open-1")
    spans = [
        run("e" * 32, 1, 0, 0, "r-9", "shop", ""),
        span("e" * 32, 2, 1, "node pack", 0, 0, node_name="pack"),
    ]
    for each in spans:
        each |= {"startTimeUnixNano": str(int(began * S)), "endTimeUnixNano": "0"}
    spans[0]["attributes"] = [each for each in spans[0]["attributes"] if each["key"] != "pocket_plug.run.outcome"]
    left.write_text(line(*spans))
    os.utime(left, (began + 10, began + 10))
    found = json.loads(says("diff", "r-9", "r-1", "--json")[1])
    assert (found["before"]["outcome"], found["after"]["outcome"]) == ("success", outcome)
    assert {each["name"]: each["mark"] for each in found["spans"]} == {
        "run shop": outcome,
        "node charge": outcome,
        "node pack": outcome,
    }
    counted = {each["name"]: each["after"] and each["after"]["count"] for each in found["spans"]}
    assert counted == {"run shop": 1, "node charge": None, "node pack": 1}
    assert all(each["after"]["total"] >= 9 * S for each in found["spans"] if each["after"])
    found = json.loads(says("diff", "r-1", "r-9", "--json")[1])
    assert {each["mark"] for each in found["spans"]} == {outcome}
    code, _, err = says("show", "r-9", "--stats")
    assert (code, err) == (0, "not counted, since they haven't ended: 2 spans\n")
