"""Raises errors of the OpenTelemetry SDK about its variables as ConfigError.

This module doesn't import the SDK, which reads some variables during its import.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from pocket_plug.errors import ConfigError


@contextmanager
def naming_rejections() -> Generator[None]:
    """Raise ConfigError if OpenTelemetry rejects a variable within the block."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, StopIteration) as error:  # StopIteration: a variable names a plugin that isn't installed
        why = " ".join(str(error).split()) or "a variable names a plugin that isn't installed"
        raise ConfigError(f"OpenTelemetry rejects an OTEL_* variable: {why}") from error
