"""Mutants: a module's source with one change, by its place in the syntax tree. Nothing is executed here.

What no test should check is not changed: annotations, docstrings and texts, `__repr__`, `assert`, code for type checkers only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_COMPUTED: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "+",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "+",
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_ALONE = {"__repr__", "__str__", "__slots__", "__all__", "__match_args__"}


@dataclass(frozen=True)
class Mutant:
    """One change: `text` in place of the original."""

    file: str
    line: int
    within: str
    original: bytes
    place: slice
    text: str

    @property
    def source(self) -> bytes:
        """The whole changed file."""
        return self.original[: self.place.start] + self.text.encode() + self.original[self.place.stop :]

    @property
    def parses(self) -> bool:
        """Is it valid Python? A place within an f-string may not be."""
        try:
            ast.parse(self.source)
        except SyntaxError:
            return False
        return True

    @property
    def module(self) -> str:
        """The module's name, as in `--only`."""
        return self.file.removeprefix("pocket_plug/").removesuffix(".py")

    def shown(self) -> str:
        """Its place, and the difference."""
        before, after = (text.decode().splitlines() for text in (self.original, self.source))
        difference = list(unified_diff(before, after, n=1, lineterm=""))[3:]
        return "\n".join([f"{self.file}:{self.line} in {self.within}", *(f"    {line}" for line in difference)])


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """All mutants of a file, whether they parse or not."""
    source = (root / file).read_bytes()
    lines = source.splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines) + 1)]
    found: list[Mutant] = []
    for node, within, text in _Changes().of(ast.parse(source), ""):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        found.append(Mutant(file, node.lineno, within or "the module", source, slice(start, end), text))
    return found


Change = tuple[ast.expr | ast.stmt, str, str]


class _Changes:
    """A node, the function around it, and its replacements."""

    def of(self, node: ast.AST, within: str) -> Iterator[Change]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name in _ALONE:
                return
            within = f"{within}.{node.name}" if within else node.name
        if isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom) or _is_for_checkers(node):
            return
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") in _ALONE for target in node.targets):
            return
        if isinstance(node, ast.expr):
            for text in self._of_expression(node):
                yield node, within, text
        elif isinstance(node, ast.stmt):
            for text in self._of_statement(node):
                yield node, within, text
        for name, field in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases", "keywords_of_class"):
                continue
            if isinstance(node, ast.Raise):
                continue  # its texts; that it raises is another change
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST):
                    yield from self.of(child, within)

    def _of_expression(self, node: ast.expr) -> Iterator[str]:
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in _COMPARED:
                yield f"({ast.unparse(left)} {_COMPARED[type(operator)]} {ast.unparse(right)})"
            case ast.BoolOp(op=operator, values=values):
                other = " or " if isinstance(operator, ast.And) else " and "
                yield f"({other.join(f'({ast.unparse(value)})' for value in values)})"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield f"({ast.unparse(operand)})"
            case ast.IfExp(test=test, body=body, orelse=other):
                yield f"({ast.unparse(other)} if {ast.unparse(test)} else {ast.unparse(body)})"
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _COMPUTED and not _is_text(node):
                yield f"({ast.unparse(left)} {_COMPUTED[type(operator)]} {ast.unparse(right)})"
            case ast.Constant(value=bool(value)):
                yield str(not value)
            case ast.Constant(value=int(value) | float(value)):
                yield f"{value + 1}"
            case ast.Call(func=ast.Name(id=name)) if name in _CALLED:
                yield f"{_CALLED[name]}{ast.unparse(node)[len(name) :]}"
            case _:
                pass

    def _of_statement(self, node: ast.stmt) -> Iterator[str]:
        match node:
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete():
                yield "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield "pass"
            case ast.Return(value=ast.expr()) if not _is_none(node.value):
                yield "return None"
            case ast.Continue():
                yield "break"
            case ast.Break():
                yield "continue"
            case _:
                pass


def _is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_none(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str | bytes))
        for part in (node.left, node.right)
    )
