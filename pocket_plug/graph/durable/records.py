"""What is stored of a durable run, and whether what is read is such a record.

A run's record is its checkpoint: where it stands, with what input, how often each node was visited, and who owns it. Values
stand in it as bytes of the codec's, so a record can be looked at without the program's types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pocket_plug.codec import Sealed
from pocket_plug.errors import CorruptRecordError, KeyNameError, StoreError
from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.primitives.names import check_length, is_unicode
from pocket_plug.primitives.names import escaped as escaped
from pocket_plug.primitives.redaction import summary
from pocket_plug.store.backend import Entry
from pocket_plug.store.keys import RESERVED

FORMAT = 2
"""Of a run's record. Those of format 1 had no state beside them, had a question within, and said "suspended" for "waiting"."""
FORM = 2
"""The version of what is recorded of a graph's form: 1 are the lines of its `Shape`, without types and scopes."""
Record = Mapping[str, Any]
"""What stands at a key; or what has to stand in it, by field."""
RUN = f"{RESERVED}run:"
"""`pocket:run:ID` is a run's checkpoint."""
PART = f"{RESERVED}run-part:"
"""`pocket:run-part:ID:…` is what else there is of it: `start`, `path:N` for each node that it has passed, and `item:…` for
each item of a fan-out that is under way."""
ENDED = f"{RESERVED}run-ended:"
"""`pocket:run-ended:TIME:ID` is the note of a finished run with `keep_finished`: from TIME on the run is to be looked at."""

MAX_RUN_ID_BYTES = 255
MAX_GRAPH_BYTES = 255
"""How long the id and the graph's name of a durable run may be in UTF-8. Escaped they may be three times as long in a key."""

Status = Literal["pending", "running", "waiting", "failed", "cancelled", "finished"]
"""What is recorded. Whether a running one is stalled is for whoever looks to say."""


# What stands in a record: one that somebody else has written must not be taken for a run. Its `owner` is a write's token:
# the execution's id, and after a dot which of its writes it was (in older records the id alone). That of an operator's begins
# with a dot, and ends with the one that was there.
SECONDS = float | int
"""What a store's clock gives: it may know whole ones only."""
ITEM_FIELDS: Record = {"owner": str, "commits": int, "frames": list}
RUN_FIELDS: Record = {
    **ITEM_FIELDS,
    "format": int,
    "status": str,
    "graph": str,
    "epoch": int,
    "steps": int,
    "started": SECONDS,
    "updated": SECONDS,
    "result": bytes | None,
    "carrier": dict,
}
OLD_RUN_FIELDS: Record = {**RUN_FIELDS, "question": bytes | None, "answer": bytes | None, "is_answered": bool}
"""Of format 1."""
OLD_START_FIELDS: Record = {"graph": str, "scope": str, "shape": list, "input": bytes, "started": SECONDS}
START_FIELDS: Record = {**OLD_START_FIELDS, "shape": str, "form": int, "version": int}
FRAME_FIELDS: Record = {"node": str | None, "value": bytes, "visits": dict, "action": str, "hooks": str}


@dataclass(frozen=True, slots=True)
class Frame:
    """How far one graph has come: the node that comes next and its input, or, where there is none, what it has left with."""

    node: str | None
    value: bytes
    visits: Mapping[str, int] = field(default_factory=dict[str, int])
    action: str = DEFAULT
    hooks: str = ""
    """The node whose commit has landed, and whose `on_success` and `on_complete` have not been seen to end."""


@dataclass(slots=True)
class Checkpoint:
    """A run's record, or that of one item of a fan-out, as it was last seen."""

    key: str
    version: int = 0
    commits: int = 0
    frames: Sequence[Frame] = ()
    """Of the outermost graph first, and then of those that are nested in it at its node."""
    is_old: bool = False
    """Was it left by an execution before this one?"""
    failed: Exception | None = None
    """The error of the last read or write of the checkpoint, if it failed."""

    def load(self, entry: Entry) -> None:
        """Take it from what is stored."""
        check(self.key, {name: entry.value.get(name) for name in ITEM_FIELDS}, ITEM_FIELDS)
        self.version, self.commits = entry.version, entry.value["commits"]
        for frame in entry.value["frames"]:
            check(self.key, frame, FRAME_FIELDS)
        self.frames = tuple(Frame(**frame) for frame in entry.value["frames"])
        if not self.frames:
            raise CorruptRecordError(f"{self.key!r} is no record of a durable run: it doesn't say where the run is")


def check(key: str, record: Record, fields: Record) -> None:
    """Raise CorruptRecordError unless it is a record of those fields, and StoreError if it is a newer one."""
    if isinstance(record, Sealed):
        raise CorruptRecordError(f"{key!r} can't be read here: {record.error}")
    if not isinstance(record, dict):
        raise CorruptRecordError(
            f"{key!r} is no record of a durable run, but {summary(record)}. If a layer that encrypts or compresses wrote it, "
            "give the store that layer; else, once it is removed the run begins anew"
        )
    found = record
    if isinstance(format := found.get("format"), int) and format > FORMAT:
        raise StoreError(f"{key!r} was written by a newer pocket_plug; use that version")
    if found.keys() != fields.keys():
        raise CorruptRecordError(f"{key!r} is no record of a durable run; once it is removed the run begins anew")
    for name, kind in fields.items():
        if not isinstance(found[name], kind):
            raise CorruptRecordError(f"{key!r} is no record of a durable run: its {name!r} is {summary(found[name])}")


def status_of(record: Record) -> Status:
    """The state that a run's record names."""
    status: Status = "waiting" if record["status"] == "suspended" else record["status"]
    return status


def check_run(key: str, record: Record) -> None:
    """`check` for a run's record; that of an older version has its question within."""
    is_old = isinstance(record, dict) and record.get("format") == 1
    check(key, record, OLD_RUN_FIELDS if is_old else RUN_FIELDS)


def check_start(key: str, record: Record) -> None:
    """`check` for the record of a run's start; that of an older version has no types in its shape."""
    is_old = isinstance(record, dict) and "form" not in record
    check(key, record, OLD_START_FIELDS if is_old else START_FIELDS)
    if not is_old and record["form"] > FORM:
        raise StoreError(f"{key!r} was written by a newer pocket_plug; use that version")


def field_of(entry: Entry, name: str) -> Any:
    """A field of a record; None where it is no record, or has no such field."""
    record: Record = entry.value
    return record.get(name) if isinstance(record, dict) else None


def execution_of(entry: Entry) -> str | None:
    """The id of the execution that wrote a record."""
    owner = field_of(entry, "owner")
    return owner.partition(".")[0] if isinstance(owner, str) else None


def last_write(record: Record) -> str:
    """The token of the last write of an execution. One that an operator has moved since has it behind the token of that."""
    return ".".join(record["owner"].split(".")[-2:])


def keys_of(run_id: str) -> tuple[str, str]:
    """The key of a run's checkpoint, and how those of its parts begin. Raises KeyNameError."""
    if not isinstance(run_id, str) or not run_id:
        raise KeyNameError(f"a run_id is a string that is not empty, not {summary(run_id)}")
    if not is_unicode(run_id):
        raise KeyNameError(f"run_id {run_id!r:.80} has a lone surrogate, which no store can write")
    name = escaped(check_length(run_id, "a run_id", MAX_RUN_ID_BYTES), ":")
    return RUN + name, f"{PART}{name}:"


def look_at(key: str, entry: Entry) -> tuple[Record, Checkpoint]:
    """A run's record as it is stored, and its checkpoint, for whoever only looks. Raises StoreError, CorruptRecordError."""
    check_run(key, entry.value)
    checkpoint = Checkpoint(key)
    checkpoint.load(entry)
    return entry.value, checkpoint


def look_key(time: float, name: str) -> str:
    """Where the note of a finished run stands: at the time from which on the run is to be looked at."""
    return f"{ENDED}{min(time, 1e15):020.3f}:{name}"  # in the order of time


def look_time(key: str) -> float:
    """The time in such a key."""
    with suppress(ValueError):
        return float(key.removeprefix(ENDED).partition(":")[0])
    return 0.0  # not written by us; it sorts first, and is removed


def place_of(within: str, frames: Sequence[Frame], is_item: bool) -> str:
    """The name of the visit at which the innermost frame stands; an item's first node is at the place of the item."""
    for frame in frames[1:] if is_item else frames:
        name = frame.node or ""
        within += f"/{escaped(name, '/#[')}#{frame.visits.get(name, 0) + 1}"
    return within


def plain(frame: Frame) -> Record:
    """A frame as it is stored."""
    return {
        "node": frame.node,
        "value": frame.value,
        "visits": dict(frame.visits),
        "action": frame.action,
        "hooks": frame.hooks,
    }
