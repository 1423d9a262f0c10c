"""After a power cut nothing that was fsynced is lost, and the store opens by itself (P4).

Method: a store on an ext4 or XFS image; two writers in a mount and a third process beside it work
and note each call where no cut reaches; at a random call the file system is shut down without a
flush of its log, the daemon killed, the image mounted again. ``check`` and ``scrub`` must be clean,
every snapshot whose command had returned identical, and the mount must show the view as it was
behind one of the calls since the last fsync. Every fourth time the index is lost as well, and
``reindex`` must bring back as much (P5). Then it goes on with what came back.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

from tests.conftest import Scale
from tests.powercut.rounds import Rounds, Tally

CUTS_PER_STORE = 12
CUTS_PER_LOST_INDEX = 4

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.program("losetup"),
    pytest.mark.timeout(7200),
]

KINDS = [
    pytest.param("ext4", marks=pytest.mark.program("mkfs.ext4")),
    pytest.param("xfs", marks=pytest.mark.program("mkfs.xfs")),
]


@pytest.fixture
def seed() -> int:
    return 1 if os.environ.get("CI") == "true" else secrets.randbits(32)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_fsynced_is_lost_in_a_power_cut(
    kind: str, tmp_path: Path, seed: int, scale: Scale
) -> None:
    tally = Tally()
    cuts = scale(4, 204)
    while tally.cuts < cuts:
        run_one_store(tmp_path, kind, seed, min(CUTS_PER_STORE, cuts - tally.cuts), tally)
        seed += 1
    say(f"{kind}: {tally}")


def run_one_store(tmp_path: Path, kind: str, seed: int, cuts: int, tally: Tally) -> None:
    directory = tmp_path / str(seed)
    directory.mkdir()
    rounds = Rounds(directory, kind, seed, tally)
    try:
        rounds.make_store()
        for number in range(1, cuts + 1):
            rounds.cut()
            if number % CUTS_PER_LOST_INDEX == 0:
                rounds.lose_the_index()
            rounds.verify_store()
        rounds.work_in_peace(3)
        rounds.verify_store()
    except BaseException as exc:
        exc.add_note(f"{kind} seed={seed} cut={tally.cuts}")
        raise
    finally:
        rounds.machine.remove()
