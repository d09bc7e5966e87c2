"""Mistakes in nodes are refused when they are written, or by `validate()`, with an error that suggests the right form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import pytest

from pocket_plug.codec import register_type
from pocket_plug.errors import (
    ConfigError,
    GraphError,
    InputError,
    PhaseError,
    PocketError,
    RouteError,
    RunSuspendedError,
    UndeclaredKeyError,
    ValueTypeError,
)
from pocket_plug.graph.durable.worker import Worker
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.ask import Answered, Ask
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.nodes.chain import END, Action, Next
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.graph.runs.runs import SyncRuns
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.keys import Key
from pocket_plug.store.sync import SyncReader, SyncStore, SyncWriter
from pocket_plug.telemetry import observe


def findings(main: Any) -> tuple[str, ...]:
    """What `validate()` finds in a graph of this node."""
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
    return cls()


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
    """It would never be called, and the node would do nothing: the finding names class, method and the suggestion."""
    name = method.partition("(")[0]
    (found,) = findings(a_node(method))
    assert found.startswith(
        f"Charge.{name} is neither a phase nor a hook, so it is never called. Did you mean {meant!r}?"
    )
    assert f"helper of yours, name it _{name}" in found


def test_a_misspelt_phase_beside_others_is_a_finding() -> None:
    """Also in a node with other phases, in a base class, in an item of a fan-out, and each of several."""
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
    """Another first letter, an underscore, a helper beside the phase itself: no finding."""
    Graph(a_node(*helpers)).validate()


def test_methods_of_a_node_without_phases_are_a_finding() -> None:
    """Nobody calls `run`: the finding lists what can be overridden. Properties and values of the class are allowed."""
    (found,) = findings(a_node("run(self, n)"))
    assert found == "Charge overrides no phase, so its run is never called; the phases are: prep, exec, fallback, post"
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
    """It would raise when it is called: the finding shows the right parameters, and what to write."""
    answered_for = ("exec(self, n)",) if method.startswith("fallback") else ()
    (found,) = findings(a_node(method, *answered_for))
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
        def exec(self: Any, n: int) -> int:
            return n

    assert findings(Wrong())[0].startswith("Wrong.exec takes self, n, but is called with 1: (prepared)")


def test_functions_as_nodes_have_the_same_rules() -> None:
    """`@node`, `@node.post` and `node.of`: each finding names the phase and the node. Python's own callables are accepted."""

    def two(a: int, b: int) -> int:
        return a

    (found,) = findings(node(two))
    assert found.startswith(
        "a node's function takes one argument, its input; 'two' takes a, b. Several values come as one tuple"
    )
    assert found.endswith("to use the store, put @node.post before the function")
    begin: Any = lambda: 1  # noqa: E731 - named by the option
    (found,) = findings(node(name="begin")(begin))
    assert found.startswith(
        "a node's function takes one argument, its input; 'begin' takes nothing. Write `def begin(_)`"
    )
    assert "graph.run(None)" in found
    post: Any = node.post
    post = post(name="keep")(lambda n: n)
    assert findings(post) == ("post of 'keep' takes n, but is called with 2: (store, input)",)
    of: Any = node.of
    assert findings(of(prep=lambda n: n, exec=lambda n: n, post=lambda store, n: n, name="of")) == (
        "prep of 'of' takes n, but is called with 2: (store, input)",
        "post of 'of' takes store, n, but is called with 4: (store, input, prepared, result)",
    )
    for fine in (int, len, print, str.upper):
        Graph(node(fine)).validate()


def test_a_phase_that_is_no_function_is_a_finding() -> None:
    """A value in a phase's place, of any type."""
    assert findings(a_node(exec=5)) == ("Charge.exec is int, not a function",)


def test_a_result_that_no_post_turns_into_the_output_is_a_finding() -> None:
    """`Node[int, int, str]` needs a `post`. Type checkers don't see that it is missing, and nothing checks the last output."""

    class Rate(Node[int, int, str]):
        def exec(self, n: int) -> str:
            return f"rate {n}"

    class Full(Rate):
        def post(self, store: Any, n: int, prepared: int, result: str) -> int:
            return len(result)

    class Leaves(Node[int, int, bool | Next[str]]):
        def exec(self, n: int) -> bool | Next[str]:
            return Next("other", "x") if n else True

    class Vague(Node[int, int, Any]):
        def exec(self, n: int) -> Any:
            return n

    class OnlyNext(Node[int, int, Next[str]]):
        def exec(self, n: int) -> Next[str]:
            return Next("other", "x")

    class BareNext(Node[int, int, str | Next]):  # type: ignore[type-arg]  # without brackets, as untyped code has it
        def exec(self, n: int) -> str | Next[str]:
            return Next("other", "x")

    class Own(Rate):
        def exec(self, n: int) -> int:  # type: ignore[override]  # untyped code does this
            return n

    def as_number(function: Callable[[Any, int], str]) -> Callable[[Any, int], int]:
        return wraps(function)(lambda self, n: len(function(self, n)))  # type: ignore[return-value]

    class Decorated(Node[int, int, int]):
        @as_number
        def exec(self, n: int) -> str:
            return "x" * n

    (found,) = findings(Rate())
    assert found == "node 'rate' has no post, so it leaves with what exec returns, str, though it declares int"
    for fine in (Full(), Leaves(), Vague(), OnlyNext(), BareNext(), Own(), Decorated()):
        Graph(fine).validate()


class Judge(Node[int, int]):
    late = Action[int]("too_late")

    def exec(self, n: int) -> Any:
        return self.late  # `post` may call it

    def post(self, store: SyncWriter, n: int, prepared: int, late: Any) -> Any:
        return {1: late, 2: Judge.late, 3: END}.get(n, late(n))


@pytest.mark.parametrize(
    ("n", "way_out"), [(1, "self.too_late(output)"), (2, "self.too_late(output)"), (3, "END(output)")]
)
def test_an_action_that_is_returned_without_a_call_is_no_output(n: int, way_out: str) -> None:
    """`return self.late` would return the action as a value, by "default": the run would end there with it."""
    judge, minus = Judge(), node(lambda n: -n, name="minus")
    ends = Graph(judge, judge.late >> minus, name="court")
    with pytest.raises(PhaseError) as ended:
        ends.run_sync(n)
    assert str(ended.value) == (
        f"node 'judge' of graph 'court' returned an action itself; call it with the output: return {way_out}"
    )
    with pytest.raises(InputError) as continued:
        Graph(judge >> plus, judge.late >> minus, name="court").run_sync(n)
    assert str(continued.value).endswith(f"call it with the output: return {way_out}")
    assert ends.run_sync(5) == -5


def test_a_durable_run_refuses_an_action_that_is_returned_without_a_call(tmp_path: Path) -> None:
    """With the same words, not as a value that lacks a codec; and nothing of the node is written."""

    class Writes(Judge):
        def post(self, store: SyncWriter, n: int, prepared: int, late: Any) -> Any:
            store.set("judged", n)
            return late

    judge, minus = Writes(), node(lambda n: -n, name="minus")
    with SyncStore(f"sqlite:///{tmp_path / 'state.db'}") as store:
        ends = Graph(judge, judge.late >> minus, store=store, name="court")
        continues = Graph(judge >> plus, judge.late >> minus, store=store, name="court")
        for run_id, graph in (("a", ends), ("b", continues)):
            with pytest.raises(PhaseError) as refused:
                graph.run_sync(1, run_id=run_id)
            assert str(refused.value) == (
                "node 'writes' of graph 'court' returned an action itself; call it with the output: return self.too_late(output)"
            )
        assert not store.has("judged")


def test_an_action_without_brackets_is_a_finding() -> None:
    """`declined = Action[str]` is a class: if it is called, it makes an Action, and the node would leave by "default"."""
    (found,) = findings(a_node("exec(self, n)", declined=Action[str]))
    assert found == "Charge.declined is the class Action, not an instance; write declined = Action[str]()"
    assert findings(a_node("exec(self, n)", declined=Action))[0].endswith("write declined = Action()")


def test_a_retry_that_is_an_attribute_is_a_finding() -> None:
    """Nothing would be tried again. A dataclass's field of this name is its own affair."""
    (found,) = findings(a_node("exec(self, n)", retry=Retry()))
    assert found == (
        "Charge.retry is an attribute, so nothing is tried again; options are written beside the base class: "
        "class Charge(Node[…], retry=Retry(…))"
    )

    @dataclass
    class Polling(Node[int, int]):
        retry: Retry = Retry()  # noqa: RUF009 - it is frozen

        def exec(self, n: int) -> int:
            return n + self.retry.attempts

    assert Graph(Polling()).run_sync(1) == 4


# ---------------------------------------------------------------- refused when it is written
@node
def plus(n: int) -> int:
    return n + 1


class Charge(Node[int, int]):
    declined = Action[str]()

    def exec(self, n: int) -> int:
        return n


def bare(n: int) -> int:
    return n


@wraps(plus)
def decorated(n: int) -> int:
    return plus(n)


charge: Any = Charge()
WRITTEN: dict[str, tuple[Callable[[], Any], str]] = {
    "a class before >>": (lambda: Charge >> plus, "the class Charge is neither a node nor a chain .* make an instance of it"),
    "a class before a chain": (lambda: Charge >> (plus >> charge), "make an instance of it"),
    "a function before >>": (lambda: bare >> plus, "put @node before the function"),
    "a function behind >>": (lambda: plus >> bare, "put @node before the function"),
    "a decorator above @node": (lambda: plus >> decorated, "put @node above all others"),
    "a decorator above @node, before >>": (lambda: decorated >> plus, "put @node above all others"),
    "an action of the class": (lambda: Charge.declined >> plus, "use that of an instance"),
    "the end as a node": (lambda: plus >> END, "END is returned by a node's post: return END"),
    "a way out behind >>": (lambda: plus >> charge.declined, "belongs on the left of >>"),
    "a list": (lambda: Graph([plus, charge]), "give each chain as an argument of its own"),
    "a list in a chain": (lambda: plus >> [plus, charge], "To run several nodes at the same time, use gather"),  # type: ignore[operator]
    "an action by its type": (lambda: Action(str), r"Action\[str\]\(\)"),
    "a way out for an action": (lambda: charge.on(charge.declined), "an action must be a name or an Action"),
    "an action without a name": (lambda: charge.on(""), "an action must be a name or an Action"),
    "@node on a node": (lambda: node(charge), "exec can't be .*; give a function"),
    "@node on a class of nodes": (lambda: node(Charge), "exec can't be .*; give a function"),
    "@node with a name": (lambda: node("fetch"), "exec can't be a str of 5 characters; give a function, and options"),
    "node.of of nothing": (lambda: node.of(), "exec can't be None; give a function"),
    "node.of, misspelt": (lambda: node.of(exce=bare), "exce"),
    "a retry for a post": (lambda: node.post(lambda store, n: n).with_options(retry=Retry()), "takes no retry"),
    "a graph's store": (lambda: Graph(plus, store="sqlite:///a.db"), r"give Store\('sqlite:///a.db'\)"),
    "a graph's steps": (lambda: Graph(plus, max_steps="3"), "max_steps can't be a str of 1 character"),
    "a graph's depth": (lambda: Graph(plus, max_depth=0), "max_depth can't be 0"),
    "a graph's name": (lambda: Graph(plus, name=5), "name can't be 5"),
    "a graph's scope": (lambda: Graph(plus, scope=5), "a key is a string or a Key, not int"),
    "a graph's empty scope": (lambda: Graph(plus, scope=""), "must not be empty"),
    "a graph's reserved scope": (lambda: Graph(plus, scope="pocket"), "the scope 'pocket' is reserved"),
    "a graph's grace": (lambda: Graph(plus, clean_up_grace=-1), "clean_up_grace can't be -1"),
    "a graph's records": (lambda: Graph(plus, keep_finished="soon"), "keep_finished can't be 'soon'"),
    "a question": (lambda: Ask(bool, question=5), "Ask: question can't be 5; give a text, or a function"),
    "an empty question": (lambda: Ask(bool, question=""), "Ask: question can't be an empty str"),
    "a question of nothing": (lambda: Ask(bool, question=lambda: 1), "takes nothing"),
    "an answer's type": (lambda: Ask(5, question="?"), "int is given where a type is expected"),
    "an ask's name": (lambda: Ask(bool, question="?", name=""), "name can't be an empty str"),
    "a key's type": (lambda: Key("hits", 0), "Key 'hits': int is given where a type is expected, such as int"),
    "a key's type, quoted": (lambda: Key("hits", "int"), "a name in quotes can't be looked up"),
    "a key's type in a list": (lambda: Key("hits", [int]), "list is given where a type is expected"),
    "a key's placeholder": (lambda: Key("user:{user.id}"), "part of a placeholder; a placeholder is written {} or {name}"),
    "a key's half placeholder": (lambda: Key("user:{"), "has a brace that isn't part of a placeholder"),
    "a typed store": (lambda: SyncStore().typed("int"), "a typed store: str is given where a type is expected"),
    "values in a list": (lambda: SyncStore().set_many([("a", 1)]), "set_many takes a dict of keys and values, not a list"),
    "a type that is none": (lambda: register_type(3), "only a class can be registered, not int"),
    "a configuration in code": (lambda: Pocket({"store": {}}), "can't be a dict of 1 item; give the path of its file"),
    "a plugin's name": (lambda: Pocket(plugins="slow"), "Pocket: plugins can't be a str of 4 characters; give a list: plugins="),
    "one plugin": (lambda: Pocket(plugins=Charge), r"Pocket: plugins can't be .*; give a list: plugins=\[…\]"),
    "a blocked plugin": (lambda: Pocket(block="metrics"), "Pocket: block can't be .*; give a list: block="),
    "a required plugin": (lambda: Pocket(required="metrics"), "Pocket: required can't be .*; give a list: required="),
    "a worker of a graph": (lambda: Worker(Graph(plus)), r"needs a list of graphs, not Graph: Worker\(\[graph\]\)"),
    "the runs of a URL": (lambda: SyncRuns("sqlite:///a.db"), "takes a Store, .* not a str of 14 characters"),
    "a terminal": (lambda: observe(terminal="no"), "terminal can't be a str of 2 characters; give True, False or None"),
    "a store's clock": (lambda: SyncStore(clock=5), "clock can't be int; give a function"),
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
def test_common_mistakes_are_refused_when_they_are_written(written: str) -> None:
    """With an error of pocket_plug that says what to write."""
    make, says = WRITTEN[written]
    with pytest.raises((PocketError, TypeError), match=says):
        make()


def test_a_question_may_be_a_text(tmp_path: Path) -> None:
    """It is asked unchanged, whatever the input."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        graph = Graph(Ask(bool, question="Ready?"), store=store)
        with pytest.raises(RunSuspendedError) as suspended:
            graph.run_sync(5, run_id="r")
        assert suspended.value.question == "Ready?"
        assert graph.resume_sync("r", answer=True) == Answered(5, True)


misspelt: Any = node
MISSPELT: dict[str, tuple[Callable[[], Any], str]] = {
    "a class's": (lambda: type("N", (Node,), {}, retires=3), "a node has no option 'retires'. Did you mean 'retry'?"),
    "a function's": (
        lambda: misspelt(retries=3),
        "a node of a function has no option 'retries'. Did you mean 'retry'?",
    ),
    "one that a function hasn't": (
        lambda: misspelt(reads=()),
        "a node of a function has no option 'reads'; write a class, which may have it: class Work(Node, reads=…)",
    ),
    "one that a post hasn't": (
        lambda: misspelt.post(retry=Retry()),
        "a node of a post has no option 'retry'; write a class, which may have it: class Work(Node, retry=…)",
    ),
    "one that functions haven't": (
        lambda: misspelt.of(exec=len, fallback=len),
        "a node of functions has no option 'fallback'; write a class, which may have it: class Work(Node), with the "
        "method fallback",
    ),
    "a hook": (
        lambda: misspelt.of(exec=len, on_complete=len),
        "a node of functions has no option 'on_complete'; write a class, which may have it: class Work(Node), with the "
        "method on_complete",
    ),
    "a post's": (lambda: misspelt.post(write=()), "a node of a post has no option 'write'. Did you mean 'writes'?"),
    "functions'": (lambda: misspelt.of(exce=len), "a node of functions has no option 'exce'. Did you mean 'exec'?"),
    "a node's that is like none": (
        lambda: type("Old", (Node,), {}, max_retries=3),
        "a node has no option 'max_retries'; it has: executor, isolation, name, reads, retry, timeout, trace, writes",
    ),
    "a graph's that is like none": (
        lambda: misspelt_graph(plus, logger=1),
        "a graph has no option 'logger'; it has: clean_up_grace, keep_finished, max_depth, max_steps, name, scope, store, "
        "timeout, upgrade, version",
    ),
    "a graph's": (lambda: misspelt_graph(plus, sotre=1), "a graph has no option 'sotre'. Did you mean 'store'?"),
}
misspelt_graph: Any = Graph


@pytest.mark.parametrize("written", MISSPELT)
def test_a_misspelt_option_gets_a_suggestion(written: str) -> None:
    """With the same words for a node's class, a node made of functions, and a graph."""
    make, says = MISSPELT[written]
    with pytest.raises(TypeError) as error:
        make()
    assert str(error.value) == says


def test_an_async_question_is_refused() -> None:
    """It is computed between two writes, and can't be awaited."""

    async def question(n: int) -> str:
        return "Sure?"

    with pytest.raises(ConfigError, match="Ask: question is `async def`; write `def`"):
        Ask(bool, question=question)


def test_next_takes_a_name() -> None:
    """`Next` with an action in place of its name is a RouteError that says how to write it."""

    class Leaves(Node[int, int]):
        declined = Action[str]()

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> Any:
            return Next(self.declined, "no")

    leaves = Leaves()
    with pytest.raises(
        RouteError, match=r"left by Out, which is not the name of an action.*return self.action\(output\)"
    ):
        Graph(leaves, leaves.declined >> node(len)).run_sync(1)


def test_types_of_every_kind_can_be_declared() -> None:
    """Classes, and typing's forms of them, are checked at a Key."""
    store = SyncStore()
    for declared, right, wrong in [(int | None, None, "x"), (list[int], [1], ["x"]), (Literal["a", "b"], "a", "c"),
                                   (dict[str, int] | str, "x", 5), (Any, 5, None)]:  # fmt: skip
        key: Key[Any] = Key("declared", declared)
        store.set(key, right)
        if wrong is not None:
            with pytest.raises(ValueTypeError):
                store.set(key, wrong)


def test_a_fallback_without_an_exec_is_a_finding() -> None:
    """It would never be called: it replaces the result of an exec that is out of attempts."""

    class Saved(Node[int, int]):
        def fallback(self, prepared: int, error: Exception) -> int:
            return 0

        def post(self, store: SyncWriter, number: int, prepared: int, result: int) -> int:
            raise ValueError(number)

    assert findings(Saved()) == ("node 'saved' has a fallback, but no exec that could fail",)


def test_a_node_of_functions_has_all_options_of_a_class() -> None:
    """It may have every phase, so each option means something for it; an invalid one is refused as for a class."""
    seats = Key("seats", int)

    def post(store: SyncWriter, number: int, seats: int | None, result: int | None) -> int:
        store.set(Key("other", int), number)
        return number

    def prep(store: SyncReader, number: int) -> int | None:
        return store.get(seats)

    def exec(seats: int | None) -> int | None:
        return seats

    book = node.of(
        prep=prep, exec=exec, post=post, reads=[seats], writes=[seats], isolation="serializable", trace=False
    )
    with pytest.raises(UndeclaredKeyError, match="node 'exec' writes 'other', which its writes= does not declare"):
        Graph(book).run_sync(1)
    with pytest.raises(ConfigError, match="isolation='serial': give 'default' or 'serializable'"):
        misspelt.of(exec=exec, isolation="serial")


def test_an_each_may_be_given_a_name() -> None:
    """As an `Ask` and a `Sleep`; otherwise it is named after its node."""
    graph = Graph(each(plus, name="first") >> each(plus, name="second"))
    assert graph.run_sync([1, 2]) == [3, 4]
    assert [each.name for each in graph.plan.steps.values()] == ["first", "second"]
    wrong: Any = 5
    with pytest.raises(ConfigError, match="a node's name can't be 5; give a text that is not empty"):
        each(plus, name=wrong)
