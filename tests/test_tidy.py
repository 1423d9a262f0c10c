"""The house rules that a program can check, over the package, the benchmarks and the tests.

Each rule yields "file:line: what is wrong"; the test of the rule fails with the whole list. The
rules that ruff, mypy and import-linter know are theirs (pyproject.toml). CONTRIBUTING.md says why.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
# Written so that this file keeps the rule too.
UNFINISHED = re.compile(r"\b(?:TO[D]O|FI[X]ME|X[X]X|HA[C]K)\b")
VAGUE_NAMES = frozenset({"common", "helper", "helpers", "misc", "util", "utilities", "utils"})
# Exit codes are made in one main, errnos in one decorator.
MAY_EXIT = frozenset({"dedupfs/__main__.py", "dedupfs/cli/__init__.py", "dedupfs/cli/__main__.py"})
# docs/format.md, "Index" and "Write order": a document, and sections of it.
NAMED_SECTIONS = re.compile(r'docs/(\w+\.md),?((?:(?:\s|#)*(?:and|,)?(?:\s|#)*"[^"\n]+")+)')
SECTION = re.compile(r"^(?:#+ (.+)|\*\*([^*]+?)\.?\*\*.*)$", re.MULTILINE)
MAY_RAISE_FUSE_ERROR = frozenset({"dedupfs/fuse/operations.py", "dedupfs/fuse/reply.py"})


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the top of the repository, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Source:
        return cls(path, text, ast.parse(text, path))

    @property
    def package(self) -> str:
        return self.path.partition("/")[0]


Rule = Callable[[Source], Iterator[str]]


def module_opens_with_a_docstring(source: Source) -> Iterator[str]:
    if source.package == "dedupfs" and not ast.get_docstring(source.tree):
        yield f"{source.path}:1: no docstring: what is it, what must it not know, where specified?"


def file_is_short(source: Source) -> Iterator[str]:
    line_count = len(source.text.splitlines())
    if line_count > FILE_LINES_MAX:
        yield (
            f"{source.path}:{FILE_LINES_MAX + 1}: file of {line_count} lines, at most "
            f"{FILE_LINES_MAX}; split it by idea"
        )


def functions_are_short(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            line_count = (node.end_lineno or node.lineno) - node.lineno + 1
            if line_count > FUNCTION_LINES_MAX:
                yield (
                    f"{source.path}:{node.lineno}: {node.name}() has {line_count} lines, at most "
                    f"{FUNCTION_LINES_MAX}"
                )


def nothing_is_left_unfinished(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        for match in UNFINISHED.finditer(line):
            yield f"{source.path}:{number}: {match[0]}: do it now or file an issue"


def modules_are_named_for_an_idea(source: Source) -> Iterator[str]:
    path = Path(source.path)
    for name in sorted(VAGUE_NAMES & {path.stem, *path.parts}):
        yield f"{source.path}:1: the name {name!r} says nothing about what belongs in it"


def only_main_exits(source: Source) -> Iterator[str]:
    if source.package != "dedupfs" or source.path in MAY_EXIT:
        return
    for node in ast.walk(source.tree):
        if _mentions(node, "sys", "exit") or _mentions(node, None, "SystemExit"):
            yield f"{_place(source, node)}: only cli.main exits; raise a DedupfsError instead"


def only_reply_raises_fuse_error(source: Source) -> Iterator[str]:
    if source.package != "dedupfs" or source.path in MAY_RAISE_FUSE_ERROR:
        return
    for node in ast.walk(source.tree):
        if _mentions(node, "pyfuse3", "FUSEError") or _mentions(node, None, "FUSEError"):
            yield f"{_place(source, node)}: only reply() makes errnos; raise a DedupfsError"


def no_test_sleeps(source: Source) -> Iterator[str]:
    if source.package != "tests":
        return
    for node in ast.walk(source.tree):
        if _mentions(node, "time", "sleep"):
            yield f"{_place(source, node)}: wait for the event itself, with a limit; do not sleep"


def bytes_at_random_have_a_seed(source: Source) -> Iterator[str]:
    if source.package != "tests":
        return
    for node in ast.walk(source.tree):
        if _mentions(node, "os", "urandom") or _mentions(node, "secrets", "token_bytes"):
            yield f"{_place(source, node)}: other bytes are cut elsewhere; random.Random(seed)"


def sections_that_are_named_exist(source: Source) -> Iterator[str]:
    for match in NAMED_SECTIONS.finditer(source.text):
        number = source.text.count("\n", 0, match.start()) + 1
        for name in re.findall('"([^"]+)"', match[2]):
            if name not in _sections(match[1]):
                yield f"{source.path}:{number}: docs/{match[1]} has no section {name!r}"


@cache
def _sections(document: str) -> frozenset[str]:
    """Return the headings of a document, and the bold words that its paragraphs begin with."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return frozenset(heading or bold for heading, bold in SECTION.findall(text))


def _mentions(node: ast.AST, module: str | None, name: str) -> bool:
    """Tell whether ``node`` is `module.name` or imports it, or for no module the bare name."""
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr=attr):
            return owner == module and attr == name
        case ast.ImportFrom(module=imported, names=names):
            return imported == module and any(alias.name == name for alias in names)
        case ast.Name(id=bare):
            return module is None and bare == name
    return False


def _place(source: Source, node: ast.AST) -> str:
    return f"{source.path}:{getattr(node, 'lineno', 1)}"


RULES: list[Rule] = [
    module_opens_with_a_docstring,
    file_is_short,
    functions_are_short,
    nothing_is_left_unfinished,
    modules_are_named_for_an_idea,
    only_main_exits,
    only_reply_raises_fuse_error,
    no_test_sleeps,
    bytes_at_random_have_a_seed,
    sections_that_are_named_exist,
]


@cache
def sources() -> tuple[Source, ...]:
    """Return every Python file that the rules are about."""
    paths = [
        path
        for package in ("dedupfs", "bench", "tests")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    return tuple(
        Source.parse(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in paths
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule) -> None:
    broken = [violation for source in sources() for violation in rule(source)]
    assert not broken, "\n" + "\n".join(broken)


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX
LONG_FILE = "x = 1\n" * (FILE_LINES_MAX + 1)


@pytest.mark.parametrize(
    ("rule", "path", "text", "where"),
    [
        (module_opens_with_a_docstring, "dedupfs/a.py", "x = 1\n", "dedupfs/a.py:1:"),
        (file_is_short, "bench/a.py", LONG_FILE, "bench/a.py:501:"),
        (functions_are_short, "tests/a.py", LONG_FUNCTION, "tests/a.py:1:"),
        (nothing_is_left_unfinished, "dedupfs/a.py", "x = 1\n# \x54ODO: y\n", "dedupfs/a.py:2:"),
        (modules_are_named_for_an_idea, "dedupfs/store/utils.py", "", "dedupfs/store/utils.py:1:"),
        (modules_are_named_for_an_idea, "tests/common/a.py", "", "tests/common/a.py:1:"),
        (only_main_exits, "dedupfs/a.py", "import sys\nsys.exit(1)\n", "dedupfs/a.py:2:"),
        (only_main_exits, "dedupfs/a.py", "from sys import exit\n", "dedupfs/a.py:1:"),
        (only_main_exits, "dedupfs/cli/ls.py", "raise SystemExit\n", "dedupfs/cli/ls.py:1:"),
        (only_reply_raises_fuse_error, "dedupfs/a.py", "\npyfuse3.FUSEError\n", "dedupfs/a.py:2:"),
        (only_reply_raises_fuse_error, "dedupfs/a.py", "FUSEError(1)\n", "dedupfs/a.py:1:"),
        (no_test_sleeps, "tests/a.py", "import time\ntime.sleep(1)\n", "tests/a.py:2:"),
        (no_test_sleeps, "tests/a.py", "from time import sleep\n", "tests/a.py:1:"),
        (bytes_at_random_have_a_seed, "tests/a.py", "\nos.urandom(9)\n", "tests/a.py:2:"),
        (
            sections_that_are_named_exist,
            "dedupfs/a.py",
            '\n# Source: docs/format.md, "Packs" and\n# "Nowhere".\n',
            "dedupfs/a.py:2:",
        ),
    ],
)
def test_a_broken_rule_is_named_with_its_place(
    rule: Rule, path: str, text: str, where: str
) -> None:
    violations = list(rule(Source.parse(path, text)))
    assert len(violations) == 1
    assert violations[0].startswith(where)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (only_main_exits, "dedupfs/cli/__init__.py", "sys.exit(main())\n"),
        (only_main_exits, "bench/__main__.py", "sys.exit(main())\n"),
        (only_reply_raises_fuse_error, "dedupfs/fuse/operations.py", "pyfuse3.FUSEError\n"),
        (functions_are_short, "dedupfs/a.py", LONG_FUNCTION.removesuffix("    x = 1\n")),
        (nothing_is_left_unfinished, "dedupfs/a.py", 'x = "/tmp/fileXXXXXX"\n'),
        (sections_that_are_named_exist, "dedupfs/a.py", '# docs/architecture.md, "Run".\n'),
    ],
)
def test_a_rule_leaves_alone_what_is_allowed(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source.parse(path, text))) == []
