"""A command that is killed leaves a sound store, and loses nothing that was there before.

Method: each command runs on a copy of one small store and is killed at a random call of the disk
(dying.py). Then ``check`` must be clean (after ``reindex`` once more for a killed reindex), all
snapshots but those that the command speaks of must read as before, the command must work when it is
simply given again, and in the end nothing may be left of the dead process: neither files in run/
nor a byte that gc does not bring back.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dedupfs.maintenance.scrub import scrub
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.store import Store
from tests.conftest import Scale
from tests.fuse.harness import REPOSITORY
from tests.kills.place import ENVIRONMENT, LIMIT_S, Place
from tests.kills.test_storm import assert_nothing_is_left
from tests.maintenance.samples import (
    SMALL,
    Content,
    import_directory,
    make_directory,
    read_back,
    read_directory,
)

pytestmark = pytest.mark.unmeasured

SPIN_US_MAX = 3000
KEPT = ("one", "two")
COMMANDS = {
    "gc": ["gc", "{store}"],
    "import": ["import", "{store}", "{source}", "new"],
    "reindex": ["reindex", "{store}"],
    "rm": ["rm", "{store}", "goes"],
    "prune": ["prune", "{store}", "goes", "--keep-tag", "release", "--allow-empty"],
    "export": ["export", "{store}", "one", "{out}"],
    "commit": ["commit", "{store}", "frozen", "--view", "work"],
    "clone": ["clone", "{store}", "one", "second"],
    "view rm": ["view", "rm", "{store}", "work"],
}


def make_template(directory: Path) -> dict[str, Content]:
    """Make a store with snapshots, garbage, and a view whose daemon has died; what they hold."""
    with Store.create(directory / "store", **SMALL) as store:
        for number, name in enumerate([*KEPT, "goes", "gone"]):
            import_directory(store, make_directory(directory / f"source-{name}", number), name)
        view = View.bring_back(store, "work")
        view.mkdir(1, b"d", 0o755, Caller(0, 0))
        for size in (300, 90_000):
            handle, _ = view.create(1, str(size).encode(), 0o644, Caller(0, 0))
            view.write(handle, 0, random.Random(size).randbytes(size))
        view._opened.release()
        SnapshotCatalog(store).remove(["gone"])
        return {name: read_back(store, name) for name in KEPT}


def dying(place: Place, count: int, spin_us: int, words: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills.dying", str(count), str(spin_us), *words],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.allow_log("leftover", "pack shorter")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_leaves_everything_else(
    place: Place, seed: str, scale: Scale, command: str
) -> None:
    generator = random.Random(seed + command)
    template = place.directory / "template"
    template.mkdir()
    expected = make_template(template)
    out = place.directory / "out"
    names = {"store": place.store, "source": template / "source-gone", "out": out}
    words = [word.format(**names) for word in COMMANDS[command]]

    def renew() -> None:
        for path in (place.store, out):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(template / "store", place.store)

    renew()
    code, said = dying(place, 0, 0, words)
    assert code == 0, said
    calls = int(said.split()[-1])
    kills = 0
    for _ in range(scale(1, 25)):
        renew()
        count, spin_us = generator.randrange(1, calls + 1), generator.randrange(SPIN_US_MAX)
        code, said = dying(place, count, spin_us, words)
        assert code in (-9, 0), said
        kills += code == -9
        if command == "export":  # what it had restored is right; the directory is in the way now
            shutil.rmtree(out, ignore_errors=True)
        if command == "reindex" and code == -9:
            place.dedupfs(*words)
        compare(place, expected, (count, spin_us))
        again = place.dedupfs(*words, codes=(0, 1, 2))
        assert code == 0 or not again or "Traceback" not in again
        compare(place, expected, (count, spin_us))
        if out.exists():
            assert read_directory(out) == expected["one"]
        assert_nothing_is_left(place)
    sys.stdout.write(f"command={command} calls={calls} kills={kills}\n")


def compare(place: Place, expected: dict[str, Content], when: object) -> None:
    place.assert_sound()
    with Store.open(place.store) as store:
        assert {name: read_back(store, name) for name in KEPT} == expected, when
        assert scrub(store, from_disk=False).ok, when
