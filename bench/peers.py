"""The file systems that take part: how each is made ready, mounted over one directory, and cleaned.

A peer shows the same source. What it writes is isolated from the source (but natively, where it
is the source). Which questions are asked of it is the workloads' business.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.commands import (
    BenchError,
    dedupfs,
    disk_bytes,
    is_root,
    reason,
    remove,
    run,
    unmount,
    used_bytes,
)

SNAPSHOT = "source"


class Peer(ABC):
    """One way to see a directory. ``rounds_max``: slow ones do not take part in all rounds."""

    name: str
    writable = True
    rounds_max = 100
    programs: tuple[str, ...] = ()
    needs_root = False

    def __init__(self, place: Path) -> None:
        self.place = place
        self.mountpoint = place / "mnt"

    def missing(self) -> str:
        """Return why this peer cannot take part, or nothing."""
        absent = [program for program in self.programs if not shutil.which(program)]
        if absent:
            return f"{absent[0]} is not installed"
        return "needs root" if self.needs_root and not is_root() else ""

    def ready(self, source: Path) -> None:
        """Take the source in; not timed."""
        self.source = source
        self.mountpoint.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def mounted(self) -> AbstractContextManager[Path]:
        """Show the source freshly for the time of the context."""

    @abstractmethod
    def disk_bytes(self) -> int:
        """Return the disk space behind it, while mounted or not."""

    def close(self) -> None:
        remove(self.place)


class Native(Peer):
    """The directory itself: what the others are measured against."""

    name = "native"

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        yield self.source

    def disk_bytes(self) -> int:
        return disk_bytes(self.source)


class Dedupfs(Peer):
    """A new view of a snapshot."""

    name = "dedupfs"

    def ready(self, source: Path) -> None:
        super().ready(source)
        self.store = self.place / "store"
        dedupfs("init", self.store)
        dedupfs("import", self.store, source, SNAPSHOT)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        dedupfs("mount", self.store, self.mountpoint, "--snapshot", SNAPSHOT, "--ephemeral")
        try:
            yield self.mountpoint
        finally:
            dedupfs("umount", self.mountpoint)

    def disk_bytes(self) -> int:
        return disk_bytes(self.store)


class _Layers(Peer):
    """Something that mounts an upper directory over the source."""

    def ready(self, source: Path) -> None:
        super().ready(source)
        self.upper, self.work = self.place / "upper", self.place / "work"

    def options(self) -> str:
        return f"lowerdir={self.source},upperdir={self.upper},workdir={self.work}"

    def clear(self) -> None:
        for path in (self.upper, self.work):
            remove(path)
            path.mkdir()

    @abstractmethod
    def mount(self) -> None: ...

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        self.clear()
        self.mount()
        try:
            yield self.mountpoint
        finally:
            unmount(self.mountpoint)
            self.clear()

    def disk_bytes(self) -> int:
        return disk_bytes(self.upper) + disk_bytes(self.work)


class Overlay(_Layers):
    """The kernel's overlayfs."""

    name = "overlayfs"
    needs_root = True

    def mount(self) -> None:
        run("mount", "-t", "overlay", "overlay", "-o", self.options(), self.mountpoint)


class FuseOverlay(_Layers):
    name = "fuse-overlayfs"
    programs = ("fuse-overlayfs",)

    def mount(self) -> None:
        run("fuse-overlayfs", "-o", self.options(), self.mountpoint)


class Bindfs(Peer):
    """Only mirrors: what is written lands in the source."""

    name = "bindfs"
    programs = ("bindfs",)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        run("bindfs", self.source, self.mountpoint)
        try:
            yield self.mountpoint
        finally:
            unmount(self.mountpoint)

    def disk_bytes(self) -> int:
        return disk_bytes(self.source)


class _Image(Peer):
    """A file system in a sparse file. The loop device goes with the mount; past our page cache."""

    needs_root = True
    make: tuple[str, ...]
    image_bytes = 24 << 30

    def ready(self, source: Path) -> None:
        super().ready(source)
        image = self.place / "image"
        with image.open("wb") as file:
            file.truncate(self.image_bytes)
        run(*self.make, image)
        device = run("losetup", "--show", "--find", "--direct-io=on", image).strip()
        try:
            run("mount", device, self.mountpoint)
        finally:
            run("losetup", "--detach", device)  # in use: detached when it is unmounted
        self.data = self.mountpoint / "data"
        self.take_in(source)

    def take_in(self, source: Path) -> None:
        run("cp", "-a", source, self.data)
        os.sync()

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        yield self.data

    def disk_bytes(self) -> int:
        os.sync()
        return used_bytes(self.mountpoint)

    def close(self) -> None:
        try:
            if self.mountpoint.is_mount():
                unmount(self.mountpoint)
        finally:
            super().close()


class Xfs(_Image):
    """Copies share blocks by ``cp --reflink``."""

    name = "XFS reflink"
    programs = ("mkfs.xfs", "losetup")
    make = ("mkfs.xfs", "-q", "-m", "reflink=1")


class Btrfs(_Image):
    """The source is a subvolume, so that it can be snapshotted."""

    name = "btrfs"
    programs = ("mkfs.btrfs", "btrfs", "losetup")
    make = ("mkfs.btrfs", "-q")

    def take_in(self, source: Path) -> None:
        run("btrfs", "-q", "subvolume", "create", self.data)
        run("cp", "-a", f"{source}/.", self.data)
        os.sync()


class S3ql(Peer):
    """A store in a local directory, without encryption or compression, mounted while it is used."""

    name = "S3QL"
    programs = ("mkfs.s3ql", "mount.s3ql", "umount.s3ql", "s3qlcp")
    rounds_max = 2

    def ready(self, source: Path) -> None:
        super().ready(source)
        self.store, self.cache = self.place / "s3ql", self.place / "cache"
        self.store.mkdir()
        self.data = self.mountpoint / "data"
        run("mkfs.s3ql", "--cachedir", self.cache, "--plain", f"local://{self.store}")
        with self.mounted():
            run("cp", "-a", source, self.data)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        options = ("--cachedir", self.cache, "--log", self.place / "log", "--compress", "none")
        run("mount.s3ql", *options, f"local://{self.store}", self.mountpoint)
        try:
            yield self.data
        finally:
            run("umount.s3ql", self.mountpoint)

    def disk_bytes(self) -> int:
        """Count its cache too: what was written last is there before it is in the store."""
        return disk_bytes(self.store) + disk_bytes(self.cache)


@contextmanager
def taking_part(
    peers: list[Peer], source: Path, reasons: dict[str, str], names: frozenset[str] = frozenset()
) -> Iterator[list[Peer]]:
    """Make peers ready for the time of the context; who cannot take part leaves a reason."""
    ready: list[Peer] = []
    try:
        for peer in peers:
            if peer.name in names:
                reasons[peer.name] = "left out by --without"
                continue
            if why := peer.missing():
                reasons[peer.name] = why
                continue
            ready.append(peer)
            try:
                peer.ready(source)
            except (BenchError, OSError) as error:
                reasons[peer.name] = reason(error)
                ready.remove(peer)
                peer.close()
        yield ready
    finally:
        for peer in ready:
            peer.close()
