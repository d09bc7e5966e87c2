"""Notifies a watcher of writes: a subscription in a thread of its own, over a blocking connection of redis-py.

It is no task, since the event loop that opened the store may be blocked or gone. `WATCH_EVERY` seconds after each PONG the next
PING is sent; its answer comes after all messages that were published before.
"""

from __future__ import annotations

import logging
import random
import threading
from contextlib import suppress
from time import monotonic

from redis.exceptions import TimeoutError as LateError

from pocket_plug.errors import is_fault
from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.primitives.redaction import public_url
from pocket_plug.store.backend import Watcher

from .connections import BlockingConnection, Server
from .scripts import CHANGE

WATCH_EVERY = 1.0
"""Seconds between a PONG and the next PING. That a server has stopped is noticed within these and the timeout."""

LONGEST_PAUSE = 1.0
"""The longest pause in seconds before a new subscription is tried. It is random, so that clients don't return all at once."""

_logger = logging.getLogger("pocket_plug")

_left_alone: list[object] = []
"""In a forked child: the parent's connections, which must not be closed here."""


class Watching:
    """A subscription to a channel, until `stop`; a forked child gets one of its own."""

    def __init__(self, title: str, server: Server, channel: bytes, watcher: Watcher, timeout: float) -> None:
        self._title, self._server, self._channel = title, server, channel
        self._watcher, self._timeout = watcher, timeout
        self._lock = new_lock()
        self._connection: BlockingConnection | None = None
        self._reason = ""  # why the watcher gets no notifications now
        self._stopped = threading.Event()
        after_fork(self._begin_anew)
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=self._watch, args=(self._stopped,), name=f"watcher of {self._title}", daemon=True
        )
        self._thread.start()

    def _begin_anew(self) -> None:
        """In a forked child: leave the parent's connection alone, and subscribe in a thread of our own."""
        _left_alone.append(self._connection)
        self._connection = None
        if self._stopped.is_set():
            return
        self._stopped = threading.Event()
        self._watcher.lost()
        self._start()

    def stop(self) -> None:
        """End the subscription, and wait a second at most for its thread."""
        self._stopped.set()
        with self._lock:
            connection = self._connection
        if connection is not None:
            with suppress(Exception):  # the thread uses it, and notices that it is closed
                connection.disconnect()
        if self._thread is not threading.current_thread():
            self._thread.join(LONGEST_PAUSE)

    # ------------------------------------------------------------ the thread
    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            connection = self._server.blocking_connection(self._timeout)
            try:
                with self._lock:
                    self._connection = connection
                self._listen(connection, stopped)
            except BaseException as error:
                if not stopped.is_set():
                    before, self._reason = self._reason, public_url(f"{type(error).__name__}: {error}")
                    if self._reason != before:  # a warning once for each reason, however long it lasts
                        _logger.warning(
                            "%s: other programs' writes are not notified now (%s); until they are, reads go to the server",
                            self._title,
                            self._reason,
                        )
                    if not is_fault(error):
                        raise
            finally:
                self._watcher.lost()
                with suppress(Exception):
                    connection.disconnect()
            stopped.wait(random.uniform(0, LONGEST_PAUSE))  # noqa: S311 - no secret

    def _listen(self, connection: BlockingConnection, stopped: threading.Event) -> None:
        connection.connect()
        connection.send_command("SUBSCRIBE", self._channel, check_health=False)
        connection.read_response()
        if self._reason:
            _logger.info("%s: other programs' writes are notified again", self._title)
            self._reason = ""
        self._watcher.back()
        ask_at, answer_by = monotonic() + WATCH_EVERY, float("inf")
        highest = 1  # what an emptied data set begins with again, before which there may have been others
        while not stopped.is_set():
            now = monotonic()
            if now >= answer_by:
                raise LateError(f"no answer to a PING within {self._timeout:g} s")
            if now >= ask_at:
                connection.send_command("PING", check_health=False)
                ask_at, answer_by = float("inf"), now + self._timeout
            if not connection.can_read(timeout=max(0.0, min(ask_at, answer_by) - now)):
                continue
            answer: list[bytes] = connection.read_response()
            if answer[0] == b"message" and answer[-1]:  # `open` publishes an empty message, to check its permission
                versions = _versions(answer[-1])
                # the counter has begun anew: after FLUSHALL, or with another copy of the data
                if max(versions.values()) <= highest:
                    self._watcher.lost()
                    self._watcher.back()
                highest = max(versions.values())
                self._watcher.changed(versions)
            elif answer[0] == b"pong":
                ask_at, answer_by = monotonic() + WATCH_EVERY, float("inf")


def _versions(message: bytes) -> dict[str, int]:
    """The keys and versions in the message of one write."""
    versions: dict[str, int] = {}
    at = 0
    while at < len(message):
        version, size = CHANGE.unpack_from(message, at)
        at += CHANGE.size + size
        versions[message[at - size : at].decode()] = version
    return versions
