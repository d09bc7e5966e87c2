"""Models of pydantic: stored by their fields and private attributes, and restored without validation.

Imported by `adapters`, once the program has imported pydantic.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import BaseModel, RootModel
from pydantic_core import PydanticUndefined

from pocket_plug.errors import CodecError
from pocket_plug.primitives.values import Value

from .adapters import UPGRADED_BY, TypeAdapter, check_attributes, is_plain, listed, of_type

KNOWN: tuple[type, ...] = ()
COPIED = (BaseModel,)

# Keys of the state beside fields and private attributes, which can't have these names.
_EXTRA, _UNSET, _SET = "__extra__", "__unset__", "__set__"


def adapter(cls: type) -> TypeAdapter | None:
    """The adapter of a model; None for other classes, and for models with further state."""
    if not issubclass(cls, BaseModel) or not is_plain(cls, BaseModel.__slots__):
        return None
    parts = _Model(cls)
    frozen = bool(cls.model_config.get("frozen")) and not parts.private
    return TypeAdapter(parts.encode, parts.decode, parts.names, frozen, shape=parts.names)


def hints(cls: type) -> Iterable[Any] | None:
    """The types of a model's fields and private attributes."""
    if not issubclass(cls, BaseModel):
        return None
    found = [field.annotation for field in cls.model_fields.values()]  # for Box[int] it is int; the hints below have T
    try:
        return [*found, *typing.get_type_hints(cls).values()]
    except Exception:  # noqa: BLE001 - as for other classes: a declaration must not fail
        return found


def advice(cls: type) -> str | None:
    """None: for models with further state there is no particular advice."""
    return None


def _names(names: Collection[Value]) -> Collection[str]:
    """Names, checked to be texts: nobody can choose many texts whose hashes collide."""
    for name in names:
        of_type(str, name)
    return names


class _Model:
    """A model's state is a dict of its fields and private attributes, with up to three more items.

    `__extra__` has the values without a declared field. `__unset__` names the fields that were not set but got their
    default, `__set__` further names in `model_fields_set`. Each is there only if it is not empty.
    """

    def __init__(self, cls: type[BaseModel]) -> None:
        self.cls = cls
        self.fields = cls.model_fields
        self.private = cls.__private_attributes__
        self.names = (*self.fields, *self.private)
        self.is_root = issubclass(cls, RootModel)
        self.takes_extra = cls.model_config.get("extra") == "allow"

    def encode(self, value: BaseModel) -> dict[str, Value]:
        check_attributes(value, self.fields)
        fields = {name: item for name, item in value.__dict__.items() if name in self.fields}
        state = fields | (value.__pydantic_private__ or {})
        for name in self.names:
            if name not in state and (name in self.fields or self._default(name, fields) is not PydanticUndefined):
                raise CodecError(f"its field {name!r} is not set")
        extra = value.__pydantic_extra__ or {}
        if extra:
            state[_EXTRA] = extra
        there, named = {*fields, *extra}, value.model_fields_set
        if unset := there - named:
            state[_UNSET] = tuple(sorted(unset))
        if gone := named - there:
            state[_SET] = tuple(sorted(gone))
        return state

    def decode(self, state: dict[str, Value]) -> BaseModel:
        stored: dict[str, Value] = of_type(dict, state)
        state = stored.copy()
        extra: dict[str, Value] | None = state.pop(_EXTRA, {} if self.takes_extra else None)
        unset = set(_names(state.pop(_UNSET, ())))
        gone = _names(state.pop(_SET, ()))
        if extra is not None:
            _names(of_type(dict, extra))
        if lost := [name for name in state if name not in self.names]:
            raise CodecError(f"it was stored with fields that the class doesn't have: {listed(lost)}; {UPGRADED_BY}")
        fields: dict[str, Value] = {}
        private: dict[str, Value] = {}
        for name in self.names:
            item = state[name] if name in state else self._default(name, fields)
            if name not in state:
                unset.add(name)
            if name in self.private:
                if item is not PydanticUndefined:
                    private[name] = item
            elif item is PydanticUndefined:
                raise CodecError(
                    f"it was stored without field {name!r}, which has no default; give it one, or {UPGRADED_BY}"
                )
            else:
                fields[name] = item
        value = self.cls.__new__(self.cls)
        object.__setattr__(value, "__dict__", fields)
        object.__setattr__(value, "__pydantic_fields_set__", {*fields, *(extra or ()), *gone} - unset)
        if not self.is_root:  # which has no extra fields, and no room for private attributes unless it declares some
            object.__setattr__(value, "__pydantic_extra__", extra)
        if self.private or not self.is_root:
            object.__setattr__(value, "__pydantic_private__", private if self.private else None)
        return value

    def _default(self, name: str, fields: dict[str, Value]) -> Value:
        """The default of a field or private attribute; PydanticUndefined if there is none."""
        if name in self.private:
            return self.private[name].get_default()
        return self.fields[name].get_default(call_default_factory=True, validated_data=fields)
