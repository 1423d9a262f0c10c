"""A place for programs to work at; it is mounted once more and checked when the test is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.harness import Daemons
from tests.programs.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    daemons = Daemons(tmp_path)
    try:
        started = Place(daemons)
        yield started
        started.end()
    finally:
        daemons.end_all()
    assert daemons.complaints() == []
