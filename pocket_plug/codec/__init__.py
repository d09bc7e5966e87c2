"""Encodes values to bytes, and decodes them exactly: the codec, the types that it knows, and the limits of records."""

from .adapters import TypeAdapter
from .codec import Codec, Opaque, default_codec, inspect_record, record_of, register_type
from .records import Sealed, bound, is_whole, payload_of, place_of
from .registry import UNBOUND, upgraded

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
