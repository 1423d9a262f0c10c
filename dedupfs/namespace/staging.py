"""Staging files: where a view keeps bytes that are not chunks yet, each at its file offset.

A staging file survives SIGKILL (its pages are the kernel's) and becomes a verbatim pack by a hard
link when it settles, so new data is written once. Knows no inode and no journal.
"""

import os
from collections import deque
from pathlib import Path

from dedupfs.store.disk import Disk, File
from dedupfs.store.syncing import Syncer

PREFIX = "staging."


def staging_path(directory: Path, number: int) -> Path:
    """Return the staging file ``number`` of the view whose files are in ``directory``."""
    return directory / f"{PREFIX}{number:08d}"


CACHED_BYTES_MAX = 32 << 20
"""How much of what the disk has begun with stays in the page cache until it is there."""


class _Sync:
    """What a sync of the file does.

    Apart from ``Staging``: bound to that it would make a cycle, and the blocks of a deleted file
    would wait for the garbage collector.
    """

    def __init__(self, disk: Disk, file: File, *, times_matter: bool) -> None:
        self._disk = disk
        self._file = file
        self.times_matter = times_matter

    def __call__(self) -> None:
        if self.times_matter:
            self.times_matter = False
            self._disk.fsync(self._file)
        else:
            self._disk.fdatasync(self._file)


class Staging:
    """One staging file, open for reading and writing; its descriptor goes with the last user."""

    def __init__(self, disk: Disk, directory: Path, number: int, *, found: bool = False) -> None:
        """Open staging file ``number``, making it when it does not exist.

        ``found``: another process may have written what is in it, and not synced it.
        """
        self._disk = disk
        self.number = number
        self.path = staging_path(directory, number)
        self.file: File = disk.open(self.path, write=True, create=True)
        self._begun: deque[tuple[int, int]] = deque()
        self._sync = _Sync(disk, self.file, times_matter=found)
        self.syncer = Syncer(self.path, self._sync)
        """If it has failed, settling writes the bytes anew."""
        if found:
            self.syncer.changed()
        self.promised = self.syncer.changes
        """Of how many changes nothing else tells, so that an fsync must make them durable."""

    @property
    def size(self) -> int:
        """Bytes of the file, holes included."""
        return self._disk.size(self.file)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the file takes on disk, or will."""
        return os.fstat(self.file.fd).st_blocks * 512

    @property
    def mtime_ns(self) -> int:
        """When its bytes changed last, as ``write`` and ``touch`` said."""
        return os.fstat(self.file.fd).st_mtime_ns

    def write(
        self, file_offset: int, data: bytes, mtime_ns: int, *, journaled: bool = False
    ) -> None:
        """Write all of ``data``; SIGKILL loses neither it nor when it was written (0: that is told
        elsewhere).

        ``journaled``: the journal has all of it, too.

        Raises:
            StoreFullError, StoreError: some of it may have been written; nothing was acknowledged.
        """
        self._disk.pwrite(self.file, [data], file_offset)
        self._changed(mtime_ns, journaled=journaled)

    def _changed(self, mtime_ns: int, *, journaled: bool) -> None:
        if mtime_ns:
            self.touch(mtime_ns)
        else:
            self.syncer.changed()
        if not journaled:
            self.promised = self.syncer.changes

    def touch(self, mtime_ns: int) -> None:
        """Set the time of the last change."""
        self._disk.touch(self.file, mtime_ns)
        self._sync.times_matter = True
        self.syncer.changed()

    def read(self, start: int, stop: int) -> bytes:
        """Return ``[start, stop)``; zeros where nothing was written, also past the end."""
        data = self._disk.pread(self.file, stop - start, start)
        return data + bytes(stop - start - len(data)) if len(data) < stop - start else data

    def next_data(self, start: int, stop: int) -> int:
        """Return the first offset of ``[start, stop)`` that may hold data; ``stop`` for none."""
        found = self._disk.next_data(self.file, start)
        return stop if found is None else min(found, stop)

    def truncate(self, size: int, mtime_ns: int) -> None:
        """Cut off or extend with zeros; ``mtime_ns`` as for ``write``."""
        self._disk.truncate(self.file, size)
        self._changed(mtime_ns, journaled=False)

    def punch(self, start: int, stop: int) -> None:
        """Give the blocks inside ``[start, stop)`` back; nothing reads them any more."""
        self._disk.punch(self.file, start, stop)

    def write_out(self, start: int, stop: int) -> None:
        """Let the disk begin with ``[start, stop)``, so that a sync finds less to do.

        What it began with long before is dropped from the page cache: the mount's has it, and
        pages that nobody had before may cost a virtual machine more than all that is done with
        them. One thread.
        """
        self._disk.write_out(self.file, start, stop)
        self._begun.append((start, stop))
        while len(self._begun) > 1 and stop - self._begun[0][0] > CACHED_BYTES_MAX:
            self._disk.drop_cached(self.file, *self._begun.popleft())

    def sync(self) -> None:
        """Make the bytes and their time durable.

        Raises:
            StoreFullError, StoreError: they are not, now or since an earlier sync failed.
        """
        self.syncer.sync(self.syncer.changes)

    def remove(self) -> None:
        """Delete the name (a verbatim pack made of the file stays)."""
        self._disk.unlink(self.path)
