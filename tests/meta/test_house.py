"""Rules that no linter checks: what the core may import, its maximum size, what must not be committed."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import click
import pytest

from pocket_plug.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pocket_plug"
READ_FIRST = [
    PACKAGE / f"{name}.py"
    for name in (
        *("store/store", "store/keys", "store/memory", "store/layer"),
        *("graph/nodes/node", "graph/graph", "graph/running/execution", "graph/running/visit"),
        "hookspecs",
    )
]
CORE = [PACKAGE / "errors.py", PACKAGE / "hookspecs.py"] + [
    file for name in ("primitives", "store", "graph") for file in sorted((PACKAGE / name).rglob("*.py"))
]


NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(file: Path) -> int:
    """Lines with code: no blanks, comments or docstrings."""
    text = file.read_text("utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_the_core_stays_small() -> None:
    """A newcomer can read the modules that explain it in one sitting: under 1,500 lines of code."""
    sizes = {file.stem: code_lines(file) for file in READ_FIRST}
    assert sum(sizes.values()) < 1500, sizes


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_the_core_imports_no_heavy_libraries(file: Path) -> None:
    """Neither the SDK, nor structlog, nor a database or a command line: not even within a function."""
    forbidden = {"opentelemetry", "structlog", "sqlite3", "click", "rich", "msgspec"}
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        used = {name.partition(".")[0] for name in names} & forbidden
        assert not used or (used == {"click"} and file.stem == "hookspecs"), f"{file.name} imports {used}"


def loaded_by(code: str, *names: str) -> list[str]:
    """Which of these modules are loaded after running the code in an interpreter of its own."""
    code = f"import sys\n{code}\nprint([name for name in {names} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded: list[str] = ast.literal_eval(done.stderr)
    return loaded


HEAVY = (
    *("opentelemetry", "structlog", "msgspec", "beartype", "click", "rich", "pluggy", "packaging"),
    *("sqlite3", "importlib.metadata", "importlib.resources", "tempfile", "email", "json", "decimal"),
)


def test_importing_pocket_plug_loads_only_its_exceptions() -> None:
    """`import pocket_plug` scans and configures nothing; a name's module is loaded when the name is first used."""
    assert (
        loaded_by("import pocket_plug", *HEAVY, "asyncio", "datetime", "typing_extensions", "pocket_plug.store") == []
    )


def test_stores_and_graphs_load_nothing_heavy() -> None:
    """Names that every program uses don't load libraries that only some need."""
    assert loaded_by("from pocket_plug import Graph, Key, Node, Retry, Store, SyncStore, each", *HEAVY) == []


def test_a_run_loads_only_what_it_uses() -> None:
    """Its built-in plugins are loaded, but not SQLite, the executors, the codec or what a graph's version needs."""
    code = (
        "import os; os.environ['POCKET_PLUG_AUTOLOAD'] = '0'\n"
        "from pocket_plug import Graph, node\n"
        "assert Graph(node(lambda n: n + 1, name='add')).run_sync(1) == 2"
    )
    unused = (
        "pocket_plug.codec",
        "pocket_plug.executors.processes",
        "pocket_plug.graph.following",
        "pocket_plug.remote",
    )
    libraries = ("hashlib", "msgspec", "multiprocessing", "opentelemetry.sdk", "sqlite3", "structlog")
    assert loaded_by(code, "pocket_plug.backends.sqlite", *unused, *libraries) == ["pocket_plug.backends.sqlite"]


def test_the_help_loads_no_command() -> None:
    """`pocket-plug --help` loads neither the commands nor what they need, if no plugin has commands."""
    code = (
        "import importlib.metadata\n"
        "importlib.metadata.distributions = lambda: iter(())\n"
        "from pocket_plug.cli import main\n"
        "assert main(['--help']) == 0"
    )
    libraries = ("asyncio", "msgspec", "opentelemetry", "packaging", "pluggy", "rich", "sqlite3", "structlog")
    assert loaded_by(code, *libraries, "pocket_plug.cli.run", "pocket_plug.graph", "pocket_plug.store") == []


def test_the_help_has_the_first_line_of_each_command() -> None:
    """The help text of a command, shown without loading it, is the command's own."""
    lines = {name: line for name, (_, line) in COMMANDS.items()}
    commands = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
    assert lines == {name: command and command.get_short_help_str(100) for name, command in commands.items()}


def test_the_sdk_is_imported_by_telemetry_and_testing_only() -> None:
    """The library uses the API; the program chooses the SDK."""
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in PACKAGE.rglob("*.py")
        if "opentelemetry.sdk" in file.read_text("utf-8") and "import" in file.read_text("utf-8")
        if any(
            line.lstrip().startswith(("from opentelemetry.sdk", "import opentelemetry.sdk"))
            for line in file.read_text("utf-8").splitlines()
        )
    }
    assert users <= {"telemetry", "testing"}


def test_no_module_is_without_a_purpose() -> None:
    """Every module starts with its purpose."""
    modules = {file: ast.parse(file.read_text("utf-8")) for file in PACKAGE.rglob("*.py")}
    assert [str(file.relative_to(ROOT)) for file, module in modules.items() if not ast.get_docstring(module)] == []


def test_nothing_names_the_machine_it_was_made_on() -> None:
    """No absolute path of ours and no package index's address is committed."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    marks = [f"/{name}/" for name in ("work", "farm", "shared")] + ["index" + "-url", "://pypi" + ".org/simple"]
    guilty = [
        (name, mark)
        for name in listed
        if name.endswith((".py", ".md", ".toml", ".txt", "Makefile", "run"))
        for mark in marks
        if mark in (ROOT / name).read_text("utf-8", "replace") and name != "tests/meta/test_house.py"
    ]
    assert guilty == []


@pytest.mark.parametrize("name", ["pocket_plug", "pocket_plug.layers"])
def test_a_prompt_completes_names_that_are_not_loaded_yet(name: str) -> None:
    """A name loads its module when it is first used; a prompt offers what `dir` lists."""
    script = f"import {name} as module; print(sorted({{*module.__all__}} - {{*dir(module)}}), module.__all__[0] in vars(module))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]
