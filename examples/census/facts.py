"""What the census stores: a record for each distribution, and the totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pocket_plug import Key

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Found:
    """An installed distribution. The fingerprint changes when any of its files changes."""

    name: str
    version: str
    fingerprint: str


@dataclass(frozen=True)
class Facts:
    """What the census knows about a distribution."""

    found: Found
    files: int = 0
    bytes: int = 0
    licence: str = UNKNOWN
    requires: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    """What could not be read."""


@dataclass(frozen=True)
class Total:
    """The total of several distributions."""

    distributions: int = 0
    files: int = 0
    bytes: int = 0

    def plus(self, facts: Facts, sign: int = 1) -> Total:
        """This total plus a distribution, or minus one."""
        return Total(self.distributions + sign, self.files + sign * facts.files, self.bytes + sign * facts.bytes)


RECORD = Key("census:record:{}", Facts)
TOTAL = Key("census:total", Total)
BY_LICENCE = Key("census:licence:{}", Total)


@dataclass(frozen=True)
class Summary:
    """The result of a census."""

    total: Total
    licences: dict[str, Total]
    records: list[Facts]
    missing: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


# spellings in classifiers and free text, and the SPDX name for them
_SPDX = {
    "MIT License": "MIT",
    "MIT license": "MIT",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}

# sentences that occur in one licence only
MARKS = {
    "Apache-2.0": "Apache License Version 2.0",
    "MPL-2.0": "Mozilla Public License Version 2.0",
    "GPL-3.0-or-later": "GNU GENERAL PUBLIC LICENSE Version 3",
    "BSD-3-Clause": "Neither the name of",
    "BSD-2-Clause": "Redistributions in binary form must reproduce",
    "MIT": "Permission is hereby granted, free of charge",
    "ISC": "Permission to use, copy, modify, and/or distribute this software",
    "PSF-2.0": "PYTHON SOFTWARE FOUNDATION LICENSE",
}


def spdx(stated: Sequence[str]) -> str:
    """The SPDX name of licences as metadata states them; "" where it states nothing of use.

    >>> spdx(["MIT License"]), spdx(["UNKNOWN"]), spdx(["ISC License (ISCL)", "Apache 2.0"])
    ('MIT', '', 'ISC OR Apache-2.0')
    """
    return " OR ".join(_SPDX.get(name, name) for name in stated if name not in ("", "UNKNOWN", "OSI Approved"))
