"""How long until there is a new writable, isolated copy of a directory, and what does it take?

Of a tree of many files, and of one large file. The first listing belongs to the time.
"""

from __future__ import annotations

import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.commands import BenchError, dedupfs, disk_bytes, reason, remove, run, unmount
from bench.datasets import noise_file, small_tree
from bench.harness import Harness, Record, rotated, seconds_of
from bench.peers import SNAPSHOT, Btrfs, Dedupfs, FuseOverlay, Overlay, Peer, S3ql, Xfs, taking_part

FILES = 12_000
FILE_BYTES = 512 << 20
SECONDS = {"view-tree": 45, "view-file": 20}
CLONE_XATTR = "user.dedupfs.clone"


def measure(harness: Harness) -> None:
    with harness.borrowed("tree") as place:
        tree = small_tree(place / "tree", harness.scale.count(FILES))
        count = sum(path.is_file() for path in tree.rglob("*"))
        _measure(harness, "view-tree", tree, f"{count} files")
    with harness.borrowed("checkpoint") as place:
        size = harness.scale.bytes(FILE_BYTES)
        (place / "checkpoint").mkdir()
        noise_file(place / "checkpoint" / "model.bin", size)
        _measure(harness, "view-file", place / "checkpoint", f"{size >> 20} MiB")


class _Way(ABC):
    """One way to make a view. Only ``make`` is timed."""

    rounds_max = 100

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.view = directory / "view"
        self.numbers = itertools.count()

    @abstractmethod
    def make(self) -> Path:
        """Make the view; return where it is seen."""

    @abstractmethod
    def taken(self) -> int:
        """Return the disk space behind all views."""

    @abstractmethod
    def undo(self) -> None: ...


class _Copy(_Way):
    """A copy beside the source, by a command."""

    rounds_max = 3

    def __init__(self, source: Path, *command: str) -> None:
        super().__init__(" ".join(command), source.parent)
        self.source = source
        self.command = command

    def make(self) -> Path:
        run(*self.command, self.source, self.view)
        return self.view

    def taken(self) -> int:
        return disk_bytes(self.source.parent)

    def undo(self) -> None:
        remove(self.view)


class _ImageCopy(_Copy):
    """The same on a file system of its own, whose used space is looked at."""

    def __init__(self, peer: Xfs | Btrfs, *command: str) -> None:
        super().__init__(peer.data, *command)
        self.name = f"{peer.name}: {self.name}"
        self.peer = peer

    def taken(self) -> int:
        return self.peer.disk_bytes()


class _Subvolume(_ImageCopy):
    rounds_max = 100

    def undo(self) -> None:
        run("btrfs", "-q", "subvolume", "delete", self.view)


class _S3qlCopy(_Way):
    """`s3qlcp` in a running mount of S3QL, which copies what it knows of files and no data."""

    rounds_max = 3

    def __init__(self, peer: S3ql) -> None:
        super().__init__("S3QL: s3qlcp", peer.mountpoint)
        self.peer = peer

    def make(self) -> Path:
        self.view = self.peer.mountpoint / f"view-{next(self.numbers)}"
        run("s3qlcp", self.peer.data, self.view)
        return self.view

    def taken(self) -> int:
        return self.peer.disk_bytes()

    def undo(self) -> None:
        """Leave it: the next one has another name."""


class _Layer(_Way):
    """A mount of overlayfs."""

    def __init__(self, peer: Overlay | FuseOverlay) -> None:
        super().__init__(peer.name, peer.place)
        self.peer = peer
        peer.clear()

    def make(self) -> Path:
        self.peer.mount()
        return self.peer.mountpoint

    def taken(self) -> int:
        return self.peer.disk_bytes()

    def undo(self) -> None:
        unmount(self.peer.mountpoint)
        self.peer.clear()


class _MountedView(_Way):
    """`dedupfs mount --view NEW`, the command's start-up included."""

    def __init__(self, peer: Dedupfs) -> None:
        super().__init__("dedupfs mount --view NEW", peer.place)
        self.peer = peer

    def make(self) -> Path:
        options = ("--snapshot", SNAPSHOT, "--view", f"new-{next(self.numbers)}")
        dedupfs("mount", self.peer.store, self.peer.mountpoint, *options)
        return self.peer.mountpoint

    def taken(self) -> int:
        return self.peer.disk_bytes()

    def undo(self) -> None:
        dedupfs("umount", self.peer.mountpoint)


class _Clone(_Way):
    """A directory of a running mount becomes a writable copy of a snapshot."""

    def __init__(self, name: str, peer: Dedupfs, top: Path, call: Callable[[Path], None]) -> None:
        super().__init__(name, top)
        self.peer = peer
        self.top = top
        self.call = call

    def make(self) -> Path:
        self.view = self.top / f"{self.call.__name__}-{next(self.numbers)}"
        self.call(self.view)
        return self.view

    def taken(self) -> int:
        return self.peer.disk_bytes()

    def undo(self) -> None:
        """Leave it: removing it is another question, and the next one has another name."""


def _clone_by_calls(view: Path) -> None:
    view.mkdir()
    os.setxattr(view, CLONE_XATTR, SNAPSHOT.encode())


def _clone_by_command(view: Path) -> None:
    script = 'mkdir "$1" && setfattr -n "$2" -v "$3" "$1"'
    run("sh", "-c", script, "sh", view, CLONE_XATTR, SNAPSHOT)


def _ways(ready: list[Peer], source: Path, stack: ExitStack) -> list[_Way]:
    ways: list[_Way] = [_Copy(source, "cp", "-a"), _Copy(source, "cp", "-al")]
    for peer in ready:
        match peer:
            case Overlay() | FuseOverlay():
                ways.append(_Layer(peer))
            case Xfs():
                ways.append(_ImageCopy(peer, "cp", "-a", "--reflink=always"))
            case Btrfs():
                ways.append(_Subvolume(peer, "btrfs", "subvolume", "snapshot"))
                ways.append(_ImageCopy(peer, "cp", "-a", "--reflink=always"))
            case S3ql():
                stack.enter_context(peer.mounted())
                ways.append(_S3qlCopy(peer))
            case Dedupfs():
                top = peer.place / "running"
                top.mkdir()
                dedupfs("mount", peer.store, top, "--view", "running")
                stack.callback(dedupfs, "umount", top)
                ways.append(_Clone("dedupfs", peer, top, _clone_by_calls))
                command = "dedupfs: mkdir && setfattr"
                ways.append(_Clone(command, peer, top, _clone_by_command))
                ways.append(_MountedView(peer))
    return ways


def _measure(harness: Harness, key: str, source: Path, note: str) -> None:
    started = time.monotonic()
    reasons: dict[str, str] = {}
    disk_key = f"{key}-disk"
    with harness.borrowed("peers") as place, ExitStack() as stack:
        kinds: tuple[type[Peer], ...] = (Dedupfs, Overlay, FuseOverlay, Xfs, Btrfs, S3ql)
        peers = [kind(place / kind.name.replace(" ", "-")) for kind in kinds]
        ready = stack.enter_context(taking_part(peers, source, reasons, harness.leave_out))
        ways = _ways(ready, source, stack)
        record = Record((key, disk_key), [way.name for way in ways])
        for number in harness.each_round(SECONDS[key], started):
            for way in rotated(ways, number):
                if number < way.rounds_max and not record.has_failed(key, way.name):
                    _turn(record, key, way, number)
    for name, why in reasons.items():
        record.fail(name, why)
    notes = {
        key: f"{note}; the first listing included; dedupfs: mkdir and setxattr in a running mount",
        disk_key: note,
    }
    for result in record.conclude(notes):
        harness.add(result)


def _turn(record: Record, key: str, way: _Way, number: int) -> None:
    os.sync()  # not what others left to be written back
    before = way.taken()

    def make() -> float:
        return seconds_of(lambda: os.listdir(way.make())) * 1000

    def grown() -> float:
        return float(max(0, way.taken() - before))

    done = record.turn(key, way.name, number, make)
    if done:
        record.turn(f"{key}-disk", way.name, number, grown)
    else:
        record.fail_as(key, f"{key}-disk", way.name)
    try:
        way.undo()
    except BenchError as error:
        if done:
            record.fail(way.name, reason(error))
