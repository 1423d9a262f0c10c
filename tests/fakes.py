"""Disks that fail: at the n-th call, for good, or as a power cut does.

``FaultyDisk`` wraps another disk. It counts calls that change something, and can raise at the n-th
one or stop for good there ("crash"). ``lose_unsynced`` then takes back bytes and names that were
not synced: all of them, newest first, or of each file and directory as many as chance will have it,
so that one file's newest bytes are there and another's are not.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dedupfs.errors import StoreError, StoreFullError
from dedupfs.store.disk import Buffer, Disk, File
from dedupfs.store.realdisk import RealDisk


class Crashed(BaseException):  # not an Exception: no handler of the code under test may catch it
    """The machine stopped here."""


def bring_back(path: Path) -> Callable[[], None]:
    """Return what undoes the removal of a name, with the bytes that the file has by then."""
    file = File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
    mode = os.fstat(file.fd).st_mode & 0o7777

    def undo() -> None:
        if path.exists():
            return
        if os.fstat(file.fd).st_nlink:
            # With a directory to start from, needless though it is, Python follows the link.
            os.link(f"/proc/self/fd/{file.fd}", path, src_dir_fd=file.fd, follow_symlinks=True)
            return
        path.write_bytes(os.pread(file.fd, os.fstat(file.fd).st_size, 0))
        path.chmod(mode)

    return undo


def move_back(source: Path, target: Path) -> None:
    """Undo a rename, if nothing else has been undone of it."""
    if target.exists() and not source.exists():
        target.rename(source)


@dataclass
class _Undo:
    """How to take one change back.

    ``inode`` or ``directory`` says which sync makes it stay; of what it did to a file fdatasync
    leaves the times open, and ``times`` takes those back.
    """

    undo: Callable[[], None]
    inode: int | None = None
    directory: Path | None = None
    times: Callable[[], None] | None = None

    @property
    def key(self) -> object:
        return self.inode if self.directory is None else self.directory


@dataclass
class FaultyDisk:
    """A disk with a script of faults.

    Attributes:
        crash_at: stop for good at the call with this number (the first is 1).
        fail_at: calls with these numbers raise ``fault``, once each.
        full: every call that needs space raises StoreFullError.
        holes: False: the file system cannot punch.
        calls: how many changing calls were made.
    """

    inner: Disk = field(default_factory=RealDisk)
    crash_at: int | None = None
    fail_at: frozenset[int] = frozenset()
    fault: type[StoreError] = StoreError
    full: bool = False
    holes: bool = True
    calls: int = 0
    log: list[str] = field(default_factory=list)
    _crashed: bool = False
    _undo: list[_Undo] = field(default_factory=list)
    _files: list[File] = field(default_factory=list)

    # --- faults ------------------------------------------------------------------------------

    def _step(self, what: str, path: Path, *, needs_space: bool = False) -> None:
        if self._crashed:
            raise Crashed
        self.calls += 1
        self.log.append(f"{self.calls} {what} {path.name}")
        if self.calls == self.crash_at:
            self._crashed = True
            raise Crashed
        if self.calls in self.fail_at:
            raise self.fault(f"{what} {path}: injected")
        if needs_space and self.full:
            raise StoreFullError(f"{what} {path}: injected, no space")

    def crash(self) -> None:
        """Stop for good now: locks and descriptors are gone as those of a dead process."""
        self._crashed = True
        for file in self._files:
            file.close()

    def lose_unsynced(self, rng: random.Random | None = None) -> None:
        """Take back everything that no sync made durable.

        With ``rng``, the first changes of each file and of each directory stay, a random number.
        """
        kept: dict[object, int] = {}
        if rng is not None:
            keys = [change.key for change in self._undo]
            kept = {key: rng.randrange(keys.count(key) + 1) for key in dict.fromkeys(keys)}
        lost = []
        for change in self._undo:
            if kept.get(change.key, 0):
                kept[change.key] -= 1
            else:
                lost.append(change)
        # Bytes first: a name that comes back does so with those that its file has by then.
        lost.reverse()
        lost.sort(key=lambda change: change.inode is None)
        for change in lost:
            change.undo()
        self._undo.clear()

    def _keep(self, *, inode: int | None = None, directory: Path | None = None) -> None:
        self._undo = [
            change
            for change in self._undo
            if not (inode is not None and change.inode == inode)
            and not (directory is not None and change.directory == directory)
        ]

    # --- changes -----------------------------------------------------------------------------

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> File:
        if create and not path.exists():
            self._step("create", path, needs_space=True)
            self._undo.append(_Undo(lambda: path.unlink(missing_ok=True), directory=path.parent))
        elif self._crashed:
            raise Crashed
        file = self.inner.open(path, write=write, create=create)
        self._files.append(file)
        return file

    def pwrite(self, file: File, buffers: Sequence[Buffer], offset: int) -> None:
        self._step("write", file.path, needs_space=True)
        length = sum(len(buffer) for buffer in buffers)
        self._remember_bytes(file, offset, length)
        self.inner.pwrite(file, buffers, offset)

    def _remember_bytes(self, file: File, offset: int, length: int) -> None:
        before = os.fstat(file.fd)
        old = os.pread(file.fd, length, offset)
        again = self._opened_again(file)

        def undo_times() -> None:
            os.utime(again.fd, ns=(before.st_atime_ns, before.st_mtime_ns))

        def undo() -> None:
            os.pwrite(again.fd, old, offset)
            os.ftruncate(again.fd, before.st_size)
            undo_times()

        self._undo.append(_Undo(undo, inode=before.st_ino, times=undo_times))

    @staticmethod
    def _opened_again(file: File) -> File:
        """Reach the file whatever its name is by then; unlike a dup this does not keep its lock."""
        mode = os.fstat(file.fd).st_mode & 0o7777
        os.fchmod(file.fd, 0o600)  # a sealed pack is read-only to its owner too, but for root
        again = File(os.open(f"/proc/self/fd/{file.fd}", os.O_RDWR | os.O_CLOEXEC), file.path)
        os.fchmod(file.fd, mode)
        return again

    def truncate(self, file: File, length: int) -> None:
        self._step("truncate", file.path)
        size = os.fstat(file.fd).st_size
        if length != size:
            self._remember_bytes(file, length, max(0, size - length))
        self.inner.truncate(file, length)

    def punch(self, file: File, start: int, stop: int) -> bool:
        self._step("punch", file.path)
        if not self.holes:
            return False
        return self.inner.punch(file, start, stop)  # never taken back: that is the worse case

    def fsync(self, file: File) -> None:
        self._step("fsync", file.path)
        self.inner.fsync(file)
        self._keep(inode=os.fstat(file.fd).st_ino)

    def fdatasync(self, file: File) -> None:
        self._step("fdatasync", file.path)
        self.inner.fdatasync(file)
        self._keep_all_but_times(os.fstat(file.fd).st_ino)

    def _keep_all_but_times(self, inode: int) -> None:
        for position, change in enumerate(self._undo):
            if change.inode == inode and change.times is not None:
                self._undo[position] = _Undo(change.times, inode=inode, times=change.times)

    def fsync_dir(self, path: Path) -> None:
        self._step("fsync_dir", path)
        self.inner.fsync_dir(path)
        self._keep(directory=path)

    def chmod(self, path: Path, mode: int) -> None:
        self._step("chmod", path)
        self.inner.chmod(path, mode)

    def mkdir(self, path: Path) -> None:
        self._step("mkdir", path, needs_space=True)
        if not path.exists():
            gone = partial(shutil.rmtree, path, ignore_errors=True)
            self._undo.append(_Undo(gone, directory=path.parent))
        self.inner.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", target)
        if target.exists():
            self._undo.append(_Undo(bring_back(target), directory=target.parent))
        self.inner.rename(source, target)
        self._undo.append(_Undo(partial(move_back, source, target), directory=target.parent))

    def link(self, source: Path, target: Path) -> None:
        self._step("link", target, needs_space=True)
        self.inner.link(source, target)
        self._undo.append(_Undo(lambda: target.unlink(missing_ok=True), directory=target.parent))

    def unlink(self, path: Path) -> None:
        self._step("unlink", path)
        if path.exists():
            self._undo.append(_Undo(bring_back(path), directory=path.parent))
        self.inner.unlink(path)

    # --- the rest ----------------------------------------------------------------------------

    def pread(self, file: File, length: int, offset: int) -> bytes:
        self._alive()
        return self.inner.pread(file, length, offset)

    def pread_once(self, file: File, length: int, offset: int) -> bytes | bytearray:
        self._alive()
        return self.inner.pread_once(file, length, offset)

    def preadv(self, file: File, buffers: Sequence[memoryview], offset: int) -> int:
        self._alive()
        return self.inner.preadv(file, buffers, offset)

    def will_need(self, file: File, start: int, stop: int) -> None:
        self.inner.will_need(file, start, stop)

    def write_out(self, file: File, start: int, stop: int) -> None:
        self.inner.write_out(file, start, stop)

    def drop_cached(self, file: File, start: int, stop: int) -> None:
        self.inner.drop_cached(file, start, stop)

    def preadv_cached(self, file: File, buffers: Sequence[memoryview], offset: int) -> bool:
        self._alive()
        return self.inner.preadv_cached(file, buffers, offset)

    def touch(self, file: File, mtime_ns: int) -> None:
        self._alive()
        before = os.fstat(file.fd)
        # Right behind a write it is taken back with that: nothing comes in between the two.
        if not any(change.inode == before.st_ino for change in self._undo):
            again = self._opened_again(file)

            def undo() -> None:
                os.utime(again.fd, ns=(before.st_atime_ns, before.st_mtime_ns))

            self._undo.append(_Undo(undo, inode=before.st_ino, times=undo))
        self.inner.touch(file, mtime_ns)

    def size(self, file: File) -> int:
        self._alive()
        return self.inner.size(file)

    def is_solid(self, file: File, start: int, stop: int) -> bool:
        self._alive()
        return self.inner.is_solid(file, start, stop)

    def clone(self, source: File, start: int, stop: int, target: File, offset: int) -> bool:
        self._alive()
        return False  # what is not written could not be taken back

    def next_data(self, file: File, start: int) -> int | None:
        self._alive()
        return self.inner.next_data(file, start)

    def data_bytes(self, file: File, start: int, stop: int) -> int:
        self._alive()
        return self.inner.data_bytes(file, start, stop)

    def reserve(self, path: Path, spare_bytes: int) -> bool:
        self._alive()
        return not self.full and self.inner.reserve(path, spare_bytes)

    def link_count(self, path: Path) -> int:
        self._alive()
        return self.inner.link_count(path)

    def disk_bytes(self, path: Path) -> int:
        self._alive()
        return self.inner.disk_bytes(path)

    def listdir(self, path: Path) -> list[str]:
        self._alive()
        return self.inner.listdir(path)

    def lock(self, file: File, *, wait: bool = False) -> bool:
        self._alive()
        return self.inner.lock(file, wait=wait)

    def _alive(self) -> None:
        if self._crashed:
            raise Crashed
