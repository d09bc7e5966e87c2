"""Does a value have a declared type: what is checked, what is accepted without a check, and that the check never fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
    runtime_checkable,
)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typing_extensions import TypedDict as ExtendedTypedDict

from pocket_plug import Key, SyncStore, ValueTypeError
from pocket_plug.primitives.typechecks import checker

T = TypeVar("T")
UserId = NewType("UserId", int)


@dataclass
class User:
    name: str


class Admin(User):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict):
    title: str
    year: int


class Extended(ExtendedTypedDict):
    title: str
    year: NotRequired[int]


class Size(IntEnum):
    XL = 42


class Box(Generic[T]):
    pass


class Named(Protocol):
    name: str


@runtime_checkable
class Closing(Protocol):
    def close(self) -> None: ...


class Touchy(type):
    """A metaclass whose classes raise in isinstance."""

    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("don't ask")


CASES: list[tuple[Any, list[object], list[object]]] = [
    (int, [1, True, -(10**30)], ["1", 1.0, None, b""]),
    (float, [1.5, 1, True], ["1.5", None, 1j]),
    (complex, [1j, 1.0, 1], ["1"]),
    (str, ["", "a"], [b"a", None]),
    (bool, [True], [1, None]),
    (type(None), [None], [0, False]),
    (None, [None], [0, False]),
    (User, [User("a"), Admin("a")], ["a", {"name": "a"}, User]),
    (Point, [Point(1, 2)], [(1, 2)]),
    (list, [[], ["a"]], [()]),
    (list[int], [[], [1]], [["a"], (1,), None]),
    (list[float], [[1, 1.5]], [["a"]]),
    (dict[str, int], [{}, {"a": 1}], [{1: 1}, {"a": "b"}, []]),
    (tuple[int, str], [(1, "a")], [(1,), (1, 2), [1, "a"]]),
    (tuple[int, ...], [(), (1, 2)], [("a",)]),
    (set[int], [{1}], [{"a"}, [1]]),
    (Sequence[int], [[1], (1,)], [{1}, 1]),
    (Mapping[str, int], [{"a": 1}], [{"a": "b"}]),
    (int | None, [1, None], ["a"]),
    (Optional[int], [1, None], ["a"]),  # noqa: UP045 - both spellings
    (Union[int, str], [1, "a"], [None, 1.5]),  # noqa: UP007
    (float | None, [1, 1.5, None], ["a"]),
    (Literal["a", 1], ["a", 1], ["b", 2]),
    (Annotated[int, "seconds"], [1], ["a"]),
    (UserId, [1], ["a"]),
    (type[User], [User, Admin], [int, User("a")]),
    (Callable[[], int], [len, lambda: 1], [1]),
    (Closing, [open], [1, "a"]),
    (Box, [Box()], [1]),
    (Box[int], [Box()], [1]),
    (Any, [1, None, object()], []),
    (object, [1, None, object()], []),
]


class Closes:
    def close(self) -> None: ...


@pytest.mark.parametrize(("hint", "good", "bad"), CASES, ids=[str(case[0]) for case in CASES])
def test_values_of_other_types_are_refused(hint: Any, good: list[object], bad: list[object]) -> None:
    """Plain classes, generics to their first level, unions, literals; as for type checkers an int is a float."""
    if hint is Closing:
        good = [Closes()]
    check = checker(hint)
    assert [value for value in good if not check(value)] == []
    assert [value for value in bad if check(value)] == []


@pytest.mark.parametrize("hint", [Movie, Extended])
def test_a_typed_dict_is_a_mapping(hint: Any) -> None:
    """`isinstance` raises TypeError for a TypedDict; the check doesn't."""
    check = checker(hint)
    assert check({"title": "M", "year": 1931})
    assert not check(7)
    assert not check(["title"])


@pytest.mark.parametrize("hint", [Named, "Nowhere", list["Nowhere"], 7, T])  # noqa: F821
def test_a_type_that_cant_be_resolved_accepts_everything(hint: Any) -> None:
    """A protocol not made for run time, a name that can't be resolved, no hint at all: every value is accepted."""
    check = checker(hint)
    values: list[object] = [["a"]] if hint == list["Nowhere"] else [1, None, "a", object()]  # noqa: F821
    assert [value for value in values if not check(value)] == []


@given(
    st.sampled_from([case[0] for case in CASES] + [Movie, Extended, Named, "Nowhere", T, Iterable[T]]),
    st.one_of(
        st.none(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.none())
    ),
)
def test_the_check_never_raises(hint: Any, value: object) -> None:
    """For any hint and any value, the answer is yes or no."""
    assert checker(hint)(value) in (True, False)


def test_an_array_of_another_dtype_is_named_with_its_dtype() -> None:
    """ "… numpy.dtype[numpy.float64]], not ndarray" didn't say what was wrong."""
    with pytest.raises(ValueTypeError, match=r"float64\]+, the value is ndarray of int16$"):
        SyncStore().set(Key("grid", NDArray[np.float64]), np.arange(3, dtype="i2"))
