"""A class that is defined again, as by a notebook's cell that runs twice: values of the old class are read as the newest one."""

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

class CellKind(enum.Enum):
    ONE = 1
    TWO = 2

class CellPlace(NamedTuple):
    x: int
    y: int

class CellShelf(msgspec.Struct):
    cells: list[int]

class CellModel(BaseModel):
    name: str

@dataclass(frozen=True)
class CellJob:
    n: int
    kind: CellKind = CellKind.ONE

VALUES = {"CellJob": CellJob(1), "CellKind": CellKind.TWO,
          "CellPlace": CellPlace(1, 2), "CellShelf": CellShelf([1]), "CellModel": CellModel(name="a")}
JOB, JOBS = pp.Key("anew:job", CellJob), pp.Key("anew:jobs", list[CellJob])
KEYS = {name: pp.Key("anew:{}", type(value))(name) for name, value in VALUES.items()}
"""
CHANGED = CELL.replace("n: int\n", "m: int\n    def double(self):\n        return 2 * self.m\n")


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace of a module in which the cell has run once."""
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
    store.set(cell["JOBS"], [cell["CellJob"](2)])
    exec(CELL, cell)  # noqa: S102
    for name, value in cell["VALUES"].items():
        found = store.get(cell["KEYS"][name])
        assert (found, type(found)) == (value, type(value))
    job = cell["CellJob"]
    assert store.get(cell["JOBS"]) == [job(2)]
    assert store.get_many([cell["JOBS"]]) == {"anew:jobs": [job(2)]}
    assert store.typed(job).get("anew:CellJob") == job(1)
    assert store.update(cell["JOBS"], lambda jobs: [*jobs, job(3)]) == [job(2), job(3)]


def test_objects_of_the_former_class_are_stored_as_the_newest(store: pp.SyncStore, cell: dict[str, Any]) -> None:
    """Objects of the old class still work: at a typed key, in a list, at an untyped one."""
    former = cell["CellJob"](1, cell["CellKind"].TWO)
    exec(CELL, cell)  # noqa: S102
    store.set(cell["JOB"], former)
    store.set_many({cell["JOBS"]: [former]})
    store.typed(cell["CellJob"]).set("typed", former)
    newest = cell["CellJob"](1, cell["CellKind"].TWO)
    assert store.get(cell["JOB"]) == store.get("anew:job") == store.get("typed") == newest
    assert store.get(cell["JOBS"]) == [newest]


def test_another_class_of_that_name_is_an_error_that_names_both(store: pp.SyncStore, cell: dict[str, Any]) -> None:
    """With other fields, nothing is guessed. The message says where each class was defined."""
    former = cell["CellJob"](1)
    module = cell["__name__"]
    exec(compile(CHANGED, "cell-2", "exec"), cell)  # noqa: S102
    with pytest.raises(
        pp.ValueTypeError,
        match=rf"is declared as CellJob, the value is CellJob: {module}\.CellJob.* was defined again, with other fields, "
        rf"since this object was made: {module}\.CellJob \(cell-2, line \d+\); create the object again",
    ):
        store.set(cell["JOB"], former)
    with pytest.raises(pp.ValueTypeError, match=r"this store is typed CellJob, the value is CellJob: .*cell-2"):
        store.typed(cell["CellJob"]).set("typed", former)


def test_a_key_of_the_former_class_says_what_to_run_again(cell: dict[str, Any]) -> None:
    """The object is new and the key old: "create the object again" would not help."""
    store, key = pp.SyncStore(), cell["JOB"]
    exec(CELL, cell)  # noqa: S102
    with pytest.raises(
        pp.ValueTypeError,
        match=r"is declared as CellJob, the value is CellJob: notebook_anew\.CellJob.* was defined again after "
        r"this type was declared; run the code that declares it again$",
    ):
        store.set(key, cell["CellJob"](1))


def test_nodes_of_the_former_class_say_what_to_run_again(cell: dict[str, Any]) -> None:
    """A run and `validate` of a graph whose nodes were made before the class was defined again."""

    def make(n: int) -> Any:
        return cell["CellJob"](n)

    def made(n: int) -> Any:
        return cell["CellJob"](n)

    def use(job: Any) -> int:
        return int(job.n)

    use.__annotations__["job"] = cell["CellJob"]
    using = pp.node(use)
    exec(CELL, cell)  # noqa: S102
    made.__annotations__["return"] = cell["CellJob"]
    with pytest.raises(
        pp.InputError, match=r"takes CellJob, not CellJob: .* was defined again .*; run the code that declares it again"
    ):
        pp.Graph(pp.node(make) >> using).run_sync(1)
    with pytest.raises(
        pp.GraphError, match="leaves with CellJob, but 'use' takes CellJob; the class was defined again between"
    ):
        pp.Graph(pp.node(made) >> using).validate()


def test_a_class_that_was_changed_but_not_declared_again_says_so(cell: dict[str, Any]) -> None:
    """The fields may be right by now, but this codec still has the class before."""
    codec = Codec(declared=[cell["CellJob"]])
    record = codec.encode(cell["CellJob"](1))
    exec(compile(CHANGED, "cell-2", "exec"), cell)  # noqa: S102
    codec.register(cell["CellJob"])
    with pytest.raises(pp.CodecError, match=r"register_type\(…, version=…, upgrade=…\)$"):
        codec.decode(record)
    exec(compile(CHANGED, "cell-3", "exec"), cell)  # noqa: S102
    with pytest.raises(
        pp.CodecError,
        match=r"upgrade=…\)\. notebook_anew\.CellJob \(cell-2, line \d+\) was defined again since then; run the code again that",
    ):
        codec.decode(record)


def test_an_object_of_another_class_of_that_name_cannot_be_stored(cell: dict[str, Any]) -> None:
    """Nor at an untyped key, since its fields aren't the ones that are read."""
    codec = Codec(declared=[cell["CellJob"]])
    former = cell["CellJob"](1)
    assert codec.decode(codec.encode(former)) == former
    exec(CHANGED, cell)  # noqa: S102
    codec.register(cell["CellJob"])
    with pytest.raises(
        pp.UnregisteredTypeError, match=r"CellJob.* was defined again, with other fields, .*; create the object again"
    ):
        codec.encode(former)


def test_a_module_that_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with `importlib.reload`."""
    (tmp_path / "notebook_anew.py").write_text(CELL)
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module("notebook_anew")
    with pp.SyncStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.set(module.JOB, module.CellJob(1))
        module = importlib.reload(module)
        assert store.get(module.JOB) == module.CellJob(1)
    del sys.modules["notebook_anew"]
