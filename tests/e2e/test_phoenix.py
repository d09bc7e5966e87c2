"""The reference workflow and an agent in a real Arize Phoenix: its API and its page show exactly what was sent.

`make e2e` installs the server; the page is opened in the Debian package chromium: `apt-get install -y chromium`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from conftest import Look, Picture
from servers import ask, free_port, installed, running, until
from shown import ANSWERED, ANSWERS, EXPECTED, SPANS, Shown, answer, clean, names, play, told, trees


class Phoenix:
    """A server for the tests, and its answers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def _answer(self, project: str, **wanted: str) -> list[dict[str, Any]]:
        arguments = "".join(f"&{name}={value}" for name, value in wanted.items())
        found = ask(f"{self.url}/v1/projects/{quote(project)}/spans?limit=1000{arguments}")
        return found["data"] if found else []

    def spans(self, project: str, number: int = SPANS) -> list[Shown]:
        """All spans of a project, once this many have arrived."""

        def come() -> list[dict[str, Any]] | None:
            found = self._answer(project)
            return found if len(found) >= number else None

        return [
            Shown(
                found["context"]["trace_id"],
                found["context"]["span_id"],
                found["parent_id"] or "",
                found["name"],
                found["span_kind"],
                found["status_code"],
                found["start_time"],
                found["attributes"],
                [event["name"] for event in found["events"]],
            )
            for found in until(f"{number} spans of {project}", come)
        ]

    def page(self, project: str, trace_id: str) -> str:
        """Where a trace is shown."""
        ids = {found["name"]: found["id"] for found in ask(f"{self.url}/v1/projects")["data"]}
        return f"{self.url}/projects/{ids[project]}/traces/{trace_id}"


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    folder = tmp_path_factory.mktemp("phoenix")
    server = Phoenix(free_port())
    settings = {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(server.port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    command = [installed("phoenix") / "phoenix", "serve"]
    with running(command, folder, f"{server.url}/healthz", clean(settings)):
        yield server


@pytest.fixture(scope="module")
def sent(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """All spans of the workflow, sent as the how-to says, with nothing captured."""
    play(tmp_path_factory.mktemp("workflow"), told("phoenix", phoenix.port))
    return phoenix.spans("shop")


@pytest.fixture(scope="module")
def captured(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """The same, with inputs and outputs."""
    environment = told("phoenix", phoenix.port) | {"PHOENIX_PROJECT_NAME": "captured"}
    play(tmp_path_factory.mktemp("captured"), environment, capture="full")
    return phoenix.spans("captured")


@pytest.fixture(scope="module")
def answered(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """All spans of the agent, with inputs and outputs."""
    environment = told("phoenix", phoenix.port) | {"PHOENIX_PROJECT_NAME": "agent"}
    answer(tmp_path_factory.mktemp("agent"), environment)
    return phoenix.spans("agent", ANSWERS)


@pytest.fixture(scope="module")
def replayed(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Shown], list[dict[str, Any]]]:
    """The same from a local file by `pocket-plug trace send`; and the spans of that file."""
    folder = tmp_path_factory.mktemp("replayed")
    play(folder, {"OTEL_SERVICE_NAME": "replayed"})
    file = folder / ".pocket_plug" / "traces.jsonl"
    done = subprocess.run(
        ["pocket-plug", "trace", "send", file, "--to", phoenix.url],
        cwd=folder,
        env=clean({}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    spans = [
        span
        for line in lines
        for resource in line["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    return phoenix.spans("replayed"), spans


def test_phoenix_has_exactly_what_was_sent(sent: list[Shown]) -> None:
    """Names, parents, kinds, events and statuses of every trace; no span twice, none missing, none without its parent."""
    assert len(sent) == SPANS
    assert trees(sent) == EXPECTED


def test_phoenix_knows_the_session(sent: list[Shown]) -> None:
    """Suspended or resumed, a durable run is one session with the run's id."""
    sessions = {span.attributes.get("session.id") for span in sent if span.name == "run approval"}
    assert sessions == {"reference-order"}


def test_what_was_tried_again_says_which_attempt_it_was(sent: list[Shown]) -> None:
    """The attributes of attempts and items are there, numbers as numbers."""
    attempts = sorted((span for span in sent if span.name == "exec fetch"), key=lambda span: str(span.start))
    assert [span.attributes["pocket_plug.attempt"] for span in attempts] == [1, 2, 3]
    assert [span.attributes.get("pocket_plug.attempt.will_retry") for span in attempts] == [True, True, None]
    assert {span.attributes["pocket_plug.fan_out.index"] for span in sent if span.name == "item pack"} == {0, 1, 2}


def test_nothing_is_captured_unless_asked_for(sent: list[Shown]) -> None:
    """Neither inputs nor outputs are in any span."""
    assert [span.name for span in sent if any("put" in name for name in span.attributes)] == []


def test_phoenix_has_captured_inputs_and_outputs(captured: list[Shown]) -> None:
    """As JSON, in its columns `input` and `output`."""
    [run] = [span for span in captured if span.name == "run checkout"]
    wanted = {
        "input.value": '"tea"',
        "input.mime_type": "application/json",
        "output.value": '"tea"',
        "output.mime_type": "application/json",
    }
    assert {name: run.attributes.get(name) for name in wanted} == wanted
    assert trees(captured) == EXPECTED


def test_a_file_that_is_sent_later_is_the_same(
    replayed: tuple[list[Shown], list[dict[str, Any]]],
) -> None:
    """Each span of the file has arrived once, with its ids, parent, name and kind."""
    shown, written = replayed
    assert len(shown) == len(written) == SPANS
    assert {(span["traceId"], span["spanId"], span.get("parentSpanId", ""), span["name"]) for span in written} == {
        (span.trace_id, span.span_id, span.parent_id, span.name) for span in shown
    }
    assert trees(shown) == EXPECTED


def test_an_agent_is_shown_as_what_it_is(answered: list[Shown]) -> None:
    """Agents, models, retrievals and tools have the declared or instrumented type; failures are errors."""
    assert trees(answered) == ANSWERED


def test_the_calls_of_a_model_have_their_tokens_and_messages(answered: list[Shown]) -> None:
    """By the client's instrumentation; the session is the run's."""
    calls = [span for span in answered if span.kind == "LLM"]
    assert [span.attributes["llm.token_count.total"] for span in calls] == [25, 25]
    assert {span.attributes["llm.model_name"] for span in calls} == {"tea-1"}
    assert {span.attributes.get("session.id") for span in calls} == {"chat-17"}
    [run] = [span for span in answered if span.name == "run research"]
    assert json.loads(run.attributes["output.value"]) == "There are three kinds of tea: black, green and white."


def test_phoenix_counts_the_tokens_of_a_session(phoenix: Phoenix, answered: list[Shown]) -> None:
    """Both runs are one conversation, with all requests to the model."""
    found = ask(f"{phoenix.url}/v1/projects/agent/sessions")["data"]
    assert [(each["session_id"], len(each["traces"])) for each in found] == [("chat-17", 2)]


def test_the_page_of_a_trace_shows_what_went_wrong(
    phoenix: Phoenix, answered: list[Shown], look: Look, picture: Picture
) -> None:
    """The tree has our names; a failed attempt is marked, and shows its error."""
    [run] = [span for span in answered if span.name == "run research"]
    page = look(phoenix.page("agent", run.trace_id))
    lines = page.locator(".span-node-wrap")
    lines.get_by_text("ChatCompletion", exact=True).last.wait_for()
    assert lines.locator(".span-node__heading > span").all_inner_texts() == names("run research")
    page.get_by_text("Output", exact=True).first.wait_for()
    picture(page, "phoenix-trace")
    lines.get_by_text("exec search", exact=True).first.click()
    page.get_by_text("no page about black").first.wait_for()
    assert page.get_by_text("Error", exact=True).count() == 1
    picture(page, "phoenix-error")
