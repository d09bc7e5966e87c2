"""Old names work for one more minor version, and warn with the new name."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import pocket_plug
from pocket_plug import errors
from pocket_plug.renamed import EXCEPTIONS, MODULES, NAMES


@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_is_the_new_thing(old: str) -> None:
    """The same object, so `except` catches exceptions with the new name; with a warning at the user's line."""
    with pytest.warns(DeprecationWarning, match=f"pocket_plug.{old} is now called pocket_plug.{NAMES[old]}") as said:
        assert getattr(pocket_plug, old) is getattr(pocket_plug, NAMES[old])
    assert said[0].filename == __file__


@pytest.mark.parametrize("old", EXCEPTIONS)
def test_an_old_exception_in_errors(old: str) -> None:
    """Like a name of the package."""
    with pytest.warns(DeprecationWarning, match=f"pocket_plug.errors.{old} is now called"):
        assert getattr(errors, old) is getattr(errors, EXCEPTIONS[old])


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_is_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same module, not a copy: classes are the same, and a change in one is seen in the other."""
    monkeypatch.delitem(sys.modules, f"pocket_plug.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"pocket_plug.{old} is now called pocket_plug.{MODULES[old]}"):
        assert import_module(f"pocket_plug.{old}") is import_module(f"pocket_plug.{MODULES[old]}")


def test_the_old_ways_of_importing_work() -> None:
    """`from … import` of both kinds, before the new name was imported."""
    code = (
        "from pocket_plug.backend import Backend\n"
        "from pocket_plug import Conflict, backend\n"
        "from pocket_plug.pocket import Pocket\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert "DeprecationWarning: pocket_plug.backend is now called pocket_plug.store.backend" in done.stderr
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_layers_method_by_its_old_name_is_called() -> None:
    """The method is used as before, with a warning at the line of its class."""
    with pytest.warns(DeprecationWarning, match=r"Watching.beneath is now called wrap_inner") as said:

        class Watching(pocket_plug.Layer):
            def beneath(self, part: pocket_plug.Backend) -> pocket_plug.Backend:
                below.append(part)
                return part

    below: list[pocket_plug.Backend] = []
    store = pocket_plug.Store(layers=[Watching()])
    assert below == [pocket_plug.store.parts(store.stack)[-1]]
    assert said[0].filename == __file__


def test_an_unknown_name_is_an_error() -> None:
    """As for any other module."""
    with pytest.raises(AttributeError, match="'pocket_plug' has no attribute 'Storr'"):
        _ = pocket_plug.Storr  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError):
        import_module("pocket_plug.storr")
