"""A layer that keeps values encrypted. The whole plugin: a layer, its marker in the store, one hook.

A value is encoded by the codec and encrypted by AES-256-GCM, with the name of its key as associated data. So what was changed,
cut off or moved to another key is an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
    secret,
)
from pocket_plug.codec import default_codec, upgraded
from pocket_plug.primitives.names import OWN, PAST_OWN
from pocket_plug.primitives.shown_names import shown_name

KEY_SIZE = 32
_NONCE_SIZE, _TAG_SIZE = 12, 16
_CONTEXT = b"pocket_plug_encryption 1\0"
"""Begins what a record is bound to, so that no other use of the same key makes a record that is taken for one of ours."""

Keys = str | tuple[str, ...] | Callable[[], str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Encrypted:
    """What stands in the store instead of a value."""

    key_id: str
    """Which key it is encrypted with: `key_id` of it."""
    nonce: bytes
    data: bytes
    """The record of the value, encrypted, and the tag."""


register_type(Encrypted, tag="pocket_plug_encryption.Encrypted")


def new_key() -> str:
    """A new key, of 256 random bits, as the option `keys` takes it: in base64.

    >>> len(new_key())
    44
    """
    return base64.b64encode(os.urandom(KEY_SIZE)).decode()


def key_id(key: bytes) -> str:
    """What names a key in records and messages: a digest, which says nothing of a random key."""
    return hashlib.sha256(_CONTEXT + b"key id\0" + key).hexdigest()[:16]


class Encryption(Layer):
    """Keeps values encrypted by AES-256-GCM, each bound to the name of its key.

    `keys` are the current key, which encrypts, and after it those of before, which only decrypt: each 32 random bytes in
    base64, as `new_key` makes them. Or a function that gives them, called once for each stack. Names of keys, deadlines and
    versions are not encrypted, and sizes can be told.

    A record that was changed, cut off, or moved to another key raises CorruptRecordError; one of a key that isn't given, and a
    value that isn't encrypted, UnreadableRecordError.

    >>> from pocket_plug import SyncStore
    >>> store = SyncStore(layers=[Encryption(keys=new_key())])
    >>> store.set("guest", "Alice")
    >>> store.get("guest")
    'Alice'
    >>> store
    SyncStore(Encryption(keys='***') > memory)
    """

    keys: Keys = secret()

    inline_read = inline_write = True

    def on_build(self) -> None:
        """Read the keys. Raises ConfigError where one of them is none; it is not quoted."""
        self.encrypts = True
        ciphers: dict[str, AESGCM] = {}
        for key in _keys_of(self.keys):
            ciphers.setdefault(key_id(key), AESGCM(key))
        self.key_ids = tuple(ciphers)
        """The ids of the keys, the current one first."""
        self._ciphers = ciphers

    async def read(self, key: str) -> Entry | None:
        """The inner one's entry, decrypted."""
        entry = await self.inner.read(key)
        return entry if entry is None else self._opened(key, entry)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The inner one's entries, each decrypted."""
        entries = await self.inner.read_many(keys)
        return {key: self._opened(key, entry) for key, entry in entries.items()}

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        """The same changes, with encrypted values."""
        return await self.inner.write([self._closed(change) for change in changes], expect)

    async def used(self) -> Counter[str]:
        """How many entries there are of each key's id: those of no key that isn't current are as good as gone.

        It reads all of the store. What isn't encrypted is counted as "".
        """
        found: Counter[str] = Counter()
        async for name in self.inner.scan():
            entry = await self.inner.read(name)
            if entry is not None:
                found[entry.value.key_id if isinstance(entry.value, Encrypted) else ""] += 1
        return found

    def _closed(self, change: Change) -> Change:
        if not isinstance(change, Put):
            return change
        try:
            record = default_codec.encode(change.value)
        except CodecError as error:
            raise type(error)(f"key {shown_name(change.key)!r}: {error}") from error
        current, nonce = self.key_ids[0], os.urandom(_NONCE_SIZE)
        data = self._ciphers[current].encrypt(nonce, record, _place(current, change.key))
        return replace(change, value=Encrypted(current, nonce, data))

    def _opened(self, key: str, entry: Entry) -> Entry:
        found = entry.value
        if not isinstance(found, Encrypted):
            raise UnreadableRecordError(
                f"{key!r} is not encrypted: it was written without the layer `encryption`, or by somebody who has no key. "
                "Export it by a store without the layer, and import it by one with it, if it is yours"
            )
        if not (isinstance(found.key_id, str) and isinstance(found.nonce, bytes) and isinstance(found.data, bytes)):
            raise _damaged(key)
        cipher = self._ciphers.get(found.key_id)
        if cipher is None:
            raise UnreadableRecordError(
                f"{key!r} is encrypted with the key {_shown(found.key_id)}, which isn't among `keys` of the layer `encryption`: "
                f"{', '.join(self.key_ids)}; add it behind the current one"
            )
        if len(found.nonce) != _NONCE_SIZE or len(found.data) < _TAG_SIZE:
            raise _damaged(key)
        try:
            record = cipher.decrypt(found.nonce, found.data, _place(found.key_id, key))
        except InvalidTag:
            raise _damaged(key) from None
        seen = upgraded.get()
        if seen is not None and found.key_id != self.key_ids[0] and not OWN <= key < PAST_OWN:
            seen.append(key)  # the layer `migrate` writes it back, with the current key
        try:
            return replace(entry, value=default_codec.decode(record))
        except CodecError as error:
            raise type(error)(f"key {shown_name(key)!r}: {error}") from error


def _place(key_id: str, key: str) -> bytes:
    """What a record is bound to; an id has no NUL."""
    return _CONTEXT + key_id.encode() + b"\0" + key.encode()


def _damaged(key: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"{key!r} can't be decrypted: it was changed, cut off, or written at another key; nothing of it is shown. Restore it "
        "from a backup, or delete it"
    )


def _shown(found: str) -> str:
    """An id as it may stand in a message: one that was tampered with may hold anything."""
    is_id = len(found) == 16 and set(found) <= set("0123456789abcdef")
    return found if is_id else "of an invalid id"


# ---------------------------------------------------------------- keys
_ADVICE = (
    'make one by `python -c "import pocket_plug_encryption as e; print(e.new_key())"`, and give it as "${NAME}" of the '
    "environment"
)


def _keys_of(given: Keys) -> list[bytes]:
    texts = given() if callable(given) else given
    keys = [*texts] if isinstance(texts, Sequence) and not isinstance(texts, str) else [texts]
    if not keys:
        raise ConfigError(f"encryption: `keys` is empty; {_ADVICE}")
    return [_key_of(key, position) for position, key in enumerate(keys)]


def _key_of(text: object, position: int) -> bytes:
    try:
        key = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        key = None
    if key is None or len(key) != KEY_SIZE:
        found = "no base64" if key is None else f"base64 of {len(key)} bytes"
        raise ConfigError(
            f"encryption: keys[{position}] is {found}, and a key is base64 of {KEY_SIZE} bytes; {_ADVICE}"
        )
    return key


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    """The layer `encryption`."""
    return [Encryption]
