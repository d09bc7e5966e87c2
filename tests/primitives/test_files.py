"""Files on disk contain the program's data: new files are 0600, new folders 0700, existing ones are unchanged."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import Span, TracerProvider

from pocket_plug import SyncStore
from pocket_plug.layers import Persistence
from pocket_plug.primitives.files import make_file, make_folder
from pocket_plug.telemetry.live import OpenSpans

POCKET_PLUG = [sys.executable, "-m", "pocket_plug"]

APP = """
import pocket_plug as pp

@pp.node
async def half(n: int) -> int:
    return n // 2

graph = pp.Graph(half, name="g", store=pp.Store("sqlite:///state/deep/state.db"))
"""


@pytest.fixture(params=[0o000, 0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The user's umask; the modes of our files don't depend on it."""
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def modes(folder: Path) -> dict[str, str]:
    """The modes of everything in a folder, by path."""
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(path.lstat().st_mode)) for path in sorted(folder.rglob("*"))
    }


def test_a_database_is_readable_only_by_its_owner(tmp_path: Path, umask: int) -> None:
    """With its log, its index and its lock file, while it is open and later; and the folders created for its URL."""
    (tmp_path / "there").mkdir()
    os.chmod(tmp_path / "there", 0o750)  # noqa: S103 - as a user may have it
    database = tmp_path / "there" / "a" / "b" / "state.db"
    with SyncStore(layers=[Persistence(to=f"sqlite:///{database}", mode="behind")]) as store:
        store.set("a", 1)
        store.flush()
        found = modes(tmp_path)
    assert found == {
        "there": "0o750",
        "there/a": "0o700",
        "there/a/b": "0o700",
        "there/a/b/state.db": "0o600",
        "there/a/b/state.db-wal": "0o600",
        "there/a/b/state.db-shm": "0o600",
        "there/a/b/state.db-owner": "0o600",
    }
    assert {mode for path, mode in modes(tmp_path).items() if path != "there"} == {"0o700", "0o600"}


def test_existing_modes_stay(tmp_path: Path, umask: int) -> None:
    """A database, and the folder, that a user has opened for a group stay open for it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "state.db").touch()
    os.chmod(folder, 0o750)  # noqa: S103 - as a user may have it
    os.chmod(folder / "state.db", 0o640)
    with SyncStore(f"sqlite:///{folder}/state.db") as store:
        store.set("a", 1)
        found = modes(tmp_path)
    assert (found["shared"], found["shared/state.db"]) == ("0o750", "0o640")


def test_a_link_to_a_missing_database(tmp_path: Path, umask: int) -> None:
    """Its target is created, and is readable only by its owner."""
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    with SyncStore(f"sqlite:///{tmp_path}/link.db") as store:
        store.set("a", 1)
    assert modes(tmp_path)["real.db"] == "0o600"


def test_all_files_of_the_commands(tmp_path: Path, umask: int) -> None:
    """A traced run, its page and its store: no created file is readable by others."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "old.html").touch()
    for path in ("app.py", "old.html"):
        os.chmod(tmp_path / path, 0o644)
    there = {"app.py": "0o644", "old.html": "0o644"}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_", "PYTHON"))
    }
    kept |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1", "BROWSER": "true"}
    for arguments in (
        ["run", "app.py", "--input", "4", "--trace"],
        ["trace", "show", "--html", "pages/new.html"],
        ["trace", "show", "--html", "old.html"],
        ["trace", "show", "--open"],
    ):
        subprocess.run([*POCKET_PLUG, *arguments], cwd=tmp_path, env=kept, check=True, capture_output=True, timeout=60)
    found = modes(tmp_path)
    assert found.items() >= there.items()
    made = {path: mode for path, mode in found.items() if path not in there}
    assert {".pocket_plug/traces.jsonl", "state/deep/state.db", "pages/new.html", "cache/pocket_plug"} <= made.keys()
    assert {mode for path, mode in made.items() if (tmp_path / path).is_dir()} == {"0o700"}
    assert {mode for path, mode in made.items() if not (tmp_path / path).is_dir()} == {"0o600"}


def test_the_file_of_open_spans(tmp_path: Path, umask: int) -> None:
    """Also its temporary file."""
    spans = OpenSpans(tmp_path / "traces" / "traces.jsonl")
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("a")
    assert isinstance(span, Span)
    spans.on_start(span)
    spans.write()
    found = modes(tmp_path)
    spans.shutdown()
    span.end()
    assert len(found) == 2
    assert set(found.values()) == {"0o700", "0o600"}


def test_many_threads_create_the_same_files(tmp_path: Path) -> None:
    """Threads that create one folder and one file at the same time all succeed, and no content is changed."""
    barrier = threading.Barrier(8)
    failed: list[BaseException] = []

    def make(number: int) -> None:
        try:
            barrier.wait()
            make_folder(tmp_path / "a" / "b" / "c")
            make_file(tmp_path / "a" / "b" / "c" / "file")
            with (tmp_path / "a" / "b" / "c" / "file").open("a") as file:
                file.write("x")
            make_file(tmp_path / "a" / "b" / "c" / "file")
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (tmp_path / "a" / "b" / "c" / "file").read_text() == "x" * 8


def test_without_mknod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    """If the system has no `mknod`, or allows it to nobody, a file is created by opening it."""

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mknod", refused)
    make_file(tmp_path / "a")
    monkeypatch.delattr(os, "mknod")
    make_file(tmp_path / "b")
    make_file(tmp_path / "b")
    assert modes(tmp_path) == {"a": "0o600", "b": "0o600"}


def test_a_failed_creation_is_an_error(tmp_path: Path) -> None:
    """There is a file in the place of a folder, or the folder doesn't exist."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "a")
    with pytest.raises(OSError, match="nowhere"):
        make_file(tmp_path / "nowhere" / "a")
