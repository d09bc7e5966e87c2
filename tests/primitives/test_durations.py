"""Times to live: what may be written, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.durations import seconds


@pytest.mark.parametrize(
    ("ttl", "meant"),
    [
        (5, 5.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
        ("500ms", 0.5),
        ("5s", 5.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("1m1ms", 60.001),
    ],
)
def test_a_ttl_means_seconds(ttl: Any, meant: float) -> None:
    """Numbers, timedeltas and texts with d, h, m, s and ms, the larger unit first."""
    assert seconds(ttl) == meant


@pytest.mark.parametrize(
    "ttl",
    [0, -1, 0.0, float("nan"), float("inf"), 10**400, True, None, [], b"5s", timedelta(0), timedelta(-1), "", "0s", "5",
     "m", "5 m", "-5s", "5S", "1m1h", "1h30", "5x", "\u0665s", "9" * 400 + "s"],
)  # fmt: skip
def test_anything_else_is_refused(ttl: Any) -> None:
    """With 0 and below the entry would expire at once, with nan never; the message says what was given and what is allowed."""
    with pytest.raises(ConfigError, match=r"ttl can't be .*; give seconds above 0, (a timedelta, )?or text"):
        seconds(ttl)


@pytest.mark.parametrize(("ttl", "in_code"), [("5x", False), (-1, False), (None, True), (timedelta(0), True)])
def test_a_text_or_a_number_may_be_from_a_file(ttl: Any, in_code: bool) -> None:
    """Or from the command line. Neither can have a timedelta, so the message doesn't advise one."""
    with pytest.raises(ConfigError) as refused:
        seconds(ttl)
    assert ("a timedelta" in str(refused.value)) == in_code
