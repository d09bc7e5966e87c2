"""Makes backends and executors from their URLs, by the plugin that offers the scheme."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pocket_plug.errors import ConfigError, PluginError, PocketError, is_fault, suggest
from pocket_plug.hookspecs import PluginRecord
from pocket_plug.primitives.failures import concealed
from pocket_plug.primitives.redaction import URL_SCHEME, public_url, summary
from pocket_plug.primitives.secret_options import variables
from pocket_plug.store.backend import Backend

from .config import Config, expand
from .manager import Manager
from .missing import why_missing

if TYPE_CHECKING:
    from pocket_plug.remote import Executor


def made_backend(url: str, manager: Manager) -> Backend:
    """A new backend for a URL other than `memory://`. Raises ConfigError for an invalid URL or an unknown scheme."""
    known = manager.backends()
    schemes = ", ".join(f"{scheme}://" for scheme in sorted({"memory", *known}))
    found = URL_SCHEME.match(url)
    if not url:
        raise ConfigError(
            f"the store's URL is empty (an environment variable that is?); it must begin with one of: {schemes}"
        )
    if found is None:
        # there may be a secret before an @ or in `password=…`
        given = summary(url) if {*url} & {*"@="} else repr(url)
        raise ConfigError(
            f"{given} is not a store's URL (for a file: sqlite:///state.db); it must begin with one of: {schemes}"
        )
    scheme = found[1].lower()
    if scheme == "memory":
        raise ConfigError(
            f"{public_url(url)!r}: nothing may follow memory://; each store with this URL has its own memory"
        )
    if scheme not in known:
        why = (
            why_missing("backend", scheme, manager.records)
            or f"; there is: {schemes}.{suggest(scheme, ['memory', *known])}"
        )
        raise ConfigError(f"{public_url(url)!r}: no plugin offers {scheme}://{why}")
    made: Backend = _made(Backend, "a Backend", *known[scheme], url, url, "")
    return made


def found_executor(name: str, config: Config, manager: Manager) -> tuple[str, Callable[[], Executor]]:
    """The URL for a name or URL in `executor=`, and a function that makes its executor. Both raise ConfigError."""
    from pocket_plug.remote import Executor

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
    return url, partial(_made, Executor, "an Executor", *known[scheme], url, written, where)


def _made(
    kind: Any, what: str, record: PluginRecord, make: Callable[[str], object], url: str, written: str, where: str
) -> Any:
    """What the plugin makes from a URL. `written`: the URL as the configuration has it; `where`: its place there, if any."""
    shown = repr(public_url(written))
    try:
        made = make(url)
    except BaseException as error:
        if not is_fault(error):
            raise
        said, cause = concealed(error, {**(variables(written) if where else {}), url: public_url(url)})
        if isinstance(error, PocketError) and cause is not None and not where:
            raise
        raise ConfigError(f"{where}{shown}: plugin {record} could not make {what.lower()}: {said}") from cause
    if not isinstance(made, kind):
        raise PluginError(f"{shown}: plugin {record} returned {summary(made)}, not {what}")
    return made
