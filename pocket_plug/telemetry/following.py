"""What the OpenTelemetry SDK can't make of the environment, as an error of ours.

No SDK is needed for it, since that reads some variables as it is imported.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from pocket_plug.errors import ConfigError


@contextmanager
def followed() -> Generator[None]:
    """A ConfigError for what OpenTelemetry itself can't make of the environment."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, StopIteration) as error:  # the latter where a variable names a plugin that isn't there
        why = " ".join(str(error).split()) or "what one of them names isn't installed"
        raise ConfigError(f"OpenTelemetry can't follow its OTEL_* variables: {why}") from error
