"""A class that is defined anew, as by a notebook's cell that runs twice: what was stored of the former one is the newest's."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.codec import Codec

CELL = """
import enum
from dataclasses import dataclass
from typing import NamedTuple
import msgspec
from pydantic import BaseModel
import pocket_plug as pp

class Kind(enum.Enum):
    ONE = 1
    TWO = 2

class Place(NamedTuple):
    x: int
    y: int

class Row(msgspec.Struct):
    cells: list[int]

class Model(BaseModel):
    name: str

@dataclass(frozen=True)
class Job:
    n: int
    kind: Kind = Kind.ONE

VALUES = {"Job": Job(1), "Kind": Kind.TWO, "Place": Place(1, 2), "Row": Row([1]), "Model": Model(name="a")}
JOB, JOBS = pp.Key("anew:job", Job), pp.Key("anew:jobs", list[Job])
KEYS = {name: pp.Key("anew:{}", type(value))(name) for name, value in VALUES.items()}
"""
CHANGED = CELL.replace("n: int\n", "m: int\n    def double(self):\n        return 2 * self.m\n")


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace of a module, in which the cell has run once."""
    module = ModuleType("notebook_anew")  # one name for all tests: a tag belongs to one module
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(CELL, vars(module))  # noqa: S102 - as a notebook does
    return vars(module)


@pytest.fixture(params=["memory", "sqlite", "behind"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    match request.param:
        case "memory":
            found = pp.SyncStore()
        case "sqlite":
            found = pp.SyncStore(f"sqlite:///{tmp_path / 's.db'}")
        case _:
            from pocket_plug.layers import Persistence

            found = pp.SyncStore(layers=[Persistence(to=f"sqlite:///{tmp_path / 's.db'}", mode="behind")])
    with found:
        yield found


def test_what_was_stored_is_read_as_the_newest_class(store: pp.SyncStore, cell: dict[str, Any]) -> None:
    """Dataclass, Enum, named tuple, Struct and model; alone, in a list, by `get_many` and by a typed view."""
    for name, value in cell["VALUES"].items():
        store.set(cell["KEYS"][name], value)
    store.set(cell["JOBS"], [cell["Job"](2)])
    exec(CELL, cell)  # noqa: S102
    for name, value in cell["VALUES"].items():
        found = store.get(cell["KEYS"][name])
        assert (found, type(found)) == (value, type(value))
    job = cell["Job"]
    assert store.get(cell["JOBS"]) == [job(2)]
    assert store.get_many([cell["JOBS"]]) == {"anew:jobs": [job(2)]}
    assert store.typed(job).get("anew:Job") == job(1)
    assert store.update(cell["JOBS"], lambda jobs: [*jobs, job(3)]) == [job(2), job(3)]


def test_objects_of_the_former_class_are_stored_as_the_newest(store: pp.SyncStore, cell: dict[str, Any]) -> None:
    """What the program still has of it is no trap: at a typed key, in a list, at a plain one."""
    former = cell["Job"](1, cell["Kind"].TWO)
    exec(CELL, cell)  # noqa: S102
    store.set(cell["JOB"], former)
    store.set_many({cell["JOBS"]: [former]})
    store.typed(cell["Job"]).set("typed", former)
    newest = cell["Job"](1, cell["Kind"].TWO)
    assert store.get(cell["JOB"]) == store.get("anew:job") == store.get("typed") == newest
    assert store.get(cell["JOBS"]) == [newest]


def test_another_class_of_that_name_is_an_error_that_names_both(store: pp.SyncStore, cell: dict[str, Any]) -> None:
    """Other fields: nothing is guessed. The message says which class was defined where."""
    former = cell["Job"](1)
    module = cell["__name__"]
    exec(compile(CHANGED, "cell-2", "exec"), cell)  # noqa: S102
    with pytest.raises(
        pp.ValueTypeError,
        match=rf"holds Job, not Job: {module}\.Job.* was defined again, with other fields, since this object was made: "
        rf"{module}\.Job \(cell-2, line \d+\); make the object anew",
    ):
        store.set(cell["JOB"], former)
    with pytest.raises(pp.ValueTypeError, match=r"this store is typed Job, the value is Job: .*cell-2"):
        store.typed(cell["Job"]).set("typed", former)


def test_an_object_of_another_class_of_that_name_cannot_be_stored(cell: dict[str, Any]) -> None:
    """Nor at a plain key, as its fields are not those that are read."""
    codec = Codec(declared=[cell["Job"]])
    former = cell["Job"](1)
    assert codec.decode(codec.encode(former)) == former
    exec(CHANGED, cell)  # noqa: S102
    codec.register(cell["Job"])
    with pytest.raises(
        pp.UnregisteredTypeError, match=r"Job.* was defined again, with other fields, .*; make the object anew"
    ):
        codec.encode(former)


def test_a_module_that_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by `importlib.reload`."""
    (tmp_path / "notebook_anew.py").write_text(CELL)
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module("notebook_anew")
    with pp.SyncStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.set(module.JOB, module.Job(1))
        module = importlib.reload(module)
        assert store.get(module.JOB) == module.Job(1)
    del sys.modules["notebook_anew"]
