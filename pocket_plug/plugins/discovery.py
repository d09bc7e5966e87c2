"""Finding plugins: from entry points, and from our own table, to candidates that can be loaded one by one.

Nothing here calls a hook or keeps a plugin; that is the manager's. Finding reads metadata only and imports no plugin.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from typing import NamedTuple

from pocket_plug.errors import PluginError, is_fault
from pocket_plug.hookspecs import GROUP, PluginRecord
from pocket_plug.primitives.failures import describe

OUR_DISTRIBUTION = "pocket-plug"
_REQUIRES_US = re.compile(r"pocket[-_.]+plug(?![\w.-])", re.IGNORECASE)

BUILT_IN = {
    "bounding": "pocket_plug.layers.bounding",
    "copying": "pocket_plug.layers.copying",
    "executors": "pocket_plug.executors",
    "fault": "pocket_plug.layers.fault",
    "logging": "pocket_plug.layers.logging:LoggingPlugin",
    "metrics": "pocket_plug.layers.metrics:MetricsPlugin",
    "migrate": "pocket_plug.layers.migrate",
    "persistence": "pocket_plug.layers.persistence",
    "readonly": "pocket_plug.layers.readonly",
    "sqlite": "pocket_plug.backends.sqlite",
    "timeout": "pocket_plug.layers.timeout",
    "tracing": "pocket_plug.layers.tracing:TracingPlugin",
}
"""What our own distribution's entry points say. It counts where their metadata is missing (a checkout on the path that
was never installed) or older than the code, so the built-in parts are always there."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin that was found and not loaded yet."""

    record: PluginRecord
    entry_point: EntryPoint
    source: Distribution | None

    def load(self) -> object:
        """Import it. Raises whatever its import raises, and PluginError where something that it requires is missing."""
        point = self.entry_point
        try:
            extras = point.extras
        except (AttributeError, AssertionError):  # Python 3.11 and 3.13, where the value has no such form
            raise PluginError(f"its entry point {point.value!r} is neither 'module' nor 'module:object'") from None
        if self.source is not None and self.record.origin == "entry point":
            missing = missing_requirements(self.source, extras)
            if missing:
                arguments = " ".join(f'"{requirement}"' for requirement in missing)
                raise PluginError(f"it requires {', '.join(missing)}, which is not there; do: pip install {arguments}")
        loaded: object = point.load()
        return loaded


def find_plugins(*, third_party: bool = True) -> tuple[list[Candidate], list[PluginRecord]]:
    """Candidates, ours first, then by name and distribution; and records of distributions with unreadable metadata.

    Without `third_party`, only what pocket_plug itself brings.
    """
    ours: dict[str, Candidate] = {}
    others: list[Candidate] = []
    broken: list[PluginRecord] = []
    seen: set[str] = set()
    for source in distributions() if third_party else _our_distribution():
        name, version = "?", None
        try:
            if f"[{GROUP}]" not in (source.read_text("entry_points.txt") or ""):
                continue
            name, version = source.name, source.version
            points = source.entry_points.select(group=GROUP)  # all or, where importlib_metadata is in charge, none
        except BaseException as error:  # anybody writes metadata; a broken one must not hide the others
            if not is_fault(error):
                raise
            reason = f"its metadata can't be read: {describe(error)}"
            broken.append(PluginRecord(name, name, version, "entry point", status="failed", reason=reason))
            continue
        if normalised(name) in seen:
            continue  # the first on the path counts, as for imports
        seen.add(normalised(name))
        for point in points:
            if normalised(name) != OUR_DISTRIBUTION:
                others.append(Candidate(PluginRecord(point.name, name, version, "entry point"), point, source))
            elif BUILT_IN.get(point.name) == point.value:
                ours[point.name] = Candidate(PluginRecord(point.name, name, version, "built-in"), point, source)
    for name, module in BUILT_IN.items():
        if name not in ours:
            record = PluginRecord(name, OUR_DISTRIBUTION, None, "built-in")
            ours[name] = Candidate(record, EntryPoint(name, module, GROUP), None)
    others.sort(key=lambda found: (found.record.name, found.record.distribution or ""))
    return [*(ours[name] for name in sorted(ours)), *others], broken


class Library(NamedTuple):
    """A distribution that requires pocket_plug and has no plugin: it is used by importing it."""

    distribution: str
    version: str


def find_libraries() -> list[Library]:
    """Those that are installed, by name. One with unreadable metadata is left out."""
    found: dict[str, Library] = {}
    for source in distributions():
        with contextlib.suppress(Exception):  # anybody writes metadata
            needs = any(_REQUIRES_US.match(each) and "extra ==" not in each for each in source.requires or ())
            if needs and f"[{GROUP}]" not in (source.read_text("entry_points.txt") or ""):
                found.setdefault(normalised(source.name), Library(source.name, source.version))
    return [found[name] for name in sorted(found)]


def _our_distribution() -> Iterator[Distribution]:
    with contextlib.suppress(PackageNotFoundError):
        yield distribution(OUR_DISTRIBUTION)


def missing_requirements(source: Distribution, extras: Iterable[str] = ()) -> list[str]:
    """What a distribution requires, with these extras, and is not installed or only in another version."""
    from packaging.requirements import Requirement

    missing: list[str] = []
    for text in source.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        try:
            there = requirement.specifier.contains(distribution(requirement.name).version, prereleases=True)
        except PackageNotFoundError:
            there = normalised(requirement.name) == OUR_DISTRIBUTION  # that's us, running without having been installed
        if not there:
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def normalised(distribution_name: str) -> str:
    """A distribution's name as package indexes compare it.

    >>> normalised("Pocket_Plug.Redis")
    'pocket-plug-redis'
    """
    return re.sub(r"[-_.]+", "-", distribution_name).lower()
