"""Models of pydantic in records: all their state is restored, and nothing is validated again."""

from __future__ import annotations

import enum
import inspect
import subprocess
import sys
import threading
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as model_dataclass

from pocket_plug.codec import Codec
from pocket_plug.errors import CodecError, UnregisteredTypeError

T = TypeVar("T")


class Mood(enum.Enum):
    GOOD = 1


class Tag(BaseModel):
    name: str
    weight: Decimal = Decimal(1)
    mood: Mood | None = None


class Article(BaseModel):
    id: int
    title: str = "untitled"
    tags: list[Tag] = []
    by_name: dict[str, Tag] = Field(default_factory=dict)
    pair: tuple[Tag, set[int]] | None = None
    next: Article | None = None


class Special(Article):
    """A subclass is a type of its own."""

    rank: int = 0


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: int


class Hidden(BaseModel):
    id: int
    _seen: list[Any] = PrivateAttr(default_factory=list)
    _late: int = PrivateAttr()


class Fixed(BaseModel):
    model_config = ConfigDict(frozen=True)
    id: int
    inner: Fixed | None = None


class Numbers(RootModel[list[int]]):
    pass


class Secretive(RootModel[list[int]]):
    _note: str = "n"


class Box(BaseModel, Generic[T]):
    content: T
    more: list[T] = []


class Strict(BaseModel):
    """Its validators change their input, so a second validation would be visible."""

    amount: int
    runs: int = 0

    @field_validator("amount")
    @classmethod
    def double(cls, value: int) -> int:
        return value * 2

    @model_validator(mode="after")
    def count(self) -> Strict:
        self.runs += 1
        return self

    def model_post_init(self, context: Any) -> None:
        self.runs += 100


class Area(BaseModel):
    side: int

    @computed_field
    @property
    def perimeter(self) -> int:
        return 4 * self.side

    @cached_property
    def area(self) -> int:
        return self.side**2


@model_dataclass
class Checked:
    amount: int

    @field_validator("amount")
    @classmethod
    def double(cls, value: int) -> int:
        return value * 2


DECLARED: list[Any] = [
    Article, Special, Open, Hidden, Fixed, Numbers, Secretive, Box[int], Box[Tag], Strict, Area, Checked,
]  # fmt: skip


def full_codec() -> Codec:
    return Codec(declared=DECLARED)


def all_of(value: Any) -> Any:
    """All state of a model, at every level, with the types: pydantic's == ignores a part of it."""
    if isinstance(value, BaseModel):
        private = getattr(value, "__pydantic_private__", None)
        extra = getattr(value, "__pydantic_extra__", None)
        fields = {name: all_of(value.__dict__[name]) for name in type(value).model_fields}
        return type(value), fields, private, extra, value.model_fields_set
    if isinstance(value, set):  # in an order of its own
        return set, sorted((all_of(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return type(value), [all_of(item) for item in value]
    if isinstance(value, dict):
        return {key: all_of(item) for key, item in value.items()}
    return type(value), value


def again(value: Any, codec: Codec | None = None) -> Any:
    codec = codec or full_codec()
    return codec.decode(codec.encode(value))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tags = st.builds(Tag, name=texts) | st.builds(
    Tag, name=texts, weight=st.decimals(allow_nan=False, allow_infinity=False), mood=st.sampled_from([*Mood, None])
)
articles = st.recursive(
    st.builds(Article, id=st.integers()) | st.builds(Special, id=st.integers(), rank=st.integers()),
    lambda inner: st.builds(
        Article,
        id=st.integers(),
        title=texts,
        tags=st.lists(tags, max_size=2),
        by_name=st.dictionaries(texts, tags, max_size=2),
        pair=st.none() | st.tuples(tags, st.sets(st.integers(), max_size=2)),
        next=inner,
    ),
    max_leaves=3,
)
models = (
    articles
    | st.builds(lambda fields: Open(id=1, **fields), st.dictionaries(st.text("abc_", min_size=1), st.integers() | tags))
    | st.builds(Box[int], content=st.integers(), more=st.lists(st.integers(), max_size=2))
    | st.builds(Box[Tag], content=tags)
    | st.lists(st.integers(), max_size=3).map(Numbers)
    | st.builds(Fixed, id=st.integers())
    | st.builds(Strict, amount=st.integers())
    | st.builds(Checked, amount=st.integers())
)
SHARED = full_codec()


@settings(max_examples=150, deadline=None)
@given(st.recursive(models, lambda parts: st.lists(parts, max_size=3) | st.tuples(parts, parts), max_leaves=4))
def test_any_model_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    """Fields, extra fields, private attributes and what was set, at any depth, in models and containers."""
    made = again(value, SHARED)
    assert made == value
    assert all_of(made) == all_of(value)
    assert all_of(SHARED.private(value)) == all_of(value)


def test_no_validator_runs_when_a_model_is_read() -> None:
    """They have run before; neither they nor `model_post_init` see the value again."""
    value = Strict(amount=3)
    assert (value.amount, value.runs) == (6, 101)
    assert all_of(again(value)) == all_of(value)
    assert again(Checked(3)).amount == 6


def test_a_value_that_would_not_pass_validation_is_restored_too() -> None:
    """A value that was assigned or made without validation is stored."""
    value = Tag.model_construct(name=5, weight="heavy", mood=[Tag(name="x")])
    assert all_of(again(value)) == all_of(value)


def test_set_fields_and_defaults_are_distinguished() -> None:
    """`exclude_unset` gives the same before and after."""
    value = Article(id=1, tags=[Tag(name="a")])
    made = again(value)
    assert made.model_fields_set == {"id", "tags"}
    assert made.model_dump(exclude_unset=True) == value.model_dump(exclude_unset=True)
    strange = Tag.model_construct(_fields_set={"mood", "no field"}, name="a")
    assert again(strange).model_fields_set == {"mood", "no field"}


def test_extra_fields_come_back() -> None:
    """Those that the class allows, and those that one call has allowed."""
    values: list[Any] = [Open(id=1, more=[2], _odd=3), Open(id=1)]
    if "extra" in inspect.signature(Tag.model_validate).parameters:  # since pydantic 2.12
        values.append(Tag.model_validate({"name": "n", "x": 1}, extra="allow"))
    for value in values:
        assert all_of(again(value)) == all_of(value)


def test_private_attributes_come_back() -> None:
    """Set, changed, or not set yet; each object has its own."""
    value = Hidden(id=1)
    value._seen.append(Tag(name="t"))
    made = again(value)
    assert made._seen == [Tag(name="t")]
    assert not hasattr(made, "_late")
    value._late = 5
    assert again(value)._late == 5
    secretive = Secretive([1])
    secretive._note = "changed"
    assert again(secretive)._note == "changed"
    assert again(secretive) == secretive


def test_a_cached_property_is_no_state() -> None:
    """It is computed again; any other attribute that is not a field is refused, rather than lost."""
    value = Area(side=3)
    assert value.area == 9
    assert again(value) == value
    value.__dict__["colour"] = "red"
    with pytest.raises(CodecError, match="its attribute 'colour' is not a field and would be lost"):
        again(value)


def test_a_field_that_is_not_set_is_refused() -> None:
    """A model without some of its fields can't be distinguished from a model of an older class."""
    removed = Article(id=1)
    del removed.title
    for value, name in [(Tag.model_construct(), "name"), (removed, "title")]:
        with pytest.raises(CodecError, match=f"its field '{name}' is not set"):
            again(value)


def test_a_subclass_never_passes_for_its_base() -> None:
    """Nor one specialization of a generic class for another."""
    codec = Codec(declared=[Article, Box[int]])
    for value in (Special(id=1), Box[str](content="a"), Box(content=1)):
        with pytest.raises(UnregisteredTypeError, match=rf"{type(value).__name__.split('[')[0]}.* is not registered"):
            codec.encode([value])
    assert type(again(Box[int](content=1))) is Box[int]


def test_a_model_is_known_with_all_that_its_fields_hold() -> None:
    """Types in annotations of fields and private attributes need no declaration of their own."""

    class Deep(BaseModel):
        boxes: dict[str, list[Box[Article]]]
        _moods: list[Mood] = []

    codec = Codec(declared=[Deep])
    for cls in (Deep, Box[Article], Article, Tag, Mood):
        assert codec.knows(cls)


def test_a_field_of_an_unknown_type_is_named() -> None:
    """The path leads into the model; a class without fields is registered with functions."""

    class Login(BaseModel):
        name: str
        password: SecretStr

    codec = Codec(declared=[Login])
    value = Login(name="n", password=SecretStr("s"))
    with pytest.raises(
        UnregisteredTypeError, match=r"value\[0\]\.password: pydantic\.types\.SecretStr is not registered"
    ):
        codec.encode([value])
    codec.register(SecretStr, encode=SecretStr.get_secret_value, decode=SecretStr)
    assert again(value, codec) == value


def test_a_model_with_other_state_needs_functions() -> None:
    """The state in slots of its own would be lost."""

    class Both(BaseModel):
        __slots__ = ("secret",)
        x: int = 0

    with pytest.raises(CodecError, match="not a plain dataclass"):
        Codec().register(Both)


def test_a_model_may_gain_fields_with_defaults_but_not_lose_any() -> None:
    """A field that was not stored gets its default, and counts as not set."""
    old, new = Codec(), Codec()

    def older() -> type[BaseModel]:
        class Item(BaseModel):
            a: int

        return Item

    class Item(BaseModel):
        a: int
        b: list[int] = Field(default_factory=lambda: [7])
        c: int = Field(default_factory=lambda data: data["a"] + 1)
        _p: str = "p"

    before = older()
    old.register(before, tag="item")
    new.register(Item, tag="item")
    record = old.encode(before(a=1))
    made = new.decode(record)
    assert (made, made._p, made.model_fields_set) == (Item(a=1, b=[7], c=2), "p", {"a"})
    with pytest.raises(CodecError, match="fields that the class doesn't have: b, c, _p"):
        old.decode(new.encode(made))

    class Other(BaseModel):
        a: int
        x: int

    new.register(Other, tag="other")
    old.register(before, tag="other")
    with pytest.raises(CodecError, match="without field 'x', which has no default"):
        new.decode(old.encode(before(a=1)))


def test_a_private_copy_of_a_model() -> None:
    """Changes of the copy don't reach the original, whether the model is registered or not; a frozen model is shared."""
    for codec in (full_codec(), Codec()):
        value = Article(id=1, tags=[Tag(name="a")])
        mine = codec.private(value)
        mine.tags[0].name = "b"
        assert value.tags[0].name == "a"
    fixed = Fixed(id=1, inner=Fixed(id=2))
    assert full_codec().private(fixed) is fixed


def test_a_model_with_a_lock_can_be_copied_but_not_stored() -> None:
    """The error names what can't be stored; a store in memory, which needn't encode it, accepts the model."""

    class Guarded(BaseModel):
        id: int
        _lock: Any = PrivateAttr(default_factory=threading.Lock)

    codec = Codec(declared=[Guarded])
    value = Guarded(id=1)
    with pytest.raises(UnregisteredTypeError, match=r"value\._lock: .*lock"):
        codec.encode(value)
    assert codec.private(value)._lock is value._lock


def test_pydantic_is_imported_by_the_program_only() -> None:
    """The codec works without it."""
    code = """
import sys
from pocket_plug.codec import Codec
codec = Codec()
codec.decode(codec.encode({1: {2}}))
for value in (object(), range(3)):
    try:
        codec.encode(value)
    except TypeError:
        pass
    codec.private(value)
print([name for name in ("pydantic", "numpy") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_pydantic_that_is_too_old_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """If something can't be imported from it, programs that don't use it aren't affected."""
    monkeypatch.setitem(sys.modules, "pocket_plug.codec.adapters_pydantic", None)  # importing it raises ImportError
    with pytest.raises(UnregisteredTypeError, match="Tag is not registered"):
        Codec(declared=[Tag]).encode(Tag(name="x"))
    assert again([1, (2,)], Codec()) == [1, (2,)]
