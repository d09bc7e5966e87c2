"""Loads the graph or function that the command line names, in a Python file or a folder.

`TARGET` is a file or a folder, with `:name` for an object in it. A folder means its `app.py`, or else its `__init__.py`.
A file in a package is imported as part of the package, so its relative imports work.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from pocket_plug.errors import suggest
from pocket_plug.graph.graph import Graph


def load(target: str, names: tuple[str, ...]) -> tuple[str, Any]:
    """The object that a target names, by default the first of `names` that exists; with `path:name` for messages."""
    path, colon, name = target.rpartition(":")
    if not colon or Path(target).exists():
        path, name = target, ""
    module = _import(_file(Path(path), f":{name}" if name else ""))
    for each in (name,) if name else names:
        if hasattr(module, each):
            return f"{path}:{each}", getattr(module, each)
    graphs = [each for each, value in vars(module).items() if isinstance(value, Graph)]
    if name:
        there = f"; its graphs are {', '.join(graphs)}" if graphs else ""
        raise click.UsageError(f"{path} has no {name!r}{there}.{suggest(name, dir(module))}")
    there = " or ".join(f"{path}:{each}" for each in graphs or ["name"])
    raise click.UsageError(f"{path} defines nothing named {' or '.join(names)}; name an object: {there}")


def _file(path: Path, name: str) -> Path:
    """The Python file that is meant. `name` is for the message: what was given behind the path, such as ":graph"."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # said below
    except OSError as error:  # too long a name, as of a whole program
        raise click.UsageError(f"{str(path)[:80]!r} can't be the path of a file: {error.strerror}") from error
    if path.is_dir():
        for each in ("app.py", "__init__.py"):
            if (path / each).is_file():
                return path / each
        raise click.UsageError(
            f"the folder {path} has neither app.py nor __init__.py; give the path of a Python file in it"
        )
    if not path.is_file():
        module = path.parent / f"{path.name.replace('.', '/')}.py"  # other tools take `package.module:name`
        way = "give the path of a Python file, or of a folder with app.py"
        if module.is_file():
            way = f"did you mean {module}{name}?"
        raise click.UsageError(f"there is no file or folder {path}; {way}")
    if path.suffix != ".py":
        way = f"; `jupyter nbconvert --to script {path}` makes one" if path.suffix == ".ipynb" else ""
        raise click.UsageError(f"{path} is not a Python file; its name must end in .py{way}")
    return path


def _import(file: Path) -> ModuleType:
    file = file.resolve()
    parts = [] if file.stem == "__init__" else [file.stem]
    root = file.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    sys.path.insert(0, str(root))
    module = importlib.import_module(name)
    if Path(module.__file__ or "").resolve() != file:
        owner = module.__file__ or "a module built into Python"
        raise click.UsageError(f"{file} can't be imported as {name!r}, which is {owner} already; rename it")
    return module
