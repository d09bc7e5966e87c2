"""Does one declared type fit another: what type checkers accept is accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, ItemsView, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    LiteralString,
    NamedTuple,
    Never,
    NewType,
    NoReturn,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
    runtime_checkable,
)

import pytest
from typing_extensions import TypeAliasType

from pocket_plug import Graph, node
from pocket_plug.primitives.typefits import fits

T = TypeVar("T")
C = TypeVar("C", contravariant=True)
UserId = NewType("UserId", int)
Maybe = TypeAliasType("Maybe", int | None)  # as `type Maybe = int | None` from Python 3.12 on
Many = TypeAliasType("Many", list[int])


@dataclass
class User:
    name: str


class Admin(User):
    pass


@dataclass
class Box(Generic[T]):
    content: T


class IntBox(Box[int]):
    pass


class Taker(Generic[C]):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict):
    title: str


class Film(Movie):
    year: int


class Size(IntEnum):
    XL = 42


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Named(Protocol):
    name: str


@runtime_checkable
class Closes(Protocol):
    def close(self) -> None: ...


class File:
    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (int, int), (int, float), (int, complex), (float, complex), (bool, int), (bool, float), (Admin, User),
        (User, object),
        (User, Any), (Any, User), (list[int], list[int]), (list[int], list), (list[int], Sequence[int]), (int, int | None),
        (int | str, str | int), (None, None), (type(None), int | None), (list[Any], list[int]), (Literal["a"], str),
        ("Nowhere", int), (int, "Nowhere"), (T, int), (UserId, int), (Annotated[int, "s"], int),
        (int, float | None), (int | None, float | None), (bool, float | None), (int, Union[float, str]),  # noqa: UP007
        (int | float, float), (Admin | None, User | None), (int, T), (list[int], list[T]), (Size, float),
        # generic types: without their parameters, of narrower ones, of another kind
        (list, list[int]), (dict, dict[str, Any]), (list[list], list[list[int]]), (Box, Box[int]), (Box[int], Box),
        (IntBox, Box[int]),
        (list[int], Sequence[float]), (dict[str, int], Mapping[str, float]), (Counter[str], dict[str, int]),
        (type, type[int]),
        (Generator[int, None, None], Iterable[int]), (ItemsView[str, int], Iterable[tuple[str, int]]),
        (dict[str, int], Iterable[str]), (enumerate[str], Iterable[tuple[int, str]]), (enumerate[str], enumerate[str]),
        (type[Color], Iterable[Color]), (type[Color], type[Enum]),
        (str, Sequence[str]), (bytes, Iterable[int]), (Callable[..., Any], Callable[[int], str]),
        (Taker[User], Taker[Admin]),
        # tuples
        (tuple[int, ...], Sequence[int]), (tuple[int, str], Sequence[int | str]), (tuple, tuple[int, str]),
        (Point, tuple[int, int]),
        (tuple[int, int], tuple[int, ...]), (tuple[int, ...], tuple[int, int]),
        (tuple[int, *tuple[str, ...]], tuple[int, str, str]),
        # what `isinstance` can't check
        (Film, Movie), (Film, Movie | None), (list[Film], list[Movie]), (Movie, Mapping[str, object]),
        (Annotated[Film, "s"], Movie),
        (User, Named), (User, Named | None), (list[User], list[Named]), (File, Closes), (Closes, Named),
        (User, Taker[int] | Named),
        # literals and type aliases
        (Literal["a"], Literal["a", "b"]), (Literal[1], float), (bool, Literal[True, False]),
        (Color, Literal[Color.RED, Color.BLUE]),
        (Literal[Color.RED], Color), (None, Literal["a", None]), (LiteralString, str), (UserId, float),
        (UserId, UserId | None),
        (int, Annotated[int, "s"]), (Annotated[int, "s"], Annotated[int, "t"]), (NoReturn, str), (Never, str),
        (Maybe, int | None), (int, Maybe), (Many, list[int]), (Many, Many),
    ],
)  # fmt: skip
def test_a_type_that_fits_is_accepted(given_: Any, wanted: Any) -> None:
    """Equal, narrower, or unknown: if in doubt, yes."""
    assert fits(given_, wanted)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (str, int), (float, int), (int, str), (User, Admin), (list[int], list[str]), (list, tuple), (int | None, int),
        (int | str, int), (dict[str, int], dict[str, str]), (object, int), (None, int), (int | None, float),
        (str, int | None),
        (float | None, int | None), (complex, float), (User | int, User),
        (list[int], Sequence[str]), (Box[int], Box[str]), (str, Iterable[int]), (Iterator[int], list[int]),
        (type[int], type[str]), (type[int], Iterable[int]), (type[Color], type[int]),
        (enumerate[str], Iterable[str]),
        (Callable[[int], int], Callable[[int], str]), (list[list[int]], list[list[str]]),
        (tuple[int, str], tuple[int]), (tuple[int, str], tuple[str, int]), (tuple[int, str], Sequence[int]),
        (tuple[int, ...], tuple[str]),
        (int, Movie), (Movie, int), (User, Closes), (Movie, list[str]),
        (Literal["a", "c"], Literal["a", "b"]), (str, Literal["a"]), (bool, Literal[1, 0]), (Color, Literal[Color.RED]),
        (None, Literal["a"]), (Literal["a"], int), (int, UserId), (UserId, str), (Annotated[str, "s"], int),
        (Maybe, int), (Many, list[str]), (str, Many), (list[Many], list[int]),
    ],
)  # fmt: skip
def test_a_type_that_doesnt_fit_is_refused(given_: Any, wanted: Any) -> None:
    """Another type, a wider one, another parameter."""
    assert not fits(given_, wanted)


def nested(name: str) -> Any:
    """An alias that contains itself: `type Nested = list[Nested]`, which Python has since 3.12."""
    alias = TypeAliasType(name, Any)
    with suppress(AttributeError, TypeError):
        object.__setattr__(alias, "__value__", list[alias])
    return alias


def test_aliases_that_contain_themselves_are_accepted() -> None:
    """Comparing them part by part would never end."""
    one, other = nested("One"), nested("Other")
    assert fits(one, other)
    assert fits(list[one], dict[str, int] | list[other])


def test_a_graph_whose_nodes_hand_on_typed_dicts_and_protocols_runs() -> None:
    """A graph that type checkers accept is not refused before its first run."""

    @node
    def find(title: str) -> Film:
        return {"title": title, "year": 1950}

    @node
    def label(movie: Movie) -> User:
        return User(movie["title"])

    @node
    def greet(named: Named) -> list:
        return [named.name]

    @node
    def count(names: list[str]) -> int:
        return len(names)

    assert Graph(find >> label >> greet >> count).run_sync("Harvey") == 1
