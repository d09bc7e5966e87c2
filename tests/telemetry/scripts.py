"""Code for a process of its own, since it sets the process's global providers: a workflow, and a function that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORKFLOW = """
import asyncio, os, sys, threading
import pocket_plug as pp
import structlog
from pocket_plug.telemetry import export_event, observe, setup

@pp.node
async def look(name: str) -> str:
    structlog.get_logger().info("looked", colour="green")
    return name

@pp.node
async def fail(name: str) -> str:
    raise ValueError("secret")

graph = pp.Graph(look, name="shop", store=pp.Store(layers=["metrics", "tracing"]))
"""


def environment(**env: str) -> dict[str, str]:
    ours = ("OTEL_", "POCKET_PLUG_", "PHOENIX_", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # a busy machine loses nothing
    return kept | {"POCKET_PLUG_FLUSH_TIMEOUT": "60", "POCKET_PLUG_DISABLE": "openinference"} | env


def python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", WORKFLOW + code]
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), text=True, capture_output=True, timeout=60, check=False
    )
