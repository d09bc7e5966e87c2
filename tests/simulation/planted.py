"""Faults put back on purpose, one at a time, to test the simulation. `python -m tests.simulation --planted` looks for each.

Each breaks the protocol of durable runs in one place, as an earlier version or a plausible rewrite has done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any
from unittest import mock

import pocket_plug as pp
from pocket_plug.graph.durable import claim, heartbeat, journal, ledger, processes, records, states, worker
from pocket_plug.graph.durable.journal import Journal, RunReleasedError
from pocket_plug.graph.durable.ledger import RunLedger
from pocket_plug.graph.durable.processes import Process
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.following import reports, streaming
from pocket_plug.graph.following.feed import Feed
from pocket_plug.graph.runs import following
from pocket_plug.primitives.waiting import has_loop
from pocket_plug.store.backend import Change, Put

from . import loop
from .graphs import EFFECT
from .store import Client

Expect = Mapping[str, int]
PLANTED: dict[str, Callable[[], AbstractContextManager[object]]] = {}
"""The faults, by what is wrong."""


def fault(what: str) -> Callable[[Callable[[], Iterator[None]]], object]:
    """Register a fault."""

    def put(plant: Callable[[], Iterator[None]]) -> object:
        PLANTED[what] = contextmanager(plant)
        return plant

    return put


# ---------------------------------------------------------------- what writes expect
def _expecting(what: str, drop: Callable[[Sequence[Change], str], bool]) -> None:
    """A fault by which some writes don't expect the version of some keys."""
    write = Client.write

    async def careless(self: Client, changes: Sequence[Change], expect: Expect = {}) -> int:  # noqa: B006 - never changed
        return await write(self, changes, {key: expect[key] for key in expect if not drop(changes, key)})

    PLANTED[what] = lambda: mock.patch.object(Client, "write", careless)


def _is_control(key: str) -> bool:
    return key.startswith((records.RUN, states.STATE))


def _puts(changes: Sequence[Change], prefix: str, **fields: object) -> bool:
    """Do these changes put a record at such a key, with these fields?"""
    return any(
        isinstance(change, Put)
        and change.key.startswith(prefix)
        and all(change.value.get(name) == value for name, value in fields.items())
        for change in changes
    )


def _claims(changes: Sequence[Change]) -> bool:
    return _puts(changes, states.STATE + "running:") and _puts(changes, records.RUN, status="running")


_expecting(
    "items are written without the fence",
    lambda changes, key: _is_control(key) and any(":item:" in change.key for change in changes) and len(changes) < 4,
)
_expecting("a claim does not expect the version of the run", lambda changes, key: _claims(changes))
_expecting(
    "commits expect the run, but not its state",
    lambda changes, key: key.startswith(states.STATE) and _puts(changes, records.RUN) and not _claims(changes),
)
_expecting(
    "a late `failed` overwrites whatever is there",
    lambda changes, key: _puts(changes, records.RUN, status="failed"),
)
_expecting(
    "the commit that finishes a run is not fenced", lambda changes, key: _puts(changes, records.RUN, status="finished")
)
_expecting("a node's writes do not expect what it has read", lambda changes, key: not key.startswith("pocket:"))


_expecting(
    "an operator's move does not expect what was seen",
    lambda changes, key: any(
        isinstance(change, Put) and change.key.startswith(records.RUN) and change.value["owner"].startswith(".")
        for change in changes
    ),
)
_expecting(
    "word is left in a state that may be another one by now",
    lambda changes, key: _puts(changes, states.STATE, cancelled=True) and len(changes) == 1,
)
_expecting(
    "an answer does not expect that the question is open",
    lambda changes, key: _claims(changes) and (":wait:" in key or _is_control(key)),
)

_expecting(
    "a run is suspended without expecting the questions that it has looked at",
    lambda changes, key: ":wait:" in key and _puts(changes, records.RUN, status="suspended"),
)
_expecting(
    "an answer beside an execution does not expect that it is still at the run",
    lambda changes, key: _is_control(key) and all(":wait:" in change.key for change in changes),
)
_expecting("a run is submitted over whatever is there", lambda changes, key: _puts(changes, states.STATE + "pending:"))
_expecting(
    "who takes over a stalled run does not expect its heartbeat", lambda changes, key: key.startswith(heartbeat.BEAT)
)
_expecting(
    "who takes over a stalled run expects its heartbeat alone",
    lambda changes, key: _claims(changes) and _is_control(key),
)


@fault("nothing tells a worker of a run that waits for a time")
def _unnoted() -> Iterator[None]:
    write = Client.write

    async def forgetful(self: Client, changes: Sequence[Change], expect: Expect = {}) -> int:  # noqa: B006 - never changed
        kept = [change for change in changes if not change.key.startswith(states.WAKE)]
        return await write(self, kept, expect)

    with mock.patch.object(Client, "write", forgetful):
        yield


@fault("a node's writes land before its checkpoint, not with it")
def _in_two() -> Iterator[None]:
    write = Client.write

    async def in_two(self: Client, changes: Sequence[Change], expect: Expect = {}) -> int:  # noqa: B006 - never changed
        effects = [change for change in changes if change.key.startswith(EFFECT)]
        rest = [change for change in changes if not change.key.startswith(EFFECT)]
        if effects and rest:
            await write(self, effects, {key: version for key, version in expect.items() if not _is_control(key)})
        return await write(self, rest or effects, expect)

    with mock.patch.object(Client, "write", in_two):
        yield


# ---------------------------------------------------------------- outcomes of failed writes
@fault("a failed write is taken for one that has not landed, without a look")
def _no_look() -> Iterator[None]:
    async def landed(self: Journal, *_: Any) -> None:
        return None

    with mock.patch.object(Journal, "landed", landed):
        yield


@fault("a conflict whose look-up fails is taken for a node's conflict")
def _conflict_after_all() -> Iterator[None]:
    landed = Journal.landed

    async def guessed(self: Journal, checkpoint: Any, token: str, failed: BaseException, *rest: Any) -> int | None:
        try:
            return await landed(self, checkpoint, token, failed, *rest)
        except pp.OutcomeUnknownError:
            if isinstance(failed, pp.ConflictError):
                return None
            raise

    with mock.patch.object(Journal, "landed", guessed):
        yield


@fault("a write's token is that of its execution: a write that was lost is taken for the one before it")
def _one_token() -> Iterator[None]:
    with mock.patch.object(Journal, "token", lambda self: f"{self.owner}.1"):
        yield


@fault("who has suspended a run is told that it was overtaken, where others have gone on with it since")
def _gone_on_is_fence() -> Iterator[None]:
    async def never(self: Journal, *_: Any) -> bool:
        return False

    with mock.patch.object(Journal, "_was_left_by", never):
        yield


@fault("a worker says `released` of a run that it could not release")
def _released_at_any_rate() -> Iterator[None]:
    record_end = Journal.record_end

    async def sure(self: Journal, error: BaseException, left_as: records.Status) -> None:
        with suppress(pp.StoreError):
            await record_end(self, error, left_as)

    with mock.patch.object(Journal, "record_end", sure):
        yield


@fault("a worker says `failed` of a run whose failure it could not record")
def _failed_at_any_rate() -> Iterator[None]:
    became = worker._became

    def sure(error: Exception, status: records.Status) -> worker.Became:
        is_lost = isinstance(error, pp.RunFencedError | pp.OutcomeUnknownError)
        return became(error, "failed" if status == "running" and not is_lost else status)

    with mock.patch.object(worker, "_became", sure):
        yield


@fault("a conflict with the state is taken for a takeover")
def _conflict_is_fence() -> Iterator[None]:
    landed = Journal.landed

    async def fenced(self: Journal, checkpoint: Any, token: str, failed: BaseException, *rest: Any) -> int | None:
        if isinstance(failed, pp.ConflictError) and self.state_key in failed.keys:
            raise pp.RunFencedError("somebody has written the state")
        return await landed(self, checkpoint, token, failed, *rest)

    with mock.patch.object(Journal, "landed", fenced):
        yield


# ---------------------------------------------------------------- ownership
@fault("a process is known by its number alone")
def _number_alone() -> Iterator[None]:
    def knows_ended(self: Process, owner: str, record: Mapping[str, Any]) -> bool:
        if record["id"] == self.id:
            return owner not in self.held
        return record["machine"] == self.record["machine"] and not processes._began(record["pid"])

    with mock.patch.object(Process, "knows_ended", knows_ended):
        yield


@fault("processes of two containers of one name are taken for those of one machine")
def _by_host() -> Iterator[None]:
    def knows_ended(self: Process, owner: str, record: Mapping[str, Any]) -> bool:
        if record["id"] == self.id:
            return owner not in self.held
        return record["host"] == self.record["host"] and processes._began(record["pid"]) != record["began"]

    with mock.patch.object(Process, "knows_ended", knows_ended):
        yield


@fault("an execution is known to its process only once its claim has landed")
def _held_late() -> Iterator[None]:
    claims = ledger.claim

    async def claim_first(mine: Journal, value: object) -> bytes | None:
        held = processes.this_process().held
        held.pop(mine.owner, None)
        result = await claims(mine, value)
        held[mine.owner] = mine
        return result

    with mock.patch.object(ledger, "claim", claim_first):
        yield


@fault("a lease is over by the clock of whoever looks, since the time that the owner has written")
def _by_clocks() -> Iterator[None]:
    def is_stalled(self: StallWatch, key: str, state: Any, versions: Expect) -> bool:
        return state.process is not None and self.stack.clock() - state.since >= state.lease

    with mock.patch.object(StallWatch, "_is_stalled", is_stalled):
        yield


@fault("a lease is over a lease after the first look, whatever has moved since")
def _first_look() -> Iterator[None]:
    is_stalled = StallWatch._is_stalled

    def hasty(self: StallWatch, key: str, state: Any, versions: Expect) -> bool:
        if (former := self._seen.get(key)) is not None:
            former.versions = versions
        return is_stalled(self, key, state, versions)

    with mock.patch.object(StallWatch, "_is_stalled", hasty):
        yield


@fault("nobody speaks for a node that takes longer than a lease")
def _mute() -> Iterator[None]:
    with mock.patch.object(heartbeat.Heart, "unmoved", return_value=set()):
        yield


@fault("the heartbeat is sent by the event loop, which may be blocked")
def _by_the_loop() -> Iterator[None]:
    block = loop.Process.block

    async def both(self: loop.Process, seconds: float, *, and_threads: bool) -> None:
        await block(self, seconds, and_threads=True)

    with mock.patch.object(loop.Process, "block", both):
        yield


@fault("an item that is done is no progress: a run whose processes die is given up too early")
def _no_progress() -> Iterator[None]:
    async def tries(journal: Journal, state: Any, stood: Any) -> int:
        return state.tries + 1 if state is not None else 1

    with mock.patch.object(claim, "_tries", tries):
        yield


# ---------------------------------------------------------------- operators
@fault("a claim forgets that the run was cancelled")
def _forgets() -> Iterator[None]:
    read_state = claim.read_state

    with mock.patch.object(claim, "read_state", lambda *of: replace(read_state(*of), cancelled=False)):
        yield


@fault("a run that was cancelled is given up as failed, after too many executions")
def _given_up() -> Iterator[None]:
    refuse = claim._refuse_one_more

    async def careless(mine: Journal, *arguments: Any) -> None:
        was, mine.is_cancelled = mine.is_cancelled, False
        try:
            await refuse(mine, *arguments)
        finally:
            mine.is_cancelled = was

    with mock.patch.object(claim, "_refuse_one_more", careless):
        yield


@fault("only the first item that hears of it is cancelled")
def _heard_once() -> Iterator[None]:
    land = RunLedger._store_commit

    async def deaf(self: RunLedger, *arguments: Any) -> int:
        try:
            return await land(self, *arguments)
        except pp.RunCancelledError as error:
            if getattr(self.journal, "was_told", False) and isinstance(error.__cause__, pp.ConflictError):
                return await land(self, *arguments)
            raise
        finally:
            self.journal.was_told = self.journal.is_cancelled  # type: ignore[attr-defined]

    with mock.patch.object(RunLedger, "_store_commit", deaf):
        yield


# ---------------------------------------------------------------- where a run continues
@fault("an item's record is read without its run's")
def _unfenced_look() -> Iterator[None]:
    check_owner = Journal.check_owner

    def careless(self: Journal, found: Any, failed: BaseException | None = None) -> None:
        if failed is not None:
            check_owner(self, found, failed)

    with mock.patch.object(Journal, "check_owner", careless):
        yield


@fault("who releases a run that it has just taken forgets where that stands in a nested graph")
def _released_outside() -> Iterator[None]:
    def released(self: RunLedger) -> RunReleasedError:
        if self.checkpoint is self.journal.checkpoint:
            frames = [records.plain(each) for each in self._frames(replace(self.frame, hooks=""))]
            self.journal.landed_record = {**self.journal.landed_record, "frames": frames}
        return RunReleasedError(self.journal.id)

    with mock.patch.object(RunLedger, "_released", released):
        yield


@fault("visits are counted anew by each execution")
def _anew() -> Iterator[None]:
    plain = records.plain
    with mock.patch.object(journal, "plain", lambda frame: {**plain(frame), "visits": {}}):
        yield


@fault("hooks that a kill has cut short are not called again")
def _hooks_once() -> Iterator[None]:
    plain = records.plain
    with mock.patch.object(journal, "plain", lambda frame: {**plain(frame), "hooks": ""}):
        yield


# ---------------------------------------------------------------- events, and runs without a loop
@fault("what a full buffer has no room for is not told")
def _full() -> Iterator[None]:
    add = Feed.add

    def hasty(self: Feed, event: Any, instead_of: object = None) -> None:
        if not self.is_full:
            add(self, event, instead_of)

    with mock.patch.object(Feed, "add", hasty):
        yield


@fault("a node is told to be left before what it has written has landed")
def _told_early() -> Iterator[None]:
    commit = RunLedger.commit

    async def early(self: RunLedger, run: Any, step: Any, target: Any, output: object, changes: Any) -> Any:
        here = reports.reporter.get()
        if isinstance(here, streaming._Visit):
            here._call.output = output
            here.__exit__()
            here._call.outcome = "suspended"  # it is reported once
        return await commit(self, run, step, target, output, changes)

    with mock.patch.object(RunLedger, "commit", early):
        yield


@fault("a follower tells of all nodes in the path, whatever the record said that it has looked at")
def _beyond() -> Iterator[None]:
    path = following._Follower._path

    def all_of_it(self: following._Follower, seen: Any) -> Any:
        seen.checkpoint.commits += 100
        return path(self, seen)

    with mock.patch.object(following._Follower, "_path", all_of_it):
        yield


@fault("a follower forgets at each look which nodes it has told of")
def _from_the_begin() -> Iterator[None]:
    look = following._Follower.look

    def forgetful(self: following._Follower) -> Any:
        self._passed = ""
        return look(self)

    with mock.patch.object(following._Follower, "look", forgetful):
        yield


@fault("without an event loop, a failed write is taken for one that has not landed")
def _no_look_in_threads() -> Iterator[None]:
    landed = Journal.landed

    async def careless(self: Journal, *arguments: Any) -> int | None:
        return await landed(self, *arguments) if has_loop() else None

    with mock.patch.object(Journal, "landed", careless):
        yield


@fault("a run in a thread is cancelled, and nobody there looks")
def _deaf_in_threads() -> Iterator[None]:
    read_request = Journal.read_request

    def deaf(self: Journal, entry: Any) -> bool:
        was = self.is_cancelled
        news = read_request(self, entry)
        if not has_loop():
            self.is_cancelled = was
        return news and has_loop()

    with mock.patch.object(Journal, "read_request", deaf):
        yield
