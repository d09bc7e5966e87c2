"""The messages to a worker and back: a chunk of items, and an answer for each, as MessagePack.

Their values are records of the codec. A request names a module to import. So it must come from the process that wants the work
done, over the executor's own connection, and never out of a store.
"""

from __future__ import annotations

import msgspec

from pocket_plug.errors import CodecError

FORMAT = 3
"""Both sides must use the same format."""


class Node(msgspec.Struct, array_like=True, frozen=True):
    """A node, and the version of its code."""

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
    """Its index in the chunk's nodes."""
    value: bytes
    carrier: dict[str, str]
    """The trace context, the session and the baggage."""
    seconds: float | None
    """So long after the request has come it is not begun any more. No moment, since the machines' clocks may differ."""
    key: str | None
    """The result of `idempotency_key()`."""
    place: str | None = None
    """Its place in the run, if the run is followed: then its reports are sent back."""


class Chunk(msgspec.Struct, array_like=True, frozen=True):
    """The items of one request."""

    format: int
    nodes: list[Node]
    items: list[Item]


class Failure(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """An exception, in parts from which it can be restored."""

    module: str
    name: str
    text: str
    where: str
    """Where the user's code raised it."""
    record: bytes | None = None
    """The whole exception, if the codec knows its class."""
    arguments: bytes | None = None
    state: dict[str, bytes] = {}
    """Its attributes that can be encoded."""
    left_out: list[str] = []
    notes: list[str] = []
    members: list[Failure] | None = None
    """The exceptions of a group."""


class Report(msgspec.Struct, array_like=True, frozen=True):
    """The arguments of one call of `emit` or `progress`."""

    value: bytes | None
    """The encoded value of `emit`; None for `progress`."""
    done: float = 0.0
    total: float | None = None


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """The result of one item: a value, a failure, or neither if it came too late to be begun."""

    value: bytes | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    reports: tuple[Report, ...] = ()


class Answers(msgspec.Struct, array_like=True, frozen=True):
    """The results of a chunk."""

    worker: str
    """The worker process: `host:pid`."""
    answers: list[Answer]
    """One for each item, in their order. Fewer if the last ones weren't begun, but at least one."""


_encode = msgspec.msgpack.Encoder().encode
_chunk = msgspec.msgpack.Decoder(Chunk).decode
_answers = msgspec.msgpack.Decoder(Answers).decode
failure_of = msgspec.msgpack.Decoder(Failure).decode
"""Decodes a failure, as the other side does."""


def to_bytes(message: Chunk | Answers | Failure) -> bytes:
    """Encode a message."""
    return _encode(message)


def chunk_of(request: bytes) -> Chunk:
    """Decode a request. Raises CodecError for bytes that are none, and for a request of another version of pocket_plug."""
    try:
        chunk = _chunk(request)
    except msgspec.DecodeError as error:
        raise CodecError(f"not a request of this version of pocket_plug: {error}") from error
    if chunk.format != FORMAT:
        raise CodecError(f"a request in format {chunk.format}; this version of pocket_plug knows {FORMAT}")
    return chunk


def answers_of(answer: bytes) -> Answers:
    """Decode the answers of a chunk. Raises CodecError for bytes that are none."""
    try:
        return _answers(answer)
    except msgspec.DecodeError as error:
        raise CodecError(f"not an answer of this version of pocket_plug: {error}") from error
