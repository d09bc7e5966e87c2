"""The README's programs are executed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_programs_of_the_readme_run(tmp_path: Path) -> None:
    """One after the other, unchanged, with the plugin in use."""
    pytest.importorskip(
        "openinference.instrumentation.openai",
        reason="OpenInference's packages can't be installed with this Python yet",
    )
    programs = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(programs) == 3
    (tmp_path / "program.py").write_text("\n".join(programs) + "\nassert chat.run_sync('milk') == 2\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert '"openinference.span.kind"' in (tmp_path / ".pocket_plug" / "traces.jsonl").read_text("utf-8")
