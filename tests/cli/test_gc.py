"""gc beside mounts that cannot do their part of it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from dedupfs.errors import StoreBusyError, StoreFullError
from dedupfs.namespace import live
from tests.cli.conftest import Run, answering


@pytest.mark.parametrize("error", [StoreFullError("the disk is full"), StoreBusyError("hung")])
@pytest.mark.parametrize("command", ["gc", "rm", "prune"])
def test_a_mount_that_cannot_fold_keeps_nobody_from_freeing(
    run: Run, store_path: Path, data: Path, command: str, error: StoreFullError | StoreBusyError
) -> None:
    """On a full disk a fold may need what only this gives back."""
    rng = random.Random(1)
    for name in ("old", "new"):
        (data / name).write_bytes(rng.randbytes(100_000))
        run("import", store_path, data, name)
        (data / name).unlink()
    words = {"gc": [], "rm": ["old"], "prune": ["--keep-last", "1"]}[command]
    if command == "gc":
        run("rm", "--no-gc", store_path, "old")

    def answer(asked: live.Request) -> live.Reply:
        running = live.Running(os.getpid(), "full", "/mnt/full", read_only=False)
        return running if asked == live.Status() else live.Failed.of(error)

    with answering(store_path, "full", 2, answer):
        ran = run(command, store_path, *words)
    assert ran.err.startswith("dedupfs: /mnt/full holds what was deleted in it")
    assert str(error) in ran.err
    assert run("gc", "--json", store_path).json["freed_bytes"] == 0, "it was freed already"
