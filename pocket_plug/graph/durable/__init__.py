"""Durable runs: a run's progress is committed together with its nodes' writes, so that it resumes where it stopped."""

from pocket_plug.codec import register_type
from pocket_plug.graph.kinds.ask import Answered
from pocket_plug.graph.running.context import current_run_id as current_run_id
from pocket_plug.graph.running.context import idempotency_key as idempotency_key

from .check import RunCheck as RunCheck
from .check import check_runs as check_runs
from .records import keys_of as keys_of
from .request import Request as Request
from .states import RunFailure as RunFailure

register_type(Answered, tag="pocket_plug.Answered")
