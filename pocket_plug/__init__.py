"""pocket_plug: state for workflows. A store wrapped by pluggable layers, and graphs of nodes that run over it, traced.

The import scans, configures and starts nothing. Each name loads its module on first use, so a program that uses only stores
doesn't load graphs. Plugins are searched for when the first run, or the first name of a plugin's part, needs them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .errors import (
    AnswerLostError,
    CodecError,
    ConfigError,
    ConflictError,
    CorruptRecordError,
    ExecutorError,
    ExecutorLostError,
    GraphError,
    InputError,
    KeyNameError,
    MissingKeyError,
    NodeTimeoutError,
    NotConfiguredError,
    OtherRunError,
    OutcomeUnknownError,
    PhaseError,
    PluginError,
    PocketError,
    ReadOnlyError,
    RecordedError,
    RouteError,
    RunBusyError,
    RunCancelledError,
    RunChangedError,
    RunFencedError,
    RunMismatchError,
    RunStateError,
    RunStuckError,
    RunSuspendedError,
    RunTimeoutError,
    StepLimitError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnreachableError,
    SyncError,
    TransactionError,
    UndeclaredKeyError,
    UnknownRunError,
    UnknownStoreError,
    UnknownTypeError,
    UnreadableRecordError,
    UnregisteredTypeError,
    ValueTypeError,
    WorkerCodeError,
    WrappedCancelledError,
    WrappedStopIterationError,
    WrappedSystemExitError,
    WriteSizeError,
)
from .primitives.default_pocket import use_default_pocket
from .renamed import RenamedModules, renamed

if TYPE_CHECKING:
    from .codec import register_type
    from .graph.durable.check import RunCheck
    from .graph.durable.prune import Pruned
    from .graph.durable.states import RunFailure
    from .graph.durable.worker import Worker, WorkerReport
    from .graph.fan_out import fan_out
    from .graph.following.events import (
        Asked,
        Emitted,
        Finished,
        FollowedEvent,
        ItemDone,
        NodeEntered,
        NodeLeft,
        NodePlace,
        NodeRetried,
        Progressed,
        RunEvent,
        StateChanged,
        Suspended,
    )
    from .graph.following.reports import emit, progress
    from .graph.following.streaming import RunStream
    from .graph.gather import gather
    from .graph.graph import Graph
    from .graph.kinds.ask import Answered, Ask
    from .graph.kinds.each import each
    from .graph.kinds.sleep import Sleep
    from .graph.nodes.chain import END, Action, Chain, Next
    from .graph.nodes.node import Node
    from .graph.nodes.node_functions import node
    from .graph.nodes.retry import Retry
    from .graph.retention import Retention
    from .graph.running.context import current_run_id, idempotency_key
    from .graph.runs import (
        PassedNode,
        RunExecution,
        RunHistory,
        RunInfo,
        RunOwner,
        RunPage,
        RunQuestion,
        Runs,
        RunState,
        RunValue,
        SyncRuns,
    )
    from .graph.upgrades import RunPosition
    from .hookspecs import hookimpl
    from .plugins.pocket import Pocket
    from .primitives.durations import Duration
    from .primitives.lists import ItemList
    from .store.backend import Backend, Change, Delete, Entry, Put
    from .store.base import StoredValue
    from .store.keys import Key
    from .store.layer import Layer, secret
    from .store.memory import Memory
    from .store.naming import join_name, split_name
    from .store.store import MISSING, Store, StoreReader, StoreScope, StoreWriter
    from .store.sync import SyncReader, SyncScope, SyncStore, SyncWriter
    from .store.typed import TypedReader, TypedStore
    from .telemetry import observe

_MODULES = {
    "register_type": "codec",
    "Answered": "graph.kinds.ask",
    "Ask": "graph.kinds.ask",
    "Sleep": "graph.kinds.sleep",
    "Action": "graph.nodes.chain",
    "Chain": "graph.nodes.chain",
    "END": "graph.nodes.chain",
    "Next": "graph.nodes.chain",
    "each": "graph.kinds.each",
    "Asked": "graph.following.events",
    "Emitted": "graph.following.events",
    "Finished": "graph.following.events",
    "FollowedEvent": "graph.following.events",
    "ItemDone": "graph.following.events",
    "NodeEntered": "graph.following.events",
    "NodeLeft": "graph.following.events",
    "NodePlace": "graph.following.events",
    "NodeRetried": "graph.following.events",
    "Progressed": "graph.following.events",
    "RunEvent": "graph.following.events",
    "StateChanged": "graph.following.events",
    "Suspended": "graph.following.events",
    "fan_out": "graph.fan_out",
    "gather": "graph.gather",
    "RunCheck": "graph.durable.check",
    "RunFailure": "graph.durable.states",
    "Pruned": "graph.durable.prune",
    "Retention": "graph.retention",
    "Worker": "graph.durable.worker",
    "WorkerReport": "graph.durable.worker",
    "current_run_id": "graph.running.context",
    "idempotency_key": "graph.running.context",
    "Graph": "graph.graph",
    "Node": "graph.nodes.node",
    "node": "graph.nodes.node_functions",
    "emit": "graph.following.reports",
    "progress": "graph.following.reports",
    "Retry": "graph.nodes.retry",
    "PassedNode": "graph.runs",
    "RunExecution": "graph.runs",
    "RunHistory": "graph.runs",
    "RunInfo": "graph.runs",
    "RunOwner": "graph.runs",
    "RunPage": "graph.runs",
    "RunQuestion": "graph.runs",
    "RunState": "graph.runs",
    "RunValue": "graph.runs",
    "Runs": "graph.runs",
    "SyncRuns": "graph.runs",
    "RunStream": "graph.following.streaming",
    "RunPosition": "graph.upgrades",
    "hookimpl": "hookspecs",
    "Pocket": "plugins.pocket",
    "Duration": "primitives.durations",
    "ItemList": "primitives.lists",
    "Backend": "store.backend",
    "Change": "store.backend",
    "Delete": "store.backend",
    "Entry": "store.backend",
    "Put": "store.backend",
    "Key": "store.keys",
    "Layer": "store.layer",
    "secret": "store.layer",
    "Memory": "store.memory",
    "join_name": "store.naming",
    "split_name": "store.naming",
    "MISSING": "store.store",
    "Store": "store.store",
    "StoreReader": "store.store",
    "StoreScope": "store.store",
    "StoreWriter": "store.store",
    "StoredValue": "store.base",
    "SyncReader": "store.sync",
    "SyncScope": "store.sync",
    "SyncStore": "store.sync",
    "SyncWriter": "store.sync",
    "TypedReader": "store.typed",
    "TypedStore": "store.typed",
    "observe": "telemetry",
}
"""The names that are loaded on first use, each with its module. Type checkers read the imports above."""

__all__ = [
    "END",
    "MISSING",
    "Action",
    "AnswerLostError",
    "Answered",
    "Ask",
    "Asked",
    "Backend",
    "Chain",
    "Change",
    "CodecError",
    "ConfigError",
    "ConflictError",
    "CorruptRecordError",
    "Delete",
    "Duration",
    "Emitted",
    "Entry",
    "ExecutorError",
    "ExecutorLostError",
    "Finished",
    "FollowedEvent",
    "Graph",
    "GraphError",
    "InputError",
    "ItemDone",
    "ItemList",
    "Key",
    "KeyNameError",
    "Layer",
    "Memory",
    "MissingKeyError",
    "Next",
    "Node",
    "NodeEntered",
    "NodeLeft",
    "NodePlace",
    "NodeRetried",
    "NodeTimeoutError",
    "NotConfiguredError",
    "OtherRunError",
    "OutcomeUnknownError",
    "PassedNode",
    "PhaseError",
    "PluginError",
    "Pocket",
    "PocketError",
    "Progressed",
    "Pruned",
    "Put",
    "ReadOnlyError",
    "RecordedError",
    "Retention",
    "Retry",
    "RouteError",
    "RunBusyError",
    "RunCancelledError",
    "RunChangedError",
    "RunCheck",
    "RunEvent",
    "RunExecution",
    "RunFailure",
    "RunFencedError",
    "RunHistory",
    "RunInfo",
    "RunMismatchError",
    "RunOwner",
    "RunPage",
    "RunPosition",
    "RunQuestion",
    "RunState",
    "RunStateError",
    "RunStream",
    "RunStuckError",
    "RunSuspendedError",
    "RunTimeoutError",
    "RunValue",
    "Runs",
    "Sleep",
    "StateChanged",
    "StepLimitError",
    "Store",
    "StoreBusyError",
    "StoreClosedError",
    "StoreError",
    "StoreReader",
    "StoreScope",
    "StoreTimeoutError",
    "StoreUnreachableError",
    "StoreWriter",
    "StoredValue",
    "Suspended",
    "SyncError",
    "SyncReader",
    "SyncRuns",
    "SyncScope",
    "SyncStore",
    "SyncWriter",
    "TransactionError",
    "TypedReader",
    "TypedStore",
    "UndeclaredKeyError",
    "UnknownRunError",
    "UnknownStoreError",
    "UnknownTypeError",
    "UnreadableRecordError",
    "UnregisteredTypeError",
    "ValueTypeError",
    "Worker",
    "WorkerCodeError",
    "WorkerReport",
    "WrappedCancelledError",
    "WrappedStopIterationError",
    "WrappedSystemExitError",
    "WriteSizeError",
    "current_run_id",
    "each",
    "emit",
    "fan_out",
    "gather",
    "hookimpl",
    "idempotency_key",
    "join_name",
    "node",
    "observe",
    "progress",
    "register_type",
    "secret",
    "split_name",
]

if not TYPE_CHECKING:  # with it, type checkers would accept any misspelt name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            return renamed(__name__, name)
        from importlib import import_module

        found = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _default_pocket() -> Pocket:
    """The default Pocket. It imports the plugins, so this happens only when it is first needed."""
    from .plugins import default_pocket

    return default_pocket()


use_default_pocket(_default_pocket)
sys.meta_path.append(RenamedModules())
