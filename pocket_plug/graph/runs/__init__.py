"""Durable runs for operators: list, read, answer, cancel, retry and remove runs of any graph."""

from pocket_plug.graph.durable.states import RunState as RunState

from .info import ENDED as ENDED
from .info import OPEN as OPEN
from .info import PassedNode as PassedNode
from .info import RunExecution as RunExecution
from .info import RunHistory as RunHistory
from .info import RunInfo as RunInfo
from .info import RunOwner as RunOwner
from .info import RunPage as RunPage
from .info import RunQuestion as RunQuestion
from .info import RunValue as RunValue
from .runs import Runs as Runs
from .runs import SyncRuns as SyncRuns
