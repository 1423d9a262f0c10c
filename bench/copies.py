"""A writable copy of a repository for each test of a pipeline: how long, how much, and who leaks?

Twenty states of a tree, of which some files change each time, and a copy of each to write into.
Afterwards each copy is written into in place, and all of them are looked at: what one wrote must
be seen in no other.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.commands import BenchError, dedupfs, disk_bytes, inode_count, reason, remove, run
from bench.datasets import change_files, grow_old, small_tree
from bench.harness import Harness, Record, rotated, seconds_of
from bench.peers import Xfs

FILES = 12_000
COPIES = 20
CHANGED = 20
LOOKED_AT = 5
WHOLE_COPIES = 4
"""So many whole copies are made; each of the others would take as much as the last."""
KEYS = ("copies-time", "copies-disk", "copies-inodes", "copies-leaks")
ONE_COPY = "one copy and the changes"
CLONE_XATTR = "user.dedupfs.clone"


class Copier(ABC):
    """One way to have a writable copy of each state of a directory. Only ``make`` is timed."""

    copies_max = COPIES
    programs: tuple[str, ...] = ()

    def __init__(self, name: str, place: Path) -> None:
        self.name = name
        self.place = place

    def missing(self) -> str:
        return ""

    def begin(self, source: Path) -> None:
        self.source = source
        self.place.mkdir()

    def look(self, number: int) -> None:
        """Let it take note of the state that the source has now."""
        del number

    @abstractmethod
    def make(self, number: int) -> None:
        """Make a copy of the state of which it has taken note last."""

    def copy(self, number: int) -> Path:
        return self.place / str(number)

    def more(self, record: Record) -> None:
        """Measure what else there is to measure of this one alone."""
        del record

    def stored(self) -> tuple[int, int]:
        """Return bytes and inodes on disk, once nobody writes any more."""
        return disk_bytes(self.place), inode_count(self.place)

    def end(self) -> None:
        remove(self.place)


class WholeCopy(Copier):
    copies_max = WHOLE_COPIES

    def make(self, number: int) -> None:
        run("cp", "-a", self.source, self.copy(number))


class LinkDest(Copier):
    def make(self, number: int) -> None:
        base = (f"--link-dest={self.copy(number - 1)}",) if number else ()
        run("rsync", "-a", *base, f"{self.source}/", self.copy(number))


class HardLinks(Copier):
    """Links to the copy before, and then what changed: rsync puts new files in their places."""

    def make(self, number: int) -> None:
        if number:
            run("cp", "-al", self.copy(number - 1), self.copy(number))
        run("rsync", "-a", "--delete", f"{self.source}/", self.copy(number))


class Reflinks(Copier):
    """On a file system of its own, where the source must be, too."""

    def __init__(self, name: str, place: Path) -> None:
        super().__init__(name, place)
        self.peer = Xfs(place)

    def missing(self) -> str:
        return self.peer.missing()

    def begin(self, source: Path) -> None:
        super().begin(source)
        self.peer.ready(source)
        self.spare_bytes = self.peer.disk_bytes() - disk_bytes(self.peer.data)

    def look(self, number: int) -> None:
        if number:
            run("rsync", "-a", "--delete", f"{self.source}/", self.peer.data)
            os.sync()

    def make(self, number: int) -> None:
        run("cp", "-a", "--reflink=always", self.peer.data, self.copy(number))

    def copy(self, number: int) -> Path:
        return self.peer.mountpoint / str(number)

    def stored(self) -> tuple[int, int]:
        """Leave out what an empty file system takes; the source's bytes are those of the copies."""
        inodes = inode_count(self.peer.mountpoint) - inode_count(self.peer.data)
        return self.peer.disk_bytes() - self.spare_bytes, inodes

    def end(self) -> None:
        self.peer.close()


class Clones(Copier):
    """A snapshot of each state, and a clone of it in a running mount."""

    def begin(self, source: Path) -> None:
        super().begin(source)
        self.store, self.mountpoint = self.place / "store", self.place / "mnt"
        self.mountpoint.mkdir()
        dedupfs("init", self.store)
        dedupfs("mount", self.store, self.mountpoint)

    def look(self, number: int) -> None:
        dedupfs("import", self.store, self.source, f"state-{number}")

    def make(self, number: int) -> None:
        view = self.copy(number)
        view.mkdir()
        os.setxattr(view, CLONE_XATTR, b"state-%d" % number)

    def copy(self, number: int) -> Path:
        return self.mountpoint / f"copy-{number}"

    def more(self, record: Record) -> None:
        """The command, once for all: it is mostly the start of Python."""
        for name, count in (("dedupfs clone", 1), (f"dedupfs clone, {COPIES} at once", COPIES)):
            views = [self.mountpoint / f"by-command-{count}-{n}" for n in range(count)]
            seconds = seconds_of(partial(dedupfs, "clone", self.store, "state-0", *views))
            record.put("copies-time", name, 0, seconds / count * 1000)

    def stored(self) -> tuple[int, int]:
        dedupfs("umount", self.mountpoint)
        return disk_bytes(self.store), inode_count(self.store)

    def end(self) -> None:
        if self.mountpoint.is_mount():
            dedupfs("umount", self.mountpoint)
        super().end()


def measure(harness: Harness) -> None:
    with harness.borrowed("copies") as place:
        tree = small_tree(place / "tree", harness.scale.count(FILES))
        grow_old()
        copiers = [
            WholeCopy("cp -a", place / "cp"),
            LinkDest("rsync --link-dest", place / "link-dest"),
            HardLinks("cp -al; rsync", place / "links"),
            Reflinks("XFS: cp -a --reflink", place / "xfs"),
            Clones("dedupfs", place / "dedupfs"),
        ]
        record = Record(KEYS, [ONE_COPY, *(copier.name for copier in copiers)])
        ready = _begin(harness, record, copiers, tree)
        try:
            _states(record, ready, tree)
        finally:
            for copier in copiers:
                if hasattr(copier, "source"):
                    copier.end()
        count = sum(path.is_file() for path in tree.rglob("*"))
        note = (
            f"{count} files, {CHANGED} changed each time; {WHOLE_COPIES} of cp -a are made, and "
            "the rest is added; dedupfs: mkdir and setxattr in a running mount"
        )
        for result in record.conclude(note):
            harness.add(result)


def _begin(harness: Harness, record: Record, copiers: Sequence[Copier], tree: Path) -> list[Copier]:
    ready = []
    for copier in copiers:
        why = "left out by --without" if copier.name in harness.leave_out else copier.missing()
        if not why:
            try:
                copier.begin(tree)
            except (BenchError, OSError) as error:
                why = reason(error)
        if why:
            record.fail(copier.name, why)
        else:
            ready.append(copier)
    return ready


def _states(record: Record, ready: list[Copier], tree: Path) -> None:
    names = sorted(path.relative_to(tree) for path in tree.rglob("*") if path.is_file())
    names = names[:: max(1, len(names) // LOOKED_AT)][:LOOKED_AT]
    states = []
    sizes: dict[str, list[tuple[int, int]]] = {copier.name: [] for copier in ready}
    one_copy = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    for number in range(COPIES):
        one_copy += change_files(tree, CHANGED, number) if number else 0
        states.append([(tree / name).read_bytes() for name in names])
        for copier in rotated(ready, number):
            if number < copier.copies_max and not record.has_failed("copies-time", copier.name):
                _one(record, copier, number)
                if copier.copies_max < COPIES:
                    sizes[copier.name].append(copier.stored())
    record.put("copies-disk", ONE_COPY, 0, one_copy)
    for copier in ready:
        if not record.has_failed("copies-time", copier.name):
            leaks = partial(_leaks, copier, names, states)
            record.turn("copies-leaks", copier.name, 0, leaks)
            copier.more(record)
            found = sizes[copier.name] or [copier.stored()]
            stored = [_for_all(values) for values in zip(*found, strict=True)]
            record.put("copies-disk", copier.name, 0, stored[0])
            record.put("copies-inodes", copier.name, 0, stored[1])


def _one(record: Record, copier: Copier, number: int) -> None:
    def milliseconds() -> float:
        return seconds_of(lambda: copier.make(number)) * 1000

    try:
        copier.look(number)
    except (BenchError, OSError) as error:
        record.fail(copier.name, reason(error))
        return
    record.turn("copies-time", copier.name, number, milliseconds)


def _for_all(found: Sequence[int]) -> float:
    """Return the last of the values, or what it would be if there were all copies."""
    missing = COPIES - len(found) if len(found) > 1 else 0
    return float(found[-1] + missing * (found[-1] - found[-2] if missing else 0))


def _leaks(copier: Copier, names: list[Path], states: list[list[bytes]]) -> float:
    """Write into a file of each copy in place; return how many files are not what they must be."""
    copies = range(min(copier.copies_max, COPIES))
    expected = [dict(zip(names, states[number], strict=True)) for number in copies]
    for number in copies:
        name = names[number % len(names)]
        mark = b"written in %d" % number
        with (copier.copy(number) / name).open("r+b") as file:
            file.write(mark)
        expected[number][name] = mark + expected[number][name][len(mark) :]
    return float(
        sum(
            (copier.copy(number) / name).read_bytes() != data
            for number in copies
            for name, data in expected[number].items()
        )
    )
