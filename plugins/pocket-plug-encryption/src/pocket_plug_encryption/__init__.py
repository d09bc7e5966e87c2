"""A layer that stores values encrypted. This is the whole plugin: the layer, the type that it stores, and one hook.

A value is encoded by the codec and encrypted by AES-256-GCM, with the name of its key as associated data. So reading a record
that was changed, truncated or moved to another key is an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

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
from pocket_plug.codec import default_codec, record_of, upgraded
from pocket_plug.primitives.names import OWN, PAST_OWN
from pocket_plug.primitives.shown_names import shown_name

KEY_SIZE = 32
_NONCE_SIZE, _TAG_SIZE = 12, 16
_CONTEXT = b"pocket_plug_encryption 1\0"
"""Begins the associated data, so that nothing encrypted with the same key elsewhere can be taken for a record of this layer."""

Keys = str | tuple[str, ...] | Callable[[], str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Encrypted:
    """What is stored instead of a value."""

    stored_by_layer: ClassVar[str] = "encryption"

    key_id: str
    """The id of the key that encrypted it; see the function `key_id`."""
    nonce: bytes
    data: bytes
    """The encrypted record of the value, and the authentication tag."""


register_type(Encrypted, tag="pocket_plug_encryption.Encrypted")


def new_key() -> str:
    """A new key of 256 random bits, in base64, for the option `keys`.

    >>> len(new_key())
    44
    """
    return base64.b64encode(os.urandom(KEY_SIZE)).decode()


def key_id(key: bytes) -> str:
    """The id of a key, for records and messages: a digest, which reveals nothing about a random key."""
    return hashlib.sha256(_CONTEXT + b"key id\0" + key).hexdigest()[:16]


class Encryption(Layer):
    """Stores values encrypted by AES-256-GCM, each bound to the name of its key.

    `keys` are encryption keys: first the current one, which encrypts, then older ones, which only decrypt. Each is 32 random
    bytes in base64, as `new_key` makes them. `keys` may be a function that returns them; it is called once for each stack.
    Names of keys, expiry times and versions are not encrypted, and the sizes of values are visible.

    A record that was changed, truncated, or moved to another key raises CorruptRecordError. A record whose encryption key isn't
    in `keys`, and a value that isn't encrypted, raise UnreadableRecordError.

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
        """Read the keys. Raises ConfigError if one of them is invalid; the message doesn't quote it."""
        self.encrypts = True
        ciphers: dict[str, AESGCM] = {}
        for key in _keys_of(self.keys):
            ciphers.setdefault(key_id(key), AESGCM(key))
        self.key_ids = tuple(ciphers)
        """The ids of the keys, the current one first."""
        self._ciphers = ciphers

    async def read(self, key: str) -> Entry | None:
        """The entry of the inner layer, decrypted."""
        entry = await self.inner.read(key)
        return entry if entry is None else self._opened(key, entry)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries of the inner layer, decrypted."""
        entries = await self.inner.read_many(keys)
        return {key: self._opened(key, entry) for key, entry in entries.items()}

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        """Write the changes to the inner layer, with encrypted values."""
        return await self.inner.write([self._closed(change) for change in changes], expect)

    async def used(self) -> Counter[str]:
        """The number of entries by the id of their encryption key. An older key that no entry uses can be removed from `keys`.

        This reads the whole store. Entries that aren't encrypted are counted as "".
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
        record = record_of(change.key, change.value)
        current, nonce = self.key_ids[0], os.urandom(_NONCE_SIZE)
        data = self._ciphers[current].encrypt(nonce, record, _place(current, change.key))
        return replace(change, value=Encrypted(current, nonce, data))

    def _opened(self, key: str, entry: Entry) -> Entry:
        found = entry.value
        if not isinstance(found, Encrypted):
            raise _unreadable(
                key,
                "is not encrypted: it was written without the layer `encryption`, or by somebody who has no key. "
                "If it is yours, export it from a store without the layer, and import it into a store with the layer",
            )
        if not (isinstance(found.key_id, str) and isinstance(found.nonce, bytes) and isinstance(found.data, bytes)):
            raise _damaged(key)
        cipher = self._ciphers.get(found.key_id)
        if cipher is None:
            raise _unreadable(
                key,
                f"is encrypted with the key {_shown(found.key_id)}, which isn't among `keys` of the layer `encryption`: "
                f"{', '.join(self.key_ids)}; add it after the current key",
            )
        if len(found.nonce) != _NONCE_SIZE or len(found.data) < _TAG_SIZE:
            raise _damaged(key)
        try:
            record = cipher.decrypt(found.nonce, found.data, _place(found.key_id, key))
        except InvalidTag:
            raise _damaged(key) from None
        seen = upgraded.get()
        if seen is not None and found.key_id != self.key_ids[0] and not OWN <= key < PAST_OWN:
            seen.append(key)  # the layer `migrate` writes it back, encrypted with the current key
        try:
            return replace(entry, value=default_codec.decode(record))
        except CodecError as error:
            raise type(error)(f"key {shown_name(key)!r}: {error}") from error


def _place(key_id: str, key: str) -> bytes:
    """The associated data of a record. An id contains no NUL, so its end is unambiguous."""
    return _CONTEXT + key_id.encode() + b"\0" + key.encode()


def _damaged(key: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"{key!r} can't be decrypted: it was changed, cut off, or copied from another name. Restore it from a backup, or "
        "delete it"
    )


def _unreadable(key: str, why: str) -> UnreadableRecordError:
    error = UnreadableRecordError(f"{key!r} {why}")
    error.loggable = f"a record {why}"  # so that the log of a worker with a wrong key says what to do
    return error


def _shown(found: str) -> str:
    """The id of a key for a message. An invalid id isn't shown: a record that was tampered with may contain anything."""
    is_id = len(found) == 16 and set(found) <= set("0123456789abcdef")
    return found if is_id else "with an invalid id"


# ---------------------------------------------------------------- keys
_ADVICE = (
    'make one by `python -c "import pocket_plug_encryption as e; print(e.new_key())"`, store it in an environment variable, '
    'and give it as "${NAME}"'
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
        found = "not base64" if key is None else f"base64 of {len(key)} bytes"
        raise ConfigError(f"encryption: keys[{position}] is {found}; a key is base64 of {KEY_SIZE} bytes; {_ADVICE}")
    return key


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    """The layer `encryption`."""
    return [Encryption]
