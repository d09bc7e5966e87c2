"""pocket_plug: state for workflows. A store wrapped by pluggable layers, graphs of nodes over it, every step traced.

Importing it scans, configures and starts nothing; plugins are looked for when the first run or the first name needs them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .errors import CodecError as CodecError
from .errors import ConfigError as ConfigError
from .errors import ConflictError as ConflictError
from .errors import CorruptRecordError as CorruptRecordError
from .errors import GraphError as GraphError
from .errors import InputError as InputError
from .errors import KeyNameError as KeyNameError
from .errors import MissingKeyError as MissingKeyError
from .errors import NodeTimeoutError as NodeTimeoutError
from .errors import NotConfiguredError as NotConfiguredError
from .errors import OutcomeUnknownError as OutcomeUnknownError
from .errors import PhaseError as PhaseError
from .errors import PluginError as PluginError
from .errors import PocketError as PocketError
from .errors import RecordedError as RecordedError
from .errors import RouteError as RouteError
from .errors import RunChangedError as RunChangedError
from .errors import RunFencedError as RunFencedError
from .errors import RunMismatchError as RunMismatchError
from .errors import RunSuspendedError as RunSuspendedError
from .errors import StepLimitError as StepLimitError
from .errors import StoreBusyError as StoreBusyError
from .errors import StoreClosedError as StoreClosedError
from .errors import StoreError as StoreError
from .errors import SyncError as SyncError
from .errors import TransactionError as TransactionError
from .errors import UndeclaredKeyError as UndeclaredKeyError
from .errors import UnknownRunError as UnknownRunError
from .errors import UnknownStoreError as UnknownStoreError
from .errors import UnknownTypeError as UnknownTypeError
from .errors import UnregisteredTypeError as UnregisteredTypeError
from .errors import ValueTypeError as ValueTypeError
from .errors import WrappedStopIterationError as WrappedStopIterationError
from .graph.ask import Answered as Answered
from .graph.ask import Ask as Ask
from .graph.chain import END as END
from .graph.chain import Action as Action
from .graph.chain import Chain as Chain
from .graph.chain import Next as Next
from .graph.each import each as each
from .graph.graph import Graph as Graph
from .graph.graph import fan_out as fan_out
from .graph.host import use_host
from .graph.node import Node as Node
from .graph.node_functions import node as node
from .graph.retry import Retry as Retry
from .hookspecs import hookimpl as hookimpl
from .primitives.durations import Duration as Duration
from .renamed import RenamedModules
from .store.backend import Backend as Backend
from .store.backend import Change as Change
from .store.backend import Delete as Delete
from .store.backend import Entry as Entry
from .store.backend import Put as Put
from .store.keys import Key as Key
from .store.layer import Layer as Layer
from .store.layer import secret as secret
from .store.memory import Memory as Memory
from .store.resolving import use_resolver
from .store.store import MISSING as MISSING
from .store.store import Store as Store
from .store.store import StoreReader as StoreReader
from .store.store import StoreScope as StoreScope
from .store.store import StoreWriter as StoreWriter
from .store.sync import SyncReader as SyncReader
from .store.sync import SyncScope as SyncScope
from .store.sync import SyncStore as SyncStore
from .store.sync import SyncWriter as SyncWriter
from .store.typed import TypedReader as TypedReader
from .store.typed import TypedStore as TypedStore

if TYPE_CHECKING:
    from .codec import register_type as register_type
    from .graph.durable import idempotency_key as idempotency_key
    from .plugins.pocket import Pocket as Pocket
    from .telemetry import observe as observe

_LAZY = {"Pocket": "plugins", "idempotency_key": "graph.durable", "register_type": "codec", "observe": "telemetry"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        from .renamed import renamed

        return renamed(__name__, name)
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def _default_pocket() -> Pocket:
    """The plugins are imported with the first run or name that needs them, and are then asked directly."""
    from .plugins import default_pocket

    return default_pocket()


use_resolver(_default_pocket)
use_host(_default_pocket)
sys.meta_path.append(RenamedModules())
