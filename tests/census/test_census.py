"""The census, run as users run it: over made-up distributions whose facts are known, and those of this interpreter."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
POCKET_PLUG = [sys.executable, "-W", "error", "-m", "pocket_plug"]
RUN = [*POCKET_PLUG, "run", str(EXAMPLES / "census")]
MIT_TEXT = "MIT or so\n\nPermission is hereby\n  granted, free of charge, to any person\n"


class Site:
    """A folder of installed distributions, as an installer writes them; their names begin with `fake-`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        metadata: str = "",
        files: Mapping[str, str] | None = None,
        raw: bytes | None = None,
        record: str | None = None,
    ) -> None:
        """`raw` is the whole METADATA, `record` the whole RECORD, for distributions that are broken on purpose."""
        self.remove(name)
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}"
        (info / "METADATA").write_bytes(text.encode() if raw is None else raw)
        lines: list[str] = []
        for path, content in (files or {}).items():
            file = self.folder / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
            lines.append(f"{path},sha256={hash(content)},{len(content)}")
        (info / "RECORD").write_text("\n".join(lines) if record is None else record)

    def remove(self, name: str) -> None:
        for info in self.folder.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(info)


def environment(*paths: Path, **env: str) -> dict[str, str]:
    """Our environment without variables that would change a run, with the sites on the path, in this order."""
    ours = ("OTEL_", "POCKET_PLUG_", "PYTHON", "NO_COLOR", "FORCE_COLOR", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONIOENCODING": "utf-8"} | env


def census(folder: Path, *paths: Path, arguments: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments],
        cwd=folder,
        env=environment(*paths, **env),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ".pocket_plug" / "census.json").read_text())
    return found


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The made-up ones, by the part of their name after `fake-`."""
    return {
        name.removeprefix("fake-"): each
        for each in report(folder)["records"]
        if (name := each["found"]["name"]).startswith("fake-")
    }


def assert_adds_up(folder: Path) -> None:
    """The totals are the sums of the records: of all records, and for each licence."""
    found = report(folder)
    total, by_licence = Counter[str](), dict[str, Counter[str]]()
    for each in found["records"]:
        counted = Counter(distributions=1, files=each["files"], bytes=each["bytes"])
        total.update(counted)
        by_licence.setdefault(each["licence"], Counter()).update(counted)
    assert found["total"] == total
    assert found["licences"] == by_licence


def spans_of_latest_run(folder: Path) -> Counter[str]:
    """How many spans of each name its trace has."""
    lines = (folder / ".pocket_plug" / "traces.jsonl").read_text().splitlines()
    spans = [
        span
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    last = [span["traceId"] for span in spans if span["name"] == "run census"][-1]
    return Counter(span["name"] for span in spans if span["traceId"] == last)


@dataclass
class Story:
    """Three runs over one folder: all new; nothing changed; one upgraded, one removed, one added."""

    folder: Path
    done: list[subprocess.CompletedProcess[str]]
    records: list[dict[str, dict[str, Any]]]
    names: list[Counter[str]]
    totals: list[dict[str, int]]
    markdown: list[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    first, second = Site(folder / "first"), Site(folder / "second")
    first.add("fake-expression", metadata="License-Expression: MIT AND Apache-2.0\n", files={"fake/a.py": "x" * 1000})
    first.add(
        "fake-classifier",
        metadata="Classifier: License :: OSI Approved :: MIT License\n",
        files={"fake/b.py": "x" * 20},
    )
    first.add(
        "fake-two",
        metadata="Classifier: License :: OSI Approved :: MIT License\n"
        "Classifier: License :: OSI Approved :: Apache Software License\n",
    )
    first.add("fake-text", metadata="License: " + "long words " * 9 + "\n", files={"fake/LICENSE.txt": MIT_TEXT})
    first.add("fake-odd", metadata="License: ours: v3 | 100%\n")
    first.add("fake-unknown", metadata="License: UNKNOWN\nClassifier: License :: OSI Approved\n")
    first.add("fake-sizeless", metadata="License-Expression: MIT\n", record="fake/c.py,,\nfake/never_compiled.pyc,,")
    (first.folder / "fake" / "c.py").write_text("x" * 300)
    first.add(
        "fake-incomplete",
        metadata="Requires-Dist: fake-nowhere>=2\nRequires-Dist: fake-two>7\n"
        "Requires-Dist: Fake_Two; extra == 'more'\nRequires-Dist: fake-gone<7\n"
        "Requires-Dist: fake-nope; python_version < '3'\n",
    )
    first.add("fake-gone", metadata="License-Expression: Zlib\n", files={"fake/d.py": "x" * 5})
    first.add("fake-twice", "2.0", metadata="License-Expression: MIT\n", files={"fake/e.py": "x" * 7})
    second.add("fake-twice", "1.0", metadata="License-Expression: ISC\n", files={"fake/e.py": "x" * 70})
    first.add("fake-latin", raw=b"Metadata-Version: 2.1\nName: fake-latin\nVersion: 1\nAuthor: Jos\xe9\n")
    first.add("fake-nameless", raw=b"nonsense\n")
    first.add("fake-badly", metadata="License-Expression: MIT\nRequires-Dist: ???\n", files={"fake/f.py": "x" * 9})
    first.add(
        "fake-records",
        "one.banana",
        metadata="License-Expression: MIT\nRequires-Dist: fake-records>=1\nRequires-Dist: fake-records\n",
        record="a,b,c,d,e",
    )
    story = Story(folder, [], [], [], [], [])

    def run() -> None:
        story.done.append(census(folder, first.folder, second.folder, arguments=("--trace",)))
        assert story.done[-1].returncode == 0, story.done[-1].stderr
        assert_adds_up(folder)
        story.records.append(records(folder))
        story.names.append(spans_of_latest_run(folder))
        story.totals.append(report(folder)["total"])
        story.markdown.append((folder / ".pocket_plug" / "census.md").read_text())

    run()
    run()
    first.remove("fake-gone")
    first.add("fake-expression", "2.0", metadata="License-Expression: MIT\n", files={"fake/a.py": "x" * 50})
    first.add("fake-new", metadata="License-Expression: MIT\n", files={"fake/g.py": "x" * 3})
    run()
    return story


# ---------------------------------------------------------------- facts
def test_each_distribution_is_measured_by_its_record(story: Story) -> None:
    """Files and bytes as RECORD says; if it lacks a size, the size is read from the file system."""
    found = {name: (each["files"], each["bytes"]) for name, each in story.records[0].items()}
    assert found["expression"] == (1, 1000)
    assert found["sizeless"][1] == 300  # a listed file that doesn't exist counts before Python 3.12 only
    assert found["unknown"] == (0, 0)


def test_licences_are_found_in_several_places(story: Story) -> None:
    """An SPDX expression, classifiers (all of them), a short text, the licence file; otherwise the licence is unknown."""
    licences = {name: each["licence"] for name, each in story.records[0].items()}
    assert {name: licences[name] for name in ("expression", "classifier", "two", "text", "odd", "unknown")} == {
        "expression": "MIT AND Apache-2.0",
        "classifier": "MIT",
        "two": "MIT OR Apache-2.0",
        "text": "MIT",
        "odd": "ours: v3 | 100%",
        "unknown": "unknown",
    }
    assert report(story.folder)["licences"]["ours: v3 | 100%"]["distributions"] == 1


def test_what_is_required_and_missing_is_listed(story: Story) -> None:
    """A requirement that isn't installed, or in another version; requirements of an extra or another Python don't count."""
    found = report(story.folder)["missing"]
    # fake-gone is no longer installed
    assert found["fake-incomplete"] == ["fake-nowhere>=2", "fake-two>7", "fake-gone<7"]
    assert "fake-gone" not in story.markdown[0].partition("fake-incomplete")[2].splitlines()[0]
    assert found["fake-records"] == ["fake-records>=1"]  # it has no version; "any version" is satisfied by it
    assert {"fake-incomplete", "fake-records"} == {name for name in found if name.startswith("fake-")}


def test_of_two_with_one_name_the_first_on_the_path_counts(story: Story) -> None:
    """As for imports."""
    twice = story.records[0]["twice"]
    assert (twice["found"]["version"], twice["licence"]) == ("2.0", "MIT")


def test_a_distribution_that_can_not_be_read_is_named_and_the_rest_is_counted(story: Story) -> None:
    """The readable facts of a broken one are recorded, with the faults; a distribution without a name is reported and skipped."""
    broken = story.records[0]["badly"]
    assert (broken["licence"], broken["bytes"], broken["requires"]) == ("MIT", 9, [])
    assert [fault.partition(":")[0] for fault in broken["faults"]] == ["InvalidRequirement"]
    assert len(story.records[0]["records"]["faults"]) == 1
    assert "## Not read whole" in story.markdown[0]
    assert "- fake-badly: InvalidRequirement" in story.markdown[0]
    assert "not read whole: fake-badly, fake-records\n" in story.done[0].stdout
    assert not {"latin", "nameless"} & set(story.records[0])
    assert len(story.records[0]) == 12
    said = [line for line in story.done[0].stderr.splitlines() if f"{story.folder / 'first'} is left out: " in line]
    assert len(said) == 2
    assert "codec can't decode byte 0xe9" in story.done[0].stderr
    assert "gives no name or no version" in story.done[0].stderr


# ---------------------------------------------------------------- the second run
def test_a_second_run_surveys_nothing_and_reports_the_same(story: Story) -> None:
    """Every distribution is skipped: none is measured, classified or recorded again."""
    first, second = story.names[:2]
    everything = story.totals[0]["distributions"]
    traced = min(everything, 100)  # of a fan-out the first 100 items have spans, and some of the others
    assert traced <= first["node measure"] == first["node record"] == first["node recall"] <= everything
    assert traced <= second["node recall"] <= everything
    assert not {"node measure", "node classify", "node list_requirements", "node record"} & set(second)
    assert story.records[1] == story.records[0]
    assert story.totals[1] == story.totals[0]
    assert story.markdown[1] == story.markdown[0]


def test_only_what_changed_is_surveyed_again(story: Story) -> None:
    """One is upgraded and one is new: two are measured; the removed one is subtracted from the totals."""
    third = story.names[2]
    assert third["node measure"] == third["node record"] == 2
    assert "gone" not in story.records[2]
    assert "Zlib" not in report(story.folder)["licences"]
    assert story.records[2]["expression"]["found"]["version"] == "2.0"
    assert story.records[2]["expression"]["bytes"] == 50
    assert story.totals[2]["distributions"] == story.totals[0]["distributions"]
    assert story.totals[2]["bytes"] == story.totals[0]["bytes"] - 1000 + 50 - 5 + 3


def test_two_at_once_count_nothing_twice(tmp_path: Path) -> None:
    """Two processes over one folder: the totals are the sums of the records, as after one process."""
    site = Site(tmp_path / "site")
    for number in range(20):
        site.add(f"fake-{number}", metadata="License-Expression: MIT\n", files={f"fake/{number}.py": "x" * number})
    both = [
        subprocess.Popen(
            RUN, cwd=tmp_path, env=environment(site.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [each.communicate(timeout=60) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert_adds_up(tmp_path)
    assert sum(each["bytes"] for each in records(tmp_path).values()) == sum(range(20))


# ---------------------------------------------------------------- output
def test_the_report_is_markdown_that_renders(story: Story) -> None:
    """A heading with the totals, and tables whose rows have as many cells as their heads, whatever a licence is called."""
    text = story.markdown[0]
    total = story.totals[0]
    assert re.match(rf"# {total['distributions']} distributions, .* in {total['files']} files\n", text)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table[0].split(" | ")) for table in tables] == [3, 7]
    for head, rule, *rows in tables:
        cells = len(re.findall(r"(?<!\\)\|", head))
        assert rows
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in (rule, *rows)} == {cells}
    assert r"| ours: v3 \| 100% | 1 |" in text
    assert "| fake-incomplete | 1.0 | unknown | 0 | 0 bytes | 3 | fake-nowhere>=2, fake-two>7 |" in text


def test_piped_it_is_plain_text(story: Story) -> None:
    """A line for each licence, the largest first, then the totals and the path of the report: no colour,
    progress bar or frame.
    """
    done, total = story.done[1], story.totals[1]
    *licences, totals, faults, where = done.stdout.splitlines()
    assert all(len(line.split("\t")) == 3 for line in licences)
    assert sum(int(line.split("\t")[1]) for line in licences) == total["distributions"]
    assert totals.startswith(f"{total['distributions']} distributions, {total['files']} files, ")
    assert faults == "not read whole: fake-badly, fake-records"
    assert where == "report: .pocket_plug/census.md, .pocket_plug/census.json"
    assert not set(done.stdout + done.stderr) & set("\x1b\r│┃─━▇")


def test_json_is_all_that_is_printed(tmp_path: Path) -> None:
    """--json: one document with the totals, what is missing and what could not be read; exit code 0."""
    site = Site(tmp_path / "site")
    site.add("fake-a", metadata="License-Expression: MIT\nRequires-Dist: fake-b\nRequires-Dist: ???\n")
    site.add("fake-c", metadata="License-Expression: MIT\nRequires-Dist: fake-b\n")
    done = census(tmp_path, site.folder, arguments=("--json",))
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    found = report(tmp_path)
    assert printed["total"] == found["total"]
    assert printed["licences"] == found["licences"]
    assert printed["missing"]["fake-c"] == ["fake-b"]
    assert [fault.partition(":")[0] for fault in printed["faults"]["fake-a"]] == ["InvalidRequirement"]


def on_a_terminal(folder: Path, *paths: Path, **env: str) -> tuple[int, str]:
    """The exit code, and what a terminal of 100 columns shows."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [*RUN, "--trace"],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(*paths, TERM="xterm-256color", COLUMNS="100", **env),
    ) as run:
        os.close(theirs)
        try:
            while data := os.read(ours, 65_536):
                shown += data
        except OSError:  # on Linux, this means that the other end was closed
            pass
    os.close(ours)
    return run.returncode, shown.decode()


def plain(text: str) -> str:
    """Without escape sequences for colours and for the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_on_a_terminal_there_are_a_bar_a_tree_and_a_table(story: Story) -> None:
    """The bar while it works, then the trace as a tree and its path, the table, and the path of the report."""
    code, shown = on_a_terminal(story.folder, story.folder / "first", story.folder / "second")
    assert code == 0, shown
    text = plain(shown)
    everything = story.totals[2]["distributions"]
    places = [
        text.index(mark)
        for mark in (
            "looking around",
            "run census",
            "├─ node find",
            "node each_survey",
            "└─ node report",
            "trace: .pocket_plug/traces.jsonl",
            "the distributions around this Python",
            f"{everything} distributions, ",
            "report: .pocket_plug/census.md",
        )
    ]
    assert places == sorted(places)
    assert "surveying" in text
    assert f"{everything}/{everything}" in text
    assert re.search(r"run census +\d[\d.]* (ms|s) +▇", text)
    assert "\x1b[32m" in shown


def test_no_color_is_honoured(story: Story) -> None:
    """NO_COLOR: the same table and tree, without colours."""
    _, shown = on_a_terminal(story.folder, story.folder / "first", story.folder / "second", NO_COLOR="1")
    assert "run census" in shown
    assert "the distributions around this Python" in plain(shown)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38|4[0-7]|9[0-7])[;m]", shown)


# ---------------------------------------------------------------- failures
def nowhere(folder: Path) -> Path:
    """A folder in which nothing can be created, not even by the superuser."""
    if os.getuid() == 0:
        return Path("/proc")
    folder.chmod(0o500)
    return folder


def obstacles(folder: Path, kind: str) -> tuple[Path, str]:
    """Where to run it, and the expected message."""
    state = folder / ".pocket_plug"
    if kind == "read-only folder":
        return nowhere(folder), "StoreError: .pocket_plug/census.db: its folder can't be created: "
    if kind == ".pocket_plug is a file":
        state.write_text("")
        return folder, "StoreError: .pocket_plug/census.db: its folder can't be created: "
    state.mkdir()
    if kind == "census.db is a folder":
        (state / "census.db").mkdir()
        return folder, "StoreError: .pocket_plug/census.db: the file can't be opened; check its path"
    if kind == "census.db is another's":
        (state / "census.db").write_text("Dear diary, " * 100)
        return (
            folder,
            "StoreError: .pocket_plug/census.db: this is not an SQLite file; give pocket_plug a file of its own",
        )
    (state / "census.md").mkdir()
    return folder, "Error: the report can't be written: "


@pytest.mark.parametrize(
    "kind",
    [
        "read-only folder",
        ".pocket_plug is a file",
        "census.db is a folder",
        "census.db is another's",
        "census.md is a folder",
    ],
)
def test_where_it_can_not_work_it_says_why(tmp_path: Path, kind: str) -> None:
    """One message that names the file and the cause, no traceback, exit code 1; other programs' files are unchanged."""
    folder, message = obstacles(tmp_path, kind)
    before = sorted((path, path.stat().st_size) for path in tmp_path.rglob("*") if path.is_file())
    done = census(folder, arguments=("--trace",) if kind != "census.md is a folder" else ())
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    after = sorted((path, path.stat().st_size) for path in tmp_path.rglob("*") if path.is_file())
    if kind != "census.md is a folder":
        assert after == before


def test_an_unknown_option_is_a_usage_error() -> None:
    """Exit code 2, and the option's name."""
    done = subprocess.run([*RUN, "--bogus"], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "--bogus" in done.stderr
