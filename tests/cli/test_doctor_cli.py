"""`pocket-plug doctor`: checks what is installed and configured, and says what to do; within a time limit, and it leaves nothing
behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from pocket_plug.backends.sqlite import SQLite
from pocket_plug.cli import main
from pocket_plug.store.sync import SyncStore
from pocket_plug.testing.servers import free_port, postgres, valkey
from tests.conftest import Install
from tests.telemetry.otlp_sink import Sink

pytestmark = pytest.mark.usefixtures("own_folder")

WORD = "Marked4711"
COMMAND = [sys.executable, "-m", "pocket_plug", "doctor"]

Doctor = Callable[..., dict[tuple[str, str], tuple[str, str]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run it, and return its checks by section and name: verdict and text. `expected` is its exit code."""

    def run(code: int = 0, *arguments: str) -> dict[tuple[str, str], tuple[str, str]]:
        assert main(["doctor", "--json", *arguments]) == code
        out, err = capsys.readouterr()
        assert WORD not in out + err
        assert err == ""
        told = json.loads(out)
        found = {(each["section"], each["name"]): (each["verdict"], each["says"]) for each in told["checks"]}
        assert told["wrong"] == sum(verdict == "wrong" for verdict, _ in found.values())
        return found

    return run


def configured(text: str) -> None:
    Path("pocket.toml").write_text(dedent(text))


# ---------------------------------------------------------------- what is installed
def test_all_is_well(doctor: Doctor) -> None:
    """Without a configuration: interpreter, versions, plugins, and that nothing is configured; exit code 0."""
    found = doctor()
    assert {section for section, _ in found} == {
        *("interpreter", "versions", "configuration", "plugins", "stores", "telemetry")
    }
    assert found["versions", "pluggy"][0] == "ok"
    assert found["plugins", "sqlite"] == ("ok", "pocket-plug 0.2.0, is in use")
    assert found["configuration", "file"][1].startswith("none: no pocket.toml")
    assert "wrong" not in {verdict for verdict, _ in found.values()}


def test_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each check, with its verdict first, and the count on stderr; usage errors have exit code 2."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nowhere")
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert {line.split()[0] for line in out.splitlines()} <= {"ok", "note", "wrong"}
    assert [line for line in out.splitlines() if line.startswith("wrong")] == [
        "wrong  telemetry  traces: OTEL_TRACES_EXPORTER is 'nowhere'; give otlp, console or none. To use another exporter, "
        "set your own provider first"
    ]
    assert err == "1 thing is wrong\n"
    assert main(["doctor", "--timeout", "soon"]) == 2
    assert main(["doctor", "--fast"]) == 2


def test_which_configuration_and_why(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    """The nearest file, in a folder above, or the one that the variable names; a note says that programs don't search."""
    configured("")
    assert doctor()["configuration", "file"] == ("ok", "pocket.toml: the nearest one, in this folder")
    below = own_folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    found = doctor()
    assert found["configuration", "file"] == ("ok", f"{own_folder / 'pocket.toml'}: the nearest one, above this folder")
    assert found["configuration", "programs"][0] == "note"
    assert f"POCKET_PLUG_CONFIG={own_folder / 'pocket.toml'}" in found["configuration", "programs"][1]
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "../pocket.toml")
    found = doctor()
    assert found["configuration", "file"] == ("ok", "../pocket.toml: POCKET_PLUG_CONFIG names it")
    assert ("configuration", "programs") not in found
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "gone.toml")
    assert doctor(1)["configuration", "file"][0] == "wrong"


def test_a_wrong_configuration_is_said_and_the_rest_is_looked_at(doctor: Doctor) -> None:
    """With the lines, as `config check` does; a store that can be built is probed all the same."""
    configured(
        """
        [store]
        layers = ["nolayer"]
        [stores.fine]
        url = "sqlite:///fine.db"
        [plugins.tracing]
        detail = "al"
        """
    )
    found = doctor(1)
    assert found["configuration", "store.layers[0]"][1].startswith(
        "pocket.toml:3: [store].layers[0]: there is no layer"
    )
    assert found["configuration", "plugins.tracing.detail"][0] == "wrong"
    assert found["stores", "store"][0] == "note"
    assert found["stores", "stores.fine"][0] == "ok"
    assert found["plugins", "tracing"][0] == "wrong"


def test_of_two_plugins_with_one_name_none_is_suggested_to_be_disabled(doctor: Doctor, install: Install) -> None:
    """Disabling by name would disable the other plugin too, which is in use."""
    install("pocket-plug-evil", "", entry_points="bounding = pocket_plug_evil")
    verdict, says = doctor(1)["plugins", "bounding"]  # the last one of this name
    assert verdict == "wrong"
    assert says.endswith("uninstall or rename one of the two; fix or uninstall it")


def test_the_verdict_on_each_plugin(doctor: Doctor, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """In use, waiting for settings, disabled, broken at import, broken in a hook; and libraries, which are no plugins."""
    install("pocket-plug-bad", "import no_such_module")
    install("pocket-plug-off", "raise RuntimeError")
    install("pocket-plug-shy", "from pocket_plug import NotConfiguredError\nraise NotConfiguredError('no server')")
    install("pocket-plug-odd", "from pocket_plug import hookimpl\n@hookimpl\ndef pocket_layers():\n    return ['odd']")
    install("acme-queues", "", entry_points="", requires=("pocket_plug>=0.1",))
    monkeypatch.setenv("POCKET_PLUG_DISABLE", "off, sqlit")
    found = {name: told for (section, name), told in doctor(1).items() if section == "plugins"}
    assert found["bad"][0] == "wrong"
    assert (
        "No module named 'no_such_module'; fix or uninstall it, or switch it off: POCKET_PLUG_DISABLE=bad"
        in found["bad"][1]
    )
    assert found["shy"] == (
        "note",
        "pocket-plug-shy 1.0, declined: no server; its settings belong in [plugins.shy]",
    )
    assert found["off"] == ("ok", "pocket-plug-off 1.0, is disabled: by POCKET_PLUG_DISABLE")
    assert found["sqlit"] == ("wrong", "POCKET_PLUG_DISABLE: there is no plugin 'sqlit'; did you mean 'sqlite'?")
    assert found["odd"][0] == "wrong"
    assert "it failed at pocket_layers (1 x)" in found["odd"][1]
    assert found["compress"][0] == "ok"


def test_libraries_are_listed(install: Install, doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    """A package that requires pocket_plug and has no entry point is listed as a library; but not if only an extra requires it."""
    site = install("pocket-plug-library", "", entry_points="", requires=("pocket_plug>=0.1",))
    (site / "pocket_plug_library-1.0.dist-info" / "entry_points.txt").unlink()
    site = install("perhaps", "", entry_points="", requires=("pocket-plug; extra == 'state'", "pocket-plug-redis"))
    (site / "perhaps-1.0.dist-info" / "entry_points.txt").unlink()
    found = doctor()
    assert found["plugins", "pocket-plug-library"] == (
        "ok",
        "1.0, a library: it has no entry point, programs import it",
    )
    assert ("plugins", "perhaps") not in found
    assert main(["plugins"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pocket-plug-library", "library"] in [row[:2] for row in rows]


# ---------------------------------------------------------------- stores
def test_servers_that_are_well_stopped_and_gone(doctor: Doctor) -> None:
    """Reachable, with the declared durability, in time; or the reason. Nothing is created on a server, and passwords are not
    shown.
    """
    with valkey(password=WORD) as redis, postgres() as postgresql, valkey(options={"appendfsync": "no"}) as lax:
        configured(
            f"""
            [store]
            url = "{redis.url}"
            [stores.none]
            url = "{redis.url}?durability=none"
            [stores.lax]
            url = "{lax.url}"
            [stores.postgres]
            url = "{postgresql.url}"
            layers = ["metrics"]
            [stores.cached]
            layers = [{{ use = "persistence", to = "{postgresql.url}?store=other" }}]
            [stores.refused]
            url = "{redis.url.replace(WORD, f"{WORD}x")}"
            [stores.nowhere]
            url = "{redis.url.replace(str(redis.port), str(free_port()))}"
            """
        )
        found = {name: told for (section, name), told in doctor(1).items() if section == "stores"}
        assert found["store"][0] == "ok"
        assert "Valkey" in found["store"][1]
        assert "durability power; the store doesn't exist yet" in found["store"][1]
        assert found["stores.none"][0] == "note"
        assert found["stores.lax"][0] == "wrong"
        assert "put into its configuration: appendfsync always" in found["stores.lax"][1]
        assert found["stores.postgres"][0] == found["stores.cached"][0] == "ok"
        assert "its clock is " in found["stores.postgres"][1]
        assert "store='other'" in found["stores.cached"][1]
        assert "refuses the user or the password" in found["stores.refused"][1]
        assert "can't be reached" in found["stores.nowhere"][1]
        with SyncStore(f"{redis.url}?store=x") as store:  # both servers are unchanged
            assert [*store.keys()] == []
        redis.stop()
        try:
            found = doctor(1, "--timeout", "0.2")
            assert "no answer within 0.2 s" in found["stores", "store"][1]
        finally:
            redis.go_on()
        postgresql.kill()
        assert "can't be reached" in doctor(1)["stores", "stores.postgres"][1]


def test_no_file_is_made(doctor: Doctor, own_folder: Path) -> None:
    """For SQLite: neither the database nor its folder, nor a log beside an existing one."""
    with SyncStore(SQLite("there.db")) as store:
        store.set("a", 1)
    configured('[store]\nurl = "sqlite:///there.db"\n[stores.new]\nurl = "sqlite:///new/state.db"')
    before = sorted(own_folder.rglob("*"))
    found = doctor()
    assert "a program creates it when it opens it" in found["stores", "stores.new"][1]
    assert found["stores", "store"][1].startswith("SQLite('there.db', durability='power'); SQLite ")
    assert sorted(own_folder.rglob("*")) == before


PROBED = """
    import asyncio, threading
    from pocket_plug import Memory, hookimpl
    from pocket_plug.store.backend import Backend, ProbeResult

    class Probed(Backend):
        def __init__(self, url):
            self.how = url.partition("://")[2]
            if self.how == "made":
                threading.Event().wait()

        def __repr__(self):
            return f"Probed({self.how!r})"

        async def probe(self, patience):
            if self.how == "blocks":
                threading.Event().wait()
            if self.how == "awaits":
                await asyncio.Event().wait()
            if self.how == "resolves":
                await asyncio.to_thread(threading.Event().wait)
            if self.how == "raises":
                raise RuntimeError("at redis://me:Marked4711@host it failed")
            if self.how == "unknown":
                return None
            skew = -3.25 if self.how == "skewed" else 0.0
            return ProbeResult("a system", durability="power", skew=skew, read_only=self.how == "standby")

    @hookimpl
    def pocket_backends():
        return {"probed": Probed}
"""


def test_clocks_standbys_and_backends_that_do_not_say(doctor: Doctor, install: Install) -> None:
    """A clock that differs by more than a second and a read-only server are errors; a backend without `probe` is noted, not
    opened.
    """
    install("pocket-plug-probed", PROBED)
    names = ("fine", "skewed", "standby", "unknown", "raises")
    configured("".join(f'[stores.{name}]\nurl = "probed://{name}"\n' for name in names))
    found = {name: told for (section, name), told in doctor(1).items() if section == "stores"}
    assert found["stores.fine"] == ("ok", "Probed('fine'); a system; durability power; its clock is 0 ms behind")
    assert found["stores.skewed"][0] == "wrong"
    assert "its clock is 3250 ms behind; entries expire by each reader's clock" in found["stores.skewed"][1]
    assert found["stores.standby"][0] == "wrong"
    assert "it refuses writes" in found["stores.standby"][1]
    assert found["stores.unknown"] == ("note", "Probed('unknown'): not checked, since its plugin has no `probe`")
    assert found["stores.raises"] == ("wrong", "RuntimeError: at redis://me:***@host it failed")


def test_the_backend_behind_a_queue_of_writes_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    configured('[store]\nlayers = [{ use = "persistence", to = "sqlite:///behind.db", mode = "behind" }]')
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    first, second = (each for each in checks if each["name"] == "store")
    assert first["verdict"] == "ok"
    assert first["says"].startswith("SQLite('behind.db', durability='power'); SQLite")
    assert second["says"].startswith("acknowledged writes wait in memory")


def run_alone(*arguments: str, **environment: str) -> tuple[int, Mapping[str, Any]]:
    done = subprocess.run(
        [*COMMAND, "--json", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_it_never_hangs(install: Install) -> None:
    """Whatever blocks: creating a backend, its probe, its event loop, a thread that looks up a host; the process ends too."""
    site = install("pocket-plug-probed", PROBED)
    names = ("blocks", "awaits", "resolves", "fine", "made")
    configured("".join(f'[stores.{name}]\nurl = "probed://{name}"\n' for name in names[:-1]))
    code, told = run_alone("--timeout", "1", PYTHONPATH=str(site))
    found = {each["name"]: each for each in told["checks"] if each["section"] == "stores"}
    assert code == 1
    for name in ("blocks", "awaits", "resolves"):
        assert found[f"stores.{name}"]["verdict"] == "wrong"
        assert "no answer within 1 s" in found[f"stores.{name}"]["says"]
    assert found["stores.fine"]["verdict"] == "ok"
    configured('[store]\nurl = "probed://made"')
    code, told = run_alone("--timeout", "0.2", PYTHONPATH=str(site))
    says = {(each["section"], each["name"]): each["says"] for each in told["checks"]}
    assert code == 1
    assert "takes longer than 2 s" in says["configuration", "content"]
    assert "no answer within 0.2 s" in says["stores", "store"]


def test_plugins_that_hang_at_import_are_reported(install: Install) -> None:
    """The output says how to find the plugin, and checks that don't need plugins go on."""
    site = install("pocket-plug-stuck", "import threading\nthreading.Event().wait()")
    code, told = run_alone("--timeout", "0.2", PYTHONPATH=str(site))
    found = {(each["section"], each["name"]): each for each in told["checks"]}
    assert code == 1
    assert found["plugins", "all"]["verdict"] == "wrong"
    assert "POCKET_PLUG_DISABLE" in found["plugins", "all"]["says"]
    assert found["telemetry", "traces"]["verdict"] == "ok"


# ---------------------------------------------------------------- telemetry
def test_a_span_arrives(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the endpoint that the environment names, also if sampling is off; the other signals are only named."""
    with Sink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        found = doctor()
        assert found["telemetry", "span"] == ("ok", f"{sink.url}/v1/traces accepted a test span")
        assert sink.names() == ["pocket-plug doctor"]
        assert not sink.metrics
        assert not sink.logs


def test_a_span_that_is_refused_or_not_answered(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint's answer, in one attempt; headers and passwords are not shown."""
    with Sink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url.replace("http://", f"http://me:{WORD}@"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{WORD}")
        sink.refuse(503)
        says = doctor(1)["telemetry", "span"][1]
        assert says == f"not accepted: {sink.url}/v1/traces: HTTP 503 Service Unavailable"
        assert len(sink.requests) == 1
        sink.refuse(401)
        assert "Set its credentials in OTEL_EXPORTER_OTLP_HEADERS" in doctor(1)["telemetry", "span"][1]
        sink.accept()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{sink.url}/elsewhere")
        assert "HTTP 404" in doctor(1)["telemetry", "span"][1]
        sink.hang()
        assert "span" in {
            name for (_, name), (verdict, _) in doctor(1, "--timeout", "0.2").items() if verdict == "wrong"
        }
    assert "no connection: ConnectionRefusedError" in doctor(1)["telemetry", "span"][1]


@pytest.mark.parametrize(
    "given", ["127.0.0.1:4399", "localhost:4399", "collector", "ftp://collector", f"me:{WORD}@h:1"]
)
def test_an_endpoint_that_is_no_url(given: str, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported for each signal, with a valid example, and nothing is sent; text that may be a password isn't shown. gRPC accepts
    it.
    """
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", given)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")
    found = doctor(1)
    for signal in ("traces", "logs"):
        verdict, says = found["telemetry", signal]
        assert verdict == "wrong"
        assert "not a URL of a collector: nothing is sent. Give one such as http://localhost:4318" in says
        assert f"to {given}," in says or "@" in given
    assert found["telemetry", "metrics"][0] == "ok"
    assert ("telemetry", "span") not in found


def test_a_span_is_sent_by_grpc(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its exporter, which is closed afterwards; the endpoint is shown without secrets."""
    outcomes, closed = [SpanExportResult.SUCCESS, SpanExportResult.FAILURE], list[bool]()

    class OTLPSpanExporter:
        def __init__(self, timeout: float) -> None:
            pass

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            assert [span.name for span in spans] == ["pocket-plug doctor"]
            return outcomes.pop(0)

        def shutdown(self) -> None:
            closed.append(True)

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://me:{WORD}@collector:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    package = "opentelemetry.exporter.otlp.proto.grpc"
    for name in (package, f"{package}.trace_exporter"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[name], "OTLPSpanExporter", OTLPSpanExporter, raising=False)
    assert doctor()["telemetry", "span"] == ("ok", "http://me:***@collector:4317 accepted a test span")
    assert "collector:4317: the exporter could not send it by gRPC" in doctor(1)["telemetry", "span"][1]
    assert closed == [True, True]


def test_telemetry_that_is_off_or_invalid_is_reported(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported, and nothing is sent."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with monkeypatch.context() as without:
        for name in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "requests", "google.protobuf"):
            without.setitem(sys.modules, name, None)
        assert "pip install 'pocket-plug[otlp]'" in doctor(1)["telemetry", "span"][1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    assert "pip install opentelemetry-exporter-otlp-proto-grpc" in doctor(1)["telemetry", "span"][1]
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert doctor()["telemetry", "all"] == ("note", "off, since OTEL_SDK_DISABLED is true")


def test_variables_that_the_sdk_refuses_as_it_is_imported() -> None:
    """The variable is named, by `doctor` among its other checks and by `run --trace`; there is no traceback."""
    limit = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "abc"}
    code, told = run_alone("--timeout", "10", **limit)
    assert code == 1
    (check,) = (each for each in told["checks"] if each["section"] == "telemetry")
    assert (check["name"], check["verdict"]) == ("variables", "wrong")
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer" in check["says"]
    Path("app.py").write_text("def main(): print('ran')")
    done = subprocess.run(
        [*COMMAND[:-1], "run", "app.py", "--trace"], env={**os.environ, **limit}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "value"), [("SIZE", "many"), ("SIZE", "9" * 5000), ("SIZE", "0"), ("AGE", "-1")])
def test_invalid_limits_of_the_trace_file_are_reported(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """`observe` and `--trace` would fail, so the variable is reported by its name."""
    monkeypatch.setenv(f"POCKET_PLUG_TRACES_{name}", value)
    verdict, says = doctor(1)["telemetry", "trace file"]
    assert verdict == "wrong"
    assert f"POCKET_PLUG_TRACES_{name}" in says
