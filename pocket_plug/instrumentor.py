"""The instrumentor for `opentelemetry-instrument`. It needs `opentelemetry-instrumentation`; pocket_plug doesn't import it.

pocket_plug uses OpenTelemetry's API itself: if a provider is set, runs are traced and measured. So nothing is patched; the
instrumentor only chooses the providers, and switches telemetry off.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # its module says that it is not to be checked

from pocket_plug.layers import metrics, tracing


class PocketPlugInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # so it has no type
    """Chooses the providers by `instrument(tracer_provider=…, meter_provider=…)`, by default the global ones.

    `uninstrument()` switches pocket_plug's telemetry off, until another provider is set, as tests do, or given.

    >>> from pocket_plug.layers import tracing
    >>> PocketPlugInstrumentor().instrument()
    >>> PocketPlugInstrumentor().uninstrument()
    >>> tracing.look() is None
    True
    >>> _ = tracing.configure(tracer_provider=None), metrics.configure(meter_provider=None)
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: the instrumentor is part of the library that it instruments."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        tracing.configure(tracer_provider=kwargs.get("tracer_provider"))
        metrics.configure(meter_provider=kwargs.get("meter_provider"))

    def _uninstrument(self, **kwargs: Any) -> None:
        tracing.mute()
        metrics.mute()
