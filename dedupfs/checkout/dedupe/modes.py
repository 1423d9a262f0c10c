"""The modes of files that were adopted as they are, noted before the store takes them.

An inode that becomes a pack loses its write permissions before the snapshot that remembers them
exists. A note in the store's run/ bridges that: it is durable before the mode is changed and goes
when the snapshot is there, and the next run finds what a crash left. Knows no packs.
"""

import json
import os
import stat
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dedupfs.checkout.dedupe.below import opened_below
from dedupfs.errors import StoreError
from dedupfs.model import RecordKind
from dedupfs.store import Store
from dedupfs.transfer.adoption import adopted_mode
from dedupfs.transfer.scan import FileKey


@dataclass(frozen=True, slots=True)
class Noted:
    """What a file's mode was."""

    inode: int
    mode: int


class ModeNotes:
    """The notes about one directory."""

    def __init__(self, store: Store, directory: Path) -> None:
        key = store.digest(RecordKind.CHUNK, os.fsencode(directory)).hex()
        self._store = store
        self._path = store.layout.run / f"dedupe-{key}.modes"
        self._length = 0

    def read(self) -> dict[bytes, Noted]:
        """Return the notes that an interrupted run left, by path."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise StoreError(f"cannot read {self._path}: {exc.strerror}") from exc
        found = {}
        for line in text.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # torn: its file was not touched yet
            path, inode, mode = json.loads(line)
            found[os.fsencode(path)] = Noted(inode, mode)
            self._length += len(line)
        return found

    def add(self, path: bytes, status: os.stat_result) -> None:
        """Note a file's mode, durably."""
        line = json.dumps([os.fsdecode(path), status.st_ino, status.st_mode]).encode() + b"\n"
        disk = self._store.disk
        is_new = not disk.link_count(self._path)
        file = disk.open(self._path, create=True)
        try:
            disk.pwrite(file, [line], self._length)
            disk.fsync(file)
        finally:
            file.close()
        self._length += len(line)
        if is_new:
            disk.fsync_dir(self._path.parent)

    def clear(self) -> None:
        """Forget all notes: the snapshot knows better, or the modes are as they were."""
        self._store.disk.unlink(self._path)
        self._length = 0


def give_modes_back(top_fd: int, notes: ModeNotes, packs: Container[FileKey]) -> dict[FileKey, int]:
    """Undo what an interrupted run did to modes; return those of files that are packs by now."""
    half_done: dict[FileKey, int] = {}
    for path, noted in notes.read().items():
        with suppress(OSError), opened_below(top_fd, path) as fd:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            if status.st_ino != noted.inode:
                continue
            if key in packs:
                half_done[key] = noted.mode
            elif stat.S_IMODE(status.st_mode) == adopted_mode(noted.mode):
                os.fchmod(fd, stat.S_IMODE(noted.mode))
    return half_done
