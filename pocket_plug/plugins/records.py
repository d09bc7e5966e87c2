"""What became of a plugin: what `pocket-plug plugins` lists, and what hooks are handed of one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Origin = Literal["built-in", "entry point", "given"]
Status = Literal["active", "disabled", "declined", "failed"]


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What became of one plugin. `pocket-plug plugins` lists them."""

    name: str
    """The entry point's name: also its table in the configuration, and what disables it."""
    distribution: str | None = None
    """What `pip install` calls it; None for an object that was handed over in code."""
    version: str | None = None
    origin: Origin = "given"
    hooks: tuple[str, ...] = ()
    status: Status = "active"
    reason: str = ""
    """Why it is not active."""
    failures: Counter[str] = field(default_factory=Counter[str], compare=False, repr=False)
    """How often it raised or answered wrongly since, by hook or part: `{"pocket_observe": 3}`."""

    @property
    def verdict(self) -> str:
        """What became of it, in words: `can't be used: ModuleNotFoundError: …`."""
        words = {
            "active": "is in use",
            "disabled": "is disabled",
            "declined": "stepped back",
            "failed": "can't be used",
        }
        return words[self.status] + (f": {self.reason}" if self.reason else "")

    def __str__(self) -> str:
        """The name as messages give it: `'compress' (pocket-plug-compress 0.1.0)`."""
        where = f" ({self.distribution}{f' {self.version}' if self.version else ''})" if self.distribution else ""
        return f"{self.name!r}{where}"
