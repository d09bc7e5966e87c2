"""Rules of style that ruff lacks: the length of functions, and the number of suppressions."""

from __future__ import annotations

import ast
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("pocket_plug/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")])

LONGEST = 60
SUPPRESSIONS, ANYS = 5, 30
"""So many of each may stand in a thousand lines."""

DIRECTIVE = re.compile(
    r"(?:noqa(?:: ?[A-Z]+\d+(?:, ?[A-Z]+\d+)*)?|(?:type|pyright): ignore(?:\[[\w, -]+\])?|pyright: \w+=\w+|fmt: (?:skip|off)"
    r"|pragma: no \w+)"
)


def tokens(file: Path) -> list[tokenize.TokenInfo]:
    with file.open("rb") as source:
        return list(tokenize.tokenize(source.readline))


def suppressions(file: Path) -> Iterator[tuple[int, str]]:
    """The comments by which a file disables a tool, with their lines; one that names two tools is there twice."""
    for token in tokens(file):
        if token.type == tokenize.COMMENT:
            for _ in DIRECTIVE.findall(token.string):
                yield token.start[0], token.string


def anys(file: Path) -> int:
    """The number of `Any` in a file's code, also in the quotes of a `cast`."""
    docs = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if ast.get_docstring(node, clean=False) is not None
    }
    return sum(
        (token.type == tokenize.NAME and token.string == "Any")
        or (
            token.type == tokenize.STRING
            and token.start[0] not in docs
            and bool(re.search(r"[\[, ]Any[\], ]", token.string))
        )
        for token in tokens(file)
    )


def per_thousand_lines(counts: dict[Path, int]) -> str:
    """The number per thousand lines of each package, as a message."""
    lines: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for file, count in counts.items():
        package = "/".join(file.relative_to(ROOT).parts[:2])
        lines[package] += len(file.read_bytes().splitlines())
        found[package] += count
    return "\n".join(f"{package}: {found[package]} in {lines[package]:,} lines" for package in sorted(lines))


def test_no_function_is_longer_than_a_screen() -> None:
    """At most 60 lines, with the docstring; ruff checks the complexity (C901)."""
    long = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST
    ]
    assert long == []


def has_reason(comment: str) -> bool:
    """Does a comment contain more than the suppression?"""
    return bool(re.search(r"\w", DIRECTIVE.sub("", comment)))


def test_each_suppression_has_a_reason() -> None:
    """Each `noqa`, `type: ignore` or the like has its reason on the line, or above it if it applies to the file."""
    bare = [
        f"{file.relative_to(ROOT)}:{number}: {comment}"
        for file in FILES
        for number, comment in suppressions(file)
        if not has_reason(comment)
        if not ("=" in comment and has_reason(file.read_text("utf-8").splitlines()[number - 2]))
    ]
    assert bare == []


def test_suppressions_are_rare() -> None:
    """Suppressions, and `Any`, stay below a limit per thousand lines of a package."""
    lines = sum(len(file.read_bytes().splitlines()) for file in FILES) / 1000
    silenced = {file: len(list(suppressions(file))) for file in FILES}
    untyped = {file: anys(file) for file in FILES}
    assert sum(silenced.values()) / lines <= SUPPRESSIONS, per_thousand_lines(silenced)
    assert sum(untyped.values()) / lines <= ANYS, per_thousand_lines(untyped)


def test_a_reason_is_more_than_the_names_of_rules() -> None:
    """Also if a line disables two tools."""
    explained = ["# noqa: S101 - why", "# type: ignore[misc]  # why", "# pyright: ignore[reportA, reportB]  # why"]
    bare = [
        "# noqa: S101",
        "# noqa",
        "# type: ignore[misc]  # pyright: ignore[reportA]",
        "# fmt: skip",
        "# pyright: reportA=false",
    ]
    assert [text for text in (*explained, *bare) if has_reason(text)] == explained


def test_a_comment_stands_before_what_it_is_about() -> None:
    """Not behind the closing bracket of a call, where the formatter puts a comment that is too long for its line."""
    behind = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if re.match(r" *[])}]+[:,]? +# (?!fmt:)", line)
    ]
    assert behind == []
