"""The demonstration ends well at a small size, with and without mounts, and leaves nothing behind.

Method: `python -m bench.demo` as a process, as ./dev runs it, with its own temporary directory.
What it says about the product it has checked itself: the exit code is 0 only if all of it held.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120
DEMO = [sys.executable, "-m", "bench.demo", "--scale", "0.02"]


@contextmanager
def started(*options: str, scratch: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*DEMO, *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": os.fspath(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process


@pytest.mark.fuse
@pytest.mark.slow
def test_everything_is_shown_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with started(scratch=tmp_path) as process:
        said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    assert "$ dedupfs mount store ckpts" in said
    assert "M model.safetensors" in said
    assert "no problems" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_mounts_the_rest_is_shown(tmp_path: Path) -> None:
    with started("--no-mount", scratch=tmp_path) as process:
        said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    assert "nothing can be mounted here: --no-mount was given" in said
    assert "dedupfs mount" not in said
    assert "no problems" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fuse
@pytest.mark.parametrize("moment", ["$ dedupfs mount store ckpts", "save_file("])
def test_interrupted_it_unmounts_and_cleans_up(tmp_path: Path, moment: str) -> None:
    with started(scratch=tmp_path) as process:
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, said
    assert list(tmp_path.iterdir()) == []
