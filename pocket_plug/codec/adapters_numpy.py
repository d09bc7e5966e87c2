"""Arrays and scalars of numpy: their dtype, shape, order and bytes. What holds Python objects is refused.

Imported by `adapters`, once the program has imported numpy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, Literal, cast

import numpy as np

from pocket_plug.errors import CodecError
from pocket_plug.primitives.values import Value

from .adapters import TypeAdapter, of_type

Array = np.ndarray[Any, np.dtype[Any]]

_SCALARS: list[type[np.generic]] = sorted(set(np.sctypeDict.values()) - {np.object_}, key=lambda cls: cls.__name__)
KNOWN: list[type] = [np.ndarray, *_SCALARS]
COPIED = (np.ndarray, np.void)

# Kinds that are complete in their bytes, with their size and, for times, their unit. No "O": its bytes would be pointers.
_PLAIN = re.compile(r"[<>|][biufcSUVmM]\d+(\[\w+\])?")


def adapter(cls: type) -> TypeAdapter | None:
    """The adapter of a class; None for subclasses, which have state of their own."""
    if cls is np.ndarray:
        return TypeAdapter(_take_apart, _put_together, copy=_copied, tag="numpy.ndarray")
    if cls not in _SCALARS:
        return None
    scalar: Any = cls
    tag = f"numpy.{cls.__name__.rstrip('_')}"  # bool_ was renamed bool
    if issubclass(cls, np.str_ | np.bytes_):
        # numpy's own bytes would lose zeros at the end
        base, plain = (str, str.__str__) if issubclass(cls, np.str_) else (bytes, bytes)
        return TypeAdapter(plain, lambda state: cls(of_type(base, state)), copy=_as_it_is, tag=tag)
    return TypeAdapter(_of_scalar, _scalar_maker(scalar), copy=deepcopy if cls is np.void else _as_it_is, tag=tag)


def hints(cls: type) -> Iterable[Any] | None:
    """Neither arrays nor scalars have fields."""
    return () if issubclass(cls, np.ndarray | np.generic) else None


def advice(cls: type) -> str | None:
    """What to store in place of a record, or of an object of a subclass of arrays."""
    if issubclass(cls, np.ma.MaskedArray):
        return f"{cls.__name__} is not a plain array; store its data and its mask: (array.data, numpy.ma.getmaskarray(array))"
    if issubclass(cls, np.ndarray):
        return (
            f"{cls.__name__} is a subclass of numpy.ndarray; store numpy.asarray(array), "
            f"or call register_type({cls.__name__}, encode=…, decode=…)"
        )
    if issubclass(cls, np.record):
        return "numpy.record is an item of a record array; store item.item(), a tuple"
    return None


def _as_it_is(value: Value) -> Value:
    return value


def _copied(array: Array) -> Array:
    return deepcopy(array) if array.dtype.hasobject else array.copy(order="K")


# ---------------------------------------------------------------- arrays
_FEW = 4096
"""The most items of an array whose items take no bytes. A copy of it may take a byte for each."""


def _take_apart(array: Array) -> list[Value]:
    _check_empty(array)
    order: Literal["F", "C"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return [_described(array.dtype), order, array.tobytes(order), *array.shape]


def _put_together(state: Value) -> Array:
    parts: list[Value] = of_type(list, state)
    description, order, data, *shape = parts
    return _array(_dtype(description), tuple(shape), data, order)


def _array(dtype: np.dtype[Any], shape: tuple[int, ...], data: Any, order: Literal["F", "C"] = "C") -> Array:
    held = bytearray(of_type(bytes, data))
    array: Array = np.ndarray(shape, dtype, held, order=order)  # not copied: a copy would leave gaps out
    if array.shape != shape or array.nbytes != len(held):
        raise CodecError(f"{len(held):,} bytes are not an array of {len(shape)} dimensions and {_named(dtype)}")
    _check_empty(array)
    return array


def _check_empty(array: Array) -> None:
    if not array.itemsize and array.size > _FEW:
        raise CodecError(f"it has {array.size:,} items that take no bytes; {_FEW:,} are allowed")


def _of_scalar(scalar: np.generic) -> list[Value]:
    return [_described(scalar.dtype), scalar.tobytes()]


def _scalar_maker(cls: type[Any]) -> Callable[[list[Value]], Any]:
    def make(state: Value) -> Value:
        parts: list[Value] = of_type(list, state)
        description, data = parts
        made: Value = _array(_dtype(description), (), data)[()]
        if type(made) is cls:
            return made
        wanted = np.dtype(cls)
        if (wanted.kind, wanted.itemsize) != (made.dtype.kind, made.dtype.itemsize):
            raise CodecError(
                f"it was stored with {_named(made.dtype)}, but numpy.{cls.__name__} has {_named(wanted)} on this machine"
            )
        return made.astype(wanted)  # numpy made the other of two classes with the same bytes, as int64 and longlong

    return make


# ---------------------------------------------------------------- dtypes
def _described(dtype: np.dtype[Any]) -> Value:
    """A dtype as text, a structured one as a dict. Raises CodecError unless exactly this dtype can be made of that again."""
    if dtype.hasobject:
        raise CodecError(
            f"{_named(dtype)} holds Python objects; store array.tolist(), or give it a dtype of fixed size"
        )
    description = _description(dtype)
    made = _dtype(description)
    if made != dtype or dtype.metadata or (dtype.names is not None and dtype.type is not np.void):
        raise CodecError(
            f"{_named(dtype)} has metadata or a record class, which isn't stored; convert the array by astype"
        )
    return description


def _named(dtype: np.dtype[Any]) -> str:
    """A dtype in messages."""
    return f"dtype {dtype.str}" if dtype.names is None else f"a dtype of {len(dtype.names):,} fields"


def _description(dtype: np.dtype[Any]) -> Value:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_described(base), *shape]
    if dtype.names is not None:
        parts = [cast("dict[str, Value]", dtype.fields)[name] for name in dtype.names]
        return {
            "names": list(dtype.names),
            "formats": [_described(part[0]) for part in parts],
            "offsets": [part[1] for part in parts],
            "titles": [part[2] if len(part) == 3 else None for part in parts],
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
        }
    # The format of a long double depends on the machine, and can't be known from its size.
    return f"{dtype.str}/{np.finfo(dtype).nmant}" if dtype.char in "gG" else dtype.str


def _dtype(description: Any) -> np.dtype[Any]:
    """The dtype of a description; raises for a description of anything but a dtype of plain bytes."""
    parts: Value = description
    if isinstance(description, list):
        base, *shape = parts
        return np.dtype((_dtype(base), tuple(shape)))
    if isinstance(description, dict):
        parts = dict(parts)
        aligned = of_type(bool, parts.pop("aligned"))
        parts["formats"] = [_dtype(part) for part in parts["formats"]]
        return np.dtype(parts, align=aligned)
    text, _, mantissa = of_type(str, description).partition("/")
    if not _PLAIN.fullmatch(text):
        raise CodecError(f"the record's dtype, a {type(description).__name__}, is not one that the codec stores")
    dtype: np.dtype[Any] = np.dtype(text)
    if (str(np.finfo(dtype).nmant) if dtype.char in "gG" else "") != mantissa:
        raise CodecError(f"{_named(dtype)} has another size on the machine that stored it; store float64 or complex128")
    return dtype
