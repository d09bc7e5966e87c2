"""`Key[T]`: a name in a store that knows the type of its value.

A name's parts are joined by ":". In the values that fill a template ":" is escaped, so no value reaches into another scope.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Generic, LiteralString, final, overload

from typing_extensions import TypeForm, TypeVar

from pocket_plug.errors import KeyNameError, ValueTypeError
from pocket_plug.primitives.names import MAX_KEY_BYTES as MAX_KEY_BYTES
from pocket_plug.primitives.names import MAX_NAME_BYTES as MAX_NAME_BYTES
from pocket_plug.primitives.names import RESERVED as RESERVED
from pocket_plug.primitives.names import NamePart
from pocket_plug.primitives.names import check_name as check_name
from pocket_plug.primitives.names import check_prefix as check_prefix
from pocket_plug.primitives.typechecks import check_type, checker, declared_types, type_found, type_name
from pocket_plug.primitives.values import Hint, Value

from .naming import Template

K = TypeVar("K", default=Any)
V_co = TypeVar("V_co", covariant=True)


class FullName(str):
    """The name of an entry or a scope that was made with a Key. It carries the Key's template, which telemetry shows.

    Text that is added before or after it is part of the name, and part of the template only if a Key made it too. For all
    other purposes it is a `str`. Code that keeps names for long should keep `str(name)`, which is smaller.

    >>> TENANT, INVOICE = Key("tenant:{}"), Key("invoice:{}")
    >>> scope = TENANT("acme").full_name() + ":"
    >>> template_of(scope + INVOICE(17).full_name()), template_of(scope + "secret"), template_of("secret")
    ('tenant:{}:invoice:{}', 'tenant:{}', '')
    """

    __slots__ = ("template",)
    template: str

    def __add__(self, rest: str, /) -> FullName:
        name = _new(FullName, _concatenated(self, rest))
        name.template = self.template if rest.__class__ is str else f"{self.template}:{template_of(rest)}"
        return name

    def __radd__(self, before: str, /) -> FullName:
        return _full_name(before + str(self), self.template) if before else self


_new, _concatenated = str.__new__, str.__add__  # for speed: each operation in a Key's scope makes a name
_new_key: Any = object.__new__


def _full_name(text: str, template: str) -> FullName:
    name = _new(FullName, text)
    name.template = template
    return name


def template_of(name: str) -> str:
    """The template that a name carries; "" for plain text, which may have anything in it."""
    return name.template if isinstance(name, FullName) else ""


def _is_literal(text: str, frame: FrameType | None) -> bool:
    """Is a text one of the constants of the code that runs in a frame? A text that was built at run time isn't."""
    while frame is not None and frame.f_globals.get("__name__") == "typing":  # `Key[int]("age")` is called from there
        frame = frame.f_back
    return frame is not None and any(constant is text for constant in frame.f_code.co_consts)


class _Declared:
    """What a Key was declared with. All keys that are made by filling it share this, so its check is made once."""

    __slots__ = ("fits", "is_shown", "template", "type")

    def __init__(self, template: Template, type: Any, is_shown: bool) -> None:
        self.template, self.type = template, type
        self.is_shown = is_shown
        """May telemetry show the template?"""
        self.fits: Callable[[object], bool] | None = None
        """Is a value of this type? Made when it is first needed: some types import beartype."""

    def __getstate__(self) -> tuple[None, dict[str, object]]:
        """For pickle and copy: without the check, which is a function, and is made again where it is needed."""
        return None, {"template": self.template, "type": self.type, "is_shown": self.is_shown, "fits": None}


class ReadAs(Generic[V_co, K]):
    """A `Key[K]` in the signatures of methods that read: covariant, so its value can be used as any wider type.

    With the invariant `Key[T]` alone, mypy refuses `print(await store.require(AGE))`: it takes T from the context.
    """

    __slots__ = ()


@final
class Key(ReadAs[K, K], Generic[K]):
    """A typed key, or a template for many keys: the name, the type of the value, and the template that telemetry may show.

    >>> REVENUE = Key("revenue:{}", float)
    >>> str(REVENUE("eu")), str(REVENUE("a:b"))
    ('revenue:eu', 'revenue:a%3Ab')

    A value may be a str, int, UUID, date or Enum; it may be empty if the placeholder is `{?}` or `{name?}`. A Key is not a
    `str`: a type checker would then accept any value at it. Raises KeyNameError for names and values that can't be used.

    Telemetry shows a template that is a literal where the Key is made, as above. It doesn't show a template that is built at
    run time (`Key(f"user:{id}")`, which pyright refuses), since there may be an id in it.
    """

    __slots__ = ("_declared", "_name", "values")

    @overload
    def __init__(self: Key, template: LiteralString, type: None = None, /) -> None: ...
    @overload  # `type` alone may mean Key.type
    def __init__(self, template: LiteralString, type: builtins.type[K], /) -> None: ...
    @overload
    def __init__(self, template: LiteralString, type: TypeForm[K], /) -> None: ...
    def __init__(self, template: LiteralString, type: Any = None, /) -> None:
        parsed = Template(template)
        if type is not None:
            check_type(type, f"Key {template!r}")
        caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] # as namedtuple does: there is no other way
        self._declared = _Declared(parsed, type, _is_literal(template, caller))
        self.values: tuple[object, ...] = ()
        self._name: str | None = None if parsed.placeholders else self._named(template)
        if type is not None:
            declared_types.append(type)

    def _named(self, name: str) -> str:
        declared = self._declared
        return _full_name(name, declared.template.text) if declared.is_shown else name

    @property
    def template(self) -> str:
        """The name with its placeholders, as it was declared."""
        return self._declared.template.text

    @property
    def type(self) -> Any:
        """The type of the value, None if none was declared."""
        return self._declared.type

    def __call__(self, /, *values: NamePart, **named: NamePart) -> Key[K]:
        """The key with its placeholders filled: those of these names by the named values, all others in order."""
        if self.values:
            raise KeyNameError(f"{self!r} is filled already; fill its template: Key({self.template!r})")
        template = self._declared.template
        given: tuple[object, ...] = values
        if named or template.placeholders != len(values):
            given = template.in_order(values, named)
        return self._filled(given, template.filled(given))

    def _filled(self, values: tuple[object, ...], name: str) -> Key[K]:
        filled: Key[K] = _new_key(Key)
        filled._declared, filled.values = self._declared, values
        filled._name = self._named(name)
        return filled

    def __str__(self) -> str:
        return str(self.full_name())

    def full_name(self) -> str:
        """Its name in the store, which carries the template where telemetry may show that."""
        if self._name is None:
            raise KeyNameError(f"key template {self.template!r} has no values yet; fill it: KEY(value)")
        return self._name

    @property
    def is_filled(self) -> bool:
        """Are its placeholders filled, or has it none?"""
        return self._name is not None

    def checked(self, value: Value) -> K:
        """The value, checked against the declared type; raises ValueTypeError if it has another type.

        An object of a class that was redefined since, with the same fields, is converted to the newest definition.
        """
        declared, checked = self._declared, value
        if declared.type is not None:
            fits = declared.fits
            if fits is None:
                fits = declared.fits = checker(declared.type)
            if not fits(value):
                wanted = f"key {self._name or self.template!r} is declared as {type_name(declared.type)}, the value is"
                checked = newest(value, declared.type, fits, wanted)
        return checked  # type: ignore[no-any-return]  # of type K, or of any type if none was declared

    def matches(self, name: str) -> bool:
        """Is `name` this key, or one that this template can become?

        >>> Key("user:{}:profile").matches("user:7:profile"), Key("user:{}").matches("user:7:profile")
        (True, False)
        """
        if self._name is not None:
            return name == self._name
        return self._declared.template.matched(name) is not None

    def parse(self, name: str) -> Key[K] | None:
        """The key with its placeholders filled so that `name` is its name; None if the template doesn't make it.

        The `values` are text, also where the Key was filled with numbers. The name is without the scope, as in `keys`.

        >>> user = Key("user:{}:profile").parse("user:a%3Ab:profile")
        >>> user.values if user else None
        ('a:b',)
        """
        if self._name is not None:
            return self if name == self._name else None
        values = self._declared.template.values(name)
        return None if values is None else self._filled(values, name)

    def __repr__(self) -> str:
        return f"Key({self.template!r}{''.join(f', {type_name(self.type)}' if self.type else '')})" + (
            repr(self.values) if self.values else ""
        )

    def __eq__(self, other: object) -> bool:
        """A filled key equals its name too, so that `found[KEY(7)]` finds its value in what `get_many` returns, by name."""
        if isinstance(other, str):
            return other == self._name
        mine = (self.template, self._name, self.type)
        return isinstance(other, Key) and mine == (other.template, other._name, other.type)

    def __hash__(self) -> int:
        return hash(self.template if self._name is None else self._name)


def newest(value: Value, declared: Hint, fits: Callable[[object], bool], wanted: str) -> Value:
    """A value that doesn't fit, converted: objects of a former definition of a class become objects of the newest one.

    A notebook's cell that runs twice and a module that is reloaded define their classes anew, and a store may still have
    objects of the former ones. If both definitions have the same fields that is no difference. Raises ValueTypeError for any
    other value: `wanted`, and the type that was found.
    """
    from pocket_plug.codec import default_codec  # needed here only, and not cheap to import

    renewed = default_codec.renewed(value)
    if fits(renewed):
        return renewed
    raise ValueTypeError(f"{wanted} {type_found(declared, value)}{missing_layer(value)}")


def missing_layer(value: Value) -> str:
    """For an error: which layer has stored an object in place of the value, and isn't in the stack that has read it."""
    layer: object = getattr(value.__class__, "stored_by_layer", None)
    return f"; the layer `{layer}` has stored this in place of a value: open the store with that layer" if layer else ""
