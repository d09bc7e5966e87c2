"""What `open` checks: can this server keep what the backend promises? Each error says how to correct the configuration."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from pocket_plug import StoreError
from pocket_plug.store.backend import ProbeResult

from .connections import Connection, call, run_script
from .scripts import LAYOUT, TRY

LOWEST = (6, 0)
"""The lowest version of Redis that is supported."""

LARGEST_SKEW = 1.0
"""Seconds by which the server's clock may differ from ours without a warning."""

_logger = logging.getLogger("pocket_plug")


async def check_server(
    connection: Connection,
    server: str,
    durability: str,
    clock: Callable[[], float],
    keys: tuple[bytes, bytes, bytes],
) -> None:
    """Raise StoreError if the server can't keep what is promised. `keys`: the layout's, one to try commands with, the channel."""
    layout, attempt, channel = keys
    found = await look_at(connection, server, durability, clock, layout)
    level = logging.WARNING if abs(found.skew or 0) > LARGEST_SKEW and clock is time.time else logging.DEBUG
    _logger.log(level, "%s: its clock is %.3f s ahead of this program's, by which entries expire", server, found.skew)
    await run_script(connection, TRY, 2, attempt, attempt + b"2", channel)
    await call(connection, "BLPOP", attempt + b"2", "0.01")
    if await call(connection, "SET", layout, LAYOUT, "NX") is None:  # it exists, perhaps only since `look_at`
        _check_layout(server, await call(connection, "GET", layout))


async def look_at(
    connection: Connection, server: str, durability: str, clock: Callable[[], float], layout: bytes
) -> ProbeResult:
    """Make all checks that only read, and return what they found. Raises StoreError."""
    about = _fields(await call(connection, "INFO"))
    _check_kind(server, about)
    _check_memory(server, about)
    if durability != "none":
        _check_durability(server, durability, await _settings(connection))
    skew = await _skew(connection, clock)
    found = await call(connection, "GET", layout)
    _check_layout(server, found)
    return ProbeResult(_named(about), is_new=found is None, durability=durability, skew=skew)


def _named(about: Mapping[str, str]) -> str:
    """The server's name and version. Valkey reports a version of Redis too, for programs that ask for it."""
    own = about.get("valkey_version")
    return f"Valkey {own}" if own else f"Redis {about.get('redis_version')}"


def _check_layout(server: str, found: bytes | None) -> None:
    if found is not None and found != str(LAYOUT).encode():
        layout = found[:40].decode(errors="backslashreplace")
        raise StoreError(
            f"{server}: it has layout '{layout}', but this pocket-plug-redis knows only layout {LAYOUT}; upgrade it"
        )


def _fields(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, _, value in lines if value}


def _check_kind(server: str, about: Mapping[str, str]) -> None:
    version = about.get("redis_version", "")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < LOWEST:
        raise StoreError(f"{server} is Redis {version or 'of no version'}; Redis 6.0 or later, or Valkey, is needed")
    if about.get("role", "master") not in ("master", "primary"):
        raise StoreError(
            f"{server} is a replica of {about.get('master_host')}:{about.get('master_port')}: it accepts no writes, and its "
            "reads may be outdated; give the address of the primary"
        )


def _check_memory(server: str, about: Mapping[str, str]) -> None:
    policy = about.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys") and about.get("maxmemory", "0") != "0":
        raise StoreError(
            f"{server}: it evicts entries when its memory is full (maxmemory-policy {policy}), without any error; put into its "
            "configuration: maxmemory-policy noeviction"
        )


async def _settings(connection: Connection) -> dict[str, str] | None:
    """The server's settings for its append-only file; None if it refuses CONFIG GET."""
    try:
        found: list[bytes] = await call(connection, "CONFIG", "GET", "*append*")
    except (NoPermissionError, ResponseError):
        return None
    texts = [text.decode() for text in found]
    return dict(zip(texts[::2], texts[1::2], strict=True))


_WANTED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "power": {"appendonly": ("yes",), "appendfsync": ("always",), "no-appendfsync-on-rewrite": ("no",)},
    "process": {"appendonly": ("yes",), "appendfsync": ("always", "no")},
}
"""For each durability: the settings that the server must have, and the allowed values. Errors recommend the last of them."""


def _check_durability(server: str, durability: str, has: Mapping[str, Any] | None) -> None:
    if has is None:
        raise StoreError(
            f"{server}: durability={durability} can't be checked, since the server doesn't answer CONFIG GET; allow the user "
            "to call it (+config|get), or set durability=none"
        )
    wanted = _WANTED[durability]
    wrong = _wrong(wanted, has)
    if wrong:
        less = "" if durability == "process" or _wrong(_WANTED["process"], has) else "durability=process or "
        found = ", ".join(f"{name} {value}" for name, value in wrong.items())
        lines = "; ".join(f"{name} {wanted[name][-1]}" for name in wrong)
        raise StoreError(
            f"{server}: durability={durability} needs another configuration. The server has {found}; put into its "
            f"configuration: {lines}. Or choose a durability with which an acknowledged write survives fewer failures: "
            f"{less}durability=none"
        )


def _wrong(wanted: Mapping[str, Sequence[str]], has: Mapping[str, Any]) -> dict[str, str]:
    return {name: has.get(name, "nothing") for name, allowed in wanted.items() if has.get(name) not in allowed}


async def _skew(connection: Connection, clock: Callable[[], float]) -> float:
    """Seconds by which the server's clock is ahead."""
    before = clock()
    seconds, microseconds = await call(connection, "TIME")
    return int(seconds) + int(microseconds) / 1e6 - (before + clock()) / 2
