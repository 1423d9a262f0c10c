"""SIGKILL at random under everything at once: nothing that a completed call did is lost (P4).

Method: two mounts of one store, one of which lets the kernel keep writes, each with writers that
record every call that has returned (see writer.py), and commands beside them. A victim is chosen,
lives for a counted number of calls and a short spin, and is killed with all its processes.
Everybody else must go on, ``check`` must be clean while they do, and the writers compare the mount
that is made anew with their models, byte for byte; so do they with every snapshot that a completed
commit made. In the end all is removed, and the store must be empty: nothing of what the dead had
begun may stay.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.maintenance.gc import collect
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.views import list_views, remove_view
from dedupfs.store import Store
from tests.conftest import Scale
from tests.fuse.harness import REPOSITORY
from tests.kills.place import (
    ENVIRONMENT,
    LIMIT_S,
    Place,
    drain,
    kill_mount,
    read_some,
    spin,
)
from tests.maintenance.samples import rows

pytestmark = pytest.mark.unmeasured

WRITERS = 2
CALLS_MAX = 250
SPIN_S_MAX = 0.02
AROUND = {0, 1, 3, 6, 8}
"""How a command may end while daemons die and begin beside it, and one that is asked to remove what
another one had no time to make: docs/cli.md, "Exit codes"."""


class Mount:
    """One view, its mount, and the writers in it."""

    def __init__(self, place: Place, name: str, seed: str, *, cached: bool) -> None:
        """``cached``: the kernel keeps writes."""
        self.place = place
        self.name = name
        self.cached = cached
        self.path = place.mountpoint(name)
        self.reader, progress = os.pipe()
        self.up()
        self.writers = [self._start(f"{seed}-{name}{n}", n, progress) for n in range(WRITERS)]
        os.close(progress)
        self.calls = 0

    def _start(self, seed: str, number: int, progress: int) -> subprocess.Popen[bytes]:
        top = self.path / f"w{number}"
        top.mkdir()
        return subprocess.Popen(
            [
                *[sys.executable, "-m", "tests.kills.writer"],
                *[seed, str(self.place.store), str(top), str(progress)],
                "cached" if self.cached else "uncached",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # or select(2) would not see a second answer that came with the first
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            pass_fds=[progress],
        )

    def up(self) -> None:
        options = [] if self.cached else ["--no-writeback"]
        self.place.mount(self.name, "--view", self.name, *options)

    def tell(self, line: str) -> None:
        for writer in self.writers:
            assert writer.stdin is not None
            writer.stdin.write(line.encode() + b"\n")

    def answers(self) -> list[dict[str, object]]:
        found = []
        for writer in self.writers:
            assert writer.stdout is not None
            assert select.select([writer.stdout], [], [], LIMIT_S)[0], "a writer hangs"
            line = writer.stdout.readline()
            assert line, f"a writer of {self.name} failed: see its traceback"
            found.append(json.loads(line))
        return found

    def await_calls(self, count: int) -> None:
        """Return when so many more calls have returned."""
        drain(self.reader)
        while count > 0:
            count -= read_some(self.reader, count)

    def kill(self) -> None:
        assert kill_mount(self.path) >= 1

    def verify(self) -> None:
        """Compare with the models; writers must be at rest."""
        self.tell("verify")
        answers = self.answers()
        wrong = [what for answer in answers for what in answer["wrong"]]  # type: ignore[attr-defined]
        assert not wrong, "\n".join(wrong)
        self.calls = sum(int(str(answer["calls"])) for answer in answers)

    def come_back(self) -> None:
        """The daemon is dead: wait until all writers know, mount, compare, go on."""
        assert {answer["answer"] for answer in self.answers()} == {"stopped"}
        self.up()
        self.verify()
        self.tell("write")

    def rest(self) -> None:
        self.tell("pause")
        assert {answer["answer"] for answer in self.answers()} == {"paused"}
        self.answers()  # "pause" itself is answered with a comparison
        self.verify()

    def end(self) -> None:
        for writer in self.writers:
            writer.kill()
            writer.communicate()
        os.close(self.reader)


class Storm:
    """Kills, and looks what is left."""

    def __init__(self, place: Place, seed: str, mounts: list[Mount]) -> None:
        self.place = place
        self.random = random.Random(seed)
        self.mounts = mounts
        self.kills: Counter[str] = Counter()
        self.command: subprocess.Popen[str] | None = None
        self.source = place.directory / "source"
        self.number = 0

    def keep_a_command_running(self) -> None:
        """See how the last command ended, and start another one."""
        if self.command is not None:
            if self.command.poll() is None:
                return
            self.end_command(AROUND)
        self.number += 1
        name, older = f"by-command-{self.number}", f"by-command-{self.number - 8}"
        choices = [
            ("gc", self.place.store),
            ("commit", self.place.store, name, "--view", self.mounts[0].name, "--path", "w0"),
            ("import", self.place.store, self.source, name, "--reread"),
            ("stats", self.place.store),
            ("check", self.place.store),
        ]
        if self.number > 8:  # so that the store does not grow with the number of kills
            choices += [("rm", self.place.store, older)] * 2
        self.command = self.place.start(*self.random.choice(choices))

    def end_command(self, codes: set[int]) -> None:
        command = self.command
        assert command is not None
        self.command = None
        _out, err = command.communicate(timeout=LIMIT_S)
        self.place.started.remove(command)
        assert command.returncode in codes, f"{command.args!r}: exit {command.returncode}: {err}"

    def kill_somebody(self) -> None:
        victim = self.random.choices(["one mount", "both mounts", "command"], [5, 2, 3])[0]
        mounts = {
            "one mount": [self.random.choice(self.mounts)],
            "both mounts": self.mounts,
            "command": [],
        }[victim]
        (mounts or self.mounts)[0].await_calls(self.random.randrange(1, CALLS_MAX))
        spin(self.random, SPIN_S_MAX)
        if victim == "command":
            assert self.command is not None
            self.command.kill()
            self.end_command({-9, 0, *AROUND})
        for mount in mounts:
            mount.kill()
        self.kills[victim] += max(1, len(mounts))
        for mount in self.mounts:
            if mount not in mounts:
                mount.await_calls(1)  # everything else goes on
        self.place.assert_sound()
        for mount in mounts:
            mount.come_back()


@contextmanager
def storm(place: Place, seed: str) -> Iterator[Storm]:
    Store.create(
        place.store,
        chunk_bytes_average=4096,
        pack_bytes_max=2 << 20,
        verbatim_bytes_min=256 << 10,
    ).close()
    mounts: list[Mount] = []
    try:
        mounts += [Mount(place, name, seed, cached=name == "b") for name in ("a", "b")]
        made = Storm(place, seed, mounts)
        fill(made.source, made.random)
        yield made
    finally:
        for mount in mounts:
            mount.end()


def fill(directory: Path, generator: random.Random) -> None:
    directory.mkdir()
    for number in range(20):
        data = generator.randbytes(generator.randrange(100_000))
        (directory / str(number)).write_bytes(data)


def assert_nothing_is_left(place: Place) -> None:
    """Remove all names: then nothing may hold on to space, and no dead process's files remain."""
    with Store.open(place.store) as store:
        SnapshotCatalog(store).remove([info.name for info in SnapshotCatalog(store).list()])
        for row in list_views(store):
            remove_view(store, row.name)
        collect(store)
        assert rows(store) == []
        packs = [path for path in (place.store / "packs").rglob("*") if path.is_file()]
        assert sum(path.stat().st_blocks * 512 for path in packs) <= len(packs) * (64 << 10)
    left = {path.name for path in (place.store / "run").iterdir() if path.suffix != ".log"}
    assert left <= {"punch.lock", "reindex.lock"}


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_nothing_is_lost_in_a_storm_of_kills(place: Place, seed: str, scale: Scale) -> None:
    kills = scale(5, 220)
    with storm(place, seed) as weather:
        for mount in weather.mounts:
            mount.tell("write")
        while sum(weather.kills.values()) < kills:
            weather.keep_a_command_running()
            weather.kill_somebody()
        for mount in weather.mounts:
            mount.rest()
        if weather.command is not None:
            weather.end_command(AROUND)  # it may have been talking to whom the last kill took
        place.assert_sound()
        for mount in weather.mounts:
            place.umount(mount.name)
            mount.up()
            mount.verify()
            place.umount(mount.name)
        calls = sum(mount.calls for mount in weather.mounts)
        sys.stdout.write(f"kills={dict(weather.kills)} calls={calls}\n")
    place.dedupfs("scrub", place.store)
    assert_nothing_is_left(place)
    place.assert_sound()
