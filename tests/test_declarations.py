"""What can't work is refused where it is written, or by `validate()`, in our words: it names what is meant."""

from __future__ import annotations

from typing import Any

import pytest

from pocket_plug.chain import Action
from pocket_plug.concurrency import each
from pocket_plug.errors import GraphError
from pocket_plug.graph import Graph
from pocket_plug.node import Node, node
from pocket_plug.sync import SyncStore, SyncWriter


def findings(main: Any) -> tuple[str, ...]:
    """What `validate()` has against a graph of this node."""
    with pytest.raises(GraphError) as error:
        Graph(main, name="g").validate()
    return error.value.findings


def a_node(*methods: str, **more: Any) -> Node[Any, Any]:
    """A node with these methods, each written as `name(self, parameter, ...)`."""
    namespace: dict[str, Any] = dict(more)
    for method in methods:
        exec(f"def {method}: ...", namespace)  # noqa: S102 - its parameters are what the test is about
    namespace.pop("__builtins__", None)
    cls: Any = type("Charge", (Node,), namespace)
    return cls()  # type: ignore[no-any-return]


# ---------------------------------------------------------------- names of phases
@pytest.mark.parametrize(
    ("method", "meant"),
    [("exce(self, n)", "exec"), ("exe(self, n)", "exec"), ("Exec(self, n)", "exec"), ("execute(self, n)", "exec"),
     ("exec_async(self, n)", "exec"), ("prepare(self, store, n)", "prep"), ("perp(self, store, n)", "prep"),
     ("pots(self, store, n, prepared, result)", "post"), ("post_process(self, store, n, p, r)", "post"),
     ("fall_back(self, prepared, error)", "fallback"), ("exec_fallback(self, prepared, error)", "fallback"),
     ("on_sucess(self, store, output)", "on_success"), ("onFailure(self, store, error)", "on_failure"),
     ("on_error(self, store, error)", "on_failure"), ("on_completed(self, store)", "on_complete"),
     ("exce(self)", "exec")],
)  # fmt: skip
def test_a_misspelt_phase_is_a_finding(method: str, meant: str) -> None:
    """It would never be called, and the node do nothing: the finding names class, method and what was meant."""
    name = method.partition("(")[0]
    (found,) = findings(a_node(method))
    assert found.startswith(f"Charge.{name} is no phase and no hook, so nobody calls it. Did you mean {meant!r}?")
    assert f"helper of yours, name it _{name}" in found


def test_a_misspelt_phase_beside_others_is_a_finding() -> None:
    """Also in a node that does something, in a base class, in an item of a fan-out, and each of several."""
    both = a_node("exec(self, n)", "pots(self, store, n, prepared, result)", "on_sucess(self, store, output)")
    assert [found.split()[0] for found in findings(both)] == ["Charge.pots", "Charge.on_sucess"]
    derived: Any = type("Derived", (type(both),), {})
    assert len(findings(derived())) == 2
    assert findings(each(both))[0].startswith("in 'each_charge': Charge.pots")


@pytest.mark.parametrize(
    "helpers",
    [("exec(self, n)", "execute(self, n)"), ("exec(self, n)", "prepare(self, n)"), ("exec(self, n)", "post_process(self, n)"),
     ("exec(self, n)", "callback(self, done, total)"), ("exec(self, n)", "cost(self, a, b, c, d)"),
     ("exec(self, n)", "posts(self)"), ("exec(self, n)", "report(self, store, n)"),
     ("exec(self, n)", "_exce(self, n)"), ("post(self, store, n, prepared, result)", "process(self, n)"), ()],
)  # fmt: skip
def test_helpers_keep_their_names(helpers: tuple[str, ...]) -> None:
    """What a phase doesn't take, another first letter, an underscore, a helper beside the phase itself: no finding."""
    Graph(a_node(*helpers)).validate()


def test_methods_of_a_node_without_phases_are_a_finding() -> None:
    """Nobody calls `run`: the finding lists what there is to override. Its own class's properties and values are free."""
    (found,) = findings(a_node("run(self, n)"))
    assert found == "Charge overrides no phase, so nobody calls its run; the phases are: prep, exec, fallback, post"
    Graph(a_node(limit=5, kind=int, total=property(lambda self: 5))).validate()


# ---------------------------------------------------------------- their parameters
@pytest.mark.parametrize(
    ("method", "says"),
    [("prep(self, n)", "Charge.prep takes n, but is called with 2: (store, input); write `def prep(self, store, input)`"),
     ("exec(self, store, n)", "Charge.exec takes store, n, but is called with 1: (prepared); "
                              "write `def exec(self, prepared)`"),
     ("exec(n)", "Charge.exec takes nothing, but is called with 1"), ("exec()", "Charge.exec takes no self"),
     ("exec(self, *, n)", "Charge.exec takes n by keyword"),
     ("fallback(self, error)", "Charge.fallback takes error, but is called with 2: (prepared, error)"),
     ("post(self, store, n)", "write `def post(self, store, input, prepared, result)`"),
     ("on_success(self, store)", "called with 2: (store, output)"),
     ("on_failure(self, error)", "called with 2: (store, error)"),
     ("on_complete(self)", "Charge.on_complete takes nothing, but is called with 1: (store)")],
)  # fmt: skip
def test_a_phase_with_other_parameters_is_a_finding(method: str, says: str) -> None:
    """It would raise when the run gets there: the finding shows what it takes, and what to write."""
    (found,) = findings(a_node(method))
    assert says in found


@pytest.mark.parametrize(
    "methods",
    [("exec(self, *args)",), ("post(self, store, *rest)",), ("exec(self, n, times=2)",),
     ("prep(self, store, n, *, fresh=True)", "fallback(self, a, b)", "exec(self, n, /)"), ("on_success(self, *_, **__)",)],
)  # fmt: skip
def test_phases_may_take_more_than_they_are_given(methods: tuple[str, ...]) -> None:
    """`*args`, defaults, keywords with a default, any names."""
    Graph(a_node(*methods)).validate()


def test_phases_may_be_static_and_class_methods() -> None:
    """They count without `self`, and with one too many they are a finding too."""

    class Right(Node[int, int]):
        @staticmethod
        def exec(n: int) -> int:
            return n + 1

        @classmethod
        def post(cls, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            return result * 2

    assert Graph(Right(), store=SyncStore()).run_sync(1) == 4

    class Wrong(Node[int, int]):
        @staticmethod
        def exec(self: Any, n: int) -> int:  # type: ignore[override]
            return n

    assert findings(Wrong())[0].startswith("Wrong.exec takes self, n, but is called with 1: (prepared)")


def test_functions_as_nodes_are_held_to_the_same() -> None:
    """`@node`, `@node.post` and `node.of`: each finding names the phase and the node. Python's own callables are fine."""

    def two(a: int, b: int) -> int:
        return a

    assert findings(node(two)) == ("exec of 'two' takes a, b, but is called with 1: (prepared)",)  # type: ignore[call-overload]
    post: Any = node.post
    post = post(name="keep")(lambda n: n)
    assert findings(post) == ("post of 'keep' takes n, but is called with 2: (store, input)",)
    of: Any = node.of
    assert findings(of(prep=lambda n: n, exec=lambda n: n, post=lambda store, n: n, name="of")) == (
        "prep of 'of' takes n, but is called with 2: (store, input)",
        "post of 'of' takes store, n, but is called with 4: (store, input, prepared, result)",
    )
    for fine in (int, len, print, str.upper):
        Graph(node(fine)).validate()  # type: ignore[call-overload]


def test_a_phase_that_is_no_function_is_a_finding() -> None:
    """A value in a phase's place, of whatever type."""
    assert findings(a_node(exec=5)) == ("Charge.exec is int, not a function",)


def test_an_action_without_brackets_is_a_finding() -> None:
    """`declined = Action[str]` is a class: called, it would make an Action, and the node leave by "default"."""
    (found,) = findings(a_node("exec(self, n)", declined=Action[str]))
    assert found == "Charge.declined is the class Action, not one of them; write declined = Action[str]()"
    assert findings(a_node("exec(self, n)", declined=Action))[0].endswith("write declined = Action()")
