"""What tests of telemetry share: an OTLP collector of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for the modules here that scripts use too

from otlp_sink import Sink

# older SDKs have no loader
collect_ignore = [] if find_spec("opentelemetry.configuration") else ["test_config_file.py"]


@pytest.fixture
def otlp_sink() -> Iterator[Sink]:
    """A collector that accepts everything, until it is told otherwise."""
    with Sink() as sink:
        yield sink
