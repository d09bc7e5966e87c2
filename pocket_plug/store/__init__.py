"""Stores: a backend wrapped by layers (the stack), and the views through which users and nodes read and write it."""

from .backend import Backend as Backend
from .backend import Change as Change
from .backend import Delete as Delete
from .backend import Entry as Entry
from .backend import Put as Put
from .base import MISSING as MISSING
from .base import StoredValue as StoredValue
from .keys import Key as Key
from .layer import Layer as Layer
from .layer import build_stack as build_stack
from .layer import parts as parts
from .layer import secret as secret
from .memory import Memory as Memory
from .naming import join_name as join_name
from .naming import split_name as split_name
from .store import Store as Store
from .store import StoreScope as StoreScope
from .sync import SyncReader as SyncReader
from .sync import SyncScope as SyncScope
from .sync import SyncStore as SyncStore
from .sync import SyncWriter as SyncWriter
from .typed import TypedReader as TypedReader
from .typed import TypedStore as TypedStore
from .views import StoreReader as StoreReader
from .views import StoreWriter as StoreWriter

__all__ = [
    "MISSING",
    "Backend",
    "Change",
    "Delete",
    "Entry",
    "Key",
    "Layer",
    "Memory",
    "Put",
    "Store",
    "StoreReader",
    "StoreScope",
    "StoreWriter",
    "StoredValue",
    "SyncReader",
    "SyncScope",
    "SyncStore",
    "SyncWriter",
    "TypedReader",
    "TypedStore",
    "build_stack",
    "join_name",
    "parts",
    "secret",
    "split_name",
]
