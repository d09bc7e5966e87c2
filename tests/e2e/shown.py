"""The reference workflow, run in processes of its own as the how-to says, and what a backend must show of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from servers import ROOT

HOWTO = ROOT / "docs" / "howto" / "send-traces-to-a-backend.md"
WORKFLOW = ROOT / "tests" / "telemetry" / "reference_workflow.py"
AGENT = ROOT / "tests" / "e2e" / "agent.py"
COMMANDS = Path(sys.executable).parent

BEFORE = ("nested", "failed", "cancelled", "conflict", "threads", "sync", "suspended")
"""The parts that one process plays; another one goes on with the suspended run."""


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Our environment, without the variables that say where telemetry goes, and with these."""
    prefixes = ("OTEL_", "POCKET_PLUG_", "PHOENIX_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "PATH": f"{COMMANDS}{os.pathsep}{kept['PATH']}", **environment}


def told(backend: str, port: int) -> dict[str, str]:
    """The variables that the how-to says to set for a backend, which here listens at this port rather than its usual one."""
    [block] = re.findall(rf"^```sh {backend}\n(.*?)^```$", HOWTO.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    variables = dict(re.findall(r"^export (\w+)=(\S+)$", block, re.MULTILINE))
    assert len(variables) == len(block.splitlines()), f"not all of it is read: {block}"
    moved = {name: re.sub(r"//localhost:\d+", f"//127.0.0.1:{port}", value) for name, value in variables.items()}
    assert moved != variables
    return moved


def play(folder: Path, environment: Mapping[str, str], capture: str = "none") -> None:
    """Run the workflow in this folder; a second process resumes what the first one has left."""
    for parts in (BEFORE, ("resumed",)):
        run(folder, environment, capture, WORKFLOW, "tea", "reference.db", *parts)


def answer(folder: Path, environment: Mapping[str, str]) -> None:
    """Run the agent in this folder, with inputs and outputs."""
    run(folder, environment, "full", AGENT)


def run(folder: Path, environment: Mapping[str, str], capture: str, *command: str | Path) -> None:
    """Run a program that reads its configuration from this folder."""
    (folder / "pocket.toml").write_text(
        f'[plugins.tracing]\ncapture = "{capture}"\n[plugins.openinference]\nkinds = {{ research = "agent" }}\n'
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=clean(environment)
        | {"POCKET_PLUG_CONFIG": "pocket.toml", "POCKET_PLUG_FLUSH_TIMEOUT": "60", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@dataclass(frozen=True)
class Shown:
    """A span as a backend gives it back. Ids are hexadecimal, a root's parent is ""; `start` is what it sorts by."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    status: str
    start: Any
    attributes: Mapping[str, Any]
    events: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = field(default=())


def trees(spans: Iterable[Shown]) -> dict[str, str]:
    """Each trace, by the name of its root: a line for each span, with its kind, its events, and ERROR if it failed."""
    spans = sorted(spans, key=lambda span: span.start)
    known = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_id and span.parent_id not in known] == [], "orphans"

    def draw(parent: Shown) -> str:
        words = [parent.name, parent.kind, *(f"!{event}" for event in parent.events)]
        line = " ".join(words + (["ERROR"] if parent.status == "ERROR" else [])) + "\n"
        return line + "".join(indent(draw(span), "  ") for span in spans if span.parent_id == parent.span_id)

    roots = [span for span in spans if not span.parent_id]
    return {
        f"{span.name}, resumed" if span.attributes.get("pocket_plug.run.resumed") else span.name: draw(span)
        for span in roots
    }


EXPECTED = {
    name: dedent(tree).lstrip("\n")
    for name, tree in {
        "run shop": """
        run shop CHAIN
          node checkout CHAIN
            run checkout CHAIN
              node fetch CHAIN
                exec fetch CHAIN !exception ERROR
                exec fetch CHAIN !exception ERROR
                exec fetch CHAIN
              node price CHAIN
                prep price CHAIN
                  get price:{} CHAIN
                exec price CHAIN
                post price CHAIN
                set price:{} CHAIN
              node price CHAIN
                prep price CHAIN
                  get price:{} CHAIN
                exec price CHAIN
                post price CHAIN
                  get sold:{} CHAIN
                set sold:{} CHAIN
          node hurry CHAIN
            exec hurry CHAIN !exception ERROR
            fallback hurry CHAIN
          node split CHAIN
            exec split CHAIN
          node each_pack CHAIN
            item pack CHAIN
              exec pack CHAIN
            item pack CHAIN ERROR
              exec pack CHAIN !exception ERROR
            item pack CHAIN
              exec pack CHAIN
        """,
        "run failing": """
        run failing CHAIN ERROR
          node draft CHAIN
            exec draft CHAIN
          node within CHAIN ERROR
            run within CHAIN ERROR
              node refuse CHAIN ERROR
                exec refuse CHAIN !exception ERROR
        """,
        "run stopped": """
        run stopped CHAIN
          node draft CHAIN
            exec draft CHAIN
          node wait CHAIN
            exec wait CHAIN
        """,
        "run stocktaking": """
        run stocktaking CHAIN
          node stock CHAIN !pocket_plug.conflict
            post stock CHAIN
              get sold:{} CHAIN
              set sold:{} CHAIN
            set sold:{} CHAIN
            post stock CHAIN
              get sold:{} CHAIN
            set sold:{} CHAIN
        """,
        "request": """
        request UNKNOWN
          run foreign CHAIN
            node weigh CHAIN
              exec weigh CHAIN
                own work in a thread UNKNOWN
            node hand_on CHAIN
              exec hand_on CHAIN
                own work UNKNOWN
                  own work in a task UNKNOWN
                own work by to_thread UNKNOWN
        """,
        "run sync": """
        run sync CHAIN
          node weigh CHAIN
            exec weigh CHAIN
              own work in a thread UNKNOWN
          node count CHAIN
            prep count CHAIN
              get sold:{} CHAIN
            post count CHAIN
            set sold:{} CHAIN
        """,
        "run approval": """
        run approval CHAIN
          node draft CHAIN
            exec draft CHAIN
            write checkpoint CHAIN
          node approve CHAIN
            write checkpoint CHAIN
        """,
        "run approval, resumed": """
        run approval CHAIN
          node approve CHAIN
            get checkpoint CHAIN
            write checkpoint CHAIN
          node send CHAIN
            post send CHAIN
            write checkpoint CHAIN
        """,
    }.items()
}
"""At detail "phase"; nothing in it is declared as more than a step, and of the user's own spans the kind is not known."""

SPANS = sum(tree.count("\n") for tree in EXPECTED.values())

ANSWERED = {
    name: dedent(tree).lstrip("\n")
    for name, tree in {
        "run research": """
        run research AGENT
          node plan AGENT
            exec plan CHAIN
              ChatCompletion LLM
          node each_search CHAIN
            item search RETRIEVER
              exec search CHAIN !exception ERROR
              exec search CHAIN
            item search RETRIEVER
              exec search CHAIN
            item search RETRIEVER
              exec search CHAIN
          node count TOOL
            exec count CHAIN
            post count CHAIN
              get counted:{} CHAIN
            set counted:{} CHAIN
          node answer AGENT
            exec answer CHAIN
              ChatCompletion LLM
        """,
        "run payment": """
        run payment CHAIN ERROR
          node pay TOOL ERROR
            exec pay CHAIN !exception ERROR
        """,
    }.items()
}
"""What the agent's two runs are shown as."""

ANSWERS = sum(tree.count("\n") for tree in ANSWERED.values())


def names(tree: str) -> list[str]:
    """The names of an expected tree's spans, from top to bottom."""
    return re.findall(r"^ *(.*?) (?:AGENT|CHAIN|LLM|RETRIEVER|TOOL)", (EXPECTED | ANSWERED)[tree], re.MULTILINE)
