"""Finding plugins: from entry points, and from our own table, to candidates that can be loaded one by one.

Nothing here calls a hook or keeps a plugin; that is the manager's. Finding reads metadata only and imports no plugin.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from typing import NamedTuple

from pocket_plug.errors import PluginError, is_fault
from pocket_plug.hookspecs import API_GROUP, API_LEVEL, GROUP, PluginRecord
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
    level: str | None = None
    """The level of the plugin API that it says it needs, as it is written."""
    versions: dict[str, str | None] = field(default_factory=dict[str, "str | None"], repr=False)
    """What was looked up by now of what plugins require: all of them require us, and metadata are slow to read."""

    def load(self) -> object:
        """Import it. Raises whatever its import raises, and PluginError where something that it requires is missing.

        What it needs is looked at first: the error of an import would not say what to upgrade.
        """
        if self.level is not None:
            _check_level(self.level)
        point = self.entry_point
        try:
            extras = point.extras
        except (AttributeError, AssertionError):  # Python 3.11 and 3.13, where the value has no such form
            raise PluginError(f"its entry point {point.value!r} is neither 'module' nor 'module:object'") from None
        if self.source is not None and self.record.origin == "entry point":
            missing = missing_requirements(self.source, extras, self.versions)
            if missing:
                arguments = " ".join(f'"{requirement}"' for requirement in missing)
                if any(map(_REQUIRES_US.match, missing)):  # not another version of us: other plugins may need this one
                    arguments = f"--upgrade {self.record.distribution}"
                raise PluginError(f"it requires {', '.join(missing)}, which is not there; do: pip install {arguments}")
        loaded: object = point.load()
        return loaded


def find_plugins(*, third_party: bool = True) -> tuple[list[Candidate], list[PluginRecord]]:
    """Candidates, ours first, then by name and distribution; and records of distributions with unreadable metadata.

    Without `third_party`, only what pocket_plug itself brings. The order is that of names, whatever the path and the file
    system say.
    """
    ours: dict[str, Candidate] = {}
    others: list[Candidate] = []
    versions: dict[str, str | None] = {}
    offering, broken = _offering(distributions() if third_party else _our_distribution())
    for found in offering:
        is_ours = normalised(found.name) == OUR_DISTRIBUTION
        for point in found.points:
            if not is_ours:
                record = PluginRecord(point.name, found.name, found.version, "entry point")
                others.append(Candidate(record, point, found.source, found.levels.get(point.name), versions))
            elif BUILT_IN.get(point.name) == point.value:
                record = PluginRecord(point.name, found.name, found.version, "built-in")
                ours[point.name] = Candidate(record, point, found.source)
    for name, module in BUILT_IN.items():
        if name not in ours:
            record = PluginRecord(name, OUR_DISTRIBUTION, None, "built-in")
            ours[name] = Candidate(record, EntryPoint(name, module, GROUP), None)
    others.sort(key=lambda found: (found.record.name, found.record.distribution or ""))
    broken.sort(key=lambda record: (record.name, record.version or ""))
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


@dataclass(frozen=True, slots=True)
class _Offering:
    """A distribution with entry points of ours."""

    name: str
    version: str
    source: Distribution
    points: tuple[EntryPoint, ...]
    levels: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def folder(self) -> str:
        """Where it is installed."""
        return str(self.source.locate_file(""))


def _offering(sources: Iterable[Distribution]) -> tuple[list[_Offering], list[PluginRecord]]:
    """The distributions with entry points of ours; and records of those whose metadata can't be read."""
    offering: dict[str, _Offering] = {}
    broken: list[PluginRecord] = []
    for source in sources:
        try:
            if f"[{GROUP}]" not in (source.read_text("entry_points.txt") or ""):
                continue
            points = source.entry_points  # all or, where importlib_metadata is in charge, none
            levels = {point.name: point.value for point in points.select(group=API_GROUP)}
            name, version = _named(source)
            if name is None or version is None:
                raise PluginError("it has no name or no version, as one that was removed by half")
            found = _Offering(name, version, source, tuple(points.select(group=GROUP)), levels)
        except BaseException as error:  # anybody writes metadata; a broken one must not hide the others
            if not is_fault(error):
                raise
            broken.append(_unreadable(source, error))
            continue
        known = offering.setdefault(normalised(found.name), found)
        # the first on the path counts, as for imports; of two in one folder, which an upgrade may leave, the newer one
        if known is not found and known.folder == found.folder and _in_order(known.version) < _in_order(found.version):
            offering[normalised(found.name)] = found
    return list(offering.values()), broken


def _named(source: Distribution) -> tuple[str | None, str | None]:
    """The name and version of a distribution, which has none, whatever its type says, where its metadata are gone."""
    there = source.metadata
    return (there.get_all("Name") or [None])[0], (there.get_all("Version") or [None])[0]


def _unreadable(source: Distribution, why: BaseException) -> PluginRecord:
    """The record of one that can't be read, by its name if that can be."""
    name = version = None
    try:
        name, version = _named(source)
    except BaseException as error:  # it is unreadable, we know
        if not is_fault(error):
            raise
    reason = f"its metadata can't be read: {describe(why)}"
    return PluginRecord(name or "?", name or "?", version, "entry point", status="failed", reason=reason)


def _in_order(version: str) -> tuple[object, ...]:
    """What versions are compared by; one that is none comes first."""
    from packaging.version import InvalidVersion, Version

    try:
        return (1, Version(version))
    except InvalidVersion:
        return (0, version)


def _check_level(level: str) -> None:
    """Raises PluginError where a plugin needs another level of the API than there is."""
    match = re.fullmatch(r"level([1-9]\d*)", level)
    if match is None:
        raise PluginError(
            f"in its entry points, [{API_GROUP}] says {level!r}; write level{API_LEVEL}, or the level it needs"
        )
    if int(match[1]) > API_LEVEL:
        raise PluginError(
            f"it needs level {match[1]} of the plugin API, and this pocket-plug has level {API_LEVEL}; "
            f"do: pip install --upgrade {OUR_DISTRIBUTION}"
        )


def _our_distribution() -> Iterator[Distribution]:
    with contextlib.suppress(PackageNotFoundError):
        yield distribution(OUR_DISTRIBUTION)


def missing_requirements(
    source: Distribution, extras: Iterable[str] = (), versions: dict[str, str | None] | None = None
) -> list[str]:
    """What a distribution requires, with these extras, and is not installed or only in another version.

    `versions` keeps what was looked up; None: it is not there.
    """
    from packaging.requirements import Requirement

    missing: list[str] = []
    versions = {} if versions is None else versions
    for text in source.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = normalised(requirement.name)
        if name not in versions:
            versions[name] = _version_of(requirement.name)
        there = versions[name]
        if there is None and name == OUR_DISTRIBUTION:
            continue  # that's us, running without having been installed
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def _version_of(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def normalised(distribution_name: str) -> str:
    """A distribution's name as package indexes compare it.

    >>> normalised("Pocket_Plug.Redis")
    'pocket-plug-redis'
    """
    return re.sub(r"[-_.]+", "-", distribution_name).lower()
