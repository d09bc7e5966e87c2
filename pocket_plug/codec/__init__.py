"""Encodes values to bytes, and decodes them exactly: the codec, the types that it knows, and the limits of records."""

from .adapters import TypeAdapter as TypeAdapter
from .codec import Codec as Codec
from .codec import Opaque as Opaque
from .codec import default_codec as default_codec
from .codec import inspect_record as inspect_record
from .codec import record_of as record_of
from .codec import register_type as register_type
from .records import Sealed as Sealed
from .records import bound as bound
from .records import is_whole as is_whole
from .records import payload_of as payload_of
from .records import place_of as place_of
from .registry import UNBOUND as UNBOUND
from .registry import upgraded as upgraded

__all__ = [
    "UNBOUND",
    "Codec",
    "Opaque",
    "Sealed",
    "TypeAdapter",
    "bound",
    "default_codec",
    "inspect_record",
    "is_whole",
    "payload_of",
    "place_of",
    "record_of",
    "register_type",
    "upgraded",
]
