"""Attributes that Phoenix, MLflow and other GenAI tools expect on spans: kinds, names, inputs and outputs, sessions."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pocket_plug_openinference as plugin
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from pocket_plug_openinference import AGENT, KIND, KINDS, LLM, RETRIEVER, TOOL, OpenInference

import pocket_plug as pp
from pocket_plug.errors import ConfigError
from pocket_plug.graph.observing.shape import Shape
from pocket_plug.layers.tracing import Capture
from pocket_plug.propagation import session
from pocket_plug.testing.spans import SpanCapture

try:
    from openinference.instrumentation.openai import OpenAIInstrumentor
    from openinference.semconv.resource import ResourceAttributes
    from openinference.semconv.trace import OpenInferenceMimeTypeValues, OpenInferenceSpanKindValues, SpanAttributes
except ModuleNotFoundError:
    pytest.skip("OpenInference's packages can't be installed with this Python yet", allow_module_level=True)

NOTES = pp.Key("notes:{}", str)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def of_others(span: ReadableSpan) -> dict[str, Any]:
    """The attributes that the plugin has added."""
    ours = ("pocket_plug.", "db.", "session.", "error.", "code.")
    return {name: value for name, value in attributes(span).items() if not name.startswith(ours)}


# ---------------------------------------------------------------- an example of an agent
class Answer(pp.Node[str, list[str]], trace=AGENT):
    """Decides which documents it needs."""

    async def prep(self, store: pp.StoreReader, question: str, /) -> str:
        await store.get(NOTES("eu"), default=None)
        return question

    async def exec(self, question: str, /) -> list[str]:
        return [question, question.upper()]

    async def post(self, store: pp.StoreWriter, question: str, prepared: str, wanted: list[str], /) -> list[str]:
        await store.set(NOTES("eu"), "asked")
        return wanted


@pp.node(trace=RETRIEVER)
async def look_up(text: str) -> str:
    return text


@pp.node(trace=TOOL, retry=pp.Retry(attempts=2))
async def count(texts: list[str]) -> int:
    return len(texts)


@pp.node
async def tell(number: int) -> str:
    return str(number)


def chat(*, pocket: pp.Pocket | None = None, capture: Capture = "none", **options: Any) -> SpanCapture:
    """A run with all of these nodes, in a session."""
    pocket = pocket or pp.Pocket(plugins=[OpenInference], autoload=False)
    store = pp.Store(layers=[pocket.layer("tracing")])
    inner = pp.Graph(count >> tell, name="sum")
    graph = pp.Graph(Answer() >> pp.each(look_up) >> inner, name="chat", store=store)
    with SpanCapture("phase", capture=capture, **options) as seen, session("chat-17"):
        assert asyncio.run(graph.run("why", pocket=pocket)) == "2"
    return seen


EXPECTED = {
    "run chat": "CHAIN",
    "node answer": "AGENT", "prep answer": "CHAIN", "get notes:{}": "CHAIN", "exec answer": "CHAIN",
    "post answer": "CHAIN", "set notes:{}": "CHAIN",
    "node each_look_up": "CHAIN", "item look_up": "RETRIEVER", "exec look_up": "CHAIN",
    "node sum": "CHAIN", "run sum": "CHAIN",
    "node count": "TOOL", "exec count": "CHAIN", "node tell": "CHAIN", "exec tell": "CHAIN",
}  # fmt: skip


def test_each_span_has_the_kind_of_what_it_is() -> None:
    """Only a declared node is a TOOL: not every exec is a tool, and not every read of the state is a retrieval."""
    seen = chat()
    assert {span.name: attributes(span)[KIND] for span in seen.spans} == EXPECTED
    assert [attributes(span)[KIND] for span in seen.spans].count("RETRIEVER") == 2


def test_spans_keep_their_names_and_places() -> None:
    """The tree is the same as without the plugin."""
    assert chat().tree() == chat(pocket=pp.Pocket(autoload=False)).tree()


def test_without_the_plugin_only_the_declaration_is_there() -> None:
    """The declared kind is an ordinary attribute."""
    seen = chat(pocket=pp.Pocket(autoload=False))
    assert {span.name: of_others(span) for span in seen.spans if of_others(span)} == {
        "node answer": AGENT, "item look_up": RETRIEVER, "node count": TOOL,
    }  # fmt: skip


def test_agents_tools_and_retrievals_have_the_names_of_gen_ai() -> None:
    """The outermost run is a workflow in its conversation; no other span has these attributes."""
    found = {
        span.name: {name: value for name, value in attributes(span).items() if name.startswith("gen_ai.")}
        for span in chat().spans
    }
    assert {name: own for name, own in found.items() if own} == {
        "run chat": {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": "chat",
                     "gen_ai.conversation.id": "chat-17"},
        "node answer": {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "answer",
                        "gen_ai.conversation.id": "chat-17"},
        "item look_up": {"gen_ai.operation.name": "retrieval"},
        "node count": {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "count",
                       "gen_ai.tool.type": "function"},
    }  # fmt: skip


def test_a_run_without_declared_kinds_is_no_workflow() -> None:
    """If no node declares a kind such as agent or tool, the run isn't a workflow."""
    pocket = pp.Pocket(plugins=[OpenInference], autoload=False)
    with SpanCapture("run") as seen:
        pp.Graph(tell, name="plain").run_sync(1, pocket=pocket)
        pp.Graph(pp.Graph(count, name="inner"), name="outer").run_sync(["a"], pocket=pocket)
    assert {span.name: attributes(span).get("gen_ai.operation.name") for span in seen.spans} == {
        "run plain": None, "run outer": "invoke_workflow", "run inner": None,
    }  # fmt: skip


def test_the_kinds_of_a_graph_are_looked_up_once() -> None:
    """And once more after the settings change. The cached answer is dropped with the graph."""

    class Counted(dict[str, Any]):
        looked = 0

        def values(self) -> Any:
            self.looked += 1
            return super().values()

    inner = Counted()
    shape = Shape({"inner": "graph"}, (), within={"inner": Shape({"count": "node"}, (), declared=inner)})
    asked = OpenInference()
    assert [asked._declares(shape) for _ in range(3)] == [False] * 3
    assert inner.looked == 1
    asked.pocket_configure({"kinds": {"count": "tool"}})
    assert [asked._declares(shape) for _ in range(3)] == [True] * 3
    assert inner.looked == 2
    assert len(asked._declaring) == 2
    del shape
    gc.collect()
    assert len(asked._declaring) == 0


def test_its_names_are_those_of_the_conventions() -> None:
    """Each name is in OpenInference's list or in OpenTelemetry's list of gen_ai, and so is each value."""
    theirs = {value for name, value in vars(SpanAttributes).items() if name.isupper()}
    theirs |= {value for name, value in vars(gen_ai).items() if name.startswith("GEN_AI_")}
    theirs |= {"gen_ai.workflow.name"}  # younger than the oldest list that may be installed, as two operations are
    added = {name for span in chat(capture="full").spans for name in of_others(span)}
    assert added <= theirs, added - theirs
    kinds = {kind.value for kind in OpenInferenceSpanKindValues}
    assert {*KINDS} == kinds - {"UNKNOWN"}
    operations = {each.value for each in gen_ai.GenAiOperationNameValues} | {"invoke_workflow", "retrieval"}
    found = {attributes(span).get("gen_ai.operation.name") for span in chat().spans}
    assert found - {None} <= operations
    mimes = {each.value for each in OpenInferenceMimeTypeValues}
    assert {attributes(span).get("input.mime_type", "text/plain") for span in chat(capture="full").spans} <= mimes


# ---------------------------------------------------------------- what is captured
def test_nothing_of_what_goes_in_or_out_is_shown_unless_asked_for() -> None:
    """Neither inputs, outputs, nor a tool's arguments."""
    shown = {name for span in chat().spans for name in attributes(span) if "put." in name or "tool.call" in name}
    assert shown == set()


def test_inputs_and_outputs_stand_where_these_tools_look_for_them() -> None:
    """As JSON; for a tool also as its arguments and its result."""
    seen = chat(capture="full")
    assert of_others(seen.one("run chat"))["input.value"] == '"why"'
    assert of_others(seen.one("run chat"))["output.value"] == '"2"'
    tool = of_others(seen.one("node count"))
    assert (tool["input.value"], tool["input.mime_type"]) == ('["why", "WHY"]', "application/json")
    assert (tool["gen_ai.tool.call.arguments"], tool["gen_ai.tool.call.result"]) == ('["why", "WHY"]', "2")
    agent = of_others(seen.one("node answer"))
    assert (agent["input.value"], agent["output.value"]) == ('"why"', '["why", "WHY"]')
    assert "gen_ai.tool.call.arguments" not in agent


def test_redact_and_the_limit_count_here_too() -> None:
    """`redact` applies to these attributes too, and none is longer than 4 KiB."""
    seen = chat(capture="full", redact=lambda path, value: "***" if value == "why" else value)
    assert "why" not in json.dumps([of_others(span) for span in seen.spans])
    with SpanCapture("run", capture="full") as long:
        pp.Graph(tell, name="long").run_sync(10**4000, pocket=pp.Pocket(plugins=[OpenInference], autoload=False))
    assert all(len(str(value).encode()) <= 4096 for value in of_others(long.one("run long")).values())


# ---------------------------------------------------------------- settings
def configured(tmp_path: Path, table: str) -> pp.Pocket:
    (tmp_path / "pocket.toml").write_text(f"[plugins.openinference]\n{table}\n")
    return pp.Pocket(tmp_path / "pocket.toml", plugins=[], autoload=True, required=["openinference"])


def test_settings_give_kinds_to_graphs_and_nodes_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph, or a node from another package, by name; a kind that the node declares has priority."""
    monkeypatch.delenv("POCKET_PLUG_DISABLE", raising=False)
    pocket = configured(tmp_path, 'kinds = { chat = "agent", tell = "TOOL", count = "guardrail" }')
    seen = chat(pocket=pocket)
    run = attributes(seen.one("run chat"))
    assert (run[KIND], run["gen_ai.operation.name"], run["gen_ai.agent.name"]) == ("AGENT", "invoke_agent", "chat")
    assert attributes(seen.one("node tell"))["gen_ai.tool.name"] == "tell"
    assert attributes(seen.one("node count"))[KIND] == "TOOL"


def test_a_nested_graph_that_the_settings_name_is_one_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run is, and not the node around it: otherwise tools would count the agent twice."""
    monkeypatch.delenv("POCKET_PLUG_DISABLE", raising=False)
    seen = chat(pocket=configured(tmp_path, 'kinds = { sum = "agent" }'))
    assert [span.name for span in seen.spans if attributes(span).get("gen_ai.agent.name") == "sum"] == ["run sum"]
    assert attributes(seen.one("node sum"))[KIND] == "CHAIN"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('kinds = { chat = "agnet" }', r"kinds\.chat is 'agnet'; give one of: agent, .*, tool\. Did you mean 'agent'"),
        ("kinds = { chat = 3 }", r"kinds\.chat is 3; give one of"),
        ('kinds = "agent"', "kinds is a str; give a table"),
        ('kind = "agent"', "openinference has no option 'kind'; it has: kinds"),
    ],
)
def test_settings_are_checked(table: str, says: str) -> None:
    """An invalid setting is refused; the error says what is allowed."""
    import tomllib

    with pytest.raises(ConfigError, match=f"(?i){says}"):
        OpenInference().pocket_configure(tomllib.loads(table))  # type: ignore[arg-type]


def test_the_project_is_the_service_name_unless_phoenix_project_name_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the resource, where Phoenix reads it."""
    resource = OpenInference().pocket_span_additions().resource
    assert resource is not None
    monkeypatch.delenv("PHOENIX_PROJECT_NAME", raising=False)
    assert resource({"service.name": "shop"}) == {ResourceAttributes.PROJECT_NAME: "shop"}
    monkeypatch.setenv("PHOENIX_PROJECT_NAME", "tea")
    assert resource({"service.name": "shop"}) == {ResourceAttributes.PROJECT_NAME: "tea"}


def test_an_installed_plugin_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting, by its entry point; editors know the settings of its table."""
    monkeypatch.delenv("POCKET_PLUG_DISABLE", raising=False)
    pocket = pp.Pocket()
    assert (pocket.plugin("openinference").status, pocket.plugin("openinference").reason) == ("active", "")
    assert pocket.offers.settings["openinference"] is plugin.Options


# ---------------------------------------------------------------- a client with its own instrumentation
class _Model(BaseHTTPRequestHandler):
    """Answers as the API of OpenAI does: tea, for 7 and 2 tokens."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": "tea"}
        answer = json.dumps({
            "id": "chat-1", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@contextmanager
def model() -> Iterator[str]:
    """The address of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Model) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            serving.join()


@contextmanager
def instrumented(seen: SpanCapture) -> Iterator[None]:
    OpenAIInstrumentor().instrument(tracer_provider=seen.tracer_provider)
    try:
        yield
    finally:
        OpenAIInstrumentor().uninstrument()


def test_the_span_of_a_model_hangs_below_its_node() -> None:
    """For an agent, and for each item of a fan-out: with its tokens, in the run's session."""

    @pp.node(trace=AGENT)
    async def answer(question: str) -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            got = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": question}])
        return got.choices[0].message.content or ""

    pocket = pp.Pocket(plugins=[OpenInference], autoload=False)
    graph = pp.Graph(pp.each(answer), name="chat")
    with model() as url, SpanCapture("phase") as seen, instrumented(seen), session("chat-17"):
        assert asyncio.run(graph.run(["why", "how"], pocket=pocket)) == ["tea", "tea"]
    item: Any = ("item answer", [("exec answer", ["ChatCompletion"])])
    assert seen.tree() == [("run chat", [("node each_answer", [item, item])])]
    for span in seen.spans:
        if span.name == "ChatCompletion":
            own = attributes(span)
            assert (own[KIND], own[SpanAttributes.LLM_TOKEN_COUNT_TOTAL], own["session.id"]) == ("LLM", 9, "chat-17")


def test_a_node_may_be_the_model_itself() -> None:
    """If the client isn't traced, the node declares what is known of the model."""
    ask = tell.with_options(name="ask", trace={**LLM, SpanAttributes.LLM_MODEL_NAME: "m"})
    with SpanCapture("node") as seen:
        pp.Graph(ask, name="chat").run_sync(1, pocket=pp.Pocket(plugins=[OpenInference], autoload=False))
    own = attributes(seen.one("node ask"))
    assert (own[KIND], own["llm.model_name"]) == ("LLM", "m")


@pytest.mark.parametrize(("detail", "name"), [("phase", "exec ask"), ("node", "node ask")])
def test_what_exec_says_of_a_call_stands_on_one_span(detail: Any, name: str) -> None:
    """As in the README: kind, model and tokens on one span, since Phoenix computes the cost from them."""

    @pp.node
    def ask(question: str) -> str:
        trace.get_current_span().set_attributes({**LLM, "llm.model_name": "m", "llm.token_count.prompt": 20})
        return question

    with SpanCapture(detail) as seen:
        pp.Graph(ask, name="chat").run_sync("why", pocket=pp.Pocket(plugins=[OpenInference], autoload=False))
    own = attributes(seen.one(name))
    assert (own[KIND], own["llm.model_name"], own["llm.token_count.prompt"]) == ("LLM", "m", 20)
    assert [span.name for span in seen.spans if attributes(span)[KIND] == "LLM"] == [name]
