"""Finds plugins by entry points and in a table of built-in ones, as candidates that can be loaded one by one.

This module calls no hooks and registers no plugins: the manager does. Finding reads only metadata and imports no plugin.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
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
"""The entry points of our own distribution. This table is used if its metadata is missing (a checkout that was never
installed) or older than the code, so that the built-in parts are always found."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin that was found, but isn't loaded yet."""

    record: PluginRecord
    entry_point: EntryPoint
    source: Distribution | None
    level: str | None = None
    """The level of the plugin API that it declares to need, as written in its entry points."""
    versions: dict[str, str | None] = field(default_factory=dict[str, "str | None"], repr=False)
    """A cache of installed versions: all plugins require pocket_plug, and metadata are slow to read."""

    def load(self) -> object:
        """Import it. Raises whatever its import raises, and PluginError if a requirement is missing.

        Requirements are checked first: the error of the import would not say what to upgrade.
        """
        if self.level is not None:
            _check_level(self.level)
        point = self.entry_point
        try:
            extras = point.extras
        except (AttributeError, AssertionError):  # raised by Python 3.11 and 3.13 for a malformed value
            raise PluginError(f"its entry point {point.value!r} is neither 'module' nor 'module:object'") from None
        if self.source is not None and self.record.origin == "entry point":
            missing = missing_requirements(self.source, extras, self.versions)
            if missing:
                arguments = " ".join(f'"{requirement}"' for requirement in missing)
                if any(map(_REQUIRES_US.match, missing)):  # not another version of us: other plugins may need this one
                    arguments = f"--upgrade {self.record.distribution}"
                raise PluginError(f"{name_missing(missing)}; do: pip install {arguments}")
        loaded: object = point.load()
        return loaded


def find_plugins(*, third_party: bool = True) -> tuple[list[Candidate], list[PluginRecord]]:
    """Candidates, built-in ones first, then by name and distribution; and records of distributions with unreadable metadata.

    Without `third_party`, only built-in plugins. The order depends on names only, and not on the path or the file system.
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
    """A distribution that requires pocket_plug but has no plugin: programs import it."""

    distribution: str
    version: str


def find_libraries() -> list[Library]:
    """The installed libraries, by name, without those whose metadata can't be read."""
    found: dict[str, Library] = {}
    for source in distributions():
        with contextlib.suppress(Exception):  # metadata of other distributions may be broken
            needs = any(_REQUIRES_US.match(each) and "extra ==" not in each for each in source.requires or ())
            if needs and f"[{GROUP}]" not in (source.read_text("entry_points.txt") or ""):
                found.setdefault(normalised(source.name), Library(source.name, source.version))
    return [found[name] for name in sorted(found)]


@dataclass(frozen=True, slots=True)
class _Offering:
    """A distribution with entry points of our group."""

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
    """The distributions with entry points of our group, and records of those whose metadata can't be read."""
    offering: dict[str, _Offering] = {}
    broken: list[PluginRecord] = []
    for source in sources:
        try:
            if f"[{GROUP}]" not in (source.read_text("entry_points.txt") or ""):
                continue
            points = source.entry_points  # may be empty if the backport importlib_metadata is used
            levels = {point.name: point.value for point in points.select(group=API_GROUP)}
            name, version = _named(source)
            if name is None or version is None:
                raise PluginError("it has no name or no version, as after an incomplete removal")
            found = _Offering(name, version, source, tuple(points.select(group=GROUP)), levels)
        except BaseException as error:  # broken metadata of one must not hide the others
            if not is_fault(error):
                raise
            broken.append(_unreadable(source, error))
            continue
        known = offering.setdefault(normalised(found.name), found)
        # the first one on the path is used, as for imports; if an upgrade has left two in a folder, the newer one
        if known is not found and known.folder == found.folder and _in_order(known.version) < _in_order(found.version):
            offering[normalised(found.name)] = found
    return list(offering.values()), broken


def _named(source: Distribution) -> tuple[str | None, str | None]:
    """The name and version of a distribution; None, contrary to its types, if its metadata are missing."""
    there = source.metadata
    return (there.get_all("Name") or [None])[0], (there.get_all("Version") or [None])[0]


def _unreadable(source: Distribution, why: BaseException) -> PluginRecord:
    """The record of a distribution with unreadable metadata, with its name if that can be read."""
    name = version = None
    try:
        name, version = _named(source)
    except BaseException as error:  # the name can't be read either
        if not is_fault(error):
            raise
    reason = f"its metadata can't be read: {describe(why)}"
    return PluginRecord(name or "?", name or "?", version, "entry point", status="failed", reason=reason)


def _in_order(version: str) -> tuple[object, ...]:
    """A sort key for versions; invalid versions come first."""
    from packaging.version import InvalidVersion, Version

    try:
        return (1, Version(version))
    except InvalidVersion:
        return (0, version)


def _check_level(level: str) -> None:
    """Raise PluginError if a plugin needs a higher level of the API than this version has."""
    match = re.fullmatch(r"level([1-9]\d*)", level)
    if match is None:
        raise PluginError(
            f"in its entry points, [{API_GROUP}] has {level!r}; write level{API_LEVEL}, or the level that it needs"
        )
    if int(match[1]) > API_LEVEL:
        raise PluginError(
            f"it needs level {match[1]} of the plugin API, but this pocket-plug has level {API_LEVEL}; "
            f"do: pip install --upgrade {OUR_DISTRIBUTION}"
        )


def _our_distribution() -> Iterator[Distribution]:
    with contextlib.suppress(PackageNotFoundError):
        yield distribution(OUR_DISTRIBUTION)


def missing_requirements(
    source: Distribution, extras: Iterable[str] = (), versions: dict[str, str | None] | None = None
) -> dict[str, str | None]:
    """The requirements of a distribution, with these extras, that aren't installed, or only in another version: that version.

    `versions` is a cache of installed versions; None: not installed.
    """
    from packaging.requirements import Requirement

    missing: dict[str, str | None] = {}
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
            continue  # pocket_plug itself runs without being installed
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            missing[f"{requirement.name}{requirement.specifier}"] = there
    return missing


def name_missing(missing: Mapping[str, str | None]) -> str:
    """What isn't installed, for a message.

    >>> name_missing({"redis>=5.2": "5.0.0", "hiredis>=3.0": None})
    'it requires redis>=5.2, but 5.0.0 is installed; it requires hiredis>=3.0, which is not installed'
    """
    return "; ".join(
        f"it requires {requirement}, {'which is not' if there is None else f'but {there} is'} installed"
        for requirement, there in missing.items()
    )


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
