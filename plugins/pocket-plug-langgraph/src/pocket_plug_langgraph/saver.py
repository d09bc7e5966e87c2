"""The checkpointer. A checkpoint is one entry, and the pending writes of a task are another: each `put` is one small write.

    checkpoint:THREAD:NAMESPACE:ID:          [parent's id, type, bytes, type of the metadata, their bytes]
    checkpoint:THREAD:NAMESPACE:ID::TASK     [[index, channel, type, bytes, path of the task], …]

The bytes come from LangGraph's serializer. Ids increase with time, so the order of the names is the order of the checkpoints. The
pending writes of a checkpoint directly follow it, so they are read together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    PendingWrite,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from pocket_plug import ConfigError, StoreScope, SyncScope, join_name, split_name

from .holder import Holder, below

Row = list[Any]
"""A stored value, as the codec returns it."""

PAGE = 100
"""The number of entries in one read: a checkpoint, and the pending writes of up to 99 tasks."""

Address = tuple[str, str, str]
"""The thread, the namespace and the id of a checkpoint."""


class PocketSaver(Holder, BaseCheckpointSaver[int]):
    """Keeps checkpoints in a store: that of a URL, `PocketSaver("sqlite:///state.db")`, or a given store, or a scope of one.

    Pass it to `compile(checkpointer=…)`. As a context manager, sync or async, it opens and closes the store of a URL. The default
    `serde` is LangGraph's JsonPlusSerializer, without pickle.

    >>> from pocket_plug import SyncStore
    >>> saver = PocketSaver(SyncStore())
    >>> list(saver.list(None))
    []
    """

    def __init__(self, store: str | StoreScope | SyncScope, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde)
        self._hold(store)
        self._entries = self._scope.scope("checkpoint")

    # ---------------------------------------------------------------- reading
    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the config names, or the latest of its thread and namespace; None if there is none."""
        thread, namespace = _place(config)
        checkpoint_id = _wanted(config)
        if checkpoint_id is not None:
            return await self._tuple((thread, namespace, checkpoint_id))
        start = below(thread, namespace)
        async for last in self._entries.keys(start, reverse=True, limit=1):
            if (found := await self._tuple(_address(last))) is not None:
                return found
            async for name in self._checkpoints(start, reverse=True):  # the last entry belongs to a missing checkpoint
                return await self._tuple(_address(name))
        return None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a thread, or of all threads, newest first. `filter` compares the metadata, key by key."""
        left = limit
        async for address in self._addresses(config, _wanted(before) if before else None):
            if left is not None and left <= 0:
                return
            found = await self._tuple(address, filter)
            if found is not None:
                left = None if left is None else left - 1
                yield found

    async def _checkpoints(self, start: str = "", *, after: str = "", reverse: bool = False) -> AsyncIterator[str]:
        """The names of checkpoints, without those of their pending writes."""
        async for name in self._entries.keys(start, after=after, reverse=reverse):
            if _is_checkpoint(name):
                yield name

    async def _addresses(self, config: RunnableConfig | None, before: str | None) -> AsyncIterator[Address]:
        """The addresses of checkpoints. One namespace is read page by page; of several, all names are read and sorted by id."""
        wanted = None if config is None else _wanted(config)
        if config is None:
            found = [_address(name) async for name in self._checkpoints()]
        elif _configurable(config).get("checkpoint_ns") is None:
            found = [_address(name) async for name in self._checkpoints(below(_place(config)[0]))]
        elif wanted is not None:
            found = [(*_place(config), wanted)]
        else:
            place = _place(config)
            after = "" if before is None else join_name(*place, before, "")
            async for name in self._checkpoints(below(*place), after=after, reverse=True):
                yield _address(name)
            return
        for address in sorted(found, key=lambda each: each[2], reverse=True):
            if (before is None or address[2] < before) and wanted in (None, address[2]):
                yield address

    async def _rows(self, start: str) -> list[tuple[str, Row]]:
        """All entries below `start`, in order. Read from the stack, since `items` would take 3 of the 24 µs of `get_tuple`."""
        stack, scope = self._entries.place
        found = page = await stack.read_page(scope + start, limit=PAGE)
        while len(page) == PAGE:
            page = await stack.read_page(scope + start, after=page[-1][0], limit=PAGE)
            found += page
        skipped = len(scope)
        return [(name[skipped:], entry.value) for name, entry in found if entry is not None]

    async def _tuple(self, address: Address, filter: dict[str, Any] | None = None) -> CheckpointTuple | None:
        """The checkpoint at an address; None if there is none, or if its metadata don't match the filter.

        Its pending writes are in the order in which LangGraph applies them.
        """
        start = join_name(*address, "")
        checkpoint: Row | None = None
        metadata: CheckpointMetadata = {}
        pending: list[tuple[tuple[str, str, int], PendingWrite]] = []
        loads = self.serde.loads_typed
        for name, row in await self._rows(start):
            if name == start:
                checkpoint, metadata = row, loads((row[3], row[4]))
                if filter and any(metadata.get(key) != value for key, value in filter.items()):
                    return None
            elif checkpoint is None:
                return None
            else:
                task = split_name(name)[-1]
                for index, channel, kind, data, path in row:
                    pending.append((writes_sort_key(path, task, index), (task, channel, loads((kind, data)))))
        if checkpoint is None:
            return None
        parent, kind, data, *_ = checkpoint
        pending.sort(key=itemgetter(0))
        return CheckpointTuple(
            _config(*address),
            loads((kind, data)),
            metadata,
            None if parent is None else _config(*address[:2], parent),
            [write for _, write in pending],
        )

    # ---------------------------------------------------------------- writing
    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, in one write; return the config that names it."""
        thread, namespace = _place(config)
        row: Row = [
            _wanted(config),
            *self.serde.dumps_typed(checkpoint),
            *self.serde.dumps_typed(get_checkpoint_metadata(config, metadata)),
        ]
        await self._entries.set(join_name(thread, namespace, checkpoint["id"], ""), row)
        return _config(thread, namespace, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of a task. Its earlier writes stay; only special ones, such as errors and interrupts, are replaced."""
        rows = _merged(
            [],
            [
                [WRITES_IDX_MAP.get(channel, index), channel, *self.serde.dumps_typed(value), task_path]
                for index, (channel, value) in enumerate(writes)
            ],
        )
        name = join_name(*_place(config), str(_configurable(config)["checkpoint_id"]), "", task_id)
        if rows and not await self._entries.add(name, rows):
            await self._entries.update(name, lambda before: _merged(before, rows), default=[])

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove a thread's entries, in each namespace the oldest first: an interrupted call leaves only newer ones, if any."""
        await self._entries.delete_prefix(below(str(thread_id)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints whose metadata have one of these as `run_id`. This searches all threads."""
        runs = set(run_ids)
        async for name, row in self._entries.items():
            if _is_checkpoint(name):
                metadata: CheckpointMetadata = self.serde.loads_typed((row[3], row[4]))
                if metadata.get("run_id") in runs:
                    await self._entries.delete_prefix(name)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints of a thread and their pending writes; their bytes are copied unchanged."""
        for of_checkpoints in (False, True):  # pending writes first: no checkpoint appears without them
            async for name, row in self._entries.items(below(str(source_thread_id))):
                if _is_checkpoint(name) is of_checkpoints:
                    _, *rest = split_name(name)
                    await self._entries.set(join_name(str(target_thread_id), *rest), row)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove the checkpoints of threads: all ("delete"), or all but the latest of each namespace ("keep_latest").

        Ancestors from which a delta channel of the latest gets its value are kept too.
        """
        if strategy not in ("keep_latest", "delete"):
            raise ConfigError(f"aprune has the strategies 'keep_latest' and 'delete', not {strategy!r:.80}")
        for thread in map(str, thread_ids):
            if strategy == "delete":
                await self.adelete_thread(thread)
                continue
            found = [_address(name) async for name in self._checkpoints(below(thread))]
            latest = {address[1]: address for address in found}  # the last of each namespace
            kept = {address for each in latest.values() async for address in self._needed(each)}
            for address in found:
                if address not in kept:
                    await self._entries.delete_prefix(join_name(*address, ""))

    async def _needed(self, address: Address) -> AsyncIterator[Address]:
        """The addresses of a checkpoint and its ancestors, back to where a value of each of its delta channels is found."""
        missing: set[str] | None = None
        found = await self._tuple(address)
        while found is not None:
            yield _address_in(found.config)
            if missing is None:
                missing = set(found.metadata.get("counters_since_delta_snapshot", {}))
            missing -= found.checkpoint["channel_values"].keys()
            if not missing or found.parent_config is None:
                return
            found = await self._tuple(_address_in(found.parent_config))

    # ---------------------------------------------------------------- the same for sync callers
    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._read(self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        found = self.alist(config, filter=filter, before=before, limit=limit)
        while (each := self._read(_next(found))) is not None:
            yield each

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._run(self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._run(self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        self._run(self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._run(self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._run(self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._run(self.aprune(thread_ids, strategy=strategy))


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    return config.get("configurable") or {}


def _place(config: RunnableConfig) -> tuple[str, str]:
    """The thread and the namespace of a config."""
    configurable = _configurable(config)
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns") or ""


def _wanted(config: RunnableConfig) -> str | None:
    """The id of the checkpoint that a config names; None if it names none: as in LangGraph's own savers, "" is no id."""
    return get_checkpoint_id(config) or None


def _config(thread: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}


def _address_in(config: RunnableConfig) -> Address:
    return *_place(config), str(_configurable(config)["checkpoint_id"])


def _address(name: str) -> Address:
    """The address of the checkpoint that an entry is, or belongs to."""
    thread, namespace, checkpoint_id, *_ = split_name(name)
    return thread, namespace, checkpoint_id


def _is_checkpoint(name: str) -> bool:
    """Is this the name of a checkpoint, and not of pending writes?"""
    return name.count(":") == 3


def _merged(before: list[Row], rows: list[Row]) -> list[Row]:
    """Earlier and new rows. Of two with the same index the first stays; but a special channel (index below 0) keeps the last."""
    merged = {row[0]: row for row in before}
    for row in rows:
        if row[0] < 0 or row[0] not in merged:
            merged[row[0]] = row
    return [*merged.values()]


async def _next(found: AsyncIterator[CheckpointTuple]) -> CheckpointTuple | None:
    return await anext(found, None)
