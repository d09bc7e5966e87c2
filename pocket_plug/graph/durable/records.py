"""The records of a durable run, and the checks of records that are read.

A run's record is its checkpoint: its position, the input there, how often each node was visited, and the owner. Values are
stored in it as bytes that the codec has encoded, so a record can be inspected without the program's types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pocket_plug.codec import Sealed, register_type
from pocket_plug.errors import CorruptRecordError, KeyNameError, StoreError
from pocket_plug.graph.kinds.ask import Answered
from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.running.protocols import RecordedState
from pocket_plug.primitives.names import check_length, is_unicode
from pocket_plug.primitives.names import escaped as escaped
from pocket_plug.primitives.redaction import named, summary
from pocket_plug.store.backend import Entry
from pocket_plug.store.keys import RESERVED
from pocket_plug.store.reading import Found

FORMAT = 2
"""The format of a run's record. In format 1, runs had no state, and a question was in the record."""
FORM = 2
"""The format of a graph's recorded form. 1 is the lines of its `Shape`, without types and scopes."""
Record = Mapping[str, Any]
"""The value at a key; or the types that its fields must have, by name."""
RUN = f"{RESERVED}run:"
"""`pocket:run:ID` is a run's checkpoint."""
PART = f"{RESERVED}run-part:"
"""`pocket:run-part:ID:…` are the run's other records: `start`, `path:N` for each node that it has passed, `item:…` for each item
of a fan-out in progress, `wait:…` and `execution:N`."""
PATH, ITEM = "path:", "item:"
"""The beginnings of the keys of passed nodes and of items, after the prefix of the run's parts."""
RUN_ENDED = f"{RESERVED}run-ended:"
"""`pocket:run-ended:TIME:ID` is the note of a finished run with `keep_finished`: the run is to be checked at TIME."""

BATCH = 1000
"""How many records of runs are read at once, by those that read many."""

MAX_RUN_ID_BYTES = 255
MAX_GRAPH_BYTES = 255
"""How long the id and the graph's name of a durable run may be in UTF-8. Escaped for a key, they may be three times as long."""

Status = RecordedState

register_type(Answered, tag="pocket_plug.Answered")  # recorded as the input of the node after an Ask


# The fields of each record. They are checked, so that a value that another program has written is not taken for a run.
# `owner` is the token of the last write: the execution's id, a dot, and the number of its write (in older records only the id).
# An operator's token begins with a dot, and ends with the last token of an execution.
SECONDS = float | int
"""A time from a store's clock, which may have whole seconds only."""
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
"""The fields of format 1."""
OLD_START_FIELDS: Record = {"graph": str, "scope": str, "shape": list, "input": bytes, "started": SECONDS}
START_FIELDS: Record = {**OLD_START_FIELDS, "shape": str, "form": int, "version": int}
FRAME_FIELDS: Record = {"node": str | None, "value": bytes, "visits": dict, "action": str, "hooks": str}


@dataclass(frozen=True, slots=True)
class Frame:
    """The position in one graph: the node that comes next, and its input; or no node, and the graph's output."""

    node: str | None
    value: bytes
    visits: Mapping[str, int] = field(default_factory=dict[str, int])
    action: str = DEFAULT
    hooks: str = ""
    """The node that is committed, but whose `on_success` and `on_complete` are not known to have ended."""


@dataclass(slots=True)
class Checkpoint:
    """The position in the record of a run, or of an item of a fan-out, as it was last read or written."""

    key: str
    version: int = 0
    commits: int = 0
    frames: Sequence[Frame] = ()
    """The frame of the outermost graph first, then those of the nested graphs that the run is in."""
    is_old: bool = False
    """Did an earlier execution write it?"""
    failed: Exception | None = None
    """The error of the last read or write of the checkpoint, if it failed."""

    def load(self, entry: Entry) -> None:
        """Take the position from a stored record. Raises CorruptRecordError."""
        check(self.key, {name: entry.value.get(name) for name in ITEM_FIELDS}, ITEM_FIELDS)
        self.version, self.commits = entry.version, entry.value["commits"]
        for frame in entry.value["frames"]:
            check(self.key, frame, FRAME_FIELDS)
        self.frames = tuple(Frame(**frame) for frame in entry.value["frames"])
        if not self.frames:
            raise CorruptRecordError(f"{self.key!r} is not a record of a durable run: it has no position")


def check(key: str, record: Record, fields: Record) -> None:
    """Raise CorruptRecordError unless the record has exactly these fields, and StoreError if its format is newer."""
    if isinstance(record, Sealed):
        raise CorruptRecordError(f"{key!r} can't be read here: {record.error}")
    if not isinstance(record, dict):
        raise CorruptRecordError(
            f"{key!r} is not a record of a durable run, but {summary(record)}. If a layer that encrypts or compresses wrote it, "
            "give the store that layer; else remove the record, and the run starts from the beginning"
        )
    found = record
    if isinstance(format := found.get("format"), int) and format > FORMAT:
        raise StoreError(f"{key!r} was written by a newer pocket_plug; use that version")
    if found.keys() != fields.keys():
        raise CorruptRecordError(
            f"{key!r} is not a record of a durable run; remove it, and the run starts from the beginning"
        )
    for name, kind in fields.items():
        if not isinstance(found[name], kind):
            raise CorruptRecordError(
                f"{key!r} is not a record of a durable run: its {name!r} is {summary(found[name])}"
            )


def status_of(record: Record) -> Status:
    """The state in a run's record."""
    status: Status = record["status"]
    return status


def check_run(key: str, record: Record) -> None:
    """`check` for a run's record, which in format 1 contains the question."""
    is_old = isinstance(record, dict) and record.get("format") == 1
    check(key, record, OLD_RUN_FIELDS if is_old else RUN_FIELDS)


def check_start(key: str, record: Record) -> None:
    """`check` for the record of a run's start, which in older versions has a shape without types."""
    is_old = isinstance(record, dict) and "form" not in record
    check(key, record, OLD_START_FIELDS if is_old else START_FIELDS)
    if not is_old and record["form"] > FORM:
        raise StoreError(f"{key!r} was written by a newer pocket_plug; use that version")


def field_of(found: Found | None, name: str) -> Any:
    """A field of a record; None if there is none, if it can't be read or is no record, or if it has no such field."""
    record: Record | None = found.value if isinstance(found, Entry) else None
    return record.get(name) if isinstance(record, dict) else None


def execution_of(entry: Entry | None) -> str | None:
    """The id of the execution that wrote a record; None if there is none."""
    owner = field_of(entry, "owner")
    return owner.partition(".")[0] if isinstance(owner, str) else None


def last_write(record: Record) -> str:
    """The token of the last write by an execution. If an operator has written since, it is at the end of the operator's token."""
    return ".".join(record["owner"].split(".")[-2:])


def keys_of(run_id: str) -> tuple[str, str]:
    """The key of a run's checkpoint, and the prefix of the keys of its parts. Raises KeyNameError for an invalid id."""
    if not isinstance(run_id, str) or not run_id:
        raise KeyNameError(f"a run_id can't be {named(run_id)}; give a text that is not empty")
    if not is_unicode(run_id):
        raise KeyNameError(f"run_id {run_id!r:.80} has a lone surrogate, which no store can write")
    name = escaped(check_length(run_id, "a run_id", MAX_RUN_ID_BYTES), ":")
    return RUN + name, f"{PART}{name}:"


def part_of(key: str) -> str:
    """The prefix of the keys of a run's parts, from the key of its checkpoint."""
    return f"{PART}{key.removeprefix(RUN)}:"


def start_key(part: str) -> str:
    """The key of the record of a run's start."""
    return f"{part}start"


def item_key(part: str, place: str) -> str:
    """The key of the record of the item at a place, such as `/each#1[3]`."""
    return f"{part}{ITEM}{escaped(place, ':')}"


def read_run(key: str, entry: Entry) -> tuple[Record, Checkpoint]:
    """A run's record and the checkpoint in it, for those that only read. Raises StoreError, CorruptRecordError."""
    check_run(key, entry.value)
    checkpoint = Checkpoint(key)
    checkpoint.load(entry)
    return entry.value, checkpoint


def look_key(time: float, name: str) -> str:
    """The key of the note of a finished run that is to be checked at this time."""
    return f"{RUN_ENDED}{min(time, 1e15):020.3f}:{name}"  # sorts by the time


def look_time(key: str) -> float:
    """The time in the key of such a note."""
    with suppress(ValueError):
        return float(key.removeprefix(RUN_ENDED).partition(":")[0])
    return 0.0  # not written by us; it sorts first, and is removed


def visit_place(within: str, node: str, visit: int) -> str:
    """The place of a visit of a node, such as `/outer#1/inner#2`."""
    return f"{within}/{escaped(node, '/#[')}#{visit}"


def next_place(within: str, frames: Sequence[Frame], is_item: bool) -> str:
    """The place of the innermost frame's next visit. An item's own node has the item's place."""
    for frame in frames[1:] if is_item else frames:
        name = frame.node or ""
        within = visit_place(within, name, frame.visits.get(name, 0) + 1)
    return within


def node_of(frames: Sequence[Frame]) -> str:
    """The node that comes next, after the nodes that contain it: `outer/inner`."""
    return "/".join(frame.node for frame in frames if frame.node is not None)


def plain(frame: Frame) -> Record:
    """A frame as it is stored."""
    return {
        "node": frame.node,
        "value": frame.value,
        "visits": dict(frame.visits),
        "action": frame.action,
        "hooks": frame.hooks,
    }
