"""Finds the problems of a configuration file, with their lines: those of reading it, and those that plugins report.

Stores are built but not opened, so no server is contacted and no file is created.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pocket_plug.errors import ConfigError, is_fault
from pocket_plug.primitives.failures import concealed
from pocket_plug.primitives.files import relative_to
from pocket_plug.primitives.secret_options import variables

from .config import Config, StoreTable, expand, layer_name, option_values, read_config
from .missing import why_missing
from .pocket import Pocket
from .tables import KeyPath, Problem, alternatives
from .toml_lines import lines_of


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem in a configuration file, with its line if known."""

    file: str
    line: int | None
    table: str
    """The path of the table and key, with dots; "" for the file as a whole."""
    message: str

    def __str__(self) -> str:
        """The problem in the format of compilers and linters: `pocket.toml:3: [store].layers[0]: there is no layer 'bound'`."""
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.message}"


def check_config(path: str | Path) -> list[Finding]:
    """The problems of a file, ordered by line. A file that is missing or can't be read is a problem, too, and raises nothing."""
    path = Path(path)
    try:
        config, problems = read_config(path)
    except ConfigError as error:
        line = re.search(r"line (\d+)", str(error))
        return [Finding(str(path), int(line[1]) if line else None, "", _without(path, str(error)))]
    with _silent_logs():
        _Check(config, problems).run()
    lines, start = lines_of(path.read_text("utf-8")), ("tool", "pocket_plug")[: 2 * (path.name == "pyproject.toml")]
    findings = [
        Finding(str(path), _line(lines, each.path), _dotted(each.path[len(start) :]), _without(path, each.message))
        for each in problems
    ]
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.line or 0)


def _line(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of a path, or of the nearest table around it."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)


def _dotted(path: KeyPath) -> str:
    """
    >>> _dotted(("store", "layers", 1, "ttl"))
    'store.layers[1].ttl'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _without(path: Path, message: str) -> str:
    return message.removeprefix(str(path)).lstrip(": ")


@contextmanager
def _silent_logs() -> Generator[None]:
    """Switch off pocket_plug's log: its warnings become findings, or have other causes than the file."""
    logger = logging.getLogger("pocket_plug")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _refusal(act: Callable[..., object], *given: object, hidden: object) -> str | None:
    """The error that a call raises, without values of environment variables; None if it succeeds."""
    try:
        act(*given)
    except BaseException as error:
        if not is_fault(error):
            raise
        return concealed(error, variables(hidden))[0]
    return None


_QUOTED_URL = re.compile(r"'\w+:/[^']*'")


def _about(refusal: str | None) -> str | None:
    """The error without the URL that it quotes."""
    return None if refusal is None else _QUOTED_URL.sub("", refusal)


def _without_one(url: str) -> Generator[str]:
    """Copies of the URL: one without its first option, one without its second, and so on."""
    address, _, query = url.partition("?")
    options = query.split("&") if query else []
    for position in range(len(options)):
        rest = "&".join(options[:position] + options[position + 1 :])
        yield f"{address}?{rest}" if rest else address


class _Check:
    """Checks each part of a configuration that could be read, by building it with its plugin."""

    def __init__(self, config: Config, problems: list[Problem]) -> None:
        self._config, self._problems = config, problems
        self._base: KeyPath = ("tool", "pocket_plug") if "[tool." in config.where else ()

    def run(self) -> None:
        self._pocket = Pocket(replace(self._config, options={}, disable=()))
        options = self._checked_options()
        self._begin_again(options)
        if refused := self._refused(options):  # without these options, so that no layer fails because of them
            self._begin_again({name: own for name, own in options.items() if name not in refused})
        try:
            if self._config.store.where:
                self._check_store(("store",), self._config.store, lambda: self._pocket.store)
            for name, table in self._config.stores.items():
                self._check_store(("stores", name), table, partial(self._pocket.stores.__getitem__, name))
            for name in self._config.executors:
                self._check_url(("executors", name), self._config.executors[name], partial(self._executor, name))
        finally:
            self._pocket.shutdown()

    def _begin_again(self, options: Mapping[str, Mapping[str, Any]]) -> None:
        self._pocket.shutdown()
        self._pocket = Pocket(replace(self._config, options=options))

    def _note(self, path: KeyPath, message: str) -> None:
        self._problems.append(Problem(message, (*self._base, *path)))

    def _try(self, act: Callable[[], object], path: KeyPath, hidden: object = None) -> bool:
        """Does a call succeed? Its error is noted, without values of environment variables."""
        wrong = _refusal(act, hidden=hidden)
        if wrong is not None:
            self._note(path, wrong)
        return wrong is None

    def _check_url(self, path: KeyPath, url: str, make: Callable[[str], object]) -> None:
        """Note each wrong option of a URL. A plugin reports one error at a time, so it is called again without that option.

        An option is wrong if without it the error is another one, or none.
        """
        refusal = partial(_refusal, make, hidden=url)
        left, wrong = url, refusal(url)
        quoted = next(iter(_QUOTED_URL.findall(wrong or "")), "")
        while wrong is not None:
            self._note(path, _QUOTED_URL.sub(lambda _: quoted, wrong))
            for shorter in _without_one(left):
                other = refusal(shorter)
                if _about(other) != _about(wrong):
                    left, wrong = shorter, other
                    break
            else:
                return

    def _executor(self, name: str, url: str) -> None:
        if url == self._config.executors[name]:
            self._pocket.executor(name)
            return
        pocket = Pocket(replace(self._config, options={}, executors={name: url}))  # without opening any store
        try:
            pocket.executor(name)
        finally:
            pocket.shutdown()

    # ------------------------------------------------------------ plugins
    def _checked_options(self) -> dict[str, Mapping[str, Any]]:
        """The options that can be passed to their plugins."""
        known = [record.name for record in self._pocket.plugins]
        table = self._config.where.removesuffix("]")
        for position, name in enumerate(self._config.disable):
            if name not in known:
                path = ("plugins", "disable", position)
                self._note(
                    path, f"{self._config.where}.disable: there is no plugin {name!r}{alternatives(name, known)}"
                )
        taken = self._pocket.offers.settings
        good: dict[str, Mapping[str, Any]] = {}
        for name, options in self._config.options.items():
            where = f"{table}.{name}]"
            if name not in known:
                why = why_missing("settings", name, ()) or alternatives(name, known)
                self._note(("plugins", name), f"{where}: there is no plugin {name!r}{why}")
            elif self._pocket.plugin(name).status == "active" and name not in taken:
                self._note(("plugins", name), f"{where}: this plugin takes no options")
            elif all(
                [
                    self._try(partial(expand, value, f"{where}.{key}"), ("plugins", name, key))
                    for key, value in options.items()
                ]
            ):
                good[name] = options
        return good

    def _refused(self, options: Mapping[str, Mapping[str, object]]) -> list[str]:
        """The plugins that fail or decline with the options of the file."""
        refused: list[str] = []
        for name, given in options.items():
            record = self._pocket.plugin(name)
            if record.status in ("failed", "declined"):
                refused.append(name)
                about = [key for key in given if re.search(rf"\b{re.escape(key)}\b", record.reason)]
                self._note(
                    ("plugins", name, *about[:1]), f"{self._config.where.removesuffix(']')}.{name}]: {record.reason}"
                )
        return refused

    # ------------------------------------------------------------ stores
    def _check_store(self, path: KeyPath, table: StoreTable, build: Callable[[], object]) -> None:
        before, at = len(self._problems), (*self._base, *path)
        self._check_url((*path, "url"), table.url, partial(self._backend, table))
        known = {each.path for each in self._problems}
        for position, spec in enumerate(table.layers):
            if (*self._base, *path, "layers", position) in known:  # its name is invalid
                continue
            self._check_layer((*path, "layers", position), spec, f"{table.where}.layers[{position}]")
        is_whole = len(self._problems) == before and not any(place[: len(at)] == at for place in known)
        if is_whole:
            self._try(build, path)

    def _backend(self, table: StoreTable, url: str) -> None:
        try:
            with relative_to(self._config.folder):
                self._pocket.backend(expand(url, f"{table.where}.url"))
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(table.where) else f"{table.where}.url: {text}") from None

    def _check_layer(self, path: KeyPath, spec: Any, where: str) -> None:
        """Note all wrong options of a layer, not only the first."""
        kind = self._pocket.offers.layers.get(layer_name(spec, where))
        if kind is None or isinstance(spec, str):
            self._try(partial(self._pocket.layer, spec, where=where), path, spec)
            return
        wrong: list[tuple[str, str]] = []
        options = {name: value for name, value in spec.items() if name != "use"}
        option_values(kind, options, where, wrong)
        for option, message in wrong:
            self._note((*path, option), message)
        if not wrong:
            self._try(partial(self._pocket.layer, spec, where=where), path, spec)
