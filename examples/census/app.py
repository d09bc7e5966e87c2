"""A census of the Python distributions around this interpreter: their size, licence and requirements.

    pocket-plug run examples/census --trace

Totals are kept in a store on SQLite, in the same transaction as what they count, so it may be killed at any moment: the
next run goes on with what was recorded, and skips what has not changed.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pocket_plug import END, Action, Graph, Next, Node, Pocket, Store, StoreReader, StoreWriter, each, node

from .facts import BY_LICENCE, MARKS, RECORD, TOTAL, Facts, Found, Summary, Total, spdx
from .report import Progress, show, write

STATE = Path(".pocket_plug")


def fingerprint(dist: Distribution) -> str:
    """Of the metadata and the list of files with their hashes, as the installer wrote them."""
    texts = (dist.read_text("METADATA") or dist.read_text("PKG-INFO") or "", dist.read_text("RECORD") or "")
    return sha256("".join(texts).encode()).hexdigest()[:16]


@node
def find(_: None) -> list[Found]:
    """Every distribution on the path, the first of each name."""
    found: dict[str, Found] = {}
    for dist in distributions():
        if name := canonicalize_name(dist.metadata["Name"] or ""):
            found.setdefault(name, Found(name, dist.version, fingerprint(dist)))
    return sorted(found.values(), key=lambda each: each.name)


def unmet(requires: tuple[str, ...]) -> list[str]:
    """Those that are not installed in a version that fits."""

    def is_met(wanted: Requirement) -> bool:
        try:
            return wanted.specifier.contains(distribution(wanted.name).version, prereleases=True)
        except PackageNotFoundError:
            return False

    return [line for line in requires if not is_met(Requirement(line))]


async def count(store: StoreWriter, facts: Facts, sign: int) -> None:
    """Add one distribution to the totals, or take it off again."""
    for key in (TOTAL, BY_LICENCE(facts.licence)):
        await store.update(key, lambda total: total.plus(facts, sign), default=Total())


class Forget(Node[list[Found], list[Found]]):
    """Takes what is installed no more off the totals."""

    async def post(
        self, store: StoreWriter, input: list[Found], prepared: list[Found], result: list[Found]
    ) -> list[Found]:
        here = {found.name for found in input}
        for key in [key async for key in store.keys("census:record:")]:
            facts: Facts = await store.require(key)
            if facts.found.name not in here:
                await count(store, facts, -1)
                await store.delete(key)
        return input


class Recall(Node[Found, Found, bool]):
    """Is it recorded already, as it is now? Then there is nothing to do."""

    async def prep(self, store: StoreReader, found: Found) -> bool:
        recorded = await store.get(RECORD(found.name))
        return recorded is not None and recorded.found == found

    async def post(self, store: StoreWriter, input: Found, prepared: bool, result: bool) -> Found | Next[Found]:
        return END(input) if prepared else input


@node
def measure(found: Found) -> Facts:
    """How many files, and how large. RECORD may lack a size; then the file is asked."""
    files = distribution(found.name).files or []
    sizes = [file.size if file.size is not None else size_on_disk(Path(str(file.locate()))) for file in files]
    return Facts(found, len(files), sum(sizes))


def size_on_disk(path: Path) -> int:
    """In bytes; 0 for what RECORD lists and is not there, such as compiled files."""
    return path.stat().st_size if path.is_file() else 0


class Classify(Node[Facts, Facts]):
    """The licence as the metadata states it; what it leaves open goes another way."""

    unclear = Action[Facts]()

    def exec(self, facts: Facts) -> Facts:
        metadata = distribution(facts.found.name).metadata
        classifiers = [
            line.rpartition(":: ")[2] for line in metadata.get_all("Classifier") or () if "License ::" in line
        ]
        text = (metadata["License"] or "").strip()
        stated = metadata["License-Expression"] or " OR ".join(classifiers) or (text if len(text) < 40 else "")
        return replace(facts, licence=spdx(stated))

    async def post(self, store: StoreWriter, input: Facts, prepared: Facts, result: Facts) -> Facts | Next[Facts]:
        return result if result.licence else self.unclear(result)


@node
def read_licence(facts: Facts) -> Facts:
    """Recognises the licence by its text, in the files of that name."""
    files = distribution(facts.found.name).files or []
    licences = [file for file in files if re.match(r"(LICEN[CS]E|COPYING)", file.name, re.IGNORECASE)]
    text = " ".join(" ".join(Path(str(file.locate())).read_text("utf-8", "replace").split()) for file in licences)
    return replace(facts, licence=next((name for name, mark in MARKS.items() if mark in text), "unknown"))


@node
def list_requirements(facts: Facts) -> Facts:
    """What it requires on this interpreter, without extras."""
    wanted = [Requirement(line) for line in distribution(facts.found.name).requires or ()]
    here = [str(each) for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return replace(facts, requires=tuple(here))


@node.post
async def record(store: StoreWriter, facts: Facts) -> Found:
    """Writes the record and the totals together: whatever happens, they agree."""
    before = await store.get(RECORD(facts.found.name))
    if before is not None:
        await count(store, before, -1)
    await count(store, facts, +1)
    await store.set(RECORD(facts.found.name), facts)
    return facts.found


class Report(Node[list[Found], Summary]):
    """Writes what the store knows, as Markdown and JSON."""

    async def prep(self, store: StoreReader, input: list[Found]) -> Summary:
        records = [await store.require(RECORD(found.name)) for found in input]
        licences = {key.rpartition(":")[2]: await store.require(key) async for key in store.keys("census:licence:")}
        return Summary(await store.get(TOTAL, default=Total()), licences, records)

    def exec(self, summary: Summary) -> Summary:
        missing = {facts.found.name: gone for facts in summary.records if (gone := unmet(facts.requires))}
        return write(replace(summary, missing=missing), STATE)


recall, classify = Recall(), Classify()
survey = Graph(
    recall >> measure >> classify >> list_requirements >> record,
    classify.unclear >> read_licence >> list_requirements,
    name="survey",
)
whole = find >> Forget() >> each(survey, concurrency=8) >> Report()
graph = Graph(whole, name="census")


async def census() -> Summary:
    """One census, over a store below the current folder."""
    progress = Progress()
    async with (
        Store(f"sqlite:///{STATE}/census.db", layers=["tracing", "metrics"]) as store,
        Pocket(plugins=[progress]) as pocket,
    ):
        with progress:
            return await Graph(whole, store=store, name="census").run(None, pocket=pocket)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def main(as_json: bool) -> None:
    """Count the Python distributions around this interpreter."""
    show(asyncio.run(census()), as_json)
