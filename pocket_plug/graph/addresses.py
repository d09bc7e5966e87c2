"""The address of a node whose `exec` runs elsewhere, and how a worker process finds the node by it.

A worker process has no run, no store and no Pocket: it imports a module, takes the graph or the node that has a name there, and
follows the names of nodes from there. So the node, or a graph around it, must have a name at the top level of a module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.spawned import end_unguarded
from pocket_plug.primitives.values import Value

from .elsewhere import Address
from .nodes.node import AnyNode, Node
from .nodes.node_functions import FunctionNode
from .observing.host import RunHost
from .planning.plan import Plan, PlannedGraph
from .planning.step import Step
from .running.visit import step_of

ITEM = "[]"
"""In a path, the node that the items of a fan-out go through."""
MAIN = "__main__"

Around = Sequence[tuple[PlannedGraph, tuple[str, ...]]]
"""The graphs around a step, the innermost first, each with the path from that graph to the step."""


# ---------------------------------------------------------------- in the run's process
def executor_faults(graph: PlannedGraph, host: RunHost) -> list[str]:
    """Messages about what is wrong with the nodes that have an executor. Also sets the address of each step that needs one."""
    end_unguarded()
    found: list[str] = []
    for step, around in _steps_with_executor(graph, ()):
        assert step.executor is not None
        try:
            executor = host.executor(step.executor)
        except ConfigError as error:
            found.append(f"node {step.name!r}: {error}")
            continue
        step.address = step.address or _address(step, around)  # another Pocket's executor may need one
        if executor.in_process:
            continue
        if step.address is None:
            found.append(
                f"the workers of node {step.name!r}'s executor can't find the node: neither the node nor a graph around it "
                "has a name in a module; assign one of them at the top level of a module, not within a function"
            )
        elif step.address.module == MAIN and not (executor.maps_main and hasattr(sys.modules[MAIN], "__file__")):
            found.append(
                f"node {step.name!r} is in {MAIN}, the script or notebook of this process, which the workers of its executor "
                "can't import, so move the node into a module of its own; a notebook writes one by a cell with %%writefile"
            )
    return found


def _steps_with_executor(graph: PlannedGraph, outer: Around) -> Iterator[tuple[Step, Around]]:
    for step in graph.plan.steps.values():
        passed = step.passed
        names = (step.name,) if passed is step else (step.name, ITEM)
        around = ((graph, names), *((each, (*path, *names)) for each, path in outer))
        if passed.executor is not None:
            yield passed, around
        inner = passed.inner_graph()
        if inner is not None and all(inner is not each for each, _ in around):
            yield from _steps_with_executor(inner, around)


def _address(step: Step, around: Around) -> Address | None:
    """The address from the innermost graph that has a name in a module, else from the node's own name.

    Names in `__main__` come last, since not every executor's workers can import it.
    """
    found = [(partial(_has_plan, graph.plan), path, graph.version) for graph, path in around]
    found.append((partial(_is_node, step), (), 1))
    home = getattr(step.exec, "__module__", "")
    for modules in (sorted(sys.modules.keys() - {MAIN, "__mp_main__"}, key=lambda name: (name != home, name)), [MAIN]):
        for is_meant, path, version in found:
            if reference := _reference(is_meant, modules):
                return Address(reference, path, version)
    return None


def _has_plan(plan: Plan, node: AnyNode) -> bool:
    """Is it the graph of this plan, or a copy of that graph with another name?"""
    return getattr(node, "plan", None) is plan


def _is_node(step: Step, node: AnyNode) -> bool:
    """Is it the step's node, or a copy with other options, which has the same function?"""
    return node is step.node or (isinstance(node, FunctionNode) and node.functions.get("exec") is step.exec)


def _reference(is_meant: Callable[[AnyNode], bool], modules: Iterable[str]) -> str | None:
    """`module:name` of a global variable that holds the node, or the graph, that `is_meant`."""
    for module_name in modules:
        for name, value in [*getattr(sys.modules.get(module_name), "__dict__", {}).items()]:
            if issubclass(type(value), Node) and is_meant(value):
                return f"{_importable(module_name)}:{name}"
    return None


def _importable(name: str) -> str:
    """The name by which another process imports a module: after `python -m package.module` not `__main__` but that name."""
    spec = getattr(sys.modules[name], "__spec__", None)
    return spec.name if name == MAIN and spec is not None else name


# ---------------------------------------------------------------- in the worker's process
def find(reference: str, path: Sequence[str]) -> tuple[Step, int]:
    """The step at an address, and the version of the graph or node that it begins with.

    Raises ImportError or LookupError, which name what is missing.
    """
    module_name, _, name = reference.partition(":")
    found: Value = getattr(import_module(module_name), name, None)
    if not issubclass(type(found), Node):
        raise LookupError(f"module {module_name!r} has no graph and no node {name!r}")
    if not path:
        return step_of(found), 1
    plan, version, step = getattr(found, "plan", None), getattr(found, "version", 1), None
    for name in path:
        if name == ITEM and step is not None:
            step = step.passed
        else:
            if step is not None:
                inner = step.inner_graph()
                plan = None if inner is None else inner.plan
            step = plan.named(name) if plan is not None else None
        if step is None:
            raise LookupError(f"{'/'.join((reference, *path))}: there is no node {name!r}")
    assert step is not None
    return step, version
