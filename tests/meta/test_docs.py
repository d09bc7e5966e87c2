"""All code in the README and the docs is run: Python, TOML and commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocket_plug.testing.servers import postgres

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DRAWING = re.compile(r"^!\[[^\]]+\]\(\.\./pictures/(\w+)\.svg\)$", re.MULTILINE)
_EXPECTED = re.compile(r"^ *print\(.*\)  +# (.+)$", re.MULTILINE)

# Commands that set a machine up, or need a server: `make test` itself, the tests of wheels and of new plugins, the
# collector's test, those of servers and `make e2e` run these. No package index is used.
_ELSEWHERE = (
    *("make ", "pip ", "git ", "python -m venv", ".venv/bin/pytest ", ". .venv/bin/activate", "mypy", "pyright"),
    *("python -m build", "twine ", "/tmp/user/bin/"),  # noqa: S108 - what the page says, which nobody runs
    *("OTEL_EXPORTER_OTLP_ENDPOINT=", "OTEL_METRICS_EXPORTER="),
    *("python examples/monitoring/serve.py", "prometheus ", "promtool ", "victoria-metrics ", "vmalert"),
    *("export ", "uvicorn ", "gunicorn ", "celery "),
)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The page's code blocks in a language, each with its file name, if it has one."""
    return [(name, code) for found, name, code in _BLOCK.findall(page.read_text("utf-8")) if found == language]


def environment(folder: Path) -> dict[str, str]:
    """As a user's shell, with our command on the path, and nothing is sent anywhere."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return clean | {"PATH": path, "HOME": str(folder), "NO_COLOR": "1"}


def install(project: Path, site: Path) -> str:
    """Install a project into a folder for PYTHONPATH, without downloads."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(site), str(project)],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(site)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a real PostgreSQL, for pages that show one."""
    with postgres(options={"fsync": "off", "full_page_writes": "off"}) as running:
        yield f"{running.url}?durability=process"


@pytest.fixture
def variables(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a page. Each page has a data set of its own."""
    made = environment(tmp_path)
    if "${DATABASE_URL}" in page.read_text("utf-8"):
        made["DATABASE_URL"] = (
            f"{request.getfixturevalue('server')}&store={request.node.originalname[:20].replace('_', '-')}"
        )
    return made


def name_of(page: Path) -> str:
    """For test ids."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """A page's Python, from top to bottom, prints what the comments beside its prints say.

    The drawings that the page shows are those of its graphs: `![…](../pictures/page.svg)` is `page.svg()`.
    """
    named = {name: code for language in ("python", "toml") for name, code in blocks(page, language) if name}
    for name, code in named.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code, "utf-8")
    code = "\n".join(code for name, code in blocks(page, "python") if not name)
    if not code:
        return
    drawings = _DRAWING.findall(page.read_text("utf-8"))
    for name in drawings:
        code += f"\nopen('{name}.svg', 'w', encoding='utf-8').write({name}.svg())"
    (tmp_path / "page.py").write_text(code, "utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.splitlines()
    for expected in _EXPECTED.findall(code):
        assert expected in printed or expected.startswith("the "), f"{expected!r} is not among {printed}"
    for name in drawings:
        shown = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text("utf-8")
        assert (tmp_path / f"{name}.svg").read_text("utf-8") == shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_work(page: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """A page's commands succeed, in a folder with the page's files."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, code in blocks(page, "toml"):
        if name or code.startswith(("[store", "[tool", "[plugins")):
            (tmp_path / (name or "pocket.toml")).write_text(code, "utf-8")
    for name, code in blocks(page, "python"):
        if name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(code, "utf-8")
    lines = [line[2:] for _, code in blocks(page, "console") for line in code.splitlines() if line.startswith("$ ")]
    folder = tmp_path
    for line in lines:
        command, _, comment = (part.strip() for part in line.partition("  #"))
        if command.startswith("cd "):
            folder /= command[3:]
            continue
        if command.startswith("pip install --editable") and (folder / "pyproject.toml").exists():
            variables = variables | {"PYTHONPATH": install(folder, tmp_path / "site")}
            continue
        if command.startswith(_ELSEWHERE):
            continue
        expected = int(code[1]) if (code := re.search(r"exit code (\d)", comment)) else 0
        command, _, file = (part.strip() for part in command.partition(" > "))
        ran = subprocess.run(
            shlex.split(command),
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == expected, f"{command}: {ran.stdout}{ran.stderr}"
        if file:
            (folder / file).write_text(ran.stdout, "utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_exist(page: Path) -> None:
    """Relative links name existing files, and headings in them."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", prose(page))
    assert [link for link, _ in links if not (page.parent / link).exists()] == []
    to_headings = [(page.parent / link if link else page, heading) for link, heading in links if heading]
    assert [(str(to), heading) for to, heading in to_headings if heading not in anchors(to)] == []


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


def test_each_page_is_in_the_list_by_task() -> None:
    """`docs/README.md` is the one place to look for a page."""
    listed = prose(ROOT / "docs" / "README.md")
    assert [
        page.name for page in (ROOT / "docs").rglob("*.md") if page.name not in listed and page.name != "README.md"
    ] == []
