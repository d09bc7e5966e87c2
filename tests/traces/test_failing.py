"""Where a trace failed: the errors of its spans, and which of them are the same error."""

from __future__ import annotations

from typing import Any

from pocket_plug.traces.failing import failure_of, failures, grouped
from pocket_plug.traces.frames import Frame
from pocket_plug.traces.recorded import Event, RecordedSpan


def failed(number: int, *files: str, parent: int = 0, line: int = 41, **attributes: Any) -> RecordedSpan:
    """A span that failed with a KeyError whose stack has these files, outermost first."""
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


def test_errors_are_grouped_by_type_file_and_line() -> None:
    """Files with one name in different folders are different places, though both are shown as models.py:41."""
    spans = [failed(1, "/app/a/models.py"), failed(2, "/app/b/models.py"), failed(3, "/app/a/models.py")]
    groups = grouped(failures(spans))
    assert [[int(failure.span.span_id, 16) for failure in group] for group in groups] == [[1, 3], [2]]
    assert [group[0].place for group in groups] == ["models.py:41", "models.py:41"]


def test_without_a_frame_of_the_users_the_nodes_definition_counts() -> None:
    """A timeout, for example, has frames of pocket_plug only. The nearest ancestor with a code location counts."""
    written = {"code.file.path": "/app/shop.py", "code.line.number": 12, "code.function.name": "shop.hurry"}
    above = failed(1, **written)
    spans = {span.span_id: span for span in (above, failed(2, parent=1), failed(3, "/x/site-packages/a.py", parent=2))}
    at = {place: failure.at for place, span in enumerate(spans.values()) if (failure := failure_of(span, spans))}
    assert {*at.values()} == {Frame("/app/shop.py", 12, "shop.hurry", True)}
    users = failed(4, "/app/cart.py", "/x/site-packages/a.py", parent=1)
    assert (found := failure_of(users, spans)) is not None
    assert found.place == "cart.py:41"


def test_without_any_user_code_the_innermost_frame_counts() -> None:
    """A library's place is better than none; without a frame there is no place."""
    library = failed(1, "/x/site-packages/a.py", "/x/site-packages/b.py")
    assert [failure.place for failure in failures([library])] == ["b.py:41"]
    assert [failure.place for failure in failures([failed(1)])] == [""]
    assert [failure.place for failure in failures([failed(1, **{"code.file.path": "/app/shop.py"})])] == ["shop.py"]
