"""pocket_plug's codec in the place of pickle, for whatever DBOS stores by its default."""

from __future__ import annotations

import base64
from typing import Any

from dbos import Serializer

from pocket_plug.codec import default_codec
from pocket_plug.codec.error_values import storable


class PocketSerializer(Serializer):
    """For `DBOSConfig["serializer"]`: values as a store keeps them, so that nothing read from the database is executed.

    Types must be known to the codec, as in a store. Of an exception that isn't Python's own its type and text come back.

    >>> serializer = PocketSerializer()
    >>> serializer.deserialize(serializer.serialize({"args": (1, "two"), "kwargs": {}}))
    {'args': (1, 'two'), 'kwargs': {}}
    """

    def name(self) -> str:
        """What DBOS writes beside each value, and refuses to read another one by."""
        return "pocket_plug"

    def serialize(self, data: Any) -> str:
        """As text, since that is what DBOS's columns have. Raises CodecError for a type that is not registered."""
        value = storable(data) if isinstance(data, Exception) else data
        return base64.b64encode(default_codec.encode(value)).decode("ascii")

    def deserialize(self, serialized_data: str) -> Any:
        """The value. Raises CorruptRecordError for what was changed, or written by another serializer."""
        return default_codec.decode(base64.b64decode(serialized_data))
