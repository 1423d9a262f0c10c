"""``rm -rf store/index && dedupfs reindex store`` after a long random run loses nothing (P5).

Method: the writers and the process beside them work for many steps in a mount. It ends by a
SIGKILL of the daemon while they are at work, or in order; then the index goes. Every snapshot must
be what it was, byte for byte, and the view must show what it showed with the index: after SIGKILL
that is everything that a completed call did, since the journal has it all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Scale
from tests.fuse.harness import Daemons
from tests.maintenance.samples import contents, lose_index, sound
from tests.powercut.matching import Shown, read_mount
from tests.powercut.rounds import WRITERS, Rounds, Tally
from tests.powercut.test_power_cut import seed

__all__ = ["seed"]

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.program("losetup", "mkfs.ext4"),
    pytest.mark.timeout(7200),
]


@pytest.mark.parametrize("ended", ["in order", "killed"])
def test_snapshots_and_views_come_back_without_the_index(
    ended: str, tmp_path: Path, seed: int, scale: Scale
) -> None:
    rounds = Rounds(tmp_path, "ext4", seed, Tally())
    try:
        rounds.make_store()
        for _ in range(scale(1, 25)):
            rounds.work_in_peace(scale(25, 60))
            rounds.verify_store()
        if ended == "killed":
            rounds.work_until_killed()
        copied = tmp_path / "copied"
        shutil.copytree(rounds.machine.store, copied, ignore=shutil.ignore_patterns("*.sock"))
        before = contents(rounds.machine.store), shown_by(rounds.machine.store, tmp_path / "with")
        lose_index(copied)
        done = subprocess.run(
            [sys.executable, "-m", "dedupfs", "reindex", copied], check=False, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert (contents(copied), shown_by(copied, tmp_path / "without")) == before
        sound(copied)
    except BaseException as exc:
        exc.add_note(f"seed={seed}")
        raise
    finally:
        rounds.machine.remove()


def shown_by(store: Path, directory: Path) -> dict[str, Shown]:
    """Mount a store's view and read everything of the writers, but for inode numbers."""
    directory.mkdir()
    daemons = Daemons(directory)
    try:
        mounted = daemons.start(store=str(store))
        return {name: without_inodes(read_mount(mounted.path, name)) for name in WRITERS}
    finally:
        daemons.end_all()


def without_inodes(shown: Shown) -> Shown:
    """Directories may get other numbers from reindex: docs/architecture.md, "Inode numbers"."""
    return {path: replace(found, inode=0) for path, found in shown.items()}
