"""How an execution claims a run: a new run, a run after a crash, one that was answered, or one that it takes over."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pocket_plug.errors import (
    ConflictError,
    CorruptRecordError,
    InputError,
    RunBusyError,
    RunMismatchError,
    RunStuckError,
    StoreClosedError,
    UnknownRunError,
)
from pocket_plug.graph.kinds.ask import AskStep
from pocket_plug.primitives.batches import batched
from pocket_plug.primitives.failures import error_type
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import type_name, with_contents
from pocket_plug.store.backend import Change, Delete, Entry, Put
from pocket_plug.store.store import MISSING

from .executions import note_execution
from .journal import Journal
from .judging import RunRecords
from .processes import this_process
from .records import BATCH, FORM, ITEM, Frame, Record, check_run, check_start, field_of, node_of, start_key, status_of
from .states import RunFailure, State, put_state, read_state, state_key, state_of, trace_id, wake_key
from .waits import (
    PlacedWait,
    already_settled,
    current_place,
    is_same,
    put_wait,
    step_of_place,
    suspended,
    wait_key,
    waits_in,
    waits_of,
    waits_to_answer,
    wanted_question,
)


@dataclass(slots=True)
class _Writes:
    """What a claim writes, and the versions that it expects."""

    expect: dict[str, int]
    changes: dict[str, Change] = field(default_factory=dict[str, Change])
    """By key: a later change replaces an earlier one."""
    tries: int = 1
    """How many executions have begun since the run's last commit, this one included."""

    def add(self, *changes: Change) -> None:
        """Add changes."""
        self.changes.update((change.key, change) for change in changes)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A run's records, as of one moment."""

    run: Entry
    start: Entry | None
    state_entry: Entry | None
    state: State | None
    expect: Mapping[str, int]
    """Their versions. For a run that a worker has found stalled, also those that it had then."""


async def claim(journal: Journal, value: object) -> bytes | None:
    """Record this execution as the run's owner. Returns the result of a finished run, else None.

    A run that is given an input is mostly new, so it isn't read first: if it exists, the claim conflicts, and then it is read.
    """
    key, may_be_new = journal.checkpoint.key, value is not MISSING
    while True:
        entry = None if may_be_new else await journal.stack.read(key)
        may_be_new = False
        if entry is None:
            writes = _Writes({key: 0})
            writes.add(begin(journal, value))
        else:
            stored = await _confirmed(journal, entry)
            if stored is None:
                continue
            resumed = await _resumed(journal, stored, value)
            if isinstance(resumed, bytes):
                return resumed
            writes = resumed
        if await _take_over(journal, writes):
            journal.checkpoint.is_old, journal.resume_unreported = entry is not None, journal.epoch > 1
            return None


async def _confirmed(journal: Journal, entry: Entry) -> _Stored | None:
    """The run's records. None if `entry` is out of date, and the run must be read again: a cache may be behind the authority.

    Raises RunBusyError if a run that was seen to be stalled has changed since.
    """
    check_run(journal.checkpoint.key, entry.value)
    start, state_at = start_key(journal.part), state_of(entry.value, journal.name)
    found = await journal.stack.read_many((start, state_at))
    state_entry = found.get(state_at)
    state = read_state(state_at, state_entry) if state_entry is not None else None
    expect = {journal.checkpoint.key: entry.version, state_at: state_entry.version if state_entry is not None else 0}
    if status_of(entry.value) == "running":
        expect |= journal.wanted.stalled_at
    try:
        await journal.stack.write((), expect)
    except ConflictError:
        if journal.wanted.stalled_at:
            raise _busy(journal, entry.value, state) from None
        return None
    return _Stored(entry, found.get(start), state_entry, state, expect)


async def _resumed(journal: Journal, stored: _Stored, value: object) -> _Writes | bytes:
    """The claim of a run that exists, or the result of a finished one. Raises what refuses this execution."""
    record, state, writes = stored.run.value, stored.state, _Writes(dict(stored.expect))
    start = start_key(journal.part)
    if stored.start is None:
        raise CorruptRecordError(f"run {journal.id!r} has lost its record {start!r}; it can only be removed")
    check_start(start, stored.start.value)
    # If the run was cancelled, but no execution has ended it yet, this one does.
    journal.is_cancelled = state is not None and state.cancelled
    journal.checkpoint.load(stored.run)
    refuse_another(journal, stored.start.value, value)
    _refuse_if_busy(journal, record, state)
    if stored.state_entry is not None:
        writes.add(Delete(state_of(record, journal.name)))
    waits, moved = await _judged(journal, record, stored.start.value, writes)
    answered = _answered(journal, record, waits, moved)
    if (result := _settled(journal, record, waits if answered is None else {})) is not None:
        return result
    if answered is not None:
        writes.add(answered)
        was = {wait_key(journal.part, place): each.version for place, each in waits.items()}
        writes.expect[answered.key] = was.get(answered.key, 0)
    if state is not None and state.wake_at is not None:
        writes.add(Delete(wake_key(journal.graph.name, state.wake_at, journal.name)))
    writes.tries = await _tries(journal, state, stored.state_entry)
    await _refuse_one_more(journal, record, writes.tries, writes.expect)
    writes.add(note_execution(journal.part, journal.epoch, journal.stack.clock(), record, state))
    return writes


async def _judged(
    journal: Journal, record: Record, start: Record, writes: _Writes
) -> tuple[Mapping[str, PlacedWait], Mapping[str, str]]:
    """The waits with which the run resumes in this graph, and the new places of those that an upgrade moves.

    What the claim must write for that is added to `writes`. Raises RunChangedError if the run can't resume.
    """
    checkpoint = journal.checkpoint
    waits = waits_in(record, checkpoint.frames)
    writes.add(*(put_wait(journal.part, each.place, each.wait) for each in waits.values()))

    def read(at: str) -> Awaitable[Mapping[str, PlacedWait]]:
        return waits_of(journal.stack, journal.part, at)

    if journal.wanted.answer is MISSING:
        waits |= await read(current_place(checkpoint.frames))
    else:
        waits |= await waits_to_answer(read, checkpoint.frames, journal.wanted.question)
    if status_of(record) == "finished":
        return waits, {}
    kept = RunRecords(journal.id, journal.part, record, start, checkpoint.frames, waits)
    verdict = await journal.judge.verdict(journal.stack, kept, journal.wanted.allow_changed)
    checkpoint.frames = verdict.frames
    writes.add(*verdict.changes)
    writes.expect |= verdict.expect
    return verdict.waits, verdict.moved


async def _take_over(journal: Journal, writes: _Writes) -> bool:
    """Write the run's record with this execution as the owner. Returns False if another one was faster."""
    token, checkpoint = journal.token(), journal.checkpoint
    journal.state_key = state_key("running", journal.graph.name, journal.started, journal.name)
    state = State(
        since=journal.stack.clock(),
        owner=journal.owner,
        process=this_process().record,
        lease=journal.wanted.lease,
        tries=writes.tries,
        commits=checkpoint.commits + 1,
        cancelled=journal.is_cancelled,
    )
    record = journal.record(token, checkpoint.frames)
    writes.add(Put(checkpoint.key, record), put_state(journal.state_key, state))
    try:
        version = await journal.stack.write([*writes.changes.values()], writes.expect)
    except StoreClosedError:  # nothing was sent, and reading would fail too
        journal.state_key = ""
        raise
    except Exception as error:
        now = (await journal.found((checkpoint.key,), error, "the start of this execution")).get(checkpoint.key)
        if now is None or field_of(now, "owner") != token:
            journal.state_key = ""
            if isinstance(error, ConflictError) or (now is not None and not writes.expect[checkpoint.key]):
                return False  # the caller reads the run again
            raise
        version = now.version
    checkpoint.version, checkpoint.commits, journal.state_version = version, record["commits"], version
    journal.landed_record, journal.tries = record, writes.tries
    return True


def begin(journal: Journal, value: object) -> Put:
    """The change that records a new run's start; also sets the journal's first position.

    Raises UnknownRunError if no input was given, so that the run can't be a new one.
    """
    graph = journal.graph
    if value is MISSING:
        raise UnknownRunError(
            f"there is no run {journal.id!r} in {journal.stack!r}; run(input, run_id=…) starts one, `pocket-plug runs ls` lists "
            "those of [store]"
        )
    encoded = journal.encode(value, f"the input of graph {graph.name!r}")
    journal.checkpoint.frames = (Frame(graph.plan.start.name, encoded),)
    begun = {
        "graph": graph.name,
        "scope": journal.prefix,
        "shape": journal.judge.text,
        "form": FORM,
        "version": graph.version,
        "input": encoded,
        "started": journal.started,
    }
    return Put(start_key(journal.part), begun)


def refuse_another(journal: Journal, start: Record, value: object) -> None:
    """Raise RunMismatchError if the run has another graph or another input."""
    name, prefix = journal.graph.name, journal.prefix
    if (start["graph"], start["scope"]) != (name, prefix):
        scopes = (f" in scope {start['scope']!r}", f" in scope {prefix!r}") if start["scope"] != prefix else ("", "")
        place = "graph"
        if start["graph"] == name:
            journal.other_scope = start["scope"]
            place = "scope of its store, store=store.scope(…)"
        way_out = f"resume it with that {place}" if value is MISSING else "give the new run another run_id"
        raise RunMismatchError(
            f"run {journal.id!r} belongs to graph {start['graph']!r}{scopes[0]}, not to {name!r}{scopes[1]}; {way_out}"
        )
    if value is not MISSING and not is_same(start["input"], journal.encode(value, "the input"), value):
        raise RunMismatchError(
            f"run {journal.id!r} was started with another input than this one, {summary(value)}; give the new run another "
            "run_id, or resume the old run by resume(run_id)"
        )


def _refuse_if_busy(journal: Journal, record: Record, state: State | None) -> None:
    """Raise RunBusyError unless the execution that owns the run is known to have ended; RunCancelledError for a cancelled run."""
    status, wanted = status_of(record), journal.wanted
    if status == "cancelled":
        raise journal.cancelled_error()
    if status != "running" or state is None or state.process is None or wanted.takeover or wanted.stalled_at:
        return
    is_own = state.owner == journal.owner  # an earlier claim of this execution seemed lost, and was stored late
    if not is_own and not this_process().knows_ended(state.owner, state.process):
        raise _busy(journal, record, state)


def _busy(journal: Journal, record: Record, state: State | None) -> RunBusyError:
    process, now = (state.process if state is not None else None) or {}, journal.stack.clock()
    since = state.since if state is not None else record["started"]
    return RunBusyError(
        f"run {journal.id!r} is running: process {process.get('pid')} on {process.get('host')!r} has executed it for "
        f"{max(now - since, 0):.0f} seconds; its record was last written {max(now - record['updated'], 0):.0f} seconds ago. "
        "Wait for it, or take it over: takeover=True, or `pocket-plug runs resume --takeover`"
    )


async def _tries(journal: Journal, state: State | None, state_entry: Entry | None) -> int:
    """How many executions have begun since the last commit of the run, or of one of its items, this one included."""
    if state is None or state_entry is None or not state.tries or state.commits != journal.checkpoint.commits:
        return 1
    keys = [key async for key in journal.stack.scan(journal.part + ITEM)]
    for batch in batched(keys, BATCH):
        items = await journal.stack.read_many(batch)
        if any(item.version > state_entry.version for item in items.values()):
            return 1
    return state.tries + 1


async def _refuse_one_more(journal: Journal, record: Record, tries: int, expect: Mapping[str, int]) -> None:
    """If too many executions have ended without progress, record that the run has failed, and raise RunStuckError.

    If another execution was faster, this returns, and the claim that follows conflicts as well.
    """
    if tries <= journal.wanted.max_tries or journal.is_cancelled:  # this execution would only end a cancelled run
        return
    node = node_of(journal.checkpoint.frames)
    error = RunStuckError(
        f"run {journal.id!r}: {tries - 1} executions in a row have ended at node {node!r} without an error and without "
        "progress. Does the node end its process, or need too much memory? A resume of the run tries it again"
    )
    now = journal.stack.clock()
    failure = RunFailure(error_type(error), str(error), node, 0, None, tries - 1, now, trace_id(record["carrier"]))
    left = {**record, "owner": journal.token(), "status": "failed", "updated": now}
    state_at = state_key("failed", journal.graph.name, journal.started, journal.name)
    changes: list[Change] = [Delete(state_of(record, journal.name)), Put(journal.checkpoint.key, left)]
    with suppress(ConflictError):
        await journal.stack.write([*changes, put_state(state_at, State(now, failure=failure))], expect)
        raise error


def _settled(journal: Journal, record: Record, waits: Mapping[str, PlacedWait]) -> bytes | None:
    """Copy a run's progress into the journal. Returns the result of a finished run, else None.

    Raises RunSuspendedError if the run waits for one of these, and none is due.
    """
    journal.started, journal.epoch, journal.steps = record["started"], record["epoch"] + 1, record["steps"]
    journal.carrier = dict(record["carrier"])
    if status_of(record) == "suspended":
        still = [each for each in waits.values() if each.wait.is_open]
        due = journal.wakes(still)
        if still and (due is None or due > journal.stack.clock()):
            raise suspended(journal.id, still, due)
    return record["result"] if status_of(record) == "finished" else None


def _answered(
    journal: Journal, record: Record, waits: Mapping[str, PlacedWait], moved: Mapping[str, str]
) -> Put | None:
    """The change that records the given answer; None if none was given, or if the same answer is recorded already.

    A question that an upgrade has `moved` can be given by its former id as well as by its new one.

    Raises RunMismatchError if the answer is not for an open question, InputError if it has another type.
    """
    answer = journal.wanted.answer
    if answer is MISSING:
        return None
    question = journal.wanted.question
    if isinstance(question, str):
        question = moved.get(question, question)
    asked = wanted_question(journal.id, waits, question, status_of(record))
    if not asked.wait.is_open:
        given = asked.wait.answer
        if given is None or not is_same(given, journal.encode(answer, "the answer"), answer):
            raise already_settled(journal.id, asked, answer)
        return None
    step = step_of_place(journal.graph.plan, asked.place)
    if isinstance(step, AskStep) and not step.accepts(answer):
        raise InputError(
            f"node {step.name!r} of graph {journal.graph.name!r} asks for {type_name(step.answer_type)}, "
            f"not {with_contents(answer)}; run {journal.id!r} still waits for an answer"
        )
    settled = replace(asked.wait, answer=journal.encode(answer, "the answer"), settled=journal.stack.clock())
    return put_wait(journal.part, asked.place, settled)
