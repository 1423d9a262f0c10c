"""A store of small chunks, so that small files take every path; each test ends with a check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.transfer.trees import make_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make_store(tmp_path / "store") as opened:
        yield opened
        report = check(opened)
        assert report.ok, "\n".join(map(str, report.problems))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory
