"""Habits of this code base that no linter checks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE_LINES_MAX = 300
FUNCTION_LINES_MAX = 50
MODULES = sorted((ROOT / "service").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_modules_are_short():
    long = {m.name: n for m in MODULES if (n := len(m.read_text().splitlines())) > MODULE_LINES_MAX}
    # The ports are one page of vocabulary: they are read together.
    long.pop("ports.py", None)
    assert long == {}


def test_functions_are_paragraphs():
    long = {
        f"{module.name}:{function.name}": lines(function)
        for module in MODULES
        for function in functions(module)
        if lines(function) > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_nothing_is_left_to_be_done():
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [
        m for m in [*MODULES, *TESTS] if m != Path(__file__) and marks.search(m.read_text())
    ] == []


def test_every_suppression_has_its_reason():
    suppressed = re.compile(r"# (noqa|type: ignore|pyright: ignore)(?P<rest>.*)$")
    silent = [
        f"{module.name}:{number}"
        for module in MODULES
        for number, line in enumerate(module.read_text().splitlines(), 1)
        if (found := suppressed.search(line)) and "  # " not in found["rest"]
    ]
    assert silent == []


def test_migrations_are_numbered_without_gaps():
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "migrations").glob("*.sql"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "helpers", "common", "base", "types", "manager"}
    assert [module for module in [*MODULES, *TESTS] if module.stem in empty] == []


def test_scripts_state_keys_arguments_and_guarantee_on_top():
    for script in (ROOT / "service/adapters/redis/scripts").glob("*.lua"):
        assert script.read_text().startswith(("-- " + script.stem + ":", "-- What every script"))


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
