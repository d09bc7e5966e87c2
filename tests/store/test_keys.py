"""Names in a store: what is allowed, how a template is filled, and that no value reaches into another scope."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pocket_plug import Graph, SyncStore, node
from pocket_plug.errors import ConflictError, KeyNameError, PocketError, ValueTypeError
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import checker, declared_types, type_name, with_contents
from pocket_plug.store.keys import Key, check_name, template_of
from pocket_plug.store.memory import Memory
from pocket_plug.store.naming import join_name, split_name


class Colour(Enum):
    RED = "red:ish"
    NONE = None


class Size(IntEnum):
    XL = 42


class Fruit(StrEnum):
    APPLE = "apple"


PROFILE = Key("user:{}:profile", dict)
TENANT = Key("tenant:{}")
PAIR = Key("{}:{}")
LOOSE = Key("{first?}:{}")


# ------------------------------------------------------------ how a key is spelt
def test_a_key_without_holes_is_its_template() -> None:
    """`str` of it is the name in the store."""
    assert str(Key("config:pricing")) == "config:pricing"
    assert Key("config:pricing").is_filled


def test_a_template_is_filled_in_order() -> None:
    """Each value fills one placeholder; a placeholder may have a name."""
    assert str(PROFILE(7)) == "user:7:profile"
    assert str(Key("order:{order}:{line}")("A", 2)) == "order:A:2"
    assert not PROFILE.is_filled
    assert PROFILE(7).is_filled


def test_a_hole_can_be_filled_by_its_name() -> None:
    """The values that have no name fill the other placeholders in order; a misspelt name, or too few values, are errors."""
    line = Key("order:{order}:{self}:{}:{order?}", int)
    assert line(3, self="s:", order="A") == line("A", "s:", 3, "A")
    assert line(3, self="s:", order="A").values == ("A", "s:", 3, "A")
    with pytest.raises(KeyNameError, match=r"has no placeholder {ordre}\. Did you mean 'order'\?"):
        line(3, ordre="A")
    for values, named, says in (
        ((), {}, "takes 4 value"),
        ((1, 2), {"order": 3, "self": 4}, "1 .* besides order, self, not 2"),
    ):
        with pytest.raises(KeyNameError, match=says):
            line(*values, **named)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Alice", "Alice"), ("a:b", "a%3Ab"), ("50%", "50%25"), ("a%3Ab", "a%253Ab"), ("{}", "{}"), (" ", " "),
        ("é🙂", "é🙂"),
        (7, "7"), (-1, "-1"), (0, "0"), (10**30, str(10**30)),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2026, 11, 24), "2026-11-24"), (datetime(2026, 11, 24, 3, 25), "2026-11-24 03%3A25%3A00"),
        (Colour.RED, "red%3Aish"), (Size.XL, "42"), (Fruit.APPLE, "apple"),
    ],
)  # fmt: skip
def test_a_value_has_its_colons_and_percents_escaped(value: object, text: str) -> None:
    """A value that fills a placeholder is one part of the name, whatever characters it has."""
    assert str(TENANT(value)) == f"tenant:{text}"


@pytest.mark.parametrize("value", [None, True, False, 1.5, b"bytes", ["list"], ("a", "b"), {}, object(), Colour.NONE])
def test_only_values_with_one_text_form_fill_a_hole(value: object) -> None:
    """A float, a bool or None could be written in several ways, or by accident; the error names key and value."""
    with pytest.raises(KeyNameError, match=r"Key\('tenant:\{\}'\) can't be filled with .*; give a str, int"):
        TENANT(value)


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
@example("a:b", "c", "a", "b:c")
@example("a%3Ab", "c", "a:b", "c")
def test_other_values_make_another_name(a: str, b: str, c: str, d: str) -> None:
    """No two fillings of a template are equal, and no filled name is in the scope of another one."""
    first, second = filled(PAIR, a, b), filled(PAIR, c, d)
    if first is None or second is None:
        return
    assert (first == second) == ((a, b) == (c, d))
    if a != c:
        left, right = str(TENANT(a)) + ":", str(TENANT(c)) + ":"
        assert not left.startswith(right)
        assert not right.startswith(left)


def filled(key: Key[Any], *values: str) -> str | None:
    """The name; None if no store can have it."""
    try:
        return str(key(*values))
    except KeyNameError:
        return None


@given(st.text(min_size=1, alphabet="a:%{}é3A2"))
def test_a_template_knows_the_names_it_makes(value: str) -> None:
    """`matches` is true for every filling, and false for names below or beside it."""
    name = str(PROFILE(value))
    assert PROFILE.matches(name)
    assert PROFILE(value).matches(name)
    assert not PROFILE.matches(f"{name}:more")
    assert not PROFILE.matches(name.replace(":profile", ":settings"))
    assert not PROFILE(value).matches(f"{name}x")


@given(st.text(alphabet="a:%{}é3A27pocket0"), st.text(min_size=1, alphabet="a:%pocket70"))
@example("pocket", "x")
@example("%70ocket", "x")
@example("", "x")
def test_parse_returns_the_values_of_a_name(first: str, second: str) -> None:
    """`parse` is the inverse of filling, and accepts nothing else: its result makes the same name."""
    name = str(LOOSE(first, second))
    parsed = LOOSE.parse(name)
    assert parsed is not None
    assert (parsed.values, str(parsed), parsed) == ((first, second), name, LOOSE(first, second))
    for other in (first, second, f"{first}:{second}", f"{name}:", f"{name}%"):
        parsed = LOOSE.parse(other)
        assert parsed is None or str(parsed) == other


def test_a_name_of_another_template_is_not_parsed() -> None:
    """Other literals, no value where one is required, or an escape that filling doesn't make."""
    for name in (
        "user:7",
        "user::profile",
        "user:7:profile:x",
        "user:a%:profile",
        "user:%3a:profile",
        "user:%61:profile",
        "",
    ):
        assert PROFILE.parse(name) is None
    assert PROFILE(7).parse("user:7:profile") == PROFILE(7)
    assert PROFILE(7).parse("user:8:profile") is None
    parsed = PROFILE.parse("user:7:profile")
    assert parsed == PROFILE(7)
    assert hash(parsed) == hash(PROFILE(7))


@given(st.lists(st.sampled_from(["{}", "{?}", "a", "-", ":", "--", "-a"]), max_size=7), st.text("a-:", max_size=9))
def test_of_several_ways_to_read_a_name_the_first_value_is_the_longest(parts: list[str], name: str) -> None:
    """As a regular expression reads it that tries all ways."""
    values = {"{}": "([^:]+)", "{?}": "([^:]*)"}
    tried = re.fullmatch("".join(["k:([^:]+)", *(values.get(part, part) for part in parts)]), f"k:{name}")
    read = Key("".join(["k:{}", *parts])).parse(f"k:{name}")
    assert (None if read is None else read.values) == (None if tried is None else tried.groups())


def test_a_name_is_read_in_linear_time() -> None:
    """Names may come from users, and a node's `writes` are compared with each name that it writes: these would take hours."""
    key, name = Key("u:{}-{}-{}-{}-{}"), f"u:{'-' * 1000}"
    assert not key.matches(f"{name}:x")
    assert key.parse(name) is not None
    assert not Key("u:{}-{}-{}-{}-{}x").matches(name)


def test_a_hole_may_be_empty_if_the_key_says_so() -> None:
    """A question mark in the placeholder allows it; otherwise an empty value is refused, with the way out."""
    key = Key("blob:{path?}:{}")
    assert str(key("", 1)) == "blob::1"
    assert key.matches("blob::1")
    assert not key.matches("blob:x:")
    with pytest.raises(KeyNameError, match=r"empty value; a placeholder that may be empty is written \{\?\}"):
        key("x", "")


# ------------------------------------------------------------ parts of names
@given(st.lists(st.text(alphabet="a:%pocket70é"), min_size=1))
@example(["pocket"])
@example(["pocket", "run"])
@example(["%70ocket"])
@example(["a", ""])
def test_parts_are_joined_and_split(parts: list[str]) -> None:
    """`split_name` is the inverse of `join_name`, and no joined name is a reserved one or its scope."""
    if parts == [""]:
        with pytest.raises(KeyNameError, match="empty"):
            join_name(*parts)
        return
    name = join_name(*parts)
    assert split_name(name) == tuple(parts)
    assert not f"{name}:".startswith("pocket:")


def test_a_joined_name_is_that_of_a_key() -> None:
    """There is one escaping: joined parts and a filled template give the same name."""
    assert join_name("user", "a:b", Size.XL) == str(Key("user:{}:{}")("a:b", Size.XL))
    assert join_name("pocket", "x") == str(Key("{}:x")("pocket"))


@pytest.mark.parametrize("name", ["", "50%", "a%3ab", "pocket:run:1", "pocket", "%61"])
def test_a_name_that_was_not_joined_is_not_split(name: str) -> None:
    """It may have been written in another way, and would be joined to another name."""
    with pytest.raises(KeyNameError, match="was not made by join_name"):
        split_name(name)


@pytest.mark.parametrize("part", [None, True, 1.5, b"bytes", ("a", "b")])
def test_only_values_with_one_spelling_are_joined(part: object) -> None:
    """As in a Key's placeholder."""
    with pytest.raises(KeyNameError, match=r"join_name can't join .*; give a str, int, UUID, date or Enum"):
        join_name("a", part)


def test_a_tenant_may_be_called_pocket() -> None:
    """Its scope is its own: it doesn't contain pocket_plug's records, nor the data of a tenant whose name
    is that escaped text.
    """
    store, tenant = SyncStore(), Key("{}")
    store.scope(tenant("pocket")).set("run", "mine")
    store.scope(tenant("%70ocket")).set("run", "another's")
    store.scope(join_name("pocket", "run")).set("x", 1)
    assert store.scope(tenant("pocket")).get("run") == "mine"
    assert list(store.keys()) == ["%2570ocket:run", "%70ocket:run", "%70ocket:run:x"]
    assert tenant.parse("%70ocket") == tenant("pocket")
    with pytest.raises(KeyNameError, match=r"make it by a Key, Key\('\{\}'\)\(tenant\), or by join_name\(tenant\)"):
        store.scope("pocket")
    with pytest.raises(KeyNameError, match="joined by join_name"):
        store.set("pocket:run", 1)


def test_matching_takes_the_template_literally() -> None:
    """Dots and brackets in it are no pattern, and a placeholder is never empty."""
    key = Key("v1.0[x]:{}")
    assert key.matches("v1.0[x]:7")
    assert not key.matches("v1a0[x]:7")
    assert not key.matches("v1.0[x]:")


# ------------------------------------------------------------ invalid names
@pytest.mark.parametrize("name", [None, 7, 1.5, b"user", ("user", "1"), ["user"], object()])
def test_a_name_is_a_string(name: object) -> None:
    """The message has the type that was given, and its size."""
    with pytest.raises(KeyNameError) as caught:
        check_name(name)
    assert str(caught.value) == f"a key is a string or a Key, not {summary(name)}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("pocket:", "reserved"),
        ("pocket:run:7", "reserved"),
        ("a\ud800", "lone surrogate"),
        ("\udfff", "lone"),
        ("k" * 1025, "has 1,025 bytes in UTF-8; a key, its scope included, may have 1,024: give a shorter one"),
        ("\U0001f642" * 257, "has 1,028 bytes"),
    ],
)
def test_some_strings_are_no_names(name: str, reason: str) -> None:
    """Empty and long ones, the reserved prefix, text that can't be encoded: for plain names and for templates alike."""
    with pytest.raises(KeyNameError, match=reason):
        check_name(name)
    with pytest.raises(KeyNameError, match=reason):
        Key(name)  # type: ignore[arg-type]


HALF = Key("half:{}")


@pytest.mark.parametrize("letter", ["k", "é", "\U0001f642"], ids=["1 byte", "2 bytes", "4 bytes"])
def test_a_written_name_has_at_most_1024_bytes(letter: str) -> None:
    """With its scope, in UTF-8, in every way of writing. A longer one is missing for reads, and can be removed."""
    each = len(letter.encode())

    def of(size: int) -> str:
        return letter * (size // each) + "a" * (size % each)

    scope = SyncStore().scope(of(511))
    writes: list[Callable[[str | Key], object]] = [
        lambda key: scope.set(key, 1),
        lambda key: scope.set_many({key: 1}),
        lambda key: scope.update(key, lambda n: n + 1, default=0),
        lambda key: scope.typed(int).set(key, 1),
    ]
    for write in writes:
        for key in (of(512), HALF(of(507))):
            write(key)
            assert scope.get(key) == 1
            assert scope.delete(key)
        for key in (of(513), HALF(of(508))):
            with pytest.raises(KeyNameError, match=r"bytes in UTF-8; a key, its scope included, may have 1,024"):
                write(key)
            assert scope.get(key) is None
            scope.delete_many([key])
    with pytest.raises(KeyNameError, match="may have 1,024"):
        scope.scope(of(513))
    with pytest.raises(KeyNameError, match="may have 1,024"):
        Graph(node(len), scope=of(1025))


@pytest.mark.parametrize(
    "name", ["pocket", "pockets:1", "Pocket:1", " pocket:1", "a:pocket:1", "%", ":", "\x00", "日本"]
)
def test_everything_else_is_a_name(name: str) -> None:
    """The reserved prefix reserves nothing else."""
    assert check_name(name) == name


def test_an_unfilled_template_is_no_name() -> None:
    """The error names the template and the way out; a store refuses it as well."""
    with pytest.raises(KeyNameError, match=r"'tenant:\{\}' has no values yet; fill it"):
        str(TENANT)
    with pytest.raises(KeyNameError, match="has no values yet"):
        SyncStore().get(TENANT)
    with pytest.raises(KeyNameError, match="has no values yet"):
        SyncStore().scope(TENANT)


@pytest.mark.parametrize("values", [(), ("a", "b")])
def test_the_number_of_values_must_be_right(values: tuple[str, ...]) -> None:
    """The error says how many the template needs, and how many were given."""
    with pytest.raises(KeyNameError, match=rf"Key\('tenant:\{{\}}'\) takes 1 value\(s\), not {len(values)}"):
        TENANT(*values)


def test_a_key_is_filled_once() -> None:
    """A filled key accepts no more values."""
    with pytest.raises(KeyNameError, match=r"is filled already; fill its template: Key\('tenant:\{\}'\)"):
        TENANT("a")("b")
    with pytest.raises(KeyNameError, match="takes 0"):
        Key("plain")("a")


COPIES = [copy.copy, copy.deepcopy, lambda key: pickle.loads(pickle.dumps(key))]  # noqa: S301 - its own


@pytest.mark.parametrize("copied", COPIES)
def test_a_key_can_be_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    """Also one that has been used, which holds a function that can't be pickled. The copy is checked as before."""
    store = SyncStore()
    for key in (PROFILE, PROFILE("a"), Key("limit", int | None), LOOSE("", 1)):
        key.checked({} if key.type is dict else None)
        other = copied(key)
        assert (other, hash(other), other.values, repr(other)) == (key, hash(key), key.values, repr(key))
    store.set(copied(PROFILE("a")), {"name": "Alice"})
    assert store.get(PROFILE("a")) == {"name": "Alice"}
    assert template_of(copied(PROFILE("a")).full_name()) == "user:{}:profile"
    with pytest.raises(ValueTypeError):
        store.set(copied(PROFILE)("a"), "Alice")


def test_an_empty_value_fills_no_hole() -> None:
    """`user::profile` would be the name for every user without an id."""
    with pytest.raises(KeyNameError, match="can't be filled with an empty value"):
        PROFILE("")


def test_a_value_cannot_make_a_reserved_name() -> None:
    """Nor a lone surrogate: the filled template is checked as a name, whichever part of it is the value."""
    assert str(Key("{}:{}")("pocket", "runs")) == "%70ocket:runs"
    with pytest.raises(KeyNameError, match="reserved"):
        Key("pocket{?}:{}")("", "runs")
    with pytest.raises(KeyNameError, match="lone surrogate"):
        TENANT("\ud800")
    assert str(TENANT("pocket:runs")) == "tenant:pocket%3Aruns"
    assert str(TENANT("pocket:é")) == "tenant:pocket%3Aé"


def test_a_name_error_is_a_value_error_too() -> None:
    """So callers that don't know pocket_plug can catch it."""
    assert issubclass(KeyNameError, ValueError)
    assert issubclass(KeyNameError, PocketError)


# ------------------------------------------------------------ what a key is
def test_a_key_is_not_a_string() -> None:
    """Otherwise a type checker would accept any value at it."""
    assert not isinstance(TENANT("a"), str)


@pytest.mark.parametrize("store", [SyncStore(), SyncStore().scope("inner")], ids=["whole", "scope"])
def test_a_key_finds_its_value_in_what_get_many_returns(store: SyncStore) -> None:
    """The names there are text. A lookup by the key that silently found nothing would make a program begin to count anew."""
    store.set_many({TENANT("a:b"): 1, TENANT("c"): 2})
    found: dict[Any, object] = {**store.get_many([TENANT("a:b"), TENANT("c"), TENANT("d")])}
    assert found == {"tenant:a%3Ab": 1, "tenant:c": 2}
    assert (found[TENANT("a:b")], found.get(TENANT("c")), found.get(TENANT("d"))) == (1, 2, None)
    assert {TENANT("c"), "tenant:c"} == {"tenant:c"}
    assert TENANT("c") != "tenant:d"
    assert TENANT not in {"tenant:{}"}


def test_keys_are_equal_by_template_values_and_type() -> None:
    """So they can be keys of a dict."""
    assert TENANT("a") == TENANT("a")
    assert hash(TENANT("a")) == hash(TENANT("a"))
    assert TENANT("a") != TENANT("b")
    assert TENANT("a") != TENANT
    assert Key("n", int) != Key("n", float)


def test_a_key_shows_how_it_was_made() -> None:
    """The repr has template, type and values."""
    assert repr(Key("a")) == "Key('a')"
    assert repr(Key("rows:{}", list[int])(7)) == "Key('rows:{}', list[int])(7,)"


def test_a_declared_type_is_known_once() -> None:
    """The codec finds it there; however often keys or views declare it, it takes no more memory."""

    class Size(IntEnum):  # no other test has declared it
        XL = 42

    before = len(declared_types)
    for _ in range(100):
        Key("declared:{}", Size)
        Key("sizes:{}", list[Size])
        Key("marked:{}", Annotated[Size, []])  # which has no hash
        SyncStore().typed(Size)
    assert declared_types[before:] == [Size, list[Size], Annotated[Size, []]]


# ------------------------------------------------------------ the type of its value
@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (int, 1, "1"), (float, 1, "1.0"), (str, "a", b"a"), (dict, {}, []), (Size, Size.XL, 42),
        (list[int], [1], ["a"]),
        (int | None, None, "none"), (Any, object(), None), (object, None, None), (tuple[int, str], (1, "a"), (1, 2)),
    ],
)  # fmt: skip
def test_a_value_is_checked_against_the_declared_type(type_: Any, good: object, bad: object) -> None:
    """Generics and unions too; as for type checkers, an int is a float."""
    key: Key[Any] = Key("typed:{}", type_)
    assert key("a").checked(good) is good
    assert key("b").checked(good) is good
    if type_ not in (Any, object):
        with pytest.raises(ValueTypeError) as caught:
            key("a").checked(bad)
        assert (
            str(caught.value) == f"key 'typed:a' is declared as {type_name(type_)}, the value is {with_contents(bad)}"
        )


def test_the_error_says_what_a_container_contains() -> None:
    """Else the type that was found could be the declared one: a list, where the key is declared as list[int]."""
    store = SyncStore()
    for type_, bad, found in (
        (list[int], ["a"], "list[str]"),
        (dict[str, int], {"a": [1]}, "dict[str, list[int]]"),
        (tuple[int, str], (1, 2), "tuple[int, int]"),
        (set[int], {"a"}, "set[str]"),
        (list[int], ["a", None, b"", 2.0], "list[str | NoneType | bytes | …]"),
        (int, [[[[1]]]], "list[list[list]]"),
    ):
        with pytest.raises(ValueTypeError) as caught:
            store.set(Key("k", type_), bad)
        assert str(caught.value).endswith(f", the value is {found}")


def test_the_check_of_a_type_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all keys that a template makes: to make one costs up to ten times as much as a check."""
    made: list[object] = []
    monkeypatch.setattr("pocket_plug.store.keys.checker", lambda hint: made.append(hint) or checker(hint))
    store, scores = SyncStore(), Key("scores:{}", list[int])
    for player in range(3):
        store.set(scores(player), [player])
        assert store.get(scores(player)) == [player]
    bad: Any = ["a"]
    with pytest.raises(ValueTypeError, match=r"is declared as list\[int\], the value is list"):
        store.set(scores(3), bad)
    assert made == [list[int]]


def test_a_key_without_a_type_holds_anything() -> None:
    """`Key("name")` without a type accepts every value."""
    for value in (None, 1, "a", object()):
        TENANT("a").checked(value)


# ------------------------------------------------------------ the template of a name
SPELT = Key("spelt:{}")


def test_a_name_has_the_templates_that_made_it() -> None:
    """Those of the key and of the scopes around it; plain text, which may be anything, has no template."""
    scope = TENANT("acme").full_name() + ":"
    assert template_of(SPELT(7).full_name()) == "spelt:{}"
    assert template_of(scope + SPELT(7).full_name()) == "tenant:{}:spelt:{}"
    assert template_of(scope + "plain") == template_of(scope) == "tenant:{}"
    assert template_of("around:" + SPELT(7).full_name()) == "spelt:{}"
    assert template_of("spelt:7") == ""
    assert template_of(Key[int]("config:limit").full_name()) == "config:limit"


@pytest.mark.parametrize("user", ["alice", 17])
def test_a_template_built_at_run_time_is_not_kept(user: object) -> None:
    """It may contain an id. Only a literal in the code is known to contain none."""
    names = [f"user:{user}", "user:" + str(user), f"user:{user}:{{}}"]
    keys: list[Key[Any]] = [Key(name) for name in names]
    assert [template_of(key.full_name()) for key in keys[:2]] == ["", ""]
    assert template_of(keys[2]("cart").full_name()) == ""
    assert [str(key) for key in keys[:2]] == [f"user:{user}", f"user:{user}"]


def test_names_that_are_returned_are_plain_text() -> None:
    """A template is passed with a name to the backend only: neither to users nor into stored data."""
    store = SyncStore(clock=lambda: 0.0)
    scope = store.scope(TENANT("acme"))
    scope.set(SPELT(1), 1)
    scope.set(SPELT(1), 2)
    scope.set_many({SPELT(2): 1, "plain": 1})
    with scope.transaction() as tx:
        tx.set(SPELT(3), tx.get(SPELT(1)))
        inside = [*tx.keys()]
    found = [*inside, *scope.keys(), *store.keys(), *scope.get_many([SPELT(1), "plain"]), str(SPELT(1))]
    assert {type(name) for name in found} == {str}
    assert inside == ["plain", "spelt:1", "spelt:2", "spelt:3"]
    memory = store.stack.inner
    assert isinstance(memory, Memory)
    assert {type(name) for name in memory._table.entries} == {str}
    assert sys.getsizeof(memory._table.entries) == sys.getsizeof(dict.fromkeys(store.keys()))


def test_a_conflict_names_plain_text() -> None:
    """A caller that keeps the names of a conflict keeps no templates."""
    store = SyncStore()
    with pytest.raises(ConflictError) as caught, store.transaction() as tx:
        tx.update(SPELT(1), lambda n: n + 1, default=0)
        store.set(SPELT(1), 5)
    assert {type(name) for name in caught.value.keys} == {str}
