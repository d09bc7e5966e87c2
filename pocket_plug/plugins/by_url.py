"""Finds the executor for the option `executor=`: a name in the configuration, a scheme of a plugin, or a URL."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pocket_plug.errors import ConfigError, PluginError, PocketError, is_fault, suggest
from pocket_plug.hookspecs import PluginRecord
from pocket_plug.primitives.failures import concealed
from pocket_plug.primitives.redaction import URL_SCHEME, public_url, summary
from pocket_plug.primitives.secret_options import variables
from pocket_plug.remote import Executor

from .config import Config, expand
from .manager import Manager
from .missing import why_missing


def found_executor(name: str, config: Config, manager: Manager) -> tuple[str, Callable[[], Executor]]:
    """The URL for a name or URL, and a function that makes its executor. Both raise ConfigError."""
    written = config.executors.get(name, name)
    where = f"{config.source} [executors].{name}: " if name in config.executors else ""
    url = expand(written, f"{config.source} [executors].{name}") if where else written
    known = manager.executors()
    found = URL_SCHEME.match(url)
    scheme = (found[1] if found else url).lower()
    if scheme not in known:
        names = sorted(known if where else {*config.executors, *known})
        if found or where:
            way_out = suggest(scheme, known) or " Install its plugin."
        else:
            way_out = (
                f'{suggest(name, names)} Name it in the configuration, [executors] {name} = "…", or install its plugin.'
            )
        hint = why_missing("executor", scheme, manager.records) or f"; there is: {', '.join(names)}.{way_out}"
        raise ConfigError(f"{where}there is no executor {public_url(written)!r}{hint}")
    url = url if found else f"{scheme}://"
    return url, partial(_made, *known[scheme], url, written, where)


def _made(record: PluginRecord, make: Callable[[str], Any], url: str, written: str, where: str) -> Executor:
    hidden = {**(variables(written) if where else {}), url: public_url(url)}
    try:
        executor: Any = make(url)
    except BaseException as error:
        if not is_fault(error):
            raise
        said, cause = concealed(error, hidden)
        if isinstance(error, PocketError) and cause is not None and not where:
            raise
        raise ConfigError(
            f"{where}{public_url(written)!r}: plugin {record} could not make an executor: {said}"
        ) from cause
    if not isinstance(executor, Executor):
        raise PluginError(f"{public_url(written)!r}: plugin {record} returned {summary(executor)}, not an Executor")
    return executor
