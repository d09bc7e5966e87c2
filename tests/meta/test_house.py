"""The house rules that no linter knows: what the core may import, how large it may grow, what must not be committed."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pocket_plug"
READ_FIRST = [
    PACKAGE / f"{name}.py"
    for name in (
        *("store/store", "store/keys", "store/memory", "store/layer"),
        *("graph/node", "graph/graph", "graph/execution", "graph/visit"),
        "hookspecs",
    )
]
CORE = [PACKAGE / "errors.py", PACKAGE / "hookspecs.py"] + [
    file for name in ("primitives", "store", "graph") for file in sorted((PACKAGE / name).rglob("*.py"))
]


NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(file: Path) -> int:
    """Lines with code on them: no blanks, comments or docstrings."""
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
    """A newcomer reads the eight modules that explain it in one sitting: under 1,500 lines of code."""
    sizes = {file.stem: code_lines(file) for file in READ_FIRST}
    assert sum(sizes.values()) < 1500, sizes


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_the_core_imports_no_machinery(file: Path) -> None:
    """Neither the SDK, nor structlog, nor a database or a command line: not even within a function."""
    forbidden = {"opentelemetry", "structlog", "sqlite3", "click", "rich", "msgspec"}
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        used = {name.partition(".")[0] for name in names} & forbidden
        assert not used or (used == {"click"} and file.stem == "hookspecs"), f"{file.name} imports {used}"


def test_importing_pocket_plug_loads_nothing_heavy() -> None:
    """`import pocket_plug` scans and configures nothing."""
    code = (
        "import sys, pocket_plug\n"
        "heavy = ('opentelemetry.sdk', 'structlog', 'msgspec', 'beartype', 'click', 'rich', 'sqlite3', 'importlib.metadata')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_sdk_is_imported_by_telemetry_and_testing_only() -> None:
    """The library is written against the API; whoever embeds it chooses the SDK."""
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in PACKAGE.rglob("*.py")
        if "opentelemetry.sdk" in file.read_text("utf-8") and "import" in file.read_text("utf-8")
        if any(line.lstrip().startswith(("from opentelemetry.sdk", "import opentelemetry.sdk"))
               for line in file.read_text("utf-8").splitlines())
    }  # fmt: skip
    assert users <= {"telemetry", "testing"}


def test_no_module_is_without_a_purpose() -> None:
    """Every module opens with what it is for."""
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
