"""What tests of several folders share: distributions that are installed for one test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Protocol

import pytest


class Install(Protocol):
    def __call__(self, name: str, source: str, /, *, entry_points: str = ..., requires: tuple[str, ...] = ...,
                 version: str = ...) -> Path: ...  # fmt: skip


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with one module where an installer would: `install("pocket-plug-x", "…source…")`.

    Its module is `pocket_plug_x`, and its entry point `x = pocket_plug_x` unless told otherwise.
    """
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name: str, source: str, /, *, entry_points: str | None = None, requires: tuple[str, ...] = (),
                version: str = "1.0") -> Path:  # fmt: skip
        module = name.replace("-", "_")
        (site / f"{module}.py").write_text(dedent(source))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        if entry_points is None:
            entry_points = f"{name.removeprefix('pocket-plug-')} = {module}"
        (info / "entry_points.txt").write_text(f"[pocket_plug]\n{entry_points}\n")
        importlib.invalidate_caches()
        return site

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(site)):
            del sys.modules[name]
