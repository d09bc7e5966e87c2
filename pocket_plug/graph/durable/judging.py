"""Decides from a run's records whether and how it can resume in this graph: before it is claimed, and for `check_runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pocket_plug.codec import default_codec
from pocket_plug.errors import RunChangedError
from pocket_plug.graph.kinds.ask import AskStep
from pocket_plug.graph.kinds.nesting import GraphStep
from pocket_plug.graph.planning.plan import Plan, PlannedGraph
from pocket_plug.graph.planning.step import Step
from pocket_plug.graph.upgrades import Upgrade
from pocket_plug.primitives.typechecks import type_name
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Put
from pocket_plug.store.stack import StorePlace

from .changes import Differences, Facts, differences, misplaced
from .forms import GraphForm, form_of, read_form, read_lines
from .records import FORM, Frame, Record, item_key, plain, start_key
from .standing import Items, Spot, Standing, spots, step_at
from .upgrading import upgraded
from .waits import PlacedWait, put_wait, wait_key

How = Literal["unchanged", "not begun", "unchanged ahead", "upgraded", "allowed"]
"""Why a run can resume: the graph is unchanged; the run was submitted but has not begun; the part of the graph that the run can
still reach is unchanged; an upgrade moves the run; `allow_changed` was given."""


Spots = Mapping[tuple[int, ...], Spot]
WAITING = {"question": "ask", "sleep": "sleep"}
"""The kind of node for each kind of wait."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run resumes, and what the claim must write for it."""

    how: How
    frames: Sequence[Frame]
    changes: Sequence[Change] = ()
    """The changes to be written with the claim."""
    expect: Mapping[str, int] = field(default_factory=lambda: NO_EXPECTATIONS)
    """The versions of the records from which this was decided."""
    waits: Mapping[str, PlacedWait] = field(default_factory=dict[str, PlacedWait])
    """The run's waits by place, open and settled, after these changes."""
    moved: Mapping[str, str] = field(default_factory=dict[str, str])
    """The new places of the waits that an upgrade has moved, by the old ones."""


@dataclass(frozen=True, slots=True)
class RunRecords:
    """What is recorded of a run: its record, the record of its start, and its waits."""

    run_id: str
    part: str
    """The prefix of the keys of the run's parts."""
    record: Record
    start: Record
    frames: Sequence[Frame]
    waits: Mapping[str, PlacedWait] = field(default_factory=dict[str, PlacedWait])
    """The run's waits by place, open and settled."""

    @property
    def is_begun(self) -> bool:
        """Has any execution of it begun? If not, it may begin in any graph that takes its input."""
        return bool(self.record["epoch"])


class Judge:
    """Decides how the runs of one graph resume."""

    def __init__(self, graph: PlannedGraph, place: StorePlace) -> None:
        self.graph = graph
        self.text = form_of(graph.plan, place)
        self._known: dict[object, Differences] = {}

    async def verdict(self, stack: Backend, kept: RunRecords, allow_changed: bool = False) -> Verdict:
        """How the run resumes. Raises RunChangedError if it can't, CodecError for a value that can't be read or written."""
        verdict, standing = await self._judged(stack, kept, allow_changed)
        _refuse_unreadable(standing)
        return verdict

    async def _judged(self, stack: Backend, kept: RunRecords, allow_changed: bool) -> tuple[Verdict, Standing]:
        """The verdict, and the position at which the run resumes."""
        form, steps = read_form(self.text), self._steps(kept)
        items = Items(kept.part, kept.waits)
        if not steps and self._is_same(kept.start):
            standing = await items.read(stack, form, kept.frames)
            self._refuse_misplaced(kept, misplaced(form, standing))
            return Verdict("unchanged", kept.frames, waits=kept.waits), standing
        before = form_before(kept.start)
        standing = await items.read(stack, before, kept.frames)
        if standing.items:  # items begin only after the hooks of the node before have ended
            last = replace(standing.last, hooks="")
            standing = replace(standing, frames=(*standing.frames[:-1], last))
        start = Put(
            start_key(kept.part), {**kept.start, "shape": self.text, "form": FORM, "version": self.graph.version}
        )
        if not kept.is_begun and not steps and _begins_alike(before, form):
            begun = replace(standing.last, node=form.start)
            return Verdict("not begun", (begun,), (start,), waits=kept.waits), standing
        if steps:
            moved = upgraded(kept.run_id, standing, steps)
            if not kept.is_begun and [frame.node for frame in moved.frames] == [before.start]:
                moved = replace(moved, frames=(replace(moved.last, node=form.start),))
            self._refuse_misplaced(kept, misplaced(form, moved) or _unfit(self.graph.plan, moved))
            return self._upgraded(kept, start, items, spots(before, standing), spots(form, moved)), moved
        self._refuse_misplaced(kept, misplaced(form, standing))
        found = self._differences(kept.start, before, form, standing)
        if not found.lines:
            return Verdict("unchanged ahead", standing.frames, (), items.versions, kept.waits), standing
        if found.is_firm or not allow_changed:
            raise self._changed(kept, found)
        return Verdict("allowed", standing.frames, (start,), items.versions, kept.waits), standing

    def _upgraded(self, run: RunRecords, start: Put, items: Items, former: Spots, now: Spots) -> Verdict:
        """How an upgraded run resumes: with the changes that move the records of its items and waits to their new places."""
        kept = {
            item_key(run.part, spot.within): [plain(frame) for frame in spot.standing.frames]
            for positions, spot in now.items()
            if positions
        }
        changes: list[Change] = [
            start,
            *(Delete(key) for key, version in items.versions.items() if version and key not in kept),
            *(Put(key, {"owner": "", "commits": 0, "frames": frames}) for key, frames in kept.items()),
        ]
        expect, waits, moved = dict(items.versions), dict(items.waits), dict[str, str]()
        for positions, spot in former.items():
            if (found := spot.standing.wait) is None:
                continue
            there = now[positions].leaf if positions in now else None
            key = wait_key(run.part, found.place)
            expect[key] = found.version
            if there is None or there.node is None or there.node.kind != WAITING[found.wait.kind]:
                changes.append(Delete(key))
                del waits[found.place]
            elif (place := there.place[1:]) != found.place:
                changes += [Delete(key), put_wait(run.part, place, found.wait)]
                del waits[found.place]
                waits[place], moved[found.place] = PlacedWait(place, found.wait), place
        return Verdict("upgraded", now[()].standing.frames, changes, expect, waits, moved)

    def _steps(self, kept: RunRecords) -> list[tuple[int, Upgrade]]:
        """The upgrades from the run's version to the graph's. None at all: the two forms of the graph are compared.

        Raises RunChangedError if the run's version is newer, or if some of the upgrades are missing.
        """
        begun, graph = kept.start.get("version", 1), self.graph
        if begun > graph.version:
            raise RunChangedError(
                f"run {kept.run_id!r} belongs to version {begun} of graph {graph.name!r}, but this graph has version "
                f"{graph.version}; resume the run with version {begun}"
            )
        steps = range(begun, graph.version)
        missing = [step for step in steps if step not in graph.upgrade]
        if len(missing) == len(steps):
            return []
        if missing:
            raise RunChangedError(
                f"run {kept.run_id!r} belongs to version {begun} of graph {graph.name!r}, and no function upgrades version "
                f"{missing[0]} to {missing[0] + 1}; give Graph(…, upgrade={{{missing[0]}: …}})"
            )
        return [(step, graph.upgrade[step]) for step in steps]

    def _is_same(self, start: Record) -> bool:
        return bool(start["shape"] == (self.text if "form" in start else self.graph.plan.shape.lines))

    def _differences(self, start: Record, before: GraphForm, now: GraphForm, standing: Standing) -> Differences:
        """The differences between both forms ahead of the run. Runs at the same position share the result."""
        shape = start["shape"] if isinstance(start["shape"], str) else tuple(start["shape"])
        alike = (shape, standing.outline())
        if alike not in self._known:
            self._known[alike] = differences(Facts(before, standing), Facts(now, standing))
        return self._known[alike]

    def _refuse_misplaced(self, kept: RunRecords, why: str | None) -> None:
        if why is not None:
            raise RunChangedError(
                f"run {kept.run_id!r} can't resume in the current graph {self.graph.name!r}: {why}; {self._way_out()}"
            )

    def _changed(self, kept: RunRecords, found: Differences) -> RunChangedError:
        allowed = "" if found.is_firm else ", or for this run alone: allow_changed=True"
        return RunChangedError(
            f"run {kept.run_id!r} was started with another form of graph {self.graph.name!r}; the two differ in the part that "
            f"the run can still reach; {self._way_out()}{allowed}",
            found.lines,
        )

    def _way_out(self) -> str:
        version = self.graph.version
        return (
            "resume it with the graph that it was started with, or upgrade it: "
            f"Graph(…, version={version + 1}, upgrade={{{version}: …}})"
        )


def _begins_alike(before: GraphForm, now: GraphForm) -> bool:
    """Do both forms take the same type of input, as far as it is recorded?"""
    types = [None if (first := form.nodes.get(form.start)) is None else first.takes for form in (before, now)]
    return types[0] == types[1] or None in types


def form_before(start: Record) -> GraphForm:
    """The form of the graph that began a run, from the record of its start. Raises CorruptRecordError."""
    return read_form(start["shape"]) if "form" in start else read_lines(tuple(start["shape"]))


def _refuse_unreadable(standing: Standing) -> None:
    """Raise the CodecError of a resume that would read these values: a class has other fields than when they were stored.

    The program that stored them can still resume the run, so it must not fail here.
    """
    answer = standing.wait.wait.answer if standing.wait is not None else None
    for value in (*(frame.value for frame in standing.frames), answer):
        if value:
            default_codec.decode(value)
    for item in standing.items.values():
        _refuse_unreadable(item)


# ---------------------------------------------------------------- checks after an upgrade
def _unfit(plan: Plan, standing: Standing) -> str | None:
    """Why a node can't take the value, or the answer, that the run or an item has there; None if it can."""
    step = step_at(plan, standing.frames)
    return None if step is None else _unfit_at(step, standing)


def _unfit_at(step: Step, standing: Standing) -> str | None:
    while isinstance(step, GraphStep):
        step = step.graph.plan.start
    value = default_codec.decode(standing.last.value) if standing.last.value else None
    if standing.last.node is not None and standing.last.value and step.fits is not None and not step.fits(value):
        return (
            f"it is at node {step.name!r} with {type(value).__name__}, but the node takes {type_name(step.input_type)}"
        )
    answer = standing.wait.wait.answer if standing.wait is not None else None
    if answer is not None and isinstance(step, AskStep) and not step.accepts(default_codec.decode(answer)):
        return f"its answer is not the {type_name(step.answer_type)} that {step.name!r} asks for"
    for position, item in standing.items.items():
        inner: Step | None = step.passed
        if isinstance(inner, GraphStep) and len(item.frames) > 1:
            inner = step_at(inner.graph.plan, item.frames[1:])
        if inner is not None and not item.is_done and (why := _unfit_at(inner, item)) is not None:
            return f"item {position}: {why}"
    return None
