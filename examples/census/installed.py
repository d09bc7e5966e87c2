"""Reads the files that installers wrote: a distribution's metadata, its files, and whether its requirements are met."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from .facts import Found


def field(dist: Distribution, name: str) -> str:
    """A field of the metadata, as one line; "" if there is none."""
    return " ".join(next(iter(dist.metadata.get_all(name) or ()), "").split())


def look_at(dist: Distribution) -> Found:
    """Identify a distribution. The fingerprint is computed from its metadata and from the list of its files with their hashes."""
    name, version = canonicalize_name(field(dist, "Name")), field(dist, "Version")
    if not (name and version):
        raise ValueError("its metadata gives no name or no version")
    texts = (dist.read_text("METADATA") or dist.read_text("PKG-INFO") or "", dist.read_text("RECORD") or "")
    return Found(name, version, sha256("".join(texts).encode()).hexdigest()[:16])


def sizes(name: str) -> list[int]:
    """The size of each file, in bytes. If RECORD has none, it is read from the file system; 0 if the file doesn't exist."""
    files = [(file.size, Path(str(file.locate()))) for file in distribution(name).files or ()]
    return [path.stat().st_size if size is None and path.is_file() else size or 0 for size, path in files]


def licence_text(name: str) -> str:
    """The text of its licence files, as one line."""
    files = distribution(name).files or ()
    paths = [Path(str(file.locate())) for file in files if re.match(r"LICEN[CS]E|COPYING", file.name, re.IGNORECASE)]
    return " ".join(" ".join(path.read_text("utf-8", "replace").split()) for path in paths if path.is_file())


def is_met(requirement: str, versions: Mapping[str, str]) -> bool:
    """Is the requirement installed, in a version that fits?"""
    wanted = Requirement(requirement)
    version = versions.get(canonicalize_name(wanted.name))
    try:
        return version is not None and wanted.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return not wanted.specifier
