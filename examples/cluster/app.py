"""A census of many folders: each is a durable run, whose files are counted in batches on a Dask cluster.

`pocket.toml` says where the store is and which executor `heavy` is; this file doesn't depend on it. `__main__.py` runs it on one
machine, and kills processes in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocket_plug import Graph, Key, Node, Retry, StoreWriter, each, node

FILES_PER_BATCH = 25


@dataclass(frozen=True)
class Batch:
    """Some files of a folder."""

    folder: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Counted:
    """The number of files, and of their lines and bytes."""

    files: int = 0
    bytes: int = 0
    lines: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.files + other.files, self.bytes + other.bytes, self.lines + other.lines)


@dataclass(frozen=True)
class Folder:
    """The counts of one folder."""

    path: str
    counted: Counted


TOTAL = Key("census:total", Counted)
FOLDER = Key("census:folder:{}", Counted)
TIMES = Key("census:times:{}", int)
"""How often a folder was recorded: once, whatever was killed."""


@node
def find(folder: str) -> list[Batch]:
    """The folder's files, in batches. There is at least one batch, so an empty folder is counted too."""
    files = sorted(str(path) for path in Path(folder).rglob("*.py") if path.is_file())
    batches = range(0, max(len(files), 1), FILES_PER_BATCH)
    return [Batch(folder, tuple(files[at : at + FILES_PER_BATCH])) for at in batches]


@node(executor="heavy", retry=Retry(attempts=10, delay="1s"))
def count(batch: Batch) -> Folder:
    """Count every file. This runs on the cluster, since it needs no store; it is retried if the cluster is lost."""
    contents = [Path(file).read_bytes() for file in batch.files]
    counted = Counted(len(contents), sum(map(len, contents)), sum(content.count(b"\n") for content in contents))
    return Folder(batch.folder, counted)


class Record(Node[list[Folder], Folder]):
    """Writes the folder's counts and adds them to the total, in one commit."""

    def exec(self, parts: list[Folder]) -> Folder:
        return Folder(parts[0].path, sum((part.counted for part in parts), Counted()))

    async def post(self, store: StoreWriter, input: list[Folder], prepared: list[Folder], result: Folder) -> Folder:
        await store.set(FOLDER(result.path), result.counted)
        await store.update(TOTAL, lambda total: total + result.counted, default=Counted())
        await store.update(TIMES(result.path), lambda times: times + 1, default=0)
        return result


graph = Graph(find >> each(count, concurrency=8) >> Record(), name="census of folders")
