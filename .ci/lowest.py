"""Prints the lowest versions that our pyproject.toml files allow, as constraints for pip. `make test-lowest` uses them.

They contain only our direct requirements; pip chooses the newest compatible versions of indirect ones. The script uses only the
standard library, since it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(\[[\w,-]+\])?>=(?P<version>[\w.!]+)(,[<!=\w.]+)?"
    r"(; ?python_version ?(< ?'3\.\d+'|>= ?'(?P<python>3\.\d+)'))?"
)
"""All forms of requirements in our pyproject.toml files."""


def lowest(python: tuple[int, int]) -> dict[str, str]:
    """The lowest version of each distribution for a Python version. Raises SystemExit for one without a lower bound."""
    found: dict[str, str] = {}
    for line in _requirements():
        match = REQUIREMENT.fullmatch(line)
        if match is None:
            raise SystemExit(f"{line!r} has no lower bound of the form name>=version")
        if match["name"] == "pocket-plug":
            continue
        since = tuple(map(int, (match["python"] or "3.0").split(".")))
        if since <= python:  # requirements for a later Python come after the general ones
            found[match["name"]] = match["version"]
    return found


def _requirements() -> Iterator[str]:
    for file in [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]:
        project: Mapping[str, Mapping[str, list[str]]] = tomllib.loads(file.read_text("utf-8"))["project"]
        yield from project["dependencies"]
        for extra in project.get("optional-dependencies", {}).values():
            yield from extra


if __name__ == "__main__":
    for name, version in sorted(lowest(sys.version_info[:2]).items()):
        print(f"{name}=={version}")
