"""A real server for the tests of this plugin, started from a wheel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from pocket_plug.testing.fixtures import valkey_server as valkey_server
from pocket_plug.testing.servers import Server

_names = count()


@pytest.fixture
def fresh_url(valkey_server: Server) -> Callable[[str], str]:
    """Makes the URL of a data set of this test's own, with options."""
    name = f"t{next(_names)}"

    def make(options: str = "") -> str:
        return f"{valkey_server.url}?store={name}{options}"

    return make
