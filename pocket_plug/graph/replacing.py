"""Replaces nodes in a graph's chains, for `Graph.replace`, and checks that the types of the new nodes fit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pocket_plug.errors import GraphError, suggest
from pocket_plug.primitives.typechecks import type_name
from pocket_plug.primitives.typefits import fits

from .nodes.chain import AnyChain, Chain, as_chain
from .nodes.node import AnyNode, options_of
from .nodes.phases import declared_actions
from .planning.plan import Plan
from .planning.step import Step
from .running.visit import step_of


def replaced(chains: Iterable[AnyChain], plan: Plan, given: Mapping[str, AnyNode]) -> tuple[tuple[AnyChain, ...], Plan]:
    """The chains and the plan with these new nodes, each under the name of the node that it replaces.

    Raises GraphError with everything that is wrong.
    """
    steps: dict[str, Step] = {}
    twice: set[str] = set()
    for step in _replaceable(plan):
        if steps.setdefault(step.name, step).node is not step.node:
            twice.add(step.name)
    found: list[str] = []
    nodes: dict[int, AnyNode] = {}
    for name, other in given.items():
        if as_chain(other).edges:
            raise TypeError(
                f"{name!r} is one node, so a chain can't replace it; make a graph of the chain: Graph(a >> b)"
            )
        if name not in steps:
            found.append(f"there is no node {name!r}; the graph has: {', '.join(steps)}.{_meant(name, steps)}")
            continue
        if name in twice:
            found.append(
                f"several nodes have the name {name!r}, one of them for the items of an each or in a branch of a gather; rename "
                "one of them by with_options(name=…)"
            )
            continue
        found += _misfits(steps[name], other)
        nodes[id(steps[name].node)] = other.with_options(name=name)
    within = {step: {each.name for each in _inside(step)} & given.keys() for step in plan.steps.values()}
    found += [
        f"{step.name!r} contains {', '.join(map(repr, sorted(names)))}; replace only one of them"
        for step, names in within.items()
        if names and step.name in given
    ]
    if found:
        raise GraphError(f"graph {plan.name!r} can't have these nodes replaced:", found)
    for step, names in within.items():
        item: Any = nodes.get(id(step.passed.node))
        if step.branches:
            branches: Any = step.passed.node
            item = branches.replace(**{name: given[name] for name in names}) if names else None
        if item is not None and step.passed is not step:
            nodes[id(step.node)] = _each_of(step.node, item)
    new = tuple(
        Chain(
            nodes.get(id(chain.first), chain.first),
            nodes.get(id(chain.last), chain.last),
            tuple(
                (nodes.get(id(source), source), action, nodes.get(id(target), target))
                for source, action, target in chain.edges
            ),
        )
        for chain in chains
    )
    return new, Plan(new, plan.name, step_of, plan.needs_loop)


def _replaceable(plan: Plan) -> Iterator[Step]:
    """The steps whose nodes can be replaced: also what an `each` takes its items through, and the nodes in branches."""
    for step in plan.shown:
        yield from _inside(step)
        yield step


def _inside(step: Step) -> Iterator[Step]:
    """What an `each` takes its items through, or the nodes in the branches of a `gather`."""
    if step.branches:
        yield from _replaceable(step.passed.inner_graph().plan)
    elif step.passed is not step:
        yield step.passed


def _meant(name: str, steps: Mapping[str, Step]) -> str:
    """A hint for an unknown name: the nested graph that has such a node, or a node with a similar name."""
    for outer, step in steps.items():
        if (inner := step.inner_shape()) is not None and name in inner.nodes:
            return f" The nested graph {outer!r} has that node; replace it there: {outer}={outer}.replace({name}=…)"
    return suggest(name, steps)


def _each_of(each: AnyNode, item: AnyNode) -> AnyNode:
    other = copy.copy(each)
    vars(other)["node"] = item
    return other


def _misfits(step: Step, other: AnyNode) -> list[str]:
    """Messages about types that don't fit: the new node refuses inputs of the old one, or returns what that doesn't."""
    new = step_of(other)
    names = f"{step.name!r} ({step.title}) by {options_of(other).name!r} ({new.title})"
    found: list[str] = []
    if not fits(step.input_type, new.input_type):
        found.append(
            f"{names}: the old one takes {type_name(step.input_type)}, the new one {type_name(new.input_type)}"
        )
    # all that a nested graph may return isn't known, see `Plan.output_type`
    if step.inner_graph() is None and not fits(new.output_type, step.output_type):
        found.append(
            f"{names}: the old one returns {type_name(step.output_type)}, the new one {type_name(new.output_type)}"
        )
    known = declared_actions(step.node)
    for action, carried in declared_actions(other).items():
        if not fits(carried, known.get(action, Any)):
            found.append(
                f"{names}: by {action!r} the old one returns {type_name(known[action])}, the new one {type_name(carried)}"
            )
    return found
