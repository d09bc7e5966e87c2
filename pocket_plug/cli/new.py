"""`new`: creates a folder with a plugin distribution that can be installed and passes its own tests, type checks and lints.

The files are in `templates`: those for `every` kind, and those for each kind. In their names and texts, `plug_name`,
`plug-name`, `PlugName`, `plug_point`, `plug_what` and `plug_year` are replaced, and nothing else.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import distribution
from importlib.resources import files
from importlib.resources.abc import Traversable
from keyword import iskeyword
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import click

from pocket_plug.errors import ConfigError

from .output import echo

KINDS = {
    "layer": "a layer",
    "backend": "a backend",
    "observer": "an observer of runs",
    "command": "a command",
    "executor": "an executor",
}
"""The kinds of plugins, and the words for each in a description."""

POINTS = {"observer": ":{}Observer"}
"""The object in the module that an entry point names, if it isn't the module itself: a class, which can be configured."""

SUFFIX = ".tmpl"
"""The end of each template's name, so that tools don't treat it as code or a project."""

PREFIX = "pocket-plug-"
LONGEST = 30
NAME = re.compile(r"[a-z][a-z0-9]+(-[a-z][a-z0-9]+)*")
"""A name that is valid in a distribution, a module and a class."""


@click.command
@click.argument("kind", type=click.Choice([*KINDS]))
@click.argument("name")
def new(kind: str, name: str) -> None:
    """Create a new plugin project.

    It is created in the folder pocket-plug-NAME, with tests, README, licence and a CI file. Write NAME in lower case,
    with hyphens between words.
    """
    _check(kind, name)
    _refuse_taken(kind, name)
    words = _words(kind, name)
    content = {_filled(path, words): _filled(text, words) for path, text in _templates(kind)}
    folder = Path(f"pocket-plug-{name}")
    try:
        folder.mkdir()
        for path, text in content.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
    except FileExistsError:
        raise click.UsageError(f"the folder {folder} is there already; remove it, or choose another name") from None
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} can't be written: {error.strerror or error}") from error
    echo(f"{folder} has {KINDS[kind]}, with tests. Next:\n")
    for line in (
        f"cd {folder}",
        "python -m venv .venv",
        ". .venv/bin/activate",
        *(f"pip install {shlex.quote(source)}" for source in _sources()),
        'pip install --editable ".[dev]"',
        "pytest",
    ):
        echo(f"    {line}")


def _sources() -> list[str]:
    """Where pocket-plug was installed from, as arguments of `pip install`; empty if that was an index, where pip finds it.

    The installer records this (PEP 610).
    """
    found = json.loads(distribution("pocket-plug").read_text("direct_url.json") or "{}")
    url: str = found.get("url", "")
    if vcs := found.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    elif url.startswith("file:"):
        url = url2pathname(urlsplit(url).path)
    if within := found.get("subdirectory"):
        url += f"#subdirectory={within}" if vcs else f"/{within}"
    return [url] if url else []


def _check(kind: str, name: str) -> None:
    """Raise UsageError for a name that isn't valid for a distribution, a module and a class."""
    if NAME.fullmatch(name) and len(name) <= LONGEST and not name.startswith(PREFIX):
        if iskeyword(_class_name(name)) or _class_name(name) in _imported(kind):
            raise click.UsageError(
                f"{name!r} would name the class {_class_name(name)}, and this name is already used; choose another name"
            )
        if name.startswith("test") and kind != "command":  # a command has no class
            raise click.UsageError(
                f"{name!r} would name the class {_class_name(name)}, which pytest collects as tests; choose another name"
            )
        return
    meant = re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix(PREFIX)).strip("-")
    hint = f" Did you mean {meant!r}?" if NAME.fullmatch(meant) and len(meant) <= LONGEST else ""
    raise click.UsageError(
        f"{name!r} is not a valid plugin name. Use lower-case words joined by hyphens, each a letter and at least one more "
        f"letter or digit, {LONGEST} characters at most; {PREFIX} is put before it.{hint}"
    )


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))


def _imported(kind: str) -> set[str]:
    """The names that the code of a kind imports, if it has a class called PlugName, which could clash with them."""
    code = "\n".join(text for path, text in _templates(kind) if path.endswith(".py"))
    if not re.search(r"\bPlugName\b", code):
        return set()
    lines = re.findall(r"^(?:from \S+ )?import (.+)$", code, re.MULTILINE)
    return {name.strip() for line in lines for name in line.split(",")} - {"PlugName"}


def _refuse_taken(kind: str, name: str) -> None:
    """Raise UsageError if an installed plugin or a built-in part of this kind has the name."""
    from pocket_plug.plugins.discovery import find_plugins

    from . import COMMANDS

    own = name.replace("-", "_")
    for candidate in find_plugins()[0]:
        if candidate.record.name == own:
            raise click.UsageError(f"the name {own!r} is already used by plugin {candidate.record}; choose another one")
    ours = {"command": {*COMMANDS}, "backend": {"memory"}, "executor": {"processes", "threads"}}
    if name in ours.get(kind, ()):
        raise click.UsageError(f"pocket-plug has a built-in {kind} {name!r}; choose another name")


def _words(kind: str, name: str) -> Mapping[str, str]:
    own = name.replace("-", "_")
    return {
        "plug_name": own,
        "plug-name": name,
        "PlugName": _class_name(name),
        "plug_point": f"pocket_plug_{own}{POINTS.get(kind, '').format(_class_name(name))}",
        "plug_what": KINDS[kind],
        "plug_year": str(datetime.now(UTC).year),
    }


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub("|".join(words), lambda found: words[found[0]], text)


def _templates(kind: str) -> Iterator[tuple[str, str]]:
    """The files of a new distribution: their paths in it and their texts."""
    for of in ("every", kind):
        yield from _files(files("pocket_plug.cli") / "templates" / of, "")


def _files(folder: Traversable, path: str) -> Iterator[tuple[str, str]]:
    for found in sorted(folder.iterdir(), key=lambda each: each.name):
        if found.is_dir():
            yield from _files(found, f"{path}{found.name}/")
        else:
            yield path + found.name.removesuffix(SUFFIX), found.read_text("utf-8")
