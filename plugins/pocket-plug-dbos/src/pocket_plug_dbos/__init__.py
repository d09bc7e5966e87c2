"""Durable runs of pocket_plug as DBOS workflows.

DBOS decides when a run is gone on with, and by which executor: queues, limits, priorities, schedules, recovery. What the run has
done is in pocket_plug's store, node by node. So DBOS's own tables have ids and states only, and no step of a run.
"""

from .queue import DBOSQueue, RunFailedError
from .serializer import PocketSerializer

__all__ = ["DBOSQueue", "PocketSerializer", "RunFailedError"]
