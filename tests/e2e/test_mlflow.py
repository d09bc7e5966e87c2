"""The reference workflow and an agent in a real MLflow: its API shows exactly what was sent, with links, and so does its page.

`make e2e` installs the server; the page is opened in the Debian package chromium: `apt-get install -y chromium`.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from conftest import Look, Picture
from servers import ask, free_port, installed, running, until
from shown import ANSWERED, ANSWERS, EXPECTED, SPANS, Shown, answer, clean, names, play, told, trees


def hexadecimal(given: str) -> str:
    """An id, which MLflow returns as base64."""
    return base64.b64decode(given).hex()


def value_of(value: Mapping[str, Any]) -> Any:
    """The value of an OTLP attribute, of any type; for a list its values."""
    [(kind, found)] = value.items()
    return [value_of(part) for part in found.get("values", ())] if kind == "array_value" else found


class MLflow:
    """A server for the tests, and its answers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def create(self, experiment: str) -> str:
        """The id of a new experiment."""
        answer: dict[str, str] = ask(f"{self.url}/api/2.0/mlflow/experiments/create", {"name": experiment})
        return answer["experiment_id"]

    def traces(self, experiment: str) -> list[dict[str, Any]]:
        """All traces of an experiment, as its list shows them."""
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        answer = ask(f"{self.url}/api/3.0/mlflow/traces/search", {"locations": [place], "max_results": 100})
        found: list[dict[str, Any]] = answer.get("traces", [])
        return found

    def spans(self, experiment: str, number: int = SPANS) -> list[Shown]:
        """All spans of an experiment, once this many have arrived."""

        def come() -> list[Shown] | None:
            found = [
                shown(span)
                for trace in self.traces(experiment)
                for span in ask(f"{self.url}/api/3.0/mlflow/traces/get?trace_id={trace['trace_id']}")["trace"]["spans"]
            ]
            return found if len(found) >= number else None

        return until(f"{number} spans of experiment {experiment}", come)


def shown(span: Mapping[str, Any]) -> Shown:
    attributes = {found["key"]: value_of(found["value"]) for found in span["attributes"]}
    return Shown(
        hexadecimal(span["trace_id"]),
        hexadecimal(span["span_id"]),
        hexadecimal(span.get("parent_span_id", "")),
        span["name"],
        attributes.get("mlflow.spanType", "UNKNOWN"),
        span["status"].get("code", "").removeprefix("STATUS_CODE_"),
        int(span["start_time_unix_nano"]),
        attributes,
        [event["name"] for event in span.get("events", ())],
        [(hexadecimal(link["trace_id"]), hexadecimal(link["span_id"])) for link in span.get("links", ())],
    )


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflow]:
    folder = tmp_path_factory.mktemp("mlflow")
    server = MLflow(free_port())
    command = [installed("mlflow") / "mlflow", "server", "--host", "127.0.0.1", "--port", str(server.port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder]  # fmt: skip
    with running(command, folder, f"{server.url}/health", clean({"MLFLOW_DISABLE_TELEMETRY": "true"})):
        yield server


@pytest.fixture(scope="module")
def sent(mlflow: MLflow, tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """All spans of the workflow, sent as the how-to says, with inputs and outputs."""
    play(tmp_path_factory.mktemp("workflow"), told("mlflow", mlflow.port), capture="full")
    return mlflow.spans("0")


@pytest.fixture(scope="module")
def experiment(mlflow: MLflow) -> str:
    """The agent's own experiment."""
    return mlflow.create("agent")


@pytest.fixture(scope="module")
def answered(mlflow: MLflow, experiment: str, tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """All spans of the agent, with inputs and outputs."""
    header = {"OTEL_EXPORTER_OTLP_HEADERS": f"x-mlflow-experiment-id={experiment}"}
    answer(tmp_path_factory.mktemp("agent"), told("mlflow", mlflow.port) | header)
    return mlflow.spans(experiment, ANSWERS)


def test_mlflow_has_exactly_what_was_sent(sent: list[Shown]) -> None:
    """Names, parents, types, events and statuses of every trace; no span twice, none missing, none without its parent."""
    assert len(sent) == SPANS
    assert trees(sent) == EXPECTED


def test_a_resumed_run_is_linked_to_the_one_that_was_suspended(sent: list[Shown]) -> None:
    """MLflow keeps links: the resumed run's link leads to the span of the suspended one, in another trace."""
    former, later = sorted((span for span in sent if span.name == "run approval"), key=lambda span: int(span.start))
    assert later.trace_id != former.trace_id
    assert later.links == [(former.trace_id, former.span_id)]
    assert [span.name for span in sent if span.links] == ["run approval"]


def test_mlflow_lists_state_session_input_and_output(mlflow: MLflow, sent: list[Shown]) -> None:
    """In its list a failed trace is an error, a durable run a session, and captured values have a preview."""
    ids = {f"tr-{span.trace_id}": span.name for span in sent if not span.parent_id and span.name.startswith("run ")}
    listed = [trace for trace in mlflow.traces("0") if trace["trace_id"] in ids]
    assert {ids[trace["trace_id"]] for trace in listed if trace["state"] == "ERROR"} == {"run failing"}
    sessions = {ids[trace["trace_id"]]: trace.get("trace_metadata", {}).get("mlflow.trace.session") for trace in listed}
    assert {name for name, session in sessions.items() if session == "reference-order"} == {"run approval"}
    [stock] = [trace for trace in listed if ids[trace["trace_id"]] == "run stocktaking"]
    assert (stock["request_preview"], stock["response_preview"]) == ('"tea"', '"tea"')


def test_a_file_that_is_sent_later_is_the_same(mlflow: MLflow, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`pocket-plug trace send` with MLflow's header sends the same spans, with links and types."""
    folder, experiment = tmp_path_factory.mktemp("replayed"), mlflow.create("replayed")
    play(folder, {"OTEL_SERVICE_NAME": "shop"})
    done = subprocess.run(["pocket-plug", "trace", "send", ".pocket_plug/traces.jsonl", "--to", mlflow.url, "--header",
                           f"x-mlflow-experiment-id={experiment}"], cwd=folder, env=clean({}), capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    spans = mlflow.spans(experiment)
    assert len(spans) == SPANS
    assert trees(spans) == EXPECTED
    assert [span.name for span in spans if span.links] == ["run approval"]


def test_an_agent_is_shown_as_what_it_is(answered: list[Shown]) -> None:
    """Agents, models, retrievals and tools have the declared or instrumented type; failures are errors."""
    assert trees(answered) == ANSWERED


def test_mlflow_counts_the_tokens_of_a_trace(mlflow: MLflow, experiment: str, answered: list[Shown]) -> None:
    """All requests to the model in a run, in its session, with input and output."""
    [run] = [trace for trace in mlflow.traces(experiment) if trace["state"] == "OK"]
    about = run["trace_metadata"]
    usage = json.loads(about["mlflow.trace.tokenUsage"])
    assert {name: usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")} == {
        "input_tokens": 40, "output_tokens": 10, "total_tokens": 50,
    }  # fmt: skip
    assert about["mlflow.trace.session"] == "chat-17"
    assert run["request_preview"] == '"How many kinds of tea are there?"'
    assert run["response_preview"] == '"There are three kinds of tea: black, green and white."'


def test_the_page_of_a_trace_shows_what_went_wrong(
    mlflow: MLflow, experiment: str, answered: list[Shown], look: Look, picture: Picture
) -> None:
    """The tree has our names in their order; a failed attempt shows its error."""
    [run] = [span for span in answered if span.name == "run research"]
    page = look(f"{mlflow.url}/#/experiments/{experiment}/traces?selectedEvaluationId=tr-{run.trace_id}")
    lines = page.locator("[data-testid^=span-title-row]")
    lines.get_by_text("ChatCompletion", exact=True).last.wait_for()
    assert lines.all_inner_texts() == names("run research")
    page.get_by_text("Inputs / Outputs", exact=True).first.wait_for()
    picture(page, "mlflow-trace", 1008)
    lines.get_by_text("exec search", exact=True).first.click()
    page.get_by_text("exception.message").filter(visible=True).first.wait_for()
    assert page.get_by_text("no page about black").filter(visible=True).count() > 0
