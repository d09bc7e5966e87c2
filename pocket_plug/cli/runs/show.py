"""`runs show`: shows a run."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any, cast

import click

from pocket_plug.cli.entries import sealing, text_of
from pocket_plug.cli.output import as_json, echo, echo_json, in_units, plural, print_table
from pocket_plug.cli.target import Target
from pocket_plug.errors import as_date
from pocket_plug.graph.durable.states import RunFailure
from pocket_plug.graph.runs import RunHistory
from pocket_plug.graph.runs.info import shown_state
from pocket_plug.primitives.terminal import escaped

from .facts import LINES, facts_of, failed, kept, narrow, question_facts, text_of_value, with_runs


@click.command
@click.argument("run_id", metavar="RUN")
@as_json
@click.pass_obj
def show(target: Target, run_id: str, as_json: bool) -> None:
    """Show a run: its node, error, values, executions and path."""
    history, now = with_runs(target, lambda runs: runs.history(run_id))
    with sealing():
        facts = facts_of(history.run) | {
            "input": kept(history.input),
            "value": kept(history.value),
            "questions": [question_facts(each) for each in history.questions],
            "result": kept(history.run.result),
            "visits": dict(history.visits),
        }
    if as_json:
        executions = [asdict(each) for each in history.executions]
        echo_json({**facts, "executions": executions, "path": [asdict(each) for each in history.path]})
        return
    del facts["run"], facts["is_ending"]
    facts["state"] = shown_state(history.run)
    facts["executions"] = len(history.executions) or facts["executions"]
    for name, fact in facts.items():
        if fact is not None and (text := _as_text(name, fact, now)):
            echo(f"{name:10}  " + text.replace("\n", f"\n{'':12}"))
    _print_tables(history, now)


def _print_tables(history: RunHistory, now: float) -> None:
    if any(each.trace_id or each.failure for each in history.executions) or len(history.executions) > 1:
        rows = [
            (
                str(each.number),
                _ago(each.began, now),
                "" if each.pid is None else f"pid {each.pid} on {each.host}",
                each.left or "",
                "" if each.failure is None else narrow(failed(each.failure)),
                each.trace_id or "",
            )
            for each in history.executions
        ]
        echo()
        print_table(("execution", "began", "process", "state after it", "error", "trace"), rows)
    if history.trace_ids:
        of_all = shlex.join(["pocket-plug", "trace", "show", history.run.run_id])
        echo(escaped(f"\n{of_all} draws them, if their spans are in a file", keep="\n"))
    if history.path:
        echo()
        last = history.path[-LINES:]  # a loop may have passed thousands
        if more := len(history.path) - len(last):
            echo(f"{plural(more, 'node')} passed before these; --json prints all")
        passed = [(each.node or "", each.next or "", _ago(each.at, now)) for each in last]
        print_table(("passed", "next", "ago"), passed)


def _as_text(name: str, fact: Any, now: float) -> str:
    if name in ("started", "updated", "since"):
        return f"{in_units(now - fact)} ago, {as_date(fact, local=True)}"
    if name in ("expires_at", "wake_at"):
        return f"in {in_units(fact - now)}" if fact > now else f"{in_units(now - fact)} ago"
    if name == "visits":
        return escaped(", ".join(f"{node} {visits}" for node, visits in fact.items()))
    if name == "owner":
        return escaped(
            f"pid {fact.pid} on {fact.host}, for {in_units(now - fact.since)}, last seen {in_units(now - fact.seen)} ago"
        )
    if isinstance(fact, RunFailure):
        item = "" if fact.item is None else f", item {fact.item}"
        tries = "" if fact.attempts == 1 else f", after {fact.attempts} attempts"
        at = f" at {fact.node}, visit {fact.visit}{item}{tries}" if fact.node else ""
        return escaped(f"{failed(fact)}\n{in_units(now - fact.at)} ago{at}", keep="\n")
    if isinstance(fact, list):
        return "\n".join(_question_text(each, now) for each in cast("list[dict[str, Any]]", fact))
    if isinstance(fact, dict):
        return text_of_value(cast("dict[str, Any]", fact))
    return "" if fact is False else escaped(str(fact))


def _question_text(question: dict[str, Any], now: float) -> str:
    """A question and its answer, as one or two lines."""
    lines = [f"{question['id']}: {text_of_value(question['question'])}"]
    if question["answer"] is not None:
        lines.append(f"    answered {text_of_value(question['answer'])}, {in_units(now - question['settled'])} ago")
    elif question["settled"] is not None:
        lines.append(f"    not answered in time, {in_units(now - question['settled'])} ago")
    else:
        choices = question["choices"]
        wanted = question["asks_for"] if choices is None else " or ".join(map(text_of, choices))
        until = "" if question["until"] is None else f", within {in_units(question['until'] - now)}"
        lines.append(f"    waits for {wanted}{until}")
    return escaped("\n".join(lines), keep="\n")


def _ago(found: float | None, now: float) -> str:
    return "unreadable" if found is None else in_units(now - found)
