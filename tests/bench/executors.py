"""The cost per item of a fan-out through executors, compared with Dask's own map over chunks, and with no executor.

    python tests/bench/executors.py [ITEMS [ROUNDS]]

It needs the plugin pocket-plug-dask, and starts a scheduler and two workers on this machine.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])

import executor_work as work  # noqa: E402 - from beside this file, as workers have it

from pocket_plug import Graph, each  # noqa: E402
from pocket_plug.executors import Processes  # noqa: E402

CHUNK = 100
FEW = 500
"""Items of the map without chunks, which takes long."""
OWN, ALONE = f"Dask's map, by {CHUNK}", "Dask's map, alone"


def measure(items: int, rounds: int) -> None:
    """Print the microseconds per item of each way, and the ratio of ours to Dask's."""
    from distributed import Client, LocalCluster
    from pocket_plug_dask import DaskExecutor

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        dask, processes = DaskExecutor(cluster.scheduler_address), Processes(2)
        for name in ("nothing", "millisecond"):
            count = items if name == "nothing" else items // 10
            step = getattr(work, name)
            chunks = [[*range(start, start + CHUNK)] for start in range(0, count, CHUNK)]

            def of_dask(name: str = name, chunks: list[list[int]] = chunks) -> None:
                client.gather(client.map(work.of_chunk, [name] * len(chunks), chunks, pure=False))

            def item_by_item(name: str = name) -> None:
                client.gather(client.map(getattr(work, f"{name}_plain"), range(FEW), pure=False))

            ways: dict[str, Callable[[], object]] = {OWN: of_dask, ALONE: item_by_item}
            for title, executor in (("through Dask", dask), ("through processes", processes), ("here", None)):
                graph = Graph(each(step, executor=executor))
                ways[title] = lambda graph=graph, count=count: asyncio.run(graph.run(iter(range(count))))
            taken: dict[str, list[float]] = {title: [] for title in ways}
            for _ in range(rounds):
                for title, way in ways.items():
                    began = time.perf_counter()
                    way()
                    done = FEW if title == ALONE else count
                    taken[title].append((time.perf_counter() - began) / done * 1e6)
            base = median(taken[OWN])
            print(f"{count:,} items, each {name}:")
            for title, found in taken.items():
                print(f"  {title:20} {median(found):8.1f} µs per item   {median(found) / base:5.2f} x")
        dask.close()
        processes.close()
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    measure(*given, *(10_000, 3)[len(given) :])
