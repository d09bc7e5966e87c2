"""How values become bytes and come back as what they were: the codec, the types that it knows, the bounds of what it reads."""

from .codec import UNBOUND as UNBOUND
from .codec import Codec as Codec
from .codec import Opaque as Opaque
from .codec import Sealed as Sealed
from .codec import bound as bound
from .codec import default_codec as default_codec
from .codec import inspect_record as inspect_record
from .codec import is_whole as is_whole
from .codec import payload_of as payload_of
from .codec import place_of as place_of
from .codec import register_type as register_type
from .codec import upgraded as upgraded
from .forms import Form as Form

__all__ = [
    "UNBOUND",
    "Codec",
    "Form",
    "Opaque",
    "Sealed",
    "bound",
    "default_codec",
    "inspect_record",
    "is_whole",
    "payload_of",
    "place_of",
    "register_type",
    "upgraded",
]
