"""Stores: a backend wrapped by layers (the stack), and the views through which users and nodes read and write it."""

from .backend import Backend, Change, Delete, Entry, Put
from .base import MISSING, StoredValue
from .keys import Key
from .layer import Layer, build_stack, parts, secret
from .memory import Memory
from .naming import join_name, split_name
from .store import Store, StoreScope
from .sync import SyncReader, SyncScope, SyncStore, SyncWriter
from .typed import TypedReader, TypedStore
from .views import StoreReader, StoreWriter

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
