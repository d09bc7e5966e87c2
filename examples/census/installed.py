"""Reading what installers wrote: the fields of a distribution, its files, and whether what it requires is there."""

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
    """One field of the metadata, in one line; "" where it has none."""
    return " ".join(next(iter(dist.metadata.get_all(name) or ()), "").split())


def look_at(dist: Distribution) -> Found:
    """Which one it is. The fingerprint is of its metadata and of the list of its files with their hashes."""
    name, version = canonicalize_name(field(dist, "Name")), field(dist, "Version")
    if not (name and version):
        raise ValueError("its metadata gives no name or no version")
    texts = (dist.read_text("METADATA") or dist.read_text("PKG-INFO") or "", dist.read_text("RECORD") or "")
    return Found(name, version, sha256("".join(texts).encode()).hexdigest()[:16])


def sizes(name: str) -> list[int]:
    """Of its files, in bytes. Where RECORD gives none the file is asked; 0 if it is not there, as compiled ones may be."""
    files = [(file.size, Path(str(file.locate()))) for file in distribution(name).files or ()]
    return [path.stat().st_size if size is None and path.is_file() else size or 0 for size, path in files]


def licence_text(name: str) -> str:
    """What its licence files say, in one line."""
    files = distribution(name).files or ()
    paths = [Path(str(file.locate())) for file in files if re.match(r"LICEN[CS]E|COPYING", file.name, re.IGNORECASE)]
    return " ".join(" ".join(path.read_text("utf-8", "replace").split()) for path in paths if path.is_file())


def is_met(requirement: str, versions: Mapping[str, str]) -> bool:
    """Is it among the installed ones, in a version that fits?"""
    wanted = Requirement(requirement)
    version = versions.get(canonicalize_name(wanted.name))
    try:
        return version is not None and wanted.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return not wanted.specifier
