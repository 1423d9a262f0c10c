"""What does taking a directory in cost, new and unchanged, and the next snapshot of a tree?

Compared with copies (also with the sync that makes a copy as durable as an import is) and backups.
The sources are in the page cache as far as the memory goes.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.backups import Backup, Borg, Restic
from bench.commands import dedupfs, disk_bytes, inode_count, remove, run
from bench.datasets import change_files, checkpoint_family, grow_old, small_tree, tiny_tree
from bench.harness import Harness, Record, rotated, seconds_of

FAMILY_FILES = 8
FAMILY_BYTES = 640 << 20
FAMILY_SECONDS = 90
TINY_FILES = 30_000
TINY_SECONDS = 20
TREE_FILES = 12_000
SNAPSHOTS = 12
CHANGED = 20
COPIES = 4
"""So many copies and rsyncs are made; each of the others would take as much as the last."""


class Taker(ABC):
    """Something that takes a directory in, again and again."""

    rounds_max = 100
    programs: tuple[str, ...] = ()

    def __init__(self, name: str, place: Path) -> None:
        self.name = name
        self.place = place

    def missing(self) -> str:
        return ""

    def begin(self) -> None:
        """Be empty."""
        remove(self.place)
        self.place.mkdir(parents=True)

    @abstractmethod
    def take(self, source: Path, number: int) -> None:
        """Take the directory in once more; this is timed."""

    def stored(self) -> tuple[int, int]:
        """Return bytes and inodes on disk."""
        return disk_bytes(self.place), inode_count(self.place)


class DedupfsImport(Taker):
    def begin(self) -> None:
        super().begin()
        dedupfs("init", self.place / "store")

    def take(self, source: Path, number: int) -> None:
        dedupfs("import", self.place / "store", source, f"take-{number}")


class Copies(Taker):
    """Whole copies, one beside the other, or over the one before."""

    def __init__(self, name: str, place: Path, *, durable: bool = False, over: bool = True) -> None:
        super().__init__(name, place)
        self.durable = durable
        self.over = over

    def take(self, source: Path, number: int) -> None:
        run("cp", "-a", f"{source}/.", self.place / ("0" if self.over else str(number)))
        if self.durable:
            run("sync", "--file-system", self.place)


class Rsync(Taker):
    """Each copy has hard links to what did not change since the one before."""

    programs = ("rsync",)

    def take(self, source: Path, number: int) -> None:
        base = (f"--link-dest={self.place / str(number - 1)}",) if number else ()
        run("rsync", "-a", *base, f"{source}/", self.place / str(number))


class BackupTaker(Taker):
    def __init__(self, kind: type[Backup], place: Path, rounds_max: int = 1) -> None:
        super().__init__(kind.name, place)
        self.kind = kind
        self.rounds_max = rounds_max

    def missing(self) -> str:
        return self.kind(self.place).missing()

    def begin(self) -> None:
        super().begin()
        self.backup = self.kind(self.place)
        self.backup.init()

    def take(self, source: Path, number: int) -> None:
        del number
        self.backup.create(source)

    def stored(self) -> tuple[int, int]:
        return self.backup.disk_bytes(), self.backup.inode_count()


def measure_family(harness: Harness) -> None:
    """A checkpoint family, new and then unchanged; and many unchanged small files."""
    file_bytes = harness.scale.bytes(FAMILY_BYTES)
    harness.require_room(3 * FAMILY_FILES * file_bytes)  # it, one copy at a time, and some
    with harness.borrowed("family") as place:
        family = checkpoint_family(place / "steps", count=FAMILY_FILES, file_bytes=file_bytes)
        total = family.logical_bytes / 1e6
        note = (
            f"{FAMILY_FILES} files, {total:.0f} MB, 30 % of the tensors frozen; "
            "cp writes over what it wrote before"
        )
        keys = {"import-new": total, "import-again": total}
        _new_and_again(harness, place, place / "steps", keys, note, FAMILY_SECONDS)
    with harness.borrowed("tiny") as place:
        count = harness.scale.count(TINY_FILES)
        tiny_tree(place / "steps", count)
        grow_old()
        note = f"{count} files of some bytes each"
        keys = {"": count, "import-files": count}
        _new_and_again(harness, place, place / "steps", keys, note, TINY_SECONDS)


def _new_and_again(
    harness: Harness,
    place: Path,
    source: Path,
    keys: dict[str, float],
    note: str,
    seconds: float,
) -> None:
    """``keys``: the questions of the first and the second time, and what they are rates of."""
    started = time.monotonic()
    takers: list[Taker] = [
        Copies("cp -a", place / "cp"),
        DedupfsImport("dedupfs", place / "dedupfs"),
        BackupTaker(Borg, place / "borg"),
        BackupTaker(Restic, place / "restic"),
    ]
    if "import-new" in keys:
        takers.insert(1, Copies("cp -a; sync", place / "cp-sync", durable=True))
    record = Record([key for key in keys if key], [taker.name for taker in takers])
    ready = _who_can(harness, record, takers)
    for number in harness.each_round(seconds, started):
        for taker in rotated(ready, number):
            if number < taker.rounds_max:
                twice = partial(_take_twice, record, taker, source, keys, number)
                took = seconds_of(twice)
                if number + 1 >= taker.rounds_max:
                    harness.once_seconds += took
    for result in record.conclude(note):
        harness.add(result)


def _take_twice(
    record: Record, taker: Taker, source: Path, keys: dict[str, float], number: int
) -> None:
    def rate(total: float, turn: int) -> float:
        return total / seconds_of(lambda: taker.take(source, turn))

    try:
        taker.begin()
        for turn, (key, total) in enumerate(keys.items()):
            if turn == 0:
                os.sync()  # not what others left to be written back
            if not key:
                taker.take(source, turn)
            elif not record.turn(key, taker.name, number, partial(rate, total, turn)):
                return
    finally:
        remove(taker.place)


def _who_can(harness: Harness, record: Record, takers: Sequence[Taker]) -> list[Taker]:
    ready = []
    for taker in takers:
        reason = "left out by --without" if taker.name in harness.leave_out else taker.missing()
        if reason:
            record.fail(taker.name, reason)
        else:
            ready.append(taker)
    return ready


def measure_history(harness: Harness) -> None:
    """Snapshots of a tree of which some files change each time: time, bytes and inodes."""
    with harness.borrowed("history") as place:
        tree = small_tree(place / "tree", harness.scale.count(TREE_FILES))
        takers: list[Taker] = [
            Copies("cp -a", place / "cp", over=False),
            Rsync("rsync --link-dest", place / "rsync"),
            DedupfsImport("dedupfs", place / "dedupfs"),
            BackupTaker(Borg, place / "borg", SNAPSHOTS),
            BackupTaker(Restic, place / "restic", SNAPSHOTS),
        ]
        for taker in takers[:2]:
            taker.rounds_max = COPIES
        names = [taker.name for taker in takers]
        record = Record(("import-next", "stored-bytes", "stored-inodes"), names)
        ready = _who_can(harness, record, takers)
        sizes: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        for taker in ready:
            taker.begin()
        for number in range(SNAPSHOTS):
            if number:
                change_files(tree, CHANGED, number)
            for taker in rotated(ready, number):
                if number < taker.rounds_max and not record.has_failed("import-next", taker.name):
                    _take_next(record, taker, tree, number, sizes[taker.name])
        for name, found in sizes.items():
            if found:
                stored = _for_all(found)
                record.put("stored-bytes", name, 0, stored[0])
                record.put("stored-inodes", name, 0, stored[1])
        count = sum(path.is_file() for path in tree.rglob("*"))
        note = (
            f"{count} files, {CHANGED} of them changed each time; of cp and rsync {COPIES} are "
            "made, and the rest is added"
        )
        for result in record.conclude(note):
            harness.add(result)


def _take_next(
    record: Record, taker: Taker, tree: Path, number: int, sizes: list[tuple[int, int]]
) -> None:
    def take() -> float:
        return seconds_of(lambda: taker.take(tree, number))

    if number == 0:
        taker.take(tree, number)
    else:
        record.turn("import-next", taker.name, number - 1, take)
    if number < COPIES or number == SNAPSHOTS - 1:
        sizes.append(taker.stored())


def _for_all(found: list[tuple[int, int]]) -> tuple[float, float]:
    """Return what all snapshots take: as measured, or the last step once for each not made."""
    last = found[-1]
    if len(found) > COPIES:
        return float(last[0]), float(last[1])
    steps = SNAPSHOTS - len(found)
    before = found[-2] if len(found) > 1 else last
    return (
        float(last[0] + steps * (last[0] - before[0])),
        float(last[1] + steps * (last[1] - before[1])),
    )
