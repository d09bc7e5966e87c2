"""pocket_plug: state for workflows. A store wrapped by pluggable layers, graphs of nodes over it, every step traced.

Importing it scans, configures and starts nothing; plugins are looked for when the first run or the first name needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ask import Answered as Answered
from .ask import Ask as Ask
from .backend import Backend as Backend
from .backend import Change as Change
from .backend import Delete as Delete
from .backend import Entry as Entry
from .backend import Put as Put
from .chain import END as END
from .chain import Action as Action
from .chain import Chain as Chain
from .chain import Next as Next
from .concurrency import each as each
from .concurrency import fan_out as fan_out
from .errors import CodecError as CodecError
from .errors import ConfigError as ConfigError
from .errors import Conflict as Conflict
from .errors import CorruptRecordError as CorruptRecordError
from .errors import GraphError as GraphError
from .errors import InputError as InputError
from .errors import KeyNameError as KeyNameError
from .errors import MissingKeyError as MissingKeyError
from .errors import NodeTimeout as NodeTimeout
from .errors import NotConfigured as NotConfigured
from .errors import OutcomeUnknown as OutcomeUnknown
from .errors import PhaseError as PhaseError
from .errors import PluginError as PluginError
from .errors import PocketError as PocketError
from .errors import RecordedError as RecordedError
from .errors import RouteError as RouteError
from .errors import RunChanged as RunChanged
from .errors import RunFenced as RunFenced
from .errors import RunMismatch as RunMismatch
from .errors import RunSuspended as RunSuspended
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
from .errors import WrappedStopIteration as WrappedStopIteration
from .graph import Graph as Graph
from .hookspecs import hookimpl as hookimpl
from .keys import Key as Key
from .layer import Layer as Layer
from .layer import secret as secret
from .memory import Memory as Memory
from .node import Node as Node
from .node_functions import node as node
from .retry import Retry as Retry
from .store import MISSING as MISSING
from .store import Store as Store
from .store import StoreReader as StoreReader
from .store import StoreScope as StoreScope
from .store import StoreWriter as StoreWriter
from .sync import SyncReader as SyncReader
from .sync import SyncScope as SyncScope
from .sync import SyncStore as SyncStore
from .sync import SyncWriter as SyncWriter
from .ttl import TTL as TTL
from .typed import TypedReader as TypedReader
from .typed import TypedStore as TypedStore

if TYPE_CHECKING:
    from .codec import register_type as register_type
    from .durable import idempotency_key as idempotency_key
    from .pocket import Pocket as Pocket
    from .telemetry import observe as observe

_LAZY = {"Pocket": "pocket", "idempotency_key": "durable", "register_type": "codec", "observe": "telemetry"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
