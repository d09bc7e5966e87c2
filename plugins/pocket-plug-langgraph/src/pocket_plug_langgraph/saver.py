"""The checkpointer. A checkpoint is one entry, and what a task has written of it is another: each `put` is one small write.

    checkpoint:THREAD:NAMESPACE:ID       [parent's id, type, bytes, type of the metadata, their bytes]
    writes:THREAD:NAMESPACE:ID:TASK      [[index, channel, type, bytes, path of the task], …]

The bytes are LangGraph's serializer's. Ids rise with time, so the order of the names is the order of the checkpoints.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
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
"""What is stored, as the codec gives it back."""


class PocketSaver(Holder, BaseCheckpointSaver[int]):
    """Keeps checkpoints in a store: `PocketSaver("sqlite:///state.db")`, or of one that is open, or of a scope of it.

    Give it to `compile(checkpointer=…)`. With a URL it is a context manager, sync and async, that opens and closes the store.
    `serde` is LangGraph's JsonPlusSerializer, without pickle, unless another one is given.

    >>> from pocket_plug import SyncStore
    >>> saver = PocketSaver(SyncStore())
    >>> list(saver.list(None))
    []
    """

    def __init__(self, store: str | StoreScope | SyncScope, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde)
        self._hold(store)
        self._checkpoints, self._writes = self._scope.scope("checkpoint"), self._scope.scope("writes")

    # ---------------------------------------------------------------- reading
    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the config names, or the thread's latest; None where there is none."""
        thread, namespace = _place(config)
        checkpoint_id = get_checkpoint_id(config)
        if checkpoint_id is None:
            async for name in self._checkpoints.keys(below(thread, namespace), reverse=True, limit=1):
                return await self._tuple(name)
            return None
        return await self._tuple(join_name(thread, namespace, checkpoint_id))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Those of a thread, or of all threads, newest first; `filter` compares the metadata, key by key."""
        left = limit
        async for name in self._names(config, get_checkpoint_id(before) if before else None):
            if left is not None and left <= 0:
                return
            found = await self._tuple(name, filter)
            if found is not None:
                left = None if left is None else left - 1
                yield found

    async def _names(self, config: RunnableConfig | None, before: str | None) -> AsyncIterator[str]:
        """Of one namespace page by page; of several, all names are looked at, since they are merged by their ids."""
        if config is None:
            names = [name async for name in self._checkpoints.keys()]
        elif (checkpoint_id := get_checkpoint_id(config)) is not None:
            names = [join_name(*_place(config), checkpoint_id)]
        elif _configurable(config).get("checkpoint_ns") is not None:
            start = below(*_place(config))
            after = None if before is None else join_name(*_place(config), before)
            async for name in self._checkpoints.keys(start, after=after, reverse=True):
                yield name
            return
        else:
            names = [name async for name in self._checkpoints.keys(below(_place(config)[0]))]
        for name in sorted(names, key=_id_of, reverse=True):
            if before is None or _id_of(name) < before:
                yield name

    async def _tuple(self, name: str, filter: dict[str, Any] | None = None) -> CheckpointTuple | None:
        """What is stored there; None where nothing is, or where the metadata aren't what the filter wants."""
        row: Row | None = await self._checkpoints.get(name)
        if row is None:
            return None
        parent, kind, data, kind_of_metadata, metadata = row
        thread, namespace, checkpoint_id = split_name(name)
        stated: CheckpointMetadata = self.serde.loads_typed((kind_of_metadata, metadata))
        if filter and any(stated.get(key) != value for key, value in filter.items()):
            return None
        return CheckpointTuple(
            _config(thread, namespace, checkpoint_id),
            self.serde.loads_typed((kind, data)),
            stated,
            None if parent is None else _config(thread, namespace, parent),
            await self._pending(name),
        )

    async def _pending(self, name: str) -> list[PendingWrite]:
        """What tasks have written of a checkpoint, in the order in which LangGraph applies it."""
        found: list[tuple[tuple[str, str, int], PendingWrite]] = []
        async for its_name, rows in self._writes.items(f"{name}:"):
            task = split_name(its_name)[-1]
            for index, channel, kind, data, path in rows:
                write = (task, channel, self.serde.loads_typed((kind, data)))
                found.append((writes_sort_key(path, task, index), write))
        found.sort(key=lambda each: each[0])
        return [write for _, write in found]

    # ---------------------------------------------------------------- writing
    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, in one write; gives the config that names it."""
        thread, namespace = _place(config)
        row: Row = [
            get_checkpoint_id(config),
            *self.serde.dumps_typed(checkpoint),
            *self.serde.dumps_typed(get_checkpoint_metadata(config, metadata)),
        ]
        await self._checkpoints.set(join_name(thread, namespace, checkpoint["id"]), row)
        return _config(thread, namespace, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task has written, in one write. What it wrote before stays, but for errors, interrupts and the like."""
        rows: list[Row] = [
            [WRITES_IDX_MAP.get(channel, index), channel, *self.serde.dumps_typed(value), task_path]
            for index, (channel, value) in enumerate(writes)
        ]
        name = join_name(*_place(config), str(_configurable(config)["checkpoint_id"]), task_id)
        if rows and not await self._writes.add(name, rows):
            await self._writes.update(name, lambda before: _merged(before, rows), default=[])

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove all of a thread. Its newest checkpoint goes last, so what an interrupted call leaves is as it was."""
        await self._checkpoints.delete_prefix(below(str(thread_id)))
        await self._writes.delete_prefix(below(str(thread_id)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints whose metadata have one of these as `run_id`. All threads are searched for them."""
        runs = set(run_ids)
        async for name, row in self._checkpoints.items():
            metadata: CheckpointMetadata = self.serde.loads_typed((row[3], row[4]))
            if metadata.get("run_id") in runs:
                await self._remove(name)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints of a thread and what was written of them; the bytes are copied as they are."""
        for scope in (self._writes, self._checkpoints):  # so that a checkpoint is there only with its writes
            async for name, row in scope.items(below(str(source_thread_id))):
                _, *rest = split_name(name)
                await scope.set(join_name(str(target_thread_id), *rest), row)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove a thread's checkpoints: all ("delete"), or all but the latest of each namespace ("keep_latest").

        Ancestors that a delta channel of the latest needs for its value are kept too.
        """
        if strategy not in ("keep_latest", "delete"):
            raise ConfigError(f"aprune has the strategies 'keep_latest' and 'delete', not {strategy!r:.80}")
        for thread in map(str, thread_ids):
            if strategy == "delete":
                await self.adelete_thread(thread)
                continue
            names = [name async for name in self._checkpoints.keys(below(thread))]
            latest = {split_name(name)[1]: name for name in names}  # the last of each namespace
            kept = {name for each in latest.values() async for name in self._needed(each)}
            for name in names:
                if name not in kept:
                    await self._remove(name)

    async def _needed(self, name: str) -> AsyncIterator[str]:
        """The name of a checkpoint and of those before it, until each of its delta channels has its value in one."""
        missing: set[str] | None = None
        found = await self._tuple(name)
        while found is not None:
            yield _name(found.config)
            if missing is None:
                missing = set(found.metadata.get("counters_since_delta_snapshot", {}))
            missing -= found.checkpoint["channel_values"].keys()
            if not missing or found.parent_config is None:
                return
            found = await self._tuple(_name(found.parent_config))

    async def _remove(self, name: str) -> None:
        await self._checkpoints.delete(name)
        await self._writes.delete_prefix(f"{name}:")

    # ---------------------------------------------------------------- the same without a loop
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
    """The thread and the namespace."""
    configurable = _configurable(config)
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns") or ""


def _config(thread: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}


def _name(config: RunnableConfig) -> str:
    return join_name(*_place(config), str(_configurable(config)["checkpoint_id"]))


def _id_of(name: str) -> str:
    return split_name(name)[-1]


def _merged(before: list[Row], rows: list[Row]) -> list[Row]:
    """Those that were there, and the new ones: of an index that both have the first stays, unless it is of a special channel."""
    merged = {row[0]: row for row in before}
    for row in rows:
        if row[0] < 0 or row[0] not in merged:
            merged[row[0]] = row
    return [*merged.values()]


async def _next(found: AsyncIterator[CheckpointTuple]) -> CheckpointTuple | None:
    return await anext(found, None)
