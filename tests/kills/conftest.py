"""Seeds that are printed, places that are cleared."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kills.place import Place


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """The test's seed: fixed under CI=true, else random; DEDUPFS_SEED=... repeats one."""
    drawn = "ci" if os.environ.get("CI") == "true" else str(random.randrange(1 << 32))
    chosen = os.environ.get("DEDUPFS_SEED", drawn)
    sys.stdout.write(f"DEDUPFS_SEED={chosen} {request.node.name}\n")
    return chosen


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Where to put a store and mounts; whatever is left of them is ended with the test."""
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.end_all()
