"""Programs count in PostgreSQL while the server and the programs are killed: `python test_postgres_kills.py [SEED] [KILLS]`.

Each program increments keys of its own and one that all share, and logs acknowledged writes. At the end each counter equals the
number of acknowledged writes, except for writes that a killed program had sent without getting the answer: at most one per task.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocket_plug import Store
from pocket_plug.testing.servers import Server, postgres

PROGRAMS, TASKS = 3, 3
SHARED = "shared"


def count_on(url: str, folder: str, name: str) -> None:
    """A program: count until the file `go on` is deleted."""
    log = os.open(Path(folder, f"{name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    go_on = Path(folder, "go on").exists

    async def task(store: Store, number: int) -> None:
        chance = random.Random(f"{name} {number}")
        while go_on():
            key = SHARED if chance.random() < 0.3 else f"{name}.{number}"
            await store.update(key, lambda counted: counted + 1, default=0)
            os.write(log, f"{key}\n".encode())  # kept if this process is killed

    async def main() -> None:
        async with Store(url) as store:
            await asyncio.gather(*(task(store, number) for number in range(TASKS)))

    asyncio.run(main())


@dataclass
class Campaign:
    """What is done to the server and to the programs, and the outcome."""

    server: Server
    folder: Path
    seed: int
    kills: int
    counted: int = 0
    unheard: int = 0

    def go(self) -> None:
        """Raises AssertionError if a write was lost, or done twice."""
        chance = random.Random(self.seed)
        go_on = self.folder / "go on"
        go_on.touch()
        names = [f"p{number}" for number in range(PROGRAMS)]
        running = {name: self._begin(name) for name in names}
        killed = 0
        try:
            for number in range(self.kills):
                goal = self._acknowledged().total() + chance.randint(1, 60)
                until = time.monotonic() + 60
                while self._acknowledged().total() < goal:
                    assert time.monotonic() < until, "nobody counts any more"
                    time.sleep(0.01)
                if number % 3 < 2:
                    self.server.kill()
                    time.sleep(chance.uniform(0, 0.2))
                    self.server.restart()
                else:
                    name = chance.choice([*running])
                    running[name].send_signal(signal.SIGKILL)
                    running.pop(name).wait()
                    killed += 1
                    name = f"{name}'"
                    running[name] = self._begin(name)
        finally:
            go_on.unlink()
            ended = [program.wait(120) for program in running.values()]
        assert set(ended) == {0}, ended
        self._compare(killed)

    def _begin(self, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "count", self.server.url, str(self.folder), name])

    def _acknowledged(self) -> Counter[str]:
        return Counter(line for log in self.folder.glob("*.log") for line in log.read_text().splitlines())

    def _compare(self, killed: int) -> None:
        acknowledged = self._acknowledged()
        with Store(self.server.url).sync as store:
            there = store.get_many([*store.keys()])
        lost = {key: (times, there.get(key, 0)) for key, times in acknowledged.items() if there.get(key, 0) < times}
        assert not lost, f"acknowledged and lost: {lost}"
        unheard = sum(there.values()) - acknowledged.total()
        assert 0 <= unheard <= killed * TASKS, f"{unheard} were done that nobody asked for"
        self.counted, self.unheard = acknowledged.total(), unheard


@pytest.mark.crash
def test_no_acknowledged_write_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    """And none is done twice: the server's processes and the programs are killed in the middle of their writes."""
    with postgres() as server:
        campaign = Campaign(server, tmp_path, seed=3, kills=4)
        campaign.go()
    assert campaign.counted > 4


if __name__ == "__main__":
    if sys.argv[1:2] == ["count"]:
        count_on(*sys.argv[2:])
    else:
        seed, kills = (int(each) for each in (sys.argv[1:] + ["0", "60"][len(sys.argv) - 1 :]))
        with postgres() as server, tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(server, Path(folder), seed, kills)
            campaign.go()
        print(
            f"{kills} kills: {campaign.counted} writes were acknowledged, all are there once; {campaign.unheard} more"
        )
