"""What goes to a worker and what comes back: a chunk of items, and an answer for each, as MessagePack.

Values in them are records of the codec. A request names what has to be imported: it comes from the process whose work this is,
over the executor's own connection, and never out of a store.
"""

from __future__ import annotations

import msgspec

from pocket_plug.errors import CodecError

FORMAT = 2
"""Both sides must speak the same."""


class Node(msgspec.Struct, array_like=True, frozen=True):
    """Which node, and which version of its code."""

    name: str
    reference: str
    path: tuple[str, ...]
    version: int
    """The graph's."""
    code: str
    """The fingerprint of its exec."""


class Item(msgspec.Struct, array_like=True, frozen=True):
    """One attempt at an exec."""

    node: int
    """Which of the chunk's nodes."""
    value: bytes
    carrier: dict[str, str]
    """The trace context, the session and the baggage."""
    deadline: float | None
    """Epoch seconds, after which it isn't begun any more."""
    key: str | None
    """What `idempotency_key()` gives."""
    place: str | None = None
    """Where in the run it is, if somebody follows that: what it reports is wanted."""


class Chunk(msgspec.Struct, array_like=True, frozen=True):
    """What goes over in one piece."""

    format: int
    nodes: list[Node]
    items: list[Item]


class Failure(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """An exception, so that it can be raised here."""

    module: str
    name: str
    text: str
    where: str
    """Where the user's code raised it."""
    record: bytes | None = None
    """Itself, where the codec knows its class."""
    arguments: bytes | None = None
    state: dict[str, bytes] = {}
    """Its attributes, those that can be encoded."""
    left_out: list[str] = []
    notes: list[str] = []
    members: list[Failure] | None = None
    """Those of a group."""


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What `emit` or `progress` was called with."""

    value: bytes | None
    """Of `emit`."""
    done: float = 0.0
    total: float | None = None


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What became of one item: it has a value, has failed, or came too late to be begun."""

    value: bytes | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    reports: tuple[Report, ...] = ()


class Answers(msgspec.Struct, array_like=True, frozen=True):
    """What became of a chunk."""

    worker: str
    """Who did it: `host:pid`."""
    answers: list[Answer]
    """One for each item, in their order; fewer where the last ones weren't begun, and at least one."""


_encode = msgspec.msgpack.Encoder().encode
_chunk = msgspec.msgpack.Decoder(Chunk).decode
_answers = msgspec.msgpack.Decoder(Answers).decode
failure_of = msgspec.msgpack.Decoder(Failure).decode
"""A failure, as the other side will read it."""


def to_bytes(message: Chunk | Answers | Failure) -> bytes:
    """A message as it goes over."""
    return _encode(message)


def chunk_of(request: bytes) -> Chunk:
    """A request. Raises CodecError for what is none, or is of another version of pocket_plug."""
    try:
        chunk = _chunk(request)
    except msgspec.DecodeError as error:
        raise CodecError(f"no request of this version of pocket_plug: {error}") from error
    if chunk.format != FORMAT:
        raise CodecError(f"a request in format {chunk.format}; this version of pocket_plug knows {FORMAT}")
    return chunk


def answers_of(answer: bytes) -> Answers:
    """An answer. Raises CodecError for what is none."""
    try:
        return _answers(answer)
    except msgspec.DecodeError as error:
        raise CodecError(f"no answer of this version of pocket_plug: {error}") from error
