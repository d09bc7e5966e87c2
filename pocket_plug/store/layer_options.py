"""Recipes: a layer's options before it is built. Each option is checked against its annotated type, and then frozen.

Options from Python and from TOML are checked alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from functools import cache, wraps
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from typing_extensions import dataclass_transform

from pocket_plug.errors import ConfigError, is_fault, suggest
from pocket_plug.primitives.names import snake_case
from pocket_plug.primitives.redaction import found, summary
from pocket_plug.primitives.secret_options import hidden_of, is_secret, secret, shown
from pocket_plug.primitives.typechecks import checker, type_name, union_members

from .backend import Backend


@dataclass_transform(kw_only_default=True, field_specifiers=(field, secret))
class Recipe(Backend):
    """Options as data: the annotated fields of a class, given by name, shown by `repr`, never changed.

    A subclass's `__init__` and `__post_init__` may set any attribute; after that the object is frozen. The layer that
    `build` makes of it keeps the options, and has other attributes, which may change.
    """

    name: ClassVar[str]
    """What configuration calls it: the class's name in snake case."""

    plugin: ClassVar[object] = None
    """The plugin that offers it: the object in the Pocket that made this recipe. None for a recipe made in code."""

    _written: ClassVar[Mapping[str, Any]] = {}
    """The options that come from the environment, as the configuration writes them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = snake_case(cls.__name__)
        has_init = "__init__" in cls.__dict__
        dataclass(kw_only=True, eq=False, repr=False)(cls)
        a_dataclass: Any = cls  # unseen by type checkers
        for taken in ("inner", "plugin"):
            if any(option.name == taken for option in dataclasses.fields(a_dataclass)):
                raise TypeError(
                    f"{cls.__name__}: an option can't be called {taken!r}, which every layer has; rename it"
                )
        cls.__init__ = _fixing(cls.__init__, cls, checks=not has_init)  # type: ignore[method-assign] # a guard around it

    def made_by(self, plugin: object, written: Mapping[str, Any]) -> None:
        """Note, if a Pocket makes it by name, the plugin's object and the options that come from the environment."""
        self.__dict__.update(plugin=plugin, _written=written)

    def __repr__(self) -> str:
        recipe: Any = self  # a dataclass, unseen by type checkers
        options = ((f, getattr(self, f.name)) for f in dataclasses.fields(recipe) if f.repr)
        texts = (f"{f.name}={shown(f, self._written.get(f.name, v))!r}" for f, v in options if v != f.default)
        return f"{type(self).__name__}({', '.join(texts)})"

    def _hidden(self) -> dict[str, str]:
        """The texts of options that an error must not quote, each with its replacement."""
        recipe: Any = self
        return hidden_of(dataclasses.fields(recipe), vars(self), self._written)

    def __setattr__(self, attribute: str, value: object) -> None:
        self._refuse_change(attribute)
        object.__setattr__(self, attribute, value)

    def __delattr__(self, attribute: str) -> None:
        self._refuse_change(attribute)
        object.__delattr__(self, attribute)

    def _refuse_change(self, attribute: str) -> None:
        own: Any = self.__dict__
        recipe: Any = self
        if "_is_fixed" not in own:  # its `__init__` is not done yet
            return
        if attribute in recipe.__dataclass_fields__:
            raise FrozenInstanceError(
                f"{self.name}'s option {attribute!r} can't be changed: options are fixed once a recipe is made. "
                f"Make another recipe, with dataclasses.replace(recipe, {attribute}=…), and a store of it"
            )
        if "inner" not in own:
            raise FrozenInstanceError(
                f"{self.name}'s recipe takes no attribute {attribute!r}: it is data, of which any number of stacks may "
                "be built. Set what one stack needs in on_build"
            )


def fitted(kind: Any, option: str, given: Any) -> tuple[Any, str | None]:
    """The value for an option, and None; if it doesn't fit, the value and the allowed types in words.

    A list becomes a tuple if the option is one. A hint that can't be resolved is not checked. A bool is no number.
    """
    hint = hints_of(kind).get(option, Any)
    for value in (given, tuple(given)) if given.__class__ is list else (given,):
        if any(_fits(value, part) for part in union_members(hint)):
            return value, None
    return given, _in_words(hint)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):  # every item; beartype looks at one of them
        items: list[Any] = [*value] if isinstance(value, tuple) else [value]
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in items)
    return checker(hint)(value) and (value.__class__ is not bool or hint in (bool, Any, object))


def _fixing(init: Callable[..., None], kind: type[Recipe], checks: bool) -> Callable[..., None]:
    """The `__init__` of a recipe's class, which freezes the object. It `checks` the options, unless the class's own one does."""

    @wraps(init)
    def __init__(self: Any, *others: Any, **options: Any) -> None:
        if checks and others:
            names = ", ".join(each.name for each in dataclasses.fields(self))
            raise TypeError(f"{kind.__name__} takes its options by their names: {names}")
        init(self, *others, **(_checked(kind, options) if checks else options))
        if type(self) is kind:  # else a subclass's `__init__` isn't done yet
            self.__dict__["_is_fixed"] = True

    return __init__


def _checked(kind: type[Recipe], options: dict[str, Any]) -> dict[str, Any]:
    """The options, checked. Raises ConfigError for one of another type than its field's, TypeError for an unknown one."""
    a_dataclass: Any = kind
    fields = {each.name: each for each in dataclasses.fields(a_dataclass)}
    for option, given in options.items():
        if option not in fields:
            raise TypeError(
                f"{kind.__name__} has no option {option!r}; it has: {', '.join(fields)}.{suggest(option, fields)}"
                f"{_unannotated(kind, option)}"
            )
        options[option], wanted = fitted(kind, option, given)
        if wanted is not None:
            raise ConfigError(f"{kind.name}'s option {option!r} must be {wanted}, not {_given(fields[option], given)}")
    return options


def _unannotated(kind: type[Recipe], option: str) -> str:
    """The way out, if the class has a value with this name that isn't an option, since it has no annotation."""
    value = vars(kind).get(option)
    annotated = f"{option}: {type(value).__name__} = …"
    return (
        f" To make it one, annotate it in the class: {annotated}"
        if isinstance(value, int | float | str | tuple)
        else ""
    )


def _given(option: dataclasses.Field[Any], given: Any) -> str:
    """How an error shows a value, as errors in TOML do: text as it is, unless it is a secret."""
    if is_secret(option):
        return summary(given)
    return f"{shown(option, given)!r:.80}" if isinstance(given, str) else found(given)


@cache
def hints_of(kind: Hashable) -> dict[str, Any]:
    """The types of a layer's options, by name; none where they can't be resolved."""
    try:
        return get_type_hints(kind)
    except BaseException as error:  # a hint that can't be resolved here is unchecked, never an error
        if not is_fault(error):
            raise
        return {}


def _in_words(hint: Any) -> str:
    parts = union_members(hint)
    choices = [repr(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    types = ["None" if part is type(None) else type_name(part) for part in parts if get_origin(part) is not Literal]
    return f"one of {', '.join(choices + types)}" if choices else " | ".join(types)
