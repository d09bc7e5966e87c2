"""What `make mutants` relies on: a seed always chooses the same mutants, each is one change that
parses, and no file is changed.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .__main__ import ROOT, TESTS, Workshop, draw, first_tests, main, wider
from .breaking import mutants_of

SOURCE = '''"""A text that nobody breaks."""

import os


def limit(count: int = 3, *, fast: bool = False) -> int | None:
    """Nor this one."""
    assert count < 10, "nor what only holds"
    if count > 5 and not fast:
        raise ValueError(f"too many: {count + 1}")
    for each in range(count):
        if each == 4:
            continue
        os.sep.join([])
    return min(count, 7) if fast else count - 1


class Kept:
    def __repr__(self) -> str:
        return "a" if self is None else "b"
'''


def test_everything_that_a_test_could_notice_is_changed(tmp_path: Path) -> None:
    """Bounds, conditions, numbers, calls and the effects of statements; no text, annotation, assertion or `__repr__`."""
    (tmp_path / "it.py").write_text(SOURCE)
    found = [mutant.shown().splitlines() for mutant in mutants_of(tmp_path, "it.py")]
    changed = {line.removeprefix("    +").strip() for lines in found for line in lines if line.startswith("    +")}
    assert changed == {
        "def limit(count: int = 4, *, fast: bool = False) -> int | None:",
        "def limit(count: int = 3, *, fast: bool = True) -> int | None:",
        "if ((count > 5) or (not fast)):", "if (count >= 5) and not fast:", "if count > 6 and not fast:",
        "if count > 5 and (fast):", "pass", "if (each != 4):", "if each == 5:", "break", "return None",
        "return (count - 1 if fast else min(count, 7))", "return max(count, 7) if fast else count - 1",
        "return min(count, 8) if fast else count - 1", "return min(count, 7) if fast else (count + 1)",
        "return min(count, 7) if fast else count - 2",
    }  # fmt: skip
    assert {lines[0] for lines in found if "each != 4" in lines[2:][1]} == {"it.py:12 in limit"}


def test_the_same_seed_chooses_the_same_mutants() -> None:
    """For the same code; another seed chooses others, and none twice."""
    drawn = draw(["store/views", "primitives/durations"], 1, 40)
    assert draw(["primitives/durations", "store/views"], 1, 40) == drawn
    assert draw(["store/views", "primitives/durations"], 2, 40) != drawn
    assert len({mutant.source for mutant in drawn}) == 40
    assert {mutant.module for mutant in drawn} == {"store/views", "primitives/durations"}


def test_every_module_has_tests_and_mutants_that_parse() -> None:
    """The named test files exist."""
    for module in TESTS:
        assert [file for file in first_tests(module) if not (ROOT / file).is_file()] == []
    assert [folder for folder in wider() if not (ROOT / folder).is_dir()] == []
    for mutant in draw(["store/memory", "layers/persistence/__init__"], 1, 40):
        ast.parse(mutant.source)
        assert mutant.source != mutant.original == (ROOT / mutant.file).read_bytes()


def test_a_mutant_is_tested_in_a_copy(tmp_path: Path) -> None:
    """The tests pass without it and fail with it; the copy is restored, and the working tree was never changed."""
    workshop = Workshop(tmp_path, 1)
    mutant = next(
        mutant
        for mutant in draw(["primitives/durations"], 1, 1000)
        if mutant.within == "seconds" and "return None" in mutant.shown()
    )
    tests = ["tests/primitives/test_durations.py"]
    assert workshop.passes(tests, 120) is True
    assert workshop.passes(tests, 120, mutant) is False
    assert workshop.passes(tests, 0, mutant) is None  # it took longer than allowed
    assert (tmp_path / "0" / mutant.file).read_bytes() == (ROOT / mutant.file).read_bytes() == mutant.original


def test_an_unknown_module_is_an_error_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """As is every other usage error of the command."""
    with pytest.raises(SystemExit):
        main(["--only", "stor"])
    assert "there is no module stor; there are backends/network, backends/sqlite/backend" in capsys.readouterr().err
