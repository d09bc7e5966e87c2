"""`doctor`: checks what is installed and configured, and says how to fix problems.

It changes nothing: stores are probed and not opened. It sends only one span, to where traces go.
"""

from __future__ import annotations

import logging
import os
import platform
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import click

from pocket_plug.errors import ConfigError, PocketError, is_fault
from pocket_plug.hookspecs import PluginRecord
from pocket_plug.plugins.checking import check_config
from pocket_plug.plugins.config import Config, StoreTable, find_config, named_config, read_config
from pocket_plug.plugins.discovery import OUR_DISTRIBUTION, find_libraries, missing_requirements, name_missing
from pocket_plug.plugins.pocket import DISABLE, Pocket, named_by_variable
from pocket_plug.plugins.tables import alternatives
from pocket_plug.primitives.failures import concealed
from pocket_plug.primitives.redaction import public_url, summary
from pocket_plug.primitives.secret_options import variables
from pocket_plug.store.backend import Backend, ProbeResult
from pocket_plug.store.memory import Memory

from .deadlines import Begun, run_in_time
from .durations import duration
from .output import as_json, echo, echo_json, how_many_are_wrong
from .target import keepers

if TYPE_CHECKING:
    from pocket_plug.telemetry.declared import Declared

Verdict = Literal["ok", "note", "wrong"]
Found = tuple[str, Verdict, str]
"""The name of a check, its verdict, and what was found; for a problem also how to fix it."""

LOADING = 10
"""Loading plugins may take this many times the timeout for a server: imports can be slow."""

MOST_SKEW = 1.0
"""Seconds by which a server's clock may differ from this machine's: entries expire by the reader's clock."""

VERSIONS = (
    *("pluggy", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    *("structlog", "msgspec", "click", "rich"),
)
"""Other distributions whose versions are shown, if they are installed."""


class Check(NamedTuple):
    """The result of one check."""

    section: str
    name: str
    verdict: Verdict
    says: str


@click.command
@click.option(
    "--timeout",
    type=duration,
    metavar="TIME",
    default="5s",
    show_default=True,
    help="How long a store or an endpoint may take to answer.",
)
@as_json
def doctor(timeout: float, as_json: bool) -> int:
    """Check the installation: versions, configuration, plugins, stores, telemetry.

    For each problem it prints how to fix it; the exit code is then 1. It writes into no store and creates none. If traces
    go to a collector by OTLP, it sends a span named "pocket-plug doctor" there.
    """
    found: list[Check] = []
    with _silent_logs():
        for check in _checks(timeout):
            found.append(check)
            if not as_json:
                _print(check, is_first=len(found) == 1 or found[-2].section != check.section)
    counts = Counter(check.verdict for check in found)
    if as_json:
        numbers = {verdict: counts[verdict] for verdict in get_args(Verdict)}
        echo_json({"checks": [check._asdict() for check in found], **numbers})
    else:
        echo(how_many_are_wrong(counts["wrong"]), err=True)
    return int(counts["wrong"] > 0)


@contextmanager
def _silent_logs() -> Generator[None]:
    """Switch logging off: the checks report what plugins and exporters would log."""
    former = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(former)


_COLOURS: dict[Verdict, str] = {"ok": "green", "note": "yellow", "wrong": "red"}


def _print(check: Check, is_first: bool) -> None:
    """Print a line for a check; on a terminal, verdicts are coloured, and each section has a heading."""
    verdict = f"{check.verdict:5}"
    if not sys.stdout.isatty():
        echo(f"{verdict}  {check.section}  {check.name}: {check.says}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pocket_plug.primitives.terminal import escaped

    console = Console(highlight=False)
    if is_first:
        console.print(Text(check.section, style="bold"))
    line = Table.grid(padding=(0, 2))
    line.add_row(
        "",
        Text(verdict, _COLOURS[check.verdict]),
        Text.assemble((escaped(check.name), "bold"), f"  {escaped(check.says)}"),
    )
    console.print(line)


def _checks(timeout: float) -> Iterator[Check]:
    yield from _of("interpreter", _interpreter())
    yield from _of("versions", _versions())
    config = Config()
    try:
        path, rule = _which()
    except ConfigError as error:
        yield Check("configuration", "file", "wrong", f"{error}; correct the variable, or unset it")
    else:
        yield from _of("configuration", _configuration(path, rule, timeout))
        config = _readable(path)
    pocket = None
    try:
        pocket = Begun(lambda: _pocket(config), LOADING * timeout).result()
    except TimeoutError:
        says = f"loading them takes longer than {LOADING * timeout:g} s: {_how_to_find()}"
        yield Check("plugins", "all", "wrong", says)
    except PocketError as error:
        yield Check("plugins", "all", "wrong", str(error))
    yield from _of("plugins", _plugins(pocket))
    if pocket is not None:
        yield from _of("stores", _stores(pocket, timeout))
    yield from _of("telemetry", _telemetry(timeout))
    if pocket is not None:
        with suppress(TimeoutError):
            Begun(pocket.shutdown, timeout).result()


def _of(section: str, found: Iterable[Found]) -> Iterator[Check]:
    return (Check(section, *each) for each in found)


def _how_to_find() -> str:
    return "find the slow plugin by POCKET_PLUG_DISABLE=name,name, or wait longer (--timeout)"


# ---------------------------------------------------------------- interpreter and versions
def _interpreter() -> Iterator[Found]:
    name = f"{platform.python_implementation()} {platform.python_version()}"
    yield name, "ok", f"{sys.executable} on {platform.platform()}"
    yield f"SQLite {sqlite3.sqlite_version}", "ok", "used by the module sqlite3"


def _versions() -> Iterator[Found]:
    try:
        ours = distribution(OUR_DISTRIBUTION)
    except PackageNotFoundError:
        says = "not installed: without its metadata its requirements can't be checked; pip install it"
        yield OUR_DISTRIBUTION, "note", says
    else:
        missing = missing_requirements(ours, (), {})
        says = ours.version
        if missing:
            quoted = " ".join(f"'{each}'" for each in missing)
            says += f"; {name_missing(missing)}; do: pip install {quoted}"
        yield OUR_DISTRIBUTION, "wrong" if missing else "ok", says
    for name in VERSIONS:
        try:
            yield name, "ok", distribution(name).version
        except PackageNotFoundError:
            continue


# ---------------------------------------------------------------- configuration
def _which() -> tuple[Path | None, str]:
    """The configuration file that the command line uses, and why. Raises ConfigError."""
    if (named := named_config()) is not None:
        return named, "POCKET_PLUG_CONFIG names it"
    found = find_config()
    if found is None:
        return None, ""
    return found, f"the nearest one, {'in this folder' if found.parent == Path() else 'above this folder'}"


def _configuration(path: Path | None, rule: str, timeout: float) -> Iterator[Found]:
    if path is None:
        says = f"none: no pocket.toml, and no pyproject.toml with [tool.pocket_plug], in {Path.cwd()} or above it"
        yield "file", "ok", says
        return
    yield "file", "ok", f"{path}: {rule}"
    if not os.environ.get("POCKET_PLUG_CONFIG"):
        says = (
            f'they don\'t search for a configuration file; name it: Pocket("{path.name}"), or '
            f"POCKET_PLUG_CONFIG={path.absolute()}"
        )
        yield "programs", "note", says
    try:
        findings = Begun(lambda: check_config(path), LOADING * timeout).result()
    except TimeoutError:
        yield (
            "content",
            "wrong",
            f"checking it takes longer than {LOADING * timeout:g} s: {_how_to_find()}",
        )
        return
    except (PocketError, OSError) as error:
        yield "content", "wrong", str(error)
        return
    for finding in findings:
        yield finding.table or "content", "wrong", str(finding)
    if not findings:
        yield "content", "ok", "nothing is wrong in it"


def _readable(path: Path | None) -> Config:
    """The configuration in a file, or an empty one if it is invalid: its own check reports that."""
    try:
        return Config() if path is None else read_config(path)[0]
    except PocketError:
        return Config()


# ---------------------------------------------------------------- plugins
def _pocket(config: Config) -> Pocket:
    """A Pocket with the whole configuration; if that is invalid, without the options of plugins, or without any of it."""
    for part in (config, replace(config, options={}), Config()):
        try:
            pocket = Pocket(part)
            break
        except PocketError:
            continue
    else:
        pocket = Pocket(autoload=False)
    _ = pocket.offers, pocket.commands()  # so that each plugin is asked for all that it offers
    return pocket


def _plugins(pocket: Pocket | None) -> Iterator[Found]:
    if pocket is not None:
        known = [record.name for record in pocket.plugins]
        yield from (_plugin(record, known.count(record.name) == 1) for record in pocket.plugins)
        for name in named_by_variable():
            if name not in known:
                yield name, "wrong", f"{DISABLE}: there is no plugin {name!r}{alternatives(name, known)}"
    for library in find_libraries():
        yield library.distribution, "ok", f"{library.version}, a library: it has no entry point, programs import it"


def _plugin(record: PluginRecord, has_own_name: bool) -> Found:
    where = f"{record.distribution or record.origin} {record.version or ''}".rstrip()
    verdicts: dict[str, Verdict] = {"active": "ok", "disabled": "ok", "declined": "note", "failed": "wrong"}
    says = f"{where}, {record.verdict}"
    if record.status == "failed":
        says += "; fix or uninstall it"
        if has_own_name:  # else that would switch off the other one too
            says += f", or switch it off: POCKET_PLUG_DISABLE={record.name}"
    elif record.status == "declined":
        says += f"; its settings belong in [plugins.{record.name}]"
    if record.failures:
        failed = ", ".join(f"{what} ({times} x)" for what, times in record.failures.items())
        return record.name, "wrong", f"{says}, but it failed at {failed}; the log has the reason"
    return record.name, verdicts[record.status], says


# ---------------------------------------------------------------- stores
def _stores(pocket: Pocket, timeout: float) -> Iterator[Found]:
    tables = {"store": pocket.config.store} if pocket.config.store.where else {}
    tables |= {f"stores.{name}": table for name, table in pocket.config.stores.items()}
    begun = [(name, table, Begun(_looking(pocket, name, timeout), timeout)) for name, table in tables.items()]
    for name, table, looking in begun:
        try:
            yield from looking.result()
        except TimeoutError:
            says = f"{public_url(table.url)}: no answer within {timeout:g} s; check its address and its load"
            yield name, "wrong", says
        except ConfigError:
            yield name, "note", "not checked, since it can't be built: see the checks of the configuration"
        except BaseException as error:
            if not is_fault(error):
                raise
            yield name, "wrong", _said(error, table)
    if not tables:
        yield "store", "ok", "none is configured: the default Pocket's store is in memory"


def _said(error: BaseException, table: StoreTable) -> str:
    return concealed(error, {table.url: public_url(table.url), **variables((table.url, table.layers))})[0]


def _looking(pocket: Pocket, name: str, timeout: float) -> Callable[[], list[Found]]:
    def look() -> list[Found]:
        store = pocket.store if name == "store" else pocket.stores[name.removeprefix("stores.")]
        found = [
            _verdict(name, backend, run_in_time(partial(backend.probe, timeout), timeout))
            for backend in keepers(store.stack)
        ]
        if store.stack.buffered:
            says = "acknowledged writes wait in memory for their backend, and are lost with the process"
            found.append((name, "note", says))
        return found

    return look


def _verdict(name: str, backend: Backend, found: ProbeResult | None) -> Found:
    if isinstance(backend, Memory):
        return name, "ok", "in memory: each process has its own, which is lost when the process ends"
    title = f"{backend!r}"
    if found is None:
        return name, "note", f"{title}: not checked, since its plugin has no `probe`"
    says = [title, found.system]
    if found.durability:
        says.append(f"durability {found.durability}")
    if found.is_new:
        says.append("the store doesn't exist yet: a program creates it when it opens it")
    if found.skew is not None:
        says.append(f"its clock is {1000 * abs(found.skew):.0f} ms {'ahead' if found.skew > 0 else 'behind'}")
    wrong: list[str] = []
    if found.read_only:
        wrong.append("it refuses writes: give the address of the primary")
    if abs(found.skew or 0) > MOST_SKEW:
        wrong.append("entries expire by each reader's clock, so synchronize the clocks (NTP)")
    if found.durability == "none":
        says.append("so acknowledged writes may be lost")
    verdict: Verdict = "wrong" if wrong else "note" if found.durability == "none" else "ok"
    return name, verdict, "; ".join([*says, *wrong])


# ---------------------------------------------------------------- telemetry
def _telemetry(timeout: float) -> Iterator[Found]:
    try:
        from pocket_plug.telemetry.declared import declared
    except ConfigError as error:  # from the SDK, which reads some variables during its import
        yield "variables", "wrong", str(error)
        return
    from pocket_plug.telemetry.exporters import SIGNALS, asked, disabled, endpoint, transport
    from pocket_plug.traces.recorded import DEFAULT_FILE
    from pocket_plug.traces.retention import TraceLimits

    if disabled():
        yield "all", "note", "off, since OTEL_SDK_DISABLED is true"
        return
    try:
        TraceLimits.from_environment()
    except ConfigError as error:
        yield "trace file", "wrong", str(error)
    try:
        source = declared()
    except ConfigError as error:
        yield "configuration file", "wrong", str(error)
        return
    if source is not None:
        yield from _declared(source, timeout)
        return
    for signal in SIGNALS:
        try:
            named = asked(signal)
        except ConfigError as error:
            yield signal, "wrong", str(error)
            continue
        if "otlp" in named and (wrong := _no_address(endpoint(signal), transport(signal))):
            yield signal, "wrong", wrong
            continue
        if named:
            to = f" to {_shown(endpoint(signal))}" if "otlp" in named and endpoint(signal) else ""
            yield signal, "ok", f"{', '.join(named)}{to}"
        else:
            local = f"; observe() and --trace write {DEFAULT_FILE}" if signal == "traces" else ""
            yield signal, "ok", f"setup() doesn't send them, since no OTEL_* variable says where{local}"
        if signal == "traces" and "otlp" in named:
            from pocket_plug.telemetry.probing import send_test_span

            yield _span(timeout, partial(send_test_span, timeout))


def _no_address(url: str, transport: str) -> str:
    """Why nothing can be sent to an endpoint; "" if it is valid. gRPC also takes HOST:PORT."""
    if not url or transport == "grpc" or url.lower().startswith(("http://", "https://")):
        return ""
    return f"otlp to {_shown(url)}, which is not a URL of a collector: nothing is sent. Give one such as http://localhost:4318"


def _shown(url: str) -> str:
    """An endpoint without its password. Also an invalid URL may have one, before an @."""
    return summary(url) if "@" in url and "://" not in url else public_url(url)


def _declared(source: Declared, timeout: float) -> Iterator[Found]:
    """Checks of OpenTelemetry's configuration file, which is used instead of all other variables."""
    from pocket_plug.telemetry.exporters import SIGNALS
    from pocket_plug.telemetry.probing import send_as_declared

    if source.disabled:
        yield "configuration file", "note", f"{source} switches telemetry off"
        return
    yield "configuration file", "ok", f"{source} is used, and no other OTEL_* variable"
    for signal in SIGNALS:
        try:
            named, to = source.exporters(signal), " and ".join(map(public_url, source.endpoints(signal)))
            source.try_exporters(signal)
        except ConfigError as error:
            yield signal, "wrong", str(error)
            continue
        says = f"{', '.join(named)}{f' to {to}' if to else ''}" if named else "not sent: the file names no exporter"
        yield signal, "ok", says
        if signal == "traces" and any(name.startswith("otlp_") for name in named):
            yield _span(timeout, partial(send_as_declared, source))


def _span(timeout: float, send: Callable[[], str]) -> Found:
    try:
        return "span", "ok", f"{Begun(send, timeout).result()} accepted a test span"
    except TimeoutError:
        return "span", "wrong", f"no answer within {timeout:g} s; check the endpoint's address and load"
    except BaseException as error:
        if not is_fault(error):
            raise
        said = str(error) if isinstance(error, ConnectionError | ConfigError) else concealed(error, {})[0]
        return "span", "wrong", f"not accepted: {said}"
