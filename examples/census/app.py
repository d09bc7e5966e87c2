"""A census of the Python distributions in this environment: their size, licence and requirements.

    pocket-plug run examples/census --trace

Totals are stored in SQLite, in the same transaction as the record that they count. So the program may be killed at any moment:
the next run continues with what was recorded, and skips distributions that have not changed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from importlib.metadata import distribution, distributions
from pathlib import Path

import click
from packaging.requirements import Requirement

from pocket_plug import END, Action, Graph, Next, Node, Pocket, Store, StoreReader, StoreWriter, each, node

from .facts import BY_LICENCE, MARKS, RECORD, TOTAL, UNKNOWN, Facts, Found, Summary, Total, spdx
from .installed import field, is_met, licence_text, look_at, sizes
from .report import Progress, show, write

STATE = Path(".pocket_plug")
log = logging.getLogger("census")


@node
def find(_: None) -> list[Found]:
    """Every distribution on the path; of several with one name, the first. A distribution without a name
    is reported and skipped.
    """
    found: dict[str, Found] = {}
    for dist in distributions():
        try:
            one = look_at(dist)
            found.setdefault(one.name, one)
        except Exception as error:  # noqa: BLE001 - anybody writes metadata
            log.warning("a distribution in %s is left out: %s", dist.locate_file(""), error)
    return sorted(found.values(), key=lambda one: one.name)


async def count(store: StoreWriter, facts: Facts, sign: int) -> None:
    """Add a distribution to the totals, or subtract it."""
    for key in (TOTAL, BY_LICENCE(facts.licence)):
        await store.update(key, lambda total: total.plus(facts, sign), default=Total())


class Forget(Node[list[Found], list[Found]]):
    """Subtracts distributions from the totals if they are no longer installed, or have changed."""

    async def post(
        self, store: StoreWriter, input: list[Found], prepared: list[Found], result: list[Found]
    ) -> list[Found]:
        here = set(input)
        for key in [key async for key in store.keys("census:record:")]:
            facts: Facts = await store.require(key)
            if facts.found not in here:
                await count(store, facts, -1)
                await store.delete(key)
        return input


class Recall(Node[Found, Facts, bool]):
    """Has this distribution been recorded, and not changed since? Then nothing has to be done."""

    async def prep(self, store: StoreReader, found: Found) -> bool:
        recorded = await store.get(RECORD(found.name))
        return recorded is not None and recorded.found == found

    async def post(self, store: StoreWriter, input: Found, prepared: bool, result: bool) -> Facts | Next[Found]:
        return END(input) if prepared else Facts(input)


class Reading(Node[Facts, Facts]):
    """Reads metadata that other tools wrote. If it is broken, the record says so, and the survey continues with the others."""

    def fallback(self, facts: Facts, error: Exception) -> Facts:
        faults = dict.fromkeys([*facts.faults, f"{type(error).__name__}: {error}"])  # each fault once
        return replace(facts, faults=tuple(faults))


class Measure(Reading):
    """Counts the files and their bytes."""

    def exec(self, facts: Facts) -> Facts:
        found = sizes(facts.found.name)
        return replace(facts, files=len(found), bytes=sum(found))


class Classify(Reading):
    """Takes the licence from the metadata; if the metadata don't name it, the action leads to the next node."""

    unclear = Action[Facts]()

    def exec(self, facts: Facts) -> Facts:
        dist = distribution(facts.found.name)
        classifiers = [line for line in dist.metadata.get_all("Classifier") or () if line.startswith("License ::")]
        text = field(dist, "License")
        stated = (
            spdx([field(dist, "License-Expression")])
            or spdx([line.rpartition(":: ")[2] for line in classifiers])
            or spdx([text if len(text) < 40 else ""])
        )
        return replace(facts, licence=stated or UNKNOWN)

    async def post(self, store: StoreWriter, input: Facts, prepared: Facts, result: Facts) -> Facts | Next[Facts]:
        return self.unclear(result) if result.licence == UNKNOWN else result


class ReadLicence(Reading):
    """Recognizes the licence by its text, in files with a name such as LICENSE."""

    def exec(self, facts: Facts) -> Facts:
        text = licence_text(facts.found.name)
        return replace(facts, licence=next((name for name, mark in MARKS.items() if mark in text), UNKNOWN))


class ListRequirements(Reading):
    """Lists the requirements that apply to this interpreter, without extras."""

    def exec(self, facts: Facts) -> Facts:
        wanted = [Requirement(line) for line in distribution(facts.found.name).requires or ()]
        here = [str(each) for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
        return replace(facts, requires=tuple(here))


@node.post
async def record(store: StoreWriter, facts: Facts) -> Found:
    """Writes the record and the totals in one transaction, so they always agree."""
    before = await store.get(RECORD(facts.found.name))
    if before is not None:
        await count(store, before, -1)
    await count(store, facts, +1)
    await store.set(RECORD(facts.found.name), facts)
    return facts.found


class Report(Node[list[Found], Summary]):
    """Writes the report from the store's data, as Markdown and JSON."""

    async def prep(self, store: StoreReader, input: list[Found]) -> Summary:
        records = [await store.require(RECORD(found.name)) for found in input]
        names = {facts.licence for facts in records}
        licences = {name: await store.require(BY_LICENCE(name)) for name in names}
        return Summary(await store.get(TOTAL, default=Total()), licences, records)

    def exec(self, summary: Summary) -> Summary:
        versions = {facts.found.name: facts.found.version for facts in summary.records}
        for facts in summary.records:
            if gone := [line for line in facts.requires if not is_met(line, versions)]:
                summary.missing[facts.found.name] = gone
        return write(summary, STATE)


classify, rest = Classify(), ListRequirements() >> record
survey = Graph(Recall() >> Measure() >> classify >> rest, classify.unclear >> ReadLicence() >> rest, name="survey")
whole = find >> Forget() >> each(survey, concurrency=8) >> Report()
graph = Graph(whole, name="census")


async def census() -> Summary:
    """One census, with a store below the current folder."""
    async with (
        Store(f"sqlite:///{STATE}/census.db", layers=["tracing", "metrics"]) as store,
        Pocket(plugins=[Progress()]) as pocket,
    ):
        return await Graph(whole, store=store, name="census").run(None, pocket=pocket)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def main(as_json: bool) -> None:
    """Count the Python distributions in this environment."""
    try:
        summary = asyncio.run(census())
    except OSError as error:
        raise click.ClickException(f"the report can't be written: {error}") from error
    show(summary, as_json)
