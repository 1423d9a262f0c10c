"""A plugin that dies while it makes or removes a volume: the next one puts that in order.

Method: tests/volumes/dying.py. SIGKILL right before each call that changes a disk, or a power cut.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dedupfs.cli import main
from tests.conftest import Scale
from tests.fuse.harness import REPOSITORY

pytestmark = pytest.mark.unmeasured

LIMIT_S = 500
CALLS_MIN = 20


def check_all(directory: Path, action: str, how: str, stride: int) -> None:
    data = directory / "data"
    data.mkdir()
    (data / "file").write_bytes(b"from the snapshot\n")
    store = directory / "store"
    assert main(["init", str(store), "--chunk-size", "4KiB"]) == 0
    assert main(["import", str(store), str(data), "base"]) == 0
    words = ["-m", "tests.volumes.dying", str(directory), action, how, str(stride)]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    calls = int(done.stdout.split()[1])
    assert calls > CALLS_MIN - stride, done.stdout


@pytest.mark.parametrize("action", ["create", "remove"])
def test_a_volume_is_whole_or_not_there_whenever_its_plugin_is_killed(
    tmp_path: Path, action: str, scale: Scale
) -> None:
    check_all(tmp_path, action, "kill", scale(9, 1))


@pytest.mark.root
@pytest.mark.program("mkfs.ext4", "losetup")
@pytest.mark.parametrize("action", ["create", "remove"])
def test_a_volume_is_whole_or_not_there_whenever_the_power_fails(
    tmp_path: Path, action: str, scale: Scale
) -> None:
    check_all(tmp_path, action, "cut", scale(12, 1))
