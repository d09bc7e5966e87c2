"""A layer that stores large values compressed. This is the whole plugin: the layer, the type that it stores, and one hook."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pocket_plug import (
    Change,
    CodecError,
    ConfigError,
    CorruptRecordError,
    Entry,
    Layer,
    Put,
    UnreadableRecordError,
    hookimpl,
    register_type,
)
from pocket_plug.codec import default_codec, record_of
from pocket_plug.primitives.shown_names import shown_name

LEVELS = {"zlib": range(1, 10), "zstd": range(1, 23)}


@dataclass(frozen=True, slots=True)
class Compressed:
    """What is stored instead of a large value: its record, compressed."""

    stored_by_layer: ClassVar[str] = "compress"

    algorithm: str
    size: int
    """The number of bytes of the record before compression."""
    data: bytes


register_type(Compressed, tag="pocket_plug_compress.Compressed")


class Compress(Layer):
    """Stores a value compressed if its record has at least `min_bytes` and compression makes it smaller.

    `algorithm` is "zlib", "zstd" (needs zstandard), or "auto": zstd if zstandard is installed, else zlib. `level` is 1 to 9 for
    zlib and 1 to 22 for zstd; the default is the algorithm's own. Records of both algorithms can be read. The layer encodes
    values by the codec: a value of an unregistered type raises UnregisteredTypeError when it is set.

    >>> from pocket_plug import SyncStore
    >>> store = SyncStore(layers=[Compress(level=9)])
    >>> store.set("page", "state " * 10_000)
    >>> store.get("page") == "state " * 10_000
    True
    """

    level: int | None = None
    min_bytes: int = 1024
    algorithm: Literal["auto", "zlib", "zstd"] = "auto"

    inline_read = inline_write = True

    def on_build(self) -> None:
        """Choose the algorithm. Raises ConfigError if it isn't installed, or doesn't have the level."""
        best = "zstd" if _has_zstandard() else "zlib"
        self.using = best if self.algorithm == "auto" else self.algorithm
        levels = LEVELS[self.using]
        if self.using == "zstd" and best != "zstd":
            raise ConfigError(
                "compress: algorithm 'zstd' needs zstandard; do: pip install 'pocket-plug-compress[zstd]'"
            )
        if self.level is not None and self.level not in levels:
            raise ConfigError(f"compress: {self.using} has the levels {levels[0]} to {levels[-1]}, not {self.level}")

    async def read(self, key: str) -> Entry | None:
        entry = await self.inner.read(key)
        return entry if entry is None else _unpacked(key, entry)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        entries = await self.inner.read_many(keys)
        return {key: _unpacked(key, entry) for key, entry in entries.items()}

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        return await self.inner.write([self._packed(change) for change in changes], expect)

    def _packed(self, change: Change) -> Change:
        if not isinstance(change, Put) or self._is_small(change.value):
            return change
        record = record_of(change.key, change.value)
        is_marker = isinstance(change.value, Compressed)  # the user's own value: if not wrapped, a read would unpack it
        if len(record) < self.min_bytes and not is_marker:
            return change
        data = _compress(record, self.using, self.level)
        if len(data) >= len(record) and not is_marker:
            return change
        return replace(change, value=Compressed(self.using, len(record), data))

    def _is_small(self, value: Any) -> bool:
        """Is the value certainly too small to compress? Then it need not be encoded to find out."""
        if isinstance(value, str | bytes):
            return len(value) * 4 < self.min_bytes
        return value is None or isinstance(value, bool | float)


def _has_zstandard() -> bool:
    try:
        return find_spec("zstandard") is not None
    except ValueError:  # sys.modules has a stand-in for it, which has no spec
        return False


def _compress(record: bytes, algorithm: str, level: int | None) -> bytes:
    if algorithm == "zlib":
        return zlib.compress(record, -1 if level is None else level)
    import zstandard

    return zstandard.compress(record, 3 if level is None else level)


def _unpacked(key: str, entry: Entry) -> Entry:
    found = entry.value
    if not isinstance(found, Compressed):
        return entry
    if not (isinstance(found.algorithm, str) and isinstance(found.size, int) and isinstance(found.data, bytes)):
        raise CorruptRecordError(f"{key!r} is damaged: its fields have other types than those of a compressed value")
    if not 0 <= found.size <= default_codec.max_bytes:
        raise CorruptRecordError(
            f"{key!r} claims to decompress to {found.size} bytes; the limit is {default_codec.max_bytes}"
        )
    unpack = {"zlib": _from_zlib, "zstd": _from_zstd}.get(found.algorithm)
    if unpack is None:
        raise UnreadableRecordError(
            f"{key!r} was compressed by {found.algorithm!r}, which this version can't read; upgrade pocket-plug-compress"
        )
    record = unpack(key, found)
    if record is None:
        raise CorruptRecordError(f"{key!r} is damaged: its {found.algorithm} data is not what was written")
    try:
        return replace(entry, value=default_codec.decode(record))
    except CodecError as error:
        raise type(error)(f"key {shown_name(key)!r}: {error}") from error


# Both limit the output to the record's claimed size, which was checked: a few bytes can decompress to gigabytes.
def _from_zlib(key: str, found: Compressed) -> bytes | None:
    stream = zlib.decompressobj()
    try:
        record = stream.decompress(found.data, found.size + 1)
    except zlib.error:
        return None
    return record if stream.eof and len(record) == found.size else None


def _from_zstd(key: str, found: Compressed) -> bytes | None:
    try:
        import zstandard
    except ImportError as error:
        why = (
            "was compressed by zstd, and zstandard is not installed here; do: pip install 'pocket-plug-compress[zstd]'"
        )
        unreadable = UnreadableRecordError(f"{key!r} {why}")
        unreadable.loggable = f"a record {why}"
        raise unreadable from error
    try:
        if zstandard.frame_content_size(found.data) != found.size:
            return None
        return zstandard.decompress(found.data, max_output_size=found.size)
    except zstandard.ZstdError:
        return None


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    """The layer `compress`."""
    return [Compress]
