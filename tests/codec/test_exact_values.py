"""Through a store: every value of the listed types is restored with equal values and the same types, at every level."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import BaseModel, ConfigDict

from pocket_plug import Key, SyncStore
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.layers import Bounding, Persistence


class Colour(enum.Enum):
    RED = 1
    BLUE = ("b", 2)


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: Any
    right: Any


class Row(msgspec.Struct):
    id: Any
    cells: Any = ()


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    value: Any
    more: dict[str, Any] = {}
    _note: Any = None


@dataclass
class Item:
    value: Any
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    value: Any


DECLARED = [Key(f"exact:{cls.__name__}", cls) for cls in (Colour, Access, Pair, Row, Model, Item, Frozen)]  # type: ignore[misc]


def exactly(value: Any) -> Any:
    """Equal only for values that are equal and have the same types at every level; NaN equals NaN."""
    kind = type(value)
    if isinstance(value, np.ndarray):
        return kind, str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return kind, str(value.dtype), value.tobytes()
    if isinstance(value, list | tuple):
        return kind, [exactly(item) for item in value]
    if isinstance(value, set | frozenset):
        return kind, sorted((exactly(item) for item in value), key=repr)
    if isinstance(value, dict):
        return kind, [(exactly(key), exactly(item)) for key, item in value.items()]
    if isinstance(value, Model):
        return kind, exactly(value.__dict__), exactly(value.model_extra), exactly(value._note), value.model_fields_set
    if isinstance(value, Item | Frozen):
        return kind, exactly(vars(value))
    if isinstance(value, Row):
        return kind, exactly(value.id), exactly(value.cells)
    return kind, repr(value)  # for all others, repr shows everything


def named(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The strategy with a short repr: Hypothesis builds it often, and warns if it is long."""
    return st.composite(lambda draw: draw(strategy))()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
zones = named(
    st.sampled_from([None, UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")])
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.sampled_from(["", "CET", "ü"]))
)
dtypes = named(npst.scalar_dtypes() | npst.byte_string_dtypes(max_len=4) | npst.unicode_string_dtypes(max_len=4))
scalars = named(dtypes.flatmap(lambda dtype: npst.arrays(dtype, ())).map(lambda array: array[()]))
hashable = named(
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**66) | st.floats() | st.complex_numbers() | texts
    | st.binary(max_size=8) | st.datetimes(timezones=zones, allow_imaginary=True) | st.times(timezones=st.just(UTC))
    | st.dates() | st.timedeltas() | zones | st.decimals(allow_nan=False) | st.uuids()
    | st.sampled_from([*Colour, *Access, Access.READ | Access.WRITE]) | scalars
)  # fmt: skip
hashables = named(
    st.recursive(
        hashable,
        lambda parts: (
            st.tuples(parts, parts)
            | st.frozensets(parts, max_size=3)
            | st.builds(Frozen, parts)
            | st.builds(Pair, parts, parts)
        ),
        max_leaves=3,
    )
)
arrays = named(
    st.builds(
        lambda array, turn: array.T if turn else array,
        (dtypes | named(npst.nested_dtypes(dtypes, max_leaves=3))).flatmap(
            lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        ),
        st.booleans(),
    )
)


def model(value: Any, fields: dict[str, Any], note: Any) -> Model:
    made = Model(value=value, **fields)
    made._note = note
    return made


values = st.recursive(
    hashables | st.binary(max_size=8).map(bytearray) | st.decimals() | arrays,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(hashables, parts, max_size=3)
        | st.dictionaries(texts, parts, max_size=3)
        | st.builds(Item, parts, st.lists(parts, max_size=2))
        | st.builds(Frozen, parts)
        | st.builds(Pair, parts, parts)
        | st.builds(Row, parts, parts)
        | st.builds(model, parts, st.dictionaries(st.sampled_from(["a", "b", "c"]), parts, max_size=2), parts)
    ),
    max_leaves=8,
)


@pytest.fixture(params=["sqlite", "through", "behind"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SyncStore, SyncStore]]:
    """One store that is written to, and one that reads the file without the first one's cache."""
    path = tmp_path / "state.db"
    file = SQLite(path, durability="process")
    match request.param:
        case "sqlite":
            layers = []
        case mode:
            layers = [Persistence(to=file, mode=mode), Bounding(max_entries=10)]
    with SyncStore(layers=layers) if layers else SyncStore(file) as writer, SyncStore(SQLite(path)) as reader:
        yield writer, reader


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values)
def test_any_value_comes_back_equal_and_of_the_same_types(stores: tuple[SyncStore, SyncStore], value: Any) -> None:
    """Read from the file, as another process would read it; and as part of a transaction."""
    writer, reader = stores
    writer.set("value", value)
    writer.flush()
    assert exactly(reader.require("value")) == exactly(value)
    with writer.transaction() as tx:
        tx.set("copy", tx.require("value"))
    writer.flush()
    assert exactly(reader.require("copy")) == exactly(value)
