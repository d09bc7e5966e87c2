"""OpenTelemetry's declarative configuration: the file that `OTEL_CONFIG_FILE` names is used instead of other variables.

OpenTelemetry's own loader reads the file and makes what it declares. pocket_plug adds queues before the exporters, makes the
ids of spans if the file names no generator, and writes the errors: with the file and the place, and never with a value, which
may be a password.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import cached_property, partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator

from pocket_plug.errors import ConfigError, is_fault
from pocket_plug.primitives.failures import error_type
from pocket_plug.primitives.redaction import MASK, public_url, summary

from .export import LogExport, MetricExport, Queue, SpanExport, ended_by
from .exporters import Signal, by_process, disabled, prometheus_reader

VARIABLES = ("OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE")

_LOADER = "opentelemetry.configuration"
_PACKAGE = "opentelemetry-configuration"
_INSTALL = "pip install 'pocket-plug[config-file]'"
_SECTIONS: dict[Signal, str] = {"traces": "tracer_provider", "metrics": "meter_provider", "logs": "logger_provider"}
_PARTS = {"traces": "processors", "metrics": "readers", "logs": "processors"}
_LIMITS = ("._meter_provider", "_create_cardinality_limits")
_FACTORIES = {
    "traces": ("._tracer_provider", "_create_span_exporter"),
    "metrics": ("._meter_provider", "_create_push_metric_exporter"),
    "logs": ("._logger_provider", "_create_log_record_exporter"),
}
_DELAYS = {"traces": 5000, "logs": 1000}
"""Milliseconds that a batch waits if the file doesn't say: the defaults of OpenTelemetry's specification."""


def declared() -> Declared | None:
    """The configuration file that the environment names; None if it names none, or switches OpenTelemetry off.

    Raises ConfigError for an invalid file, and if OpenTelemetry's loader isn't installed.
    """
    for variable in () if disabled() else VARIABLES:
        if name := os.environ.get(variable, "").strip():
            found = Declared(variable, Path(name))
            found.check()
            return found
    return None


class Declared:
    """A configuration file that was read. `str` gives its path and the variable that names it."""

    def __init__(self, variable: str, path: Path) -> None:
        self.variable, self.path = variable, path
        self.config = self._read()

    def __str__(self) -> str:
        return f"{self.path} (named by {self.variable})"

    @property
    def disabled(self) -> bool:
        """Does the file switch OpenTelemetry off?"""
        return bool(self.config.disabled)

    # ------------------------------------------------------------ what is sent where
    def exporters(self, signal: Signal) -> list[str]:
        """The names of a signal's exporters, as the file writes them."""
        return [name for _, _, name, _ in self._parts(signal)]

    def leaves_out(self, signal: Signal) -> bool:
        """Does the file name no exporter for the signal?"""
        return not self.exporters(signal)

    def endpoints(self, signal: Signal) -> list[str]:
        """The endpoints that the file names for a signal."""
        found = (getattr(options, "endpoint", None) for _, _, _, options in self._parts(signal))
        return [str(endpoint) for endpoint in found if endpoint]

    def spans(self) -> list[tuple[str, Callable[[], SpanExport]]]:
        """Each exporter of spans: its name, and a function that makes a queue before it."""
        return [
            (name, partial(SpanExport, self._exporter("traces", place, way), _queue(way, "traces")))
            for place, way, name, _ in self._parts("traces")
        ]

    def records(self) -> list[tuple[str, Callable[[], LogExport]]]:
        """The same for log records."""
        return [
            (name, partial(LogExport, self._exporter("logs", place, way), _queue(way, "logs")))
            for place, way, name, _ in self._parts("logs")
        ]

    def readers(self) -> list[tuple[str, MetricReader]]:
        """Each reader of metrics: the name of its exporter, and the reader."""
        with ExitStack() as undoing:
            made = [
                (name, ended_by(undoing, self._reader(place, way, options)))
                for place, way, name, options in self._parts("metrics")
            ]
            undoing.pop_all()
        return made

    def try_exporters(self, signal: Signal) -> None:
        """Make the exporters, without sending. Raises ConfigError if one fails. Skips Prometheus, which would open a port."""
        for place, way, _, options in self._parts(signal):
            if not hasattr(options, "port"):
                self._exporter(signal, place, way)

    def _parts(self, signal: Signal) -> Iterator[tuple[str, Any, str, Any]]:
        """Each processor or reader: its place in the file, its options, and the name and options of its exporter."""
        section: Any = getattr(self.config, _SECTIONS[signal])
        kind = _PARTS[signal]
        for number, each in enumerate(() if section is None else getattr(section, kind)):
            way, about = _chosen(each)
            place = f"{_SECTIONS[signal]}.{kind}[{number}].{way}"
            exporter: Any = getattr(about, "exporter", None)
            if exporter is None:
                known = [field.name for field in fields(each)]
                raise ConfigError(f"{self}: {place}: only {' and '.join(known)} are supported")
            yield place, about, *_chosen(exporter)

    def _exporter(self, signal: Signal, place: str, about: Any) -> Any:
        module, factory = _FACTORIES[signal]
        with self._saying(f"{place}.exporter"):
            return by_process(partial(_of_loader(module, factory), about.exporter))

    def _reader(self, place: str, about: Any, options: Any) -> MetricReader:
        with self._saying(place):
            if hasattr(options, "port"):  # Prometheus; by our own server, since OpenTelemetry's can't be stopped
                self._warn_of_ignored(place, about, ("exporter",))
                self._warn_of_ignored(place, options, ("host", "port"))
                return prometheus_reader(options.host or "localhost", options.port or 9464, f"{self}: {place}")
            if not hasattr(about, "interval"):
                raise ConfigError(f"{self}: {place}: only the exporter prometheus/development is supported")
            self._warn_of_ignored(place, about, ("exporter", "interval", "timeout", "cardinality_limits"))
            module, limits_of = _LIMITS
            exporter = self._exporter("metrics", place, about)
            return MetricExport(
                exporter,
                export_interval_millis=float(about.interval or 60_000),
                export_timeout_millis=float(about.timeout or 30_000),
                cardinality_limits=_of_loader(module, limits_of)(about.cardinality_limits),
            )

    def _warn_of_ignored(self, place: str, about: Any, used: Collection[str]) -> None:
        given = [field.name for field in fields(about) if getattr(about, field.name) is not None]
        if ignored := [name for name in given if name not in used]:
            _logger.warning("telemetry: %s: %s: pocket_plug ignores %s", self, place, ", ".join(ignored))

    # ------------------------------------------------------------ providers
    def resource(self) -> Resource:
        """The resource that the file declares."""
        return self._resource

    @cached_property
    def _resource(self) -> Resource:
        """Made once for all signals: a detector that the file names may ask a server of the cloud."""
        with self._saying("resource"):
            resource: Resource = _of_loader(".file", "create_resource")(self.config.resource)
            return resource

    def tracer_provider(self, resource: Resource, ids: IdGenerator) -> TracerProvider:
        """A provider with the file's sampler and limits, without a processor. `ids` is used if the file names no generator."""
        provider: TracerProvider = self._provider("traces", resource)
        if self.config.tracer_provider.id_generator is None:
            provider.id_generator = cast("Any", ids)  # the SDK declares the type of its default generator
        return provider

    def logger_provider(self, resource: Resource) -> LoggerProvider:
        """A provider with the file's limits, without a processor."""
        provider: LoggerProvider = self._provider("logs", resource)
        return provider

    def meter_provider(self, resource: Resource, readers: Sequence[MetricReader]) -> MeterProvider:
        """A provider with the file's views and exemplars, and these readers."""
        provider: MeterProvider = self._provider("metrics", resource)
        for reader in readers:
            provider.add_metric_reader(reader)
        return provider

    def _provider(self, signal: Signal, resource: Resource) -> Any:
        section = _SECTIONS[signal]
        limits = () if signal == "metrics" else (self.config.attribute_limits,)
        with self._saying(section):
            make = _of_loader(".file", f"create_{section}")
            provider = make(replace(getattr(self.config, section), **{_PARTS[signal]: []}), resource, *limits)
        atexit.unregister(provider.shutdown)  # `ending` shuts it down, within a time limit
        return provider

    def check(self) -> None:
        """Raise ConfigError for a provider or a propagator that can't be made, before anything is set."""
        resource = self.resource()
        for signal, section in _SECTIONS.items():
            if getattr(self.config, section) is not None:
                self._provider(signal, resource)
        with self._saying("propagator"):
            _of_loader(".file", "create_propagator")(self.config.propagator)

    def apply_the_rest(self) -> None:
        """Let OpenTelemetry's loader set propagators, instrumentations and OpenTelemetry's own log level."""
        with self._saying("propagator"):
            _of_loader("", "configure_sdk")(
                replace(self.config, resource=None, tracer_provider=None, meter_provider=None, logger_provider=None)
            )

    # ------------------------------------------------------------ reading
    def _read(self) -> Any:
        try:
            _loader()
        except ImportError:
            raise ConfigError(f"{self}: OpenTelemetry's loader of such files is not installed: {_INSTALL}") from None
        with self._saying(""):
            return _of_loader("", "load_config_file")(self.path)

    @contextmanager
    def _saying(self, place: str) -> Generator[None]:
        """Raise an error of the loader as ConfigError, with the file and the place; remove values from what the loader logs."""
        where = f"{self}: {place}: " if place else f"{self}: "
        _loader()  # makes the loggers that are filtered below
        loggers = [logging.getLogger(name) for name in [*logging.root.manager.loggerDict] if name.startswith(_LOADER)]
        # one for each block: a nested or parallel block may remove its own earlier
        without_values = partial(_without_values)
        for logger in loggers:
            logger.addFilter(without_values)
        try:
            yield
        except ConfigError:
            raise
        except BaseException as error:
            if not is_fault(error):
                raise
            raise ConfigError(where + _why(error)) from None  # the cause may quote values of the file
        finally:
            for logger in loggers:
                logger.removeFilter(without_values)


_logger = logging.getLogger("pocket_plug")


def _loader(module: str = "") -> Any:
    """A module of OpenTelemetry's loader, or its package. `Any`, since it ships no types."""
    return import_module(f"{_LOADER}{module}")


def _of_loader(module: str, name: str) -> Any:
    """A function of the loader. Raises ConfigError if it is missing: the loader is a beta and may rename any."""
    try:
        return getattr(_loader(module), name)
    except (ImportError, AttributeError):
        raise ConfigError(
            f"pocket_plug doesn't know this version of {_PACKAGE}, {version(_PACKAGE)}: it has no "
            f"{_LOADER}{module}.{name}. Run pip install --upgrade 'pocket-plug[config-file]'; if that doesn't help, use an "
            f"older {_PACKAGE}, or variables such as OTEL_TRACES_EXPORTER instead of the file"
        ) from None


def _chosen(part: Any) -> tuple[str, Any]:
    """The one kind that the file has chosen of several: its name and its options."""
    for field in fields(part):
        if (about := getattr(part, field.name)) is not None:
            return field.name, about
    others: Mapping[str, Any] = part.additional_properties
    return next(iter(others.items()), ("nothing", None))


def _queue(about: Any, signal: Signal) -> Queue:
    """The queue of a processor. A `simple` one sends each span at once, in the queue's thread: no run waits for an exporter."""
    if not hasattr(about, "schedule_delay"):
        return Queue(batch=1)
    size: int = about.max_queue_size or Queue().size
    delay: int = _DELAYS[signal] if about.schedule_delay is None else max(about.schedule_delay, 1)
    return Queue(size, min(size, about.max_export_batch_size or Queue().batch), delay)


def _without_values(record: logging.LogRecord) -> bool:
    """A logging filter. It drops errors, which are also raised and quote the file, and masks pairs: a header may be a secret."""
    if "pair" in str(record.msg):
        record.args = (MASK,) * len(record.args or ())
    return record.levelno < logging.ERROR


def _why(error: BaseException) -> str:
    """The reason of an error of the loader, without any value of the file."""
    cause: Any = error.__cause__
    kind = "" if cause is None else type(cause).__module__.partition(".")[0]
    if kind == "yaml":
        mark = getattr(cause, "problem_mark", None)
        at = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        return f"invalid YAML: {at}{getattr(cause, 'problem', None) or getattr(cause, 'reason', 'it cannot be read')}"
    if cause is not None and kind == "json":
        return f"invalid JSON: line {cause.lineno}, column {cause.colno}: {cause.msg}"
    if kind == "jsonschema" and hasattr(cause, "absolute_path"):
        return _mismatch(cause)
    if isinstance(cause, OSError):
        return f"it cannot be read: {cause.strerror}"
    if type(error).__module__.startswith(_LOADER) and (cause is None or isinstance(cause, ImportError)):
        return public_url(str(error))  # the loader's own messages are written for users
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return f"OpenTelemetry can't use it: {error_type(cause or error)}"


def _mismatch(error: Any) -> str:
    """What the schema of such files requires, and what was found."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    where = place or "the file"
    if error.validator in ("required", "additionalProperties"):  # names only
        known = ", ".join(error.schema.get("properties", ()))
        return f"{where}: {error.message}; allowed: {known}"
    if error.validator in ("minProperties", "maxProperties"):
        names = ", ".join(map(str, error.instance)) or "nothing"
        least = "at least" if error.validator == "minProperties" else "at most"
        return f"{where}: found {names}, expected {least} {error.validator_value}"
    found = "nothing" if error.instance is None else summary(error.instance)
    allowed: Any = error.validator_value
    wanted: Sequence[Any] = [allowed] if isinstance(allowed, str | int) else allowed
    kind = {"type": "", "enum": "", "minItems": "at least "}.get(error.validator, f"{error.validator} ")
    return f"{where}: found {found}, expected {kind}{' or '.join(map(str, wanted))}"
