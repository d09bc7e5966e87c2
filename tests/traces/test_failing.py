"""Where a trace failed: the errors of its spans, and which of them are one and the same."""

from __future__ import annotations

from typing import Any

from pocket_plug.traces.failing import failures, grouped
from pocket_plug.traces.recorded import Event, RecordedSpan


def failed(number: int, *files: str, parent: int = 0, line: int = 41, **attributes: Any) -> RecordedSpan:
    """A span that failed with a KeyError, of which the stack has these files, outermost first."""
    stack = "".join(f'  File "{file}", line {line}, in load\n' for file in files)
    said = {"exception.type": "KeyError", "exception.stacktrace": f"Traceback:\n{stack}KeyError: no"}
    return RecordedSpan(
        trace_id="7" * 32,
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else None,
        name="exec load",
        kind=1,
        scope="pocket_plug.phase",
        start=number,
        end=number + 10,
        attributes={"error.type": "KeyError"} | attributes,
        status="error",
        events=(Event("exception", number, said),) if files else (),
    )


def test_errors_are_alike_by_type_file_and_line() -> None:
    """Files of one name in different folders are different places, though both read models.py:41."""
    spans = [failed(1, "/app/a/models.py"), failed(2, "/app/b/models.py"), failed(3, "/app/a/models.py")]
    groups = grouped(failures(spans))
    assert [[int(failure.span.span_id, 16) for failure in group] for group in groups] == [[1, 3], [2]]
    assert [group[0].place for group in groups] == ["models.py:41", "models.py:41"]
