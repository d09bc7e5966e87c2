"""What `opentelemetry-instrument` finds. It needs `opentelemetry-instrumentation`; nothing of pocket_plug imports it.

pocket_plug speaks to OpenTelemetry by itself: wherever a provider is set, runs are traced and measured. So there is nothing
to patch, and all that can be chosen here is which providers are used, and when that ends: until others are set.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # its module says that it is not to be checked

from pocket_plug.layers import metrics, tracing


class PocketPlugInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # so it has no type
    """`instrument(tracer_provider=…, meter_provider=…)`; those left out are the global ones. `uninstrument()` ends it.

    After that pocket_plug is silent for the providers that are set by then. One that is set later, as a test does for the
    test after it, or that is given, is listened to again.

    >>> from pocket_plug.layers import tracing
    >>> PocketPlugInstrumentor().instrument()
    >>> PocketPlugInstrumentor().uninstrument()
    >>> tracing.look() is None
    True
    >>> _ = tracing.configure(tracer_provider=None), metrics.configure(meter_provider=None)
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """It comes with what it is for."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        tracing.configure(tracer_provider=kwargs.get("tracer_provider"))
        metrics.configure(meter_provider=kwargs.get("meter_provider"))

    def _uninstrument(self, **kwargs: Any) -> None:
        tracing.mute()
        metrics.mute()
