"""A request for a durable run, the check that the graph's store can keep durable runs, and the execution of the request."""

from __future__ import annotations

from typing import Any

from pocket_plug.errors import ConfigError, GraphError, ReadOnlyError
from pocket_plug.graph.kinds.ask import AskStep
from pocket_plug.graph.kinds.nesting import GraphStep
from pocket_plug.graph.nodes.phases import declared_actions, hints
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.planning.plan import Plan, PlannedGraph
from pocket_plug.graph.running.execution import Execution
from pocket_plug.primitives.names import check_length
from pocket_plug.primitives.typechecks import declared_types
from pocket_plug.store.keys import MAX_KEY_BYTES
from pocket_plug.store.stack import StorePlace
from pocket_plug.store.store import StoreReader

from .journal import Journal, Wanted
from .ledger import RunLedger
from .records import MAX_GRAPH_BYTES, MAX_RUN_ID_BYTES, PART, escaped, keys_of
from .waits import WAIT


class Request:
    """A request to run or resume a durable run. Raises KeyNameError for an invalid id, ConfigError without one."""

    def __init__(self, run_id: str | None, **wanted: Any) -> None:
        if run_id is None:
            option = "takeover" if wanted["takeover"] else "allow_changed"
            raise ConfigError(f"{option} is for durable runs; give the run's id: run(…, run_id=…)")
        keys_of(run_id)  # raises for an invalid id
        self.run_id, self.wanted = run_id, Wanted(run_id, **wanted)

    def execution(
        self, graph: PlannedGraph, place: StorePlace, input: object, pocket: RunHost, loop: bool
    ) -> Execution:
        """The execution of this request. Raises ConfigError if the graph's store can't keep durable runs."""
        prepare(graph, place, f"run_id={self.run_id!r}: ")
        ledger = RunLedger(Journal(self.wanted, graph, place))
        return Execution(graph, place, input, pocket, loop, ledger=ledger, run_id=self.run_id)


def prepare(graph: PlannedGraph, place: StorePlace, asked: str = "") -> None:
    """Check a graph and its store before its durable runs are read or written, and declare its types to the codec.

    `asked` begins the messages, and says that the caller will write. Raises ConfigError if the store can't keep durable runs,
    GraphError for a graph that can't run, ReadOnlyError if the caller will write and the store is read-only.
    """
    # The executors aren't checked: a process that only submits runs has none.
    if not graph.plan.is_declared and (faults := graph.plan.findings()):
        raise GraphError(f"graph {graph.name!r} can't run:", faults)
    stack, _ = place
    if not stack.survives or stack.buffered:
        found = "may lose acknowledged writes" if stack.survives else "is not persistent"
        raise ConfigError(
            f"{asked}the run of graph {graph.name!r} is durable, but its store "
            f"{stack!r} {found}; give the graph a persistent one: Graph(…, store=Store('sqlite:///state.db')). Without store= "
            "it uses [store] of the configuration"
        )
    if stack.read_only and asked:
        raise ReadOnlyError(
            f"{asked}the store {stack!r} of graph {graph.name!r} is read-only, so a run can't be recorded there; give the graph "
            "a store that is not read-only"
        )
    _check_stores(graph.plan, place)
    check_length(graph.name, "the name of a graph with durable runs", MAX_GRAPH_BYTES)
    if not graph.plan.is_declared:
        _check_places(graph.plan, "", graph.name)
        _declare(graph.plan)


_LONGEST_PLACE = MAX_KEY_BYTES - len(f"{PART}:{WAIT}") - 3 * MAX_RUN_ID_BYTES
_HIGHEST = "#0000000000[0000000000]"  # as long as the highest number of a visit and position of an item


def _check_places(plan: Plan, within: str, name: str) -> None:
    """Raise ConfigError if the key of a wait or an item could become longer than backends must accept."""
    for step in (step.passed for step in plan.steps.values()):
        place = f"{within}/{escaped(step.name, '/#[')}{_HIGHEST}"
        if (found := len(escaped(place, ":").encode())) > _LONGEST_PLACE:
            raise ConfigError(
                f"graph {name!r} can't have durable runs: the names of node {step.name!r:.80} and of the graphs around it "
                f"have {found:,} bytes together, escaped for keys; {_LONGEST_PLACE:,} are allowed; give some a shorter name="
            )
        if isinstance(step, GraphStep):
            _check_places(step.graph.plan, place, name)


def _check_stores(plan: Plan, place: StorePlace) -> None:
    for step in (step.passed for step in plan.steps.values()):
        if isinstance(step, GraphStep):
            inner = step.graph.place(StoreReader(*place))
            if inner[0] is not place[0]:
                raise ConfigError(
                    f"graph {step.name!r} has a store of its own, but a durable run needs a single one: its writes there "
                    f"and the checkpoint in {plan.name!r}'s store can't be committed together; use that store, or a scope of it"
                )
            _check_stores(step.graph.plan, inner)


def _declare(plan: Plan) -> None:
    """Declare the types in the nodes' annotations to the codec, since their inputs are stored."""
    if plan.is_declared:
        return
    plan.is_declared = True
    for step in (step.passed for step in plan.steps.values()):
        declared_types.extend((step.input_type, step.output_type, *declared_actions(step.node).values()))
        for function in (step.prep, step.exec, step.fallback, step.post):
            if function is not None:
                declared_types.extend(hints(function).values())
        if isinstance(step, AskStep):
            declared_types.append(step.answer_type)
        if isinstance(step, GraphStep):
            _declare(step.graph.plan)
