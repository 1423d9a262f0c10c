"""docs/api.md is right: its blocks of Python run, one after the other, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dedupfs

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "api.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def program_of(page: str) -> str:
    """Return the page's blocks, each in the lines where it stands."""
    lines = [""] * page.count("\n")
    for block in _BLOCK.finditer(page):
        first = page.count("\n", 0, block.start(1))
        lines[first : first + block[1].count("\n")] = block[1].splitlines()
    return "\n".join(lines)


def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    program = tmp_path / "api.py"
    register = (
        "import fsspec, dedupfs.api.filesystem as _f; "  # as the installed package does
        "fsspec.register_implementation('dedupfs', _f.DedupfsFileSystem, clobber=True)"
    )
    text = program_of(PAGE.read_text())
    assert text.count("\n") > 100
    program.write_text(f"{register};{text}" if text.startswith("\n") else text)
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_on_the_page() -> None:
    page = PAGE.read_text()
    for owner in (dedupfs.Store, dedupfs.Snapshot, dedupfs.View):
        for name in dir(owner):
            if not name.startswith("_") and name not in _NOT_FOR_PROGRAMS:
                assert re.search(rf"\b{name}\b", page), f"{owner.__name__}.{name}"


_NOT_FOR_PROGRAMS = {"core", "forget", "is_open", "opened", "tidy"}
