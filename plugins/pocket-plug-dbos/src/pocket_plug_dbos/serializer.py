"""pocket_plug's codec in place of pickle, for everything that DBOS stores with its default serializer."""

from __future__ import annotations

import base64
from typing import Any

from dbos import Serializer

from pocket_plug.codec import default_codec
from pocket_plug.codec.error_values import storable
from pocket_plug.errors import CorruptRecordError


class PocketSerializer(Serializer):
    """For `DBOSConfig["serializer"]`: encodes values as a store does, and pickles nothing.

    The codec must know the types, as in a store. An exception that can't be restored becomes a RecordedError: its type and text.
    DBOS itself still unpickles a value whose row in its database says that it was pickled, whatever the serializer is. So only
    who may execute code in your processes may write to that database.

    >>> serializer = PocketSerializer()
    >>> serializer.deserialize(serializer.serialize({"args": (1, "two"), "kwargs": {}}))
    {'args': (1, 'two'), 'kwargs': {}}
    """

    def name(self) -> str:
        """The name that DBOS stores with each value; it refuses to read a value with another name."""
        return "pocket_plug"

    def serialize(self, data: Any) -> str:
        """Encode a value as text, as DBOS's columns need it. Raises CodecError for a type that is not registered."""
        value = storable(data) if isinstance(data, Exception) else data
        return base64.b64encode(default_codec.encode(value)).decode("ascii")

    def deserialize(self, serialized_data: str) -> Any:
        """Decode a value. Raises CorruptRecordError if it was changed, or isn't a record."""
        try:
            record = base64.b64decode(serialized_data, validate=True)
        except ValueError as error:
            raise CorruptRecordError(f"not a record of this codec: it is not base64 ({error})") from error
        return default_codec.decode(record)
