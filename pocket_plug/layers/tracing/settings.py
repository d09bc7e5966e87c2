"""What tracing does, and whether there is a provider: decided here, once, for all spans.

The process has settings, and a Pocket may replace some of them by its own. The tracer provider is the process's. No span is
made in this module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import currentframe
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypedDict, cast, get_args
from warnings import warn
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, TracerProvider
from typing_extensions import Unpack

from pocket_plug.errors import ConfigError
from pocket_plug.otel.additions import NONE, Additions
from pocket_plug.otel.reporting import SCHEMA_URL, changed, globals_of, loaded, own_version, surviving
from pocket_plug.primitives.default_pocket import find_default_pocket
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.redaction import Redact as Redact

if TYPE_CHECKING:
    from .capture import Captured

Detail = Literal["run", "node", "phase", "debug"]
Capture = Literal["none", "keys", "summary", "full"]
Scope = Literal["graph", "phase", "store"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What tracing does. `tracer_provider` None: OpenTelemetry's global one.

    `detail` "run": one span per run. "node": also one per node, with its phases' durations, one per attempt if a node
    has a retry, a timeout or a fallback, and one per store operation. "phase": one for each phase, instead of durations.
    "debug": also one for each layer that a store operation passes, in stacks that are built from then on.

    `capture` "none": neither keys nor values nor the messages of exceptions. "keys": the keys of store operations.
    "summary": also messages, and of inputs, outputs and values the type and the size. "full": the values themselves.
    None: as "none", but what `observe()` keeps on this machine has messages. Each key, message and value is replaced by
    what `redact(path, value)` returns.

    `baggage` names the entries of baggage that become attributes and are passed to other processes. `resume_trace`: is the
    span of a resumed run a child of the former execution's ("parent"), or does it begin a trace with a link to that
    ("link")? `scopes` are the scopes that make spans.
    """

    detail: Detail = "node"
    capture: Capture | None = None
    redact: Redact | None = None
    baggage: tuple[str, ...] = ()
    resume_trace: Literal["link", "parent"] = "link"
    scopes: tuple[Scope, ...] = ("graph", "phase", "store")
    tracer_provider: TracerProvider | None = None


class Besides(TypedDict, total=False):
    """What can be changed besides the detail."""

    capture: Capture | None
    redact: Redact | None
    flavours: Collection[str]
    """Has no effect since 0.2, and goes with 0.3: `pip install pocket-plug-openinference`."""
    baggage: Collection[str]
    resume_trace: Literal["link", "parent"]
    scopes: Collection[Scope]
    tracer_provider: TracerProvider | None


class Changes(Besides, total=False):
    """What `configure` takes."""

    detail: Detail


def configure(**changes: Unpack[Changes]) -> Settings:
    """Change the process's settings of tracing, from the next run on; returns the former ones.

    They hold unless a Pocket has other settings: `[plugins.tracing] detail = "phase"` is for the runs and the stores
    of that Pocket. Raises ConfigError for an unknown option.
    """
    return use(changed("tracing", settings, checked(changes)))


def use(chosen: Settings) -> Settings:
    """Replace all settings of the process; returns the former ones."""
    global settings, _given
    former, settings = settings, chosen
    _given = None if isinstance(chosen.tracer_provider, Muted) else chosen.tracer_provider
    with _lock:
        everywhere = list(_all)
    for listening in everywhere:
        listening.forget()
    return former


def mute() -> None:
    """Use no provider until another global one is set, or one is given: the one that is set now is ignored."""
    configure(tracer_provider=Muted(trace.get_tracer_provider()))


_ONE_OF: Mapping[str, tuple[Any, ...]] = {
    "detail": get_args(Detail),
    "capture": (None, *get_args(Capture)),
    "resume_trace": ("link", "parent"),
}
_SOME_OF: Mapping[str, tuple[Any, ...]] = {
    "scopes": get_args(Scope),
    "baggage": (),
}


def checked(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The changes, with lists as tuples. Raises ConfigError for a value that an option can't have."""
    accepted = dict(changes)
    warn_of_flavours(accepted.pop("flavours", None))
    for name, value in accepted.items():
        if name in _ONE_OF and value not in _ONE_OF[name]:
            raise ConfigError(f"tracing: {name} must be one of {', '.join(filter(None, _ONE_OF[name]))}, not {value!r}")
        if name in _SOME_OF:
            allowed, texts = _SOME_OF[name], _texts(value)
            if texts is None:
                raise ConfigError(f"tracing: {name} is {value!r}; give a list of names")
            for text in texts:
                if allowed and text not in allowed:
                    raise ConfigError(f"tracing: {name} has {text!r}; allowed are {', '.join(allowed)}")
            accepted[name] = texts
        if name == "redact" and value is not None and not callable(value):
            raise ConfigError(f"tracing: redact is {value!r}; give a Python function that takes (path, value)")
    return accepted


def warn_of_flavours(given: Collection[str] | None) -> None:
    """Warn, if the option `flavours` is given, that it is a plugin now: at the user's line, so that Python shows it."""
    if given:
        from pocket_plug.primitives.own_code import is_users  # here, since few give it

        level, frame = 1, currentframe()
        while frame is not None and frame.f_back is not None and not is_users(frame.f_code.co_filename):
            level, frame = level + 1, frame.f_back
        warn(
            "flavours has no effect any more, and 0.3 removes it: the attributes that it added come from a plugin now, with "
            "their current names; do: pip install pocket-plug-openinference",
            DeprecationWarning,
            stacklevel=level,
        )


def _texts(value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None
    items = tuple(cast("Iterable[object]", value))
    texts = tuple(item for item in items if isinstance(item, str))
    return texts if len(texts) == len(items) else None


class Live:
    """Where spans go while there is a provider, and what they have on them. Never changed after it is made."""

    __slots__ = (
        "additions",
        "baggage",
        "capture",
        "detail",
        "draws",
        "graph",
        "phase",
        "phases",
        "provider",
        "redact",
        "resume_trace",
        "store",
        "stores",
        "tells_locally",
    )

    def __init__(self, provider: TracerProvider, chosen: Settings, additions: Callable[[], Additions]) -> None:
        self.additions = additions
        """Returns what the present plugins add to spans."""
        self.provider, self.detail, self.resume_trace = provider, chosen.detail, chosen.resume_trace
        self.draws = chosen.detail in ("phase", "debug")
        """Do runs' spans have the nodes and edges of the graph?"""
        self.phases = self.draws and "phase" in chosen.scopes
        """Does each phase have a span? If not, its duration is on the node's span."""
        self.stores = chosen.detail != "run" and "store" in chosen.scopes
        """Do store operations have spans?"""
        self.baggage = chosen.baggage
        self.capture: Captured | None = None
        self.redact, self.tells_locally = chosen.redact, chosen.capture is None
        """What replaces messages; and are messages kept for use on this machine?"""
        if chosen.capture is not None and chosen.capture != "none":
            from .capture import Captured

            self.capture = Captured(chosen.capture, chosen.redact)
        nobody = NoOpTracerProvider()
        self.graph, self.phase, self.store = [
            (provider if scope in chosen.scopes else nobody).get_tracer(
                f"pocket_plug.{scope}", own_version(), SCHEMA_URL
            )
            for scope in get_args(Scope)
        ]


class Muted(NoOpTracerProvider):
    """In the settings: use OpenTelemetry's global provider, unless it is this one."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider


settings = Settings()
"""The settings of the process."""
_given: TracerProvider | None = None
"""The provider of the settings; None for OpenTelemetry's global one."""
_NEVER: tuple[object, None] = (object(), None)
_GLOBAL: Final = "_TRACER_PROVIDER"
_api = globals_of(trace, _GLOBAL, trace.get_tracer_provider)


class Asked(Protocol):
    """What tracing needs of its Pocket."""

    def additions(self) -> Additions:
        """What the plugins add to spans."""
        ...


def additions_of_default() -> Additions:
    """What the plugins of the default Pocket add; nothing if there can't be one."""
    with surviving("asking the default Pocket what its plugins add to spans"):
        pocket: Asked = find_default_pocket()
        return pocket.additions()
    return NONE


class Listening:
    """Finds the provider: by the process's settings, or those of one Pocket in their place."""

    def __init__(self) -> None:
        self.additions: Callable[[], Additions] = additions_of_default
        self._own: Mapping[str, Any] = {}
        self._seen: tuple[object, Live | None] = _NEVER
        """The provider at the last look, and where spans go for it. Assigned as one tuple, for other threads."""
        with _lock:
            _all.add(self)

    def choose(self, own: Mapping[str, Any]) -> None:
        """Use these in place of the process's settings. Raises ConfigError for an option that a Pocket can't have."""
        own = checked(own)
        changed("tracing", settings, own)  # refuses unknown options
        if "tracer_provider" in own:
            raise ConfigError(
                "tracing: tracer_provider holds for the whole process, not for one Pocket; give it to "
                "pocket_plug.layers.tracing.configure(tracer_provider=…)"
            )
        self._own = own
        self.forget()

    @property
    def settings(self) -> Settings:
        """The settings that hold here now."""
        return replace(settings, **self._own)

    def forget(self) -> None:
        """Look up the provider again, since settings have changed."""
        self._seen = _NEVER

    def look(self) -> Live | None:
        """Where spans go now; None if there is no provider. Costs a fraction of a microsecond.

        Don't keep the answer: a provider may be set later, or replaced.
        """
        provider = _api[_GLOBAL] if _given is None else _given
        known, live = self._seen
        return live if provider is known else self._look_at(provider)

    def _look_at(self, provider: TracerProvider | None) -> Live | None:
        process, known = settings, provider
        chosen = self.settings
        if provider is None:
            provider = loaded(trace.get_tracer_provider, NoOpTracerProvider(), "OTEL_PYTHON_TRACER_PROVIDER")
        muted = isinstance(chosen.tracer_provider, Muted) and chosen.tracer_provider.provider is provider
        silent = muted or isinstance(provider, ProxyTracerProvider | NoOpTracerProvider)
        live = None if silent else Live(provider, chosen, self.additions)
        self._seen = known, live
        if settings is not process:  # changed meanwhile, by another thread
            self.forget()
        return live


_all: WeakSet[Listening] = WeakSet()
_lock = new_rlock()  # reentrant: a SIGTERM in the middle closes what `observe` returned
process = Listening()
"""For runs and stores without a Pocket."""
look = process.look
