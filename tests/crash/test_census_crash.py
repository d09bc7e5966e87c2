"""The census, stopped at any moment: records stay, complete, and the next run continues from there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.crash

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = [
    sys.executable,
    "-W",
    "error",
    "-c",
    "import sys; from pocket_plug.cli import main; sys.exit(main())",
    "run",
    str(EXAMPLES / "census"),
]
MANY = 150

# Notifies the test of each distribution that is recorded: its commit is done by then.
TELLER = """
import os
from contextlib import contextmanager
from pocket_plug.hookspecs import Observer, hookimpl

@hookimpl
def pocket_observe(run):
    return Observer(node=tell) if run.graph == "survey" else None

@contextmanager
def tell(call):
    yield
    if call.name == "record" and call.outcome == "ok":
        os.write(int(os.environ["TELL"]), f"{call.output.name}\\n".encode())
"""

# The store's content, as the census left it: the totals, and each record with its version.
READ = """
import json, sys
from dataclasses import asdict
from census.facts import Facts, Total
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.primitives.waiting import drive

async def main():
    backend = SQLite(".pocket_plug/census.db")
    await backend.open()
    found = {key: await backend.read(key) async for key in backend.scan("census:")}
    await backend.close()
    return {key.removeprefix("census:"): asdict(entry.value) | {"version": entry.version} for key, entry in found.items()}

print(json.dumps(drive(main())))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to run it; there are many made-up distributions besides those of this interpreter."""
    site = tmp_path / "site"
    (site / "fake").mkdir(parents=True)
    for file in range(3):
        (site / "fake" / f"{file}.py").touch()
    for number in range(MANY):
        info = site / f"fake_{number}-1.0.dist-info"
        info.mkdir()
        licence = ("MIT", "ISC", "Zlib")[number % 3]
        (info / "METADATA").write_text(f"Name: fake-{number}\nVersion: 1.0\nLicense-Expression: {licence}\n")
        (info / "RECORD").write_text("".join(f"fake/{file}.py,,{number}\n" for file in range(3)))
    info = site / "pocket_plug_teller-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: pocket-plug-teller\nVersion: 1.0\nLicense-Expression: MIT\n")
    (info / "entry_points.txt").write_text("[pocket_plug]\nteller = pocket_plug_teller\n")
    (site / "pocket_plug_teller.py").write_text(TELLER)
    return tmp_path


@dataclass
class Ended:
    """How a run of the census ended, and what it had recorded by then."""

    code: int
    out: str
    err: str
    recorded: list[str]


def environment(folder: Path, **env: str) -> dict[str, str]:
    ours = ("OTEL_", "POCKET_PLUG_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PYTHONPATH": f"{folder / 'site'}{os.pathsep}{EXAMPLES}"} | env


def census(folder: Path, *arguments: str, stop: signal.Signals | None = None, after: int = 0) -> Ended:
    """Run it; send it a signal as soon as this many are recorded."""
    ours, theirs = os.pipe()
    recorded: list[str] = []
    with subprocess.Popen(
        [*RUN, *arguments],
        cwd=folder,
        env=environment(folder, TELL=str(theirs)),
        pass_fds=[theirs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        os.close(theirs)
        with open(ours) as told:
            for line in told:
                recorded.append(line.strip())
                if stop is not None and len(recorded) == after:
                    run.send_signal(stop)
        out, err = run.communicate()
    return Ended(run.returncode, out, err, recorded)


def state(folder: Path) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Each record with its version. Fails if the totals aren't the sums of the records."""
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=folder, env=environment(folder), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    records = {each["found"]["name"]: each for key, each in found.items() if key.startswith("record:")}
    sums = {"total": Counter[str]()}
    for each in records.values():
        counted = Counter(distributions=1, files=each["files"], bytes=each["bytes"])
        sums["total"].update(counted)
        sums.setdefault(f"licence:{each['licence'].replace(':', '%3A')}", Counter()).update(counted)
    versions = {name: each["version"] for name, each in records.items()}
    for key, each in found.items():
        del each["version"]
        if not key.startswith("record:"):
            assert each == dict(sums.pop(key)), f"{key} is not the sum of its records"
    assert sums == {} or not records
    return versions, records


def assert_finished(folder: Path) -> None:
    """Everything is recorded, the made-up distributions with their facts, and the report agrees."""
    _, records = state(folder)
    assert {f"fake-{number}" for number in range(MANY)} <= set(records)
    for number in range(MANY):
        assert (records[f"fake-{number}"]["files"], records[f"fake-{number}"]["bytes"]) == (3, 3 * number)
    report = json.loads((folder / ".pocket_plug" / "census.json").read_text())
    assert {each["found"]["name"]: each for each in report["records"]} == records
    assert report["total"]["distributions"] == len(records)
    assert report["total"]["bytes"] == sum(each["bytes"] for each in records.values())


def test_after_kills_it_continues_with_what_was_recorded(folder: Path) -> None:
    """kill -9 in the middle: no record is lost or surveyed again, and the totals are always right."""
    moments = random.Random(17)
    before: dict[str, int] = {}
    for _ in range(4):
        ended = census(folder, stop=signal.SIGKILL, after=moments.randrange(1, 50))
        assert ended.code == -signal.SIGKILL
        assert not set(ended.recorded) & set(before), "recorded already, and surveyed again"
        versions, _ = state(folder)
        assert set(ended.recorded) <= set(versions), "told to be recorded, and lost"
        assert before.items() <= versions.items()
        before = versions
    ended = census(folder)
    assert (ended.code, ended.err) == (0, "")
    assert not set(ended.recorded) & set(before)
    assert before.items() <= state(folder)[0].items()
    assert_finished(folder)
    assert census(folder).recorded == []


def spans(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / ".pocket_plug" / "traces.jsonl").read_text().splitlines()
    return [
        span
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}


def assert_traced(folder: Path, ended: Ended) -> list[dict[str, Any]]:
    """The trace shows what was done until then."""
    found = spans(folder)
    done = [
        span
        for span in found
        if span["name"] == "node record" and attributes(span).get("pocket_plug.node.outcome") == "ok"
    ]
    assert len(done) >= len(ended.recorded) - 1  # the span around the last notification may have been open still
    assert {span["traceId"] for span in found} == {found[0]["traceId"]}
    assert all(span["endTimeUnixNano"] >= span["startTimeUnixNano"] for span in found)
    return found


def test_interrupted_it_says_so_and_its_trace_is_whole(folder: Path) -> None:
    """Ctrl-C: exit code 130, the trace's path and one word, no traceback; the run is cancelled; the next one finishes."""
    ended = census(folder, "--trace", stop=signal.SIGINT, after=20)
    assert ended.code == 130
    assert ended.out == ""
    where, *rest = ended.err.strip().splitlines()
    assert where.startswith("trace: .pocket_plug/traces.jsonl")
    assert rest == ["interrupted"]
    found = assert_traced(folder, ended)
    [run] = [span for span in found if span["name"] == "run census"]
    assert attributes(run)["pocket_plug.run.outcome"] == "cancelled"
    assert run["status"]["code"] == 0
    ids = {span["spanId"] for span in found}
    assert [span["name"] for span in found if span.get("parentSpanId") not in ids] == ["run census"]
    versions, _ = state(folder)
    assert set(ended.recorded) <= set(versions)
    again = census(folder)
    assert again.code == 0
    assert not set(again.recorded) & set(versions)
    assert_finished(folder)


def test_terminated_its_trace_is_flushed(folder: Path) -> None:
    """SIGTERM ends it by that signal, after the spans are written; the next run finishes."""
    ended = census(folder, "--trace", stop=signal.SIGTERM, after=20)
    assert ended.code == -signal.SIGTERM
    assert ended.out == ""
    # a signal while a span is passed on loses that span; it is counted, and reported
    assert ended.err in ("", "telemetry: 1 spans were not exported\n")
    assert_traced(folder, ended)
    versions, _ = state(folder)
    assert set(ended.recorded) <= set(versions)
    again = census(folder)
    assert again.code == 0
    assert not set(again.recorded) & set(versions)
    assert_finished(folder)
