"""Mounts whose daemons may be killed, and a store that is right in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.takeover.harness import Supervised

Mount = Callable[..., Supervised]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Return a function that mounts the test's store; ``check`` follows the test."""
    started: list[Supervised] = []

    def start(name: str = "mnt", *options: str) -> Supervised:
        started.append(Supervised.start(tmp_path, name, *options))
        return started[-1]

    try:
        yield start
        for mounted in started:
            mounted.end()
        if started:
            Supervised.command("check", started[0].store)
    finally:
        for mounted in started:
            mounted.abandon()
